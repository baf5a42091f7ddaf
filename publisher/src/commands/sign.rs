//! `hoist sign`: another's signature under deployments that were prepared, once they have been looked at.

use camino::Utf8PathBuf;
use clap::Args;
use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, Channel, DeploymentParts, Draft, Goal, Held, PublicKey, RollbackTo, StorePath,
    Target,
};
use serde::Serialize;

use super::asking::{agrees, somebody_is_there};
use super::status::READERS;
use super::{CommandError, look, unless_interrupted};
use crate::console::listing::Listing;
use crate::console::print;
use crate::console::table::{Page, Tone};
use crate::link::Link;
use crate::outcome::Exit;
use crate::plan::PlanError;
use crate::report::SCHEMA;
use crate::settings::{Flags, Keys, Settings, SigningFlags, process_environment};
use crate::signed_file::SignedFile;
use crate::snapshot::Snapshot;

pub(crate) const SIGN_EXAMPLES: &str = "\
Examples:
  hoist deploy spec.json --prepare release.json     CI signs, and publishes nothing
  hoist sign release.json                           a second person sees what it is, and signs
  hoist deploy --signed release.json                publishes what has enough signatures; needs no signing key

Machines ask for two signatures with `required_signatures = 2` in agent.toml and broker.toml. What was prepared before
something newer was deployed is not published over that.";

/// `hoist sign`
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The file that `--prepare` of `hoist deploy` and the other commands wrote; the signature is added in it
    pub file: Utf8PathBuf,
    /// Sign without being asked
    #[arg(long)]
    pub yes: bool,
    /// Only show what is in the file, and who has signed it
    #[arg(long, conflicts_with = "yes")]
    pub show: bool,
    /// Do not ask the broker what the machines run now
    #[arg(long)]
    pub offline: bool,
    /// Write what is in the file as JSON, every field of it
    #[arg(long)]
    pub json: bool,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]; then the file is as it was.
pub async fn run(args: &SignArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let mut file = SignedFile::read(&args.file)?;
    let keys = match args.show {
        true => settings.trusted(&args.signing)?,
        false => settings.keys(&args.signing)?,
    };
    let snapshot = match args.offline {
        true => Snapshot::new(file.fleet.clone()),
        false => match unless_interrupted(machines(&settings, &file)).await? {
            Some(snapshot) => snapshot,
            None => return Ok(Exit::Interrupted),
        },
    };
    show(args, &file, &keys, &snapshot)?;
    if args.show {
        return Ok(Exit::Ok);
    }
    let expired = file
        .drafts
        .iter()
        .find(|draft| draft.deployment().expires() <= now());
    if let Some(draft) = expired {
        let agent = draft.deployment().machine().agent.clone();
        return Err(CommandError::PreparedExpired(agent, args.file.clone()));
    }
    let names: Vec<String> = keys
        .signing
        .iter()
        .map(|key| key.name().to_string())
        .collect();
    let names = names.join(", ");
    if !args.yes {
        if !somebody_is_there() {
            return Err(CommandError::NobodyToAsk);
        }
        let question = match file.drafts.len() {
            1 => format!("Sign this deployment with {names}?"),
            count => format!("Sign these {count} deployments with {names}?"),
        };
        let agreed = async { agrees(&question).await.map_err(CommandError::Answer) };
        match unless_interrupted(agreed).await? {
            Some(true) => {}
            Some(false) => {
                say("nothing was signed");
                return Ok(Exit::Error);
            }
            None => return Ok(Exit::Interrupted),
        }
    }
    let sign = async {
        for draft in &mut file.drafts {
            for signer in &keys.signing {
                let signed = signer.sign(draft).await;
                signed.map_err(|error| {
                    CommandError::Signer(PlanError::Signer(signer.name().clone(), error))
                })?;
            }
        }
        Ok::<(), CommandError>(())
    };
    if unless_interrupted(sign).await?.is_none() {
        return Ok(Exit::Interrupted);
    }
    file.write(&args.file)?;
    let lacking = file.lacking(&keys.trusted);
    let then = match lacking.first() {
        None => format!("`hoist deploy --signed {}` publishes them", args.file),
        Some((_, error)) => format!("not enough yet: {error}"),
    };
    say(&format!(
        "signed by {names}: {} in `{}`; {then}",
        match file.drafts.len() {
            1 => "1 deployment".to_owned(),
            count => format!("{count} deployments"),
        },
        args.file
    ));
    Ok(Exit::Ok)
}

/// What the machines of the file say of themselves.
async fn machines(settings: &Settings<'_>, file: &SignedFile) -> Result<Snapshot, CommandError> {
    let caller = settings.caller("look at what machines run (or give --offline)", &READERS)?;
    if caller.fleet != file.fleet {
        return Err(CommandError::OtherFleet {
            file: file.fleet.clone(),
            certificate: caller.fleet,
        });
    }
    let agents: Vec<AgentName> = (file.drafts.iter())
        .map(|draft| draft.deployment().machine().agent.clone())
        .collect();
    let mut link = Link::open(&caller).await?;
    let snapshot = look(&mut link, &caller.fleet, &agents, &[Channel::Status]).await?;
    link.close().await;
    Ok(snapshot)
}

/// What is to be signed for one machine.
#[derive(Serialize)]
struct Row<'a> {
    agent: &'a AgentName,
    current_path: Option<&'a StorePath>,
    /// The names, as they are configured here, of the trusted keys that have signed it.
    signed_by: Vec<String>,
    deployment: &'a DeploymentParts,
}

fn show(
    args: &SignArgs,
    file: &SignedFile,
    keys: &Keys,
    snapshot: &Snapshot,
) -> Result<(), CommandError> {
    let rows: Vec<Row<'_>> = (file.drafts.iter())
        .map(|draft| row(draft, keys.trusted.keys(), snapshot))
        .collect();
    let text = if args.json {
        let document = serde_json::json!({
            "schema": SCHEMA,
            "command": "sign",
            "fleet": file.fleet,
            "required_signatures": keys.required,
            "machines": rows,
        });
        serde_json::to_string_pretty(&document).expect("JSON can always be written") + "\n"
    } else {
        listing(&rows, Page::stdout())
    };
    print(&text).map_err(CommandError::Output)
}

fn row<'a>(draft: &'a Draft, trusted: &[PublicKey], snapshot: &'a Snapshot) -> Row<'a> {
    let parts = draft.deployment().parts();
    let agent = &parts.machine.agent;
    let status = snapshot
        .machine(agent)
        .and_then(|seen| seen.status.as_ref());
    let signed = trusted.iter().filter(|key| draft.is_signed_by(key));
    Row {
        agent,
        current_path: status.and_then(|status| status.current_path.as_ref()),
        signed_by: signed.map(|key| key.name().to_string()).collect(),
        deployment: parts,
    }
}

/// All of it, however narrow the terminal is: whoever signs has to see what.
fn listing(rows: &[Row<'_>], page: Page) -> String {
    let listings = rows.iter().map(|row| {
        let mut lines = Listing::of(page, row.agent.as_str());
        let runs = row.current_path.map_or("not known", |path| path.as_str());
        lines.add("runs", runs);
        lines.add("would run", &goal(&row.deployment.target.goal));
        for extra in extras(row.deployment) {
            lines.add("besides", &extra);
        }
        match row.signed_by.is_empty() {
            true => lines.add_as("signed by", "nobody known here", Tone::Bad),
            false => lines.add_as("signed by", &row.signed_by.join(", "), Tone::Good),
        }
        lines.into_text()
    });
    listings.collect::<Vec<String>>().join("\n")
}

fn goal(goal: &Goal) -> String {
    match goal {
        Goal::Closure(path) => path.to_string(),
        Goal::Rollback(RollbackTo::Deployment(id)) => format!("what deployment {id} brought"),
        Goal::Rollback(RollbackTo::Before(id)) => format!("what ran before deployment {id}"),
        Goal::Stay => "what it runs".to_owned(),
    }
}

/// Everything else that is not as it is by default.
fn extras(parts: &DeploymentParts) -> Vec<String> {
    let target = &parts.target;
    let default = Target::new(target.goal.clone());
    let mut extras = Vec::new();
    let mut add = |is: bool, text: String| extras.extend(is.then_some(text));
    add(target.action != default.action, target.action.to_string());
    add(target.kind != default.kind, format!("as {}", target.kind));
    if let Some(profile) = &target.profile {
        add(true, format!("profile {profile}"));
    }
    if let Some(specialisation) = &target.specialisation {
        add(true, format!("specialisation {specialisation}"));
    }
    let checks = target.health_checks.len();
    add(checks > 0, format!("{checks} health checks"));
    add(
        target.units_failed != default.units_failed,
        "may have failed units".to_owned(),
    );
    add(
        target.allow_no_agent,
        "MAY COME WITHOUT AN AGENT".to_owned(),
    );
    add(target.closure_digest.is_some(), "with a digest".to_owned());
    for cache in &target.substituters {
        add(true, format!("from the cache {cache}"));
    }
    for key in &target.substituter_keys {
        add(true, format!("TRUSTS the cache key {key}"));
    }
    match parts.held {
        Held::No => {}
        Held::UntilReleased => add(true, "held".to_owned()),
        Held::Until(until) => add(true, format!("held until {until}")),
    }
    if let Some(id) = parts.cancels {
        add(true, format!("cancels {id}"));
    }
    if parts.order.epoch > 0 {
        add(true, format!("epoch {}", parts.order.epoch));
    }
    add(true, format!("valid until {}", parts.expires));
    extras
}

fn say(text: &str) {
    crate::console::Console::new(false).note(text);
}
