//! `hoist wait`: follows what is retained for machines until it has ended, whoever published it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use hoist_certs::Role;
use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, Channel, Deployment, DeploymentId, FleetName, Machine, TrustedKeys, VerifyError,
};
use uuid::Uuid;

use super::choosing::check_names;
use super::ending::Ending;
use super::{CommandError, look, unless_interrupted};
use crate::ci::Log;
use crate::console::Console;
use crate::drive::{Driver, Interrupts};
use crate::duration;
use crate::flags::SelectionArgs;
use crate::follow::{Run, Wait};
use crate::id_end::IdEnd;
use crate::link::{Link, filters};
use crate::outcome::Exit;
use crate::plan::Signed;
use crate::report::{Closure, MachineReport, Report};
use crate::select::{Selection, Selector};
use crate::settings::{Caller, Flags, Settings, SigningFlags, process_environment};
use crate::snapshot::Snapshot;

pub(crate) const WAIT_EXAMPLES: &str = "\
Examples:
  hoist deploy spec.json --async            publish, and be done; it says the rollout's id
  hoist wait --rollout 9b30771b             until all of its machines have ended
  hoist wait '@web' --timeout 10m           whatever is deployed to these
  hoist wait web-1 web-2 --wait all --json

Deployments are believed only when a known key has signed them: --signing-key or --trusted-key names it.";

/// `hoist wait`
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The machines: names, or a selection such as 'web-*' or '@web&!@canary'; the whole fleet when nothing is given
    #[arg(value_name = "SELECTION")]
    pub agents: Vec<Selector>,
    /// Only machines of which something holds
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Only the deployment with this id, or with an id that ends in these 8 digits
    #[arg(long, value_name = "ID", conflicts_with = "rollout")]
    pub id: Option<IdEnd>,
    /// Only the deployments of this rollout, by its id or the last 8 digits of it: those of its batches that have come
    #[arg(long, value_name = "ID")]
    pub rollout: Option<IdEnd>,
    /// Which machines are waited for
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHICH",
        help_heading = "Following"
    )]
    pub wait: Whom,
    /// How long to wait at most; machines go on by themselves
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "30m", help_heading = "Following")]
    pub timeout: Duration,
    /// Write one JSON document at the end, that of `hoist deploy --json`, and nothing else to stdout
    #[arg(long, help_heading = "Following")]
    pub json: bool,
    /// Do not show progress or the machines' log lines
    #[arg(short, long, help_heading = "Following")]
    pub quiet: bool,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// Which machines are waited for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Whom {
    /// Those that are online and not held; the others get it when they return, or are released
    #[default]
    Online,
    /// All
    All,
}

/// Which deployments are meant.
#[derive(Clone, Copy, Debug)]
enum Which {
    Any,
    Id(IdEnd),
    Rollout(IdEnd),
}

impl Which {
    fn fits(&self, deployment: &Deployment) -> bool {
        match self {
            Self::Any => true,
            Self::Id(id) => id.fits(deployment.id()),
            Self::Rollout(id) => {
                let rollout = deployment.parts().provenance.rollout;
                rollout.is_some_and(|rollout| id.fits(DeploymentId::new(rollout.id)))
            }
        }
    }
}

/// What is followed.
#[derive(Default)]
struct Followed {
    signed: Vec<Signed>,
    closures: BTreeMap<AgentName, Closure>,
    /// Machines for which something is retained that no known key has signed.
    unknown: Vec<(AgentName, VerifyError)>,
    /// The rollout of each deployment, where it is part of one: how many of its batches there are.
    batches: BTreeMap<Uuid, (u16, u16)>,
}

/// Runs the command.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &WaitArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let caller = settings.caller("read what is deployed", &[Role::Publisher, Role::Admin])?;
    let trusted = settings.trusted(&args.signing)?.trusted;
    let begin = Instant::now();
    let mut console = Console::new(args.quiet);
    let log = Log::begin(&process_environment);
    let begun = unless_interrupted(begin_with(args, &caller, &trusted)).await?;
    let Some((mut link, snapshot, followed)) = begun else {
        return Ok(Exit::Interrupted);
    };
    let warnings = said(args, &followed, &console);
    let agents: Vec<AgentName> = followed
        .signed
        .iter()
        .map(|signed| signed.machine.agent.clone())
        .collect();
    let wait = match args.wait {
        Whom::Online => Wait::Online,
        Whom::All => Wait::All,
    };
    let mut run = Run::picked_up(followed.signed, trusted, wait);
    let run_began = Instant::now();
    for agent in &agents {
        if let Some(seen) = snapshot.machine(agent) {
            run.knows(agent, seen);
        }
    }
    let filters = filters(&caller.fleet, &agents, channels(args));
    let mut interrupts = Interrupts::listen().map_err(CommandError::Runtime)?;
    let mut driver = Driver::new(
        &mut link,
        &mut console,
        &caller.fleet,
        &filters,
        args.timeout,
    );
    let stop = driver
        .drive(&mut run, None, run_began, &mut interrupts)
        .await;
    let lines_shown = driver.into_lines_shown();
    console.finish();
    link.close().await;
    let ends = run.ends(run_began.elapsed(), now());
    let machines: Vec<MachineReport> = ends
        .map(|(signed, end, said)| {
            let closure = followed.closures.get(&signed.machine.agent).cloned();
            MachineReport::new(signed, end, said, closure.unwrap_or_default())
        })
        .collect();
    let fleet = caller.fleet.clone();
    let mut report = Report::new("wait", fleet, machines, warnings, begin.elapsed());
    let ending = Ending {
        console: &console,
        log: &log,
        waits_for_all: wait == Wait::All,
        timeout: args.timeout,
        json: args.json,
    };
    ending.finish(&mut report, &stop, &lines_shown, run.published())
}

const fn channels(args: &WaitArgs) -> &'static [Channel] {
    use Channel::{Deploy, History, Log, Presence, Status};
    match args.quiet {
        true => &[Deploy, Status, Presence, History],
        false => &[Deploy, Status, Presence, History, Log],
    }
}

async fn begin_with(
    args: &WaitArgs,
    caller: &Caller,
    trusted: &TrustedKeys,
) -> Result<(Link, Snapshot, Followed), CommandError> {
    let mut link = Link::open(caller).await?;
    let selection = Selection {
        selectors: args.agents.clone(),
        conditions: args.selection.conditions.clone(),
        heard_within: None,
    };
    let named = selection.only_names().unwrap_or_default();
    let snapshot = look(&mut link, &caller.fleet, &named, channels(args)).await?;
    check_names(&mut link, &caller.fleet, &selection, &snapshot).await?;
    let which = match (args.id, args.rollout) {
        (Some(id), _) => Which::Id(id),
        (None, Some(id)) => Which::Rollout(id),
        (None, None) => Which::Any,
    };
    let followed = follow(&snapshot, &caller.fleet, &selection, which, trusted);
    nothing(which, &followed).map_or(Ok((link, snapshot, followed)), Err)
}

/// Why there is nothing to follow where there should be.
fn nothing(which: Which, followed: &Followed) -> Option<CommandError> {
    if !followed.signed.is_empty() {
        return None;
    }
    let (what, id) = match which {
        Which::Id(id) => ("deployment", id),
        Which::Rollout(id) => ("rollout", id),
        Which::Any => {
            let (agent, _) = followed.unknown.first()?;
            return Some(CommandError::SignedByOthers {
                agent: agent.clone(),
                machines: followed.unknown.len(),
            });
        }
    };
    Some(CommandError::NothingToWaitFor {
        what,
        id,
        unknown: followed.unknown.len(),
    })
}

fn follow(
    snapshot: &Snapshot,
    fleet: &FleetName,
    selection: &Selection,
    which: Which,
    trusted: &TrustedKeys,
) -> Followed {
    let at = now();
    let mut followed = Followed::default();
    for (agent, seen) in snapshot.machines() {
        let Some(envelope) = &seen.deploy else {
            continue;
        };
        if !selection.means(agent, Some(seen), at) {
            continue;
        }
        let machine = Machine::new(fleet.clone(), agent.clone());
        let verified = match trusted.verify(envelope, &machine) {
            Ok(verified) => verified,
            Err(error) => {
                followed.unknown.push((agent.clone(), error));
                continue;
            }
        };
        let deployment = verified.deployment();
        if !which.fits(deployment) {
            continue;
        }
        if let Some(rollout) = deployment.parts().provenance.rollout {
            let batches = followed
                .batches
                .entry(rollout.id)
                .or_insert((0, rollout.batches));
            batches.0 = batches.0.max(rollout.batch);
        }
        followed
            .closures
            .insert(agent.clone(), Closure::of(deployment.target()));
        let signed = Signed::of(deployment, envelope.clone());
        followed.signed.push(signed);
    }
    followed
}

/// Says what is followed, and gives the warnings among that.
fn said(args: &WaitArgs, followed: &Followed, console: &Console) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some((agent, error)) = followed.unknown.first() {
        let others = match followed.unknown.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warnings.push(format!(
            "{agent}{others}: not waited for: {error}; the public key of whoever deploys there belongs into \
             --trusted-key or `trusted_keys`"
        ));
    }
    if args.rollout.is_some() {
        for (batch, of) in followed.batches.values() {
            if batch < of {
                warnings.push(format!(
                    "{batch} of {of} batches of the rollout have come; the machines of the others are not waited for"
                ));
            }
        }
    }
    for warning in &warnings {
        console.warn(warning);
    }
    if followed.signed.is_empty() {
        console.note("nothing is deployed to a machine that is meant by that");
    }
    warnings
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Goal, KnownOrders, Provenance, Rollout, Target};

    use super::*;
    use crate::plan::{Orders, Wish};
    use crate::signer::Signer;
    use crate::testing::{block_on, id, key, machine, path};

    /// What is retained for machines: the number of the deployment, of the rollout, and the signing key of each.
    fn snapshot(deployments: &[(&str, u128, u128, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::new(machine("x").fleet);
        for (agent, n, rollout, signer) in deployments {
            let machine = machine(agent);
            let orders = Orders {
                signers: &[Signer::Key(key(signer))],
                provenance: &Provenance::default(),
                valid_for: Duration::from_secs(60),
                raise_epoch: false,
                now: now(),
            };
            let part = Rollout {
                id: Uuid::from_u128(*rollout),
                batch: 1,
                batches: 2,
            };
            let target = Target::new(Goal::Closure(path("system")));
            let known = KnownOrders::default();
            let mut wish = Wish::of(target);
            wish.rollout = Some(part);
            let signed = block_on(orders.sign(machine.clone(), wish, known, id(*n))).unwrap();
            snapshot
                .saw(&machine.topic(Channel::Deploy), &signed.envelope)
                .unwrap();
        }
        snapshot
    }

    fn followed(which: Which) -> Followed {
        let all = [
            ("web-1", 1, 7, "ci"),
            ("web-2", 2, 7, "ci"),
            ("web-3", 3, 8, "ci"),
            ("web-4", 4, 7, "other"),
        ];
        let trusted = TrustedKeys::new(vec![key("ci").public()]).unwrap();
        follow(
            &snapshot(&all),
            &machine("x").fleet,
            &Selection::default(),
            which,
            &trusted,
        )
    }

    fn agents(followed: &Followed) -> Vec<&str> {
        followed
            .signed
            .iter()
            .map(|signed| signed.machine.agent.as_str())
            .collect()
    }

    #[test]
    fn what_no_known_key_signed_is_not_waited_for() {
        let followed = followed(Which::Any);
        assert_eq!(agents(&followed), ["web-1", "web-2", "web-3"]);
        let unknown: Vec<&str> = followed
            .unknown
            .iter()
            .map(|(agent, _)| agent.as_str())
            .collect();
        assert_eq!(unknown, ["web-4"]);
    }

    #[test]
    fn to_know_nobody_who_deploys_is_no_success() {
        let mut all = followed(Which::Any);
        assert!(nothing(Which::Any, &all).is_none());
        all.signed.clear();
        let error = nothing(Which::Any, &all).unwrap();
        assert_eq!(error.exit(), Exit::Error);
        assert!(error.to_string().contains("web-4"), "{error}");
        all.unknown.clear();
        // A fleet to which nothing was ever deployed.
        assert!(nothing(Which::Any, &all).is_none());
    }

    #[test]
    fn a_deployment_and_a_rollout_are_found_by_the_end_of_their_id() {
        let (one, seven): (IdEnd, IdEnd) = (
            id(1).short().parse().unwrap(),
            id(7).to_string().parse().unwrap(),
        );
        assert_eq!(agents(&followed(Which::Id(one))), ["web-1"]);
        let rollout = followed(Which::Rollout(seven));
        assert_eq!(agents(&rollout), ["web-1", "web-2"]);
        assert_eq!(
            rollout.batches.values().copied().collect::<Vec<_>>(),
            [(1, 2)]
        );
    }
}
