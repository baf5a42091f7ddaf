//! `hoist-agent doctor`: what keeps this machine from being deployed, and what to do about it.
//!
//! Everything is tried as the agent would do it, within seconds, and nothing is changed.

mod broker;
mod machine;
mod nix;
mod source;

use camino::Utf8Path;
use hoist_certs::Role;
use hoist_certs::doctor::{Finding, Findings, Verdict, Wanted};
use hoist_certs::program::{now, report};

use super::exit::Exit;
use super::show::{Screen, Tone, print};
use crate::config::{CONFIG, Place, PlaceFlags, Settings, SettingsError};
use crate::control::{Answer, Ask, Client, ClientError, Connection};

/// The arguments.
#[derive(clap::Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// Print a JSON array of objects with `check`, `verdict` (ok, note or wrong), `message` and `advice`
    #[arg(long)]
    json: bool,
}

/// The agent as the socket shows it.
enum Agent {
    Runs(Box<Connection>),
    Stopped,
    /// It cannot be asked, for this reason.
    Silent(String),
}

/// Runs the command: [`Exit::Ok`] when nothing is wrong.
///
/// # Errors
/// The findings cannot be printed.
pub(super) async fn run(args: DoctorArgs) -> anyhow::Result<Exit> {
    let findings = look(&args.place).await;
    let text = match args.json {
        true => findings.to_json() + "\n",
        false => findings.to_text(paint),
    };
    print(&text)?;
    Ok(match findings.are_good() {
        true => Exit::Ok,
        false => Exit::Error,
    })
}

fn paint(verdict: Verdict, word: &str) -> String {
    let tone = match verdict {
        Verdict::Ok => Tone::Good,
        Verdict::Note => Tone::Mild,
        Verdict::Wrong => Tone::Bad,
    };
    Screen::stdout().paint(tone, word)
}

/// Whose credentials an agent needs.
const OURS: Wanted = Wanted {
    roles: &[Role::Agent],
    advice: "an agent needs its own: `hoist-certs issue agent NAME`",
};

async fn look(flags: &PlaceFlags) -> Findings {
    let mut findings = Findings::default();
    let place = flags.place();
    if !is_root() && has_none(&place) && Utf8Path::new(CONFIG).exists() {
        findings.add(configured_for_root());
        return findings;
    }
    let place = match place {
        Ok(place) => place,
        Err(error) => {
            findings.add(not_configured(error));
            let (nix, caches) = nix::look().await;
            findings.extend(nix);
            findings.extend(caches);
            return findings;
        }
    };
    let agent = ask(&place).await;
    let settings = flags.settings();
    findings.add(configured(&place, &settings));
    let settings = settings.ok();
    findings.add(running(&agent));
    if let Some(credentials) = &place.credentials {
        let credentials = source::behind(credentials);
        findings.extend(hoist_certs::doctor::credentials(&credentials, OURS, now()));
    }
    let (clock, connection, (nix, caches)) = tokio::join!(
        machine::clock(),
        broker::look(&agent, settings.as_ref()),
        nix::look()
    );
    findings.add(clock);
    findings.extend(connection);
    findings.extend(nix);
    findings.extend(caches);
    findings.extend(machine::look(&place, !matches!(agent, Agent::Stopped)));
    findings
}

async fn ask(place: &Place) -> Agent {
    match Client::new(&place.state).ask(Ask::Status).await {
        Ok(Answer::Status {
            connection: Some(connection),
            ..
        }) => Agent::Runs(Box::new(connection)),
        Ok(Answer::Status { .. }) => Agent::Stopped,
        Ok(_) => Agent::Silent("it answers something else than what was asked".to_owned()),
        Err(ClientError::NoAgent { .. }) => match crate::ledger::is_locked(&place.state) {
            Ok(true) => Agent::Silent("it has no control socket, or just starts".to_owned()),
            // What cannot be told here is found wrong with the state folder.
            Ok(false) | Err(_) => Agent::Stopped,
        },
        Err(error) => Agent::Silent(crate::job::chain(&error)),
    }
}

fn running(agent: &Agent) -> Finding {
    match agent {
        Agent::Runs(_) => Finding::ok("agent", "it runs and answers"),
        Agent::Stopped => Finding::wrong(
            "agent",
            "it does not run, so nothing is deployed to this machine",
        )
        .advice(format!(
            "start it: `systemctl {}start hoist-agent`, or `hoist-agent run`",
            if is_root() { "" } else { "--user " }
        )),
        Agent::Silent(why) => {
            Finding::wrong("agent", format!("it runs and cannot be asked: {why}"))
                .advice("look at its log, and restart it")
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this user has no configuration: no file, or no place where one could be.
const fn has_none(place: &Result<Place, SettingsError>) -> bool {
    matches!(
        place,
        Ok(Place { config: None, .. }) | Err(SettingsError::NoHome { .. })
    )
}

/// It is not this user whose agent deploys the machine.
fn configured_for_root() -> Finding {
    Finding::wrong(
        "configuration",
        format!("this user has none; {CONFIG} is that of root's agent"),
    )
    .advice("run this as root: `sudo hoist-agent doctor`")
}

fn not_configured(error: SettingsError) -> Finding {
    Finding::wrong("configuration", report(&error.into()))
        .advice("`hoist-agent run --help` says what belongs into it")
}

/// What is wrong with certificates is found out one by one.
fn configured(place: &Place, settings: &Result<Settings, SettingsError>) -> Finding {
    let file = match &place.config {
        Some(path) => path.to_string(),
        None => "there is no file, and everything has its default".to_owned(),
    };
    match settings {
        Ok(_) | Err(SettingsError::Tls(_) | SettingsError::Role { .. }) => {
            Finding::ok("configuration", file)
        }
        Err(error) => Finding::wrong(
            "configuration",
            format!("{file}: {}", crate::job::chain(error)),
        )
        .advice("`hoist-agent run --help` says what belongs into it"),
    }
}
