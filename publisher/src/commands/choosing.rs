//! Commands that make something of what machines have already: each decides on one machine at a time.

use std::collections::BTreeMap;

use clap::Args;
use hoist_certs::Role;
use hoist_certs::program::now;
use hoist_protocol::{AgentName, FleetName, Machine, Timestamp, TrustedKeys};

use super::ending::NAMED;
use super::making::Warnings;
use super::send::{Sending, Task};
use super::standing::{NotStanding, Standing};
use super::{CommandError, preview, unknown_machine};
use crate::console::Console;
use crate::flags::{DeploymentArgs, FollowArgs, SelectionArgs};
use crate::link::Link;
use crate::outcome::Exit;
use crate::plan::Wish;
use crate::report::{Closure, MachineReport};
use crate::select::{Selection, Selector};
use crate::settings::{Flags, Settings, SigningFlags, process_environment};
use crate::snapshot::{Seen, Snapshot};

/// What such a command takes beside what is its own.
#[derive(Debug, Args)]
pub struct ChosenArgs {
    /// Only machines of which something holds
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Show what would be published for which machine, and do nothing
    #[arg(long, conflicts_with_all = ["wait", "is_async"])]
    pub dry_run: bool,
    /// What is said in the deployments
    #[command(flatten)]
    pub deployment: DeploymentArgs,
    /// How machines are followed
    #[command(flatten)]
    pub follow: FollowArgs,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// What becomes of one machine.
#[derive(Debug)]
pub(super) enum Choice {
    /// A deployment is made for it; what that does is said.
    Send(Box<Wish>, String),
    /// There is nothing to do for it.
    Skip(String),
    /// It cannot be done for it.
    Refuse(String),
    /// It is not meant.
    NotMeant,
}

/// What is known of one machine.
pub(super) struct About<'a> {
    pub(super) machine: &'a Machine,
    pub(super) seen: &'a Seen,
    pub(super) trusted: &'a TrustedKeys,
    pub(super) now: Timestamp,
}

impl About<'_> {
    /// What lies on its topic, when it may be signed again.
    pub(super) fn standing(&self) -> Result<Standing, NotStanding> {
        Standing::of(self.machine, self.seen, self.trusted, self.now)
    }
}

/// Decides on one machine at a time.
pub(super) trait Choose {
    /// What becomes of this one.
    ///
    /// # Errors
    /// [`CommandError`] when the command line itself is to blame.
    fn choose(&self, about: &About<'_>) -> Result<Choice, CommandError>;

    /// Looks at the whole once each was decided on.
    ///
    /// # Errors
    /// [`CommandError`] when it comes to nothing that was meant.
    fn complete(&self, _chosen: &mut Chosen, _fleet: &Fleet<'_>) -> Result<(), CommandError> {
        Ok(())
    }
}

/// All that is known of the fleet.
pub(super) struct Fleet<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) trusted: &'a TrustedKeys,
    pub(super) now: Timestamp,
}

impl Fleet<'_> {
    /// What lies on the topics of its machines, where it may be signed again.
    pub(super) fn standing(&self) -> impl Iterator<Item = (&AgentName, &Seen, Standing)> {
        (self.snapshot.machines().iter()).filter_map(|(agent, seen)| {
            let machine = Machine::new(self.snapshot.fleet().clone(), agent.clone());
            let standing = Standing::of(&machine, seen, self.trusted, self.now).ok()?;
            Some((agent, seen, standing))
        })
    }
}

/// What was decided on all of them.
pub(super) struct Chosen {
    pub(super) wishes: BTreeMap<AgentName, Wish>,
    /// What is said of those.
    pub(super) said: BTreeMap<AgentName, String>,
    /// The reports of the others.
    pub(super) others: Vec<MachineReport>,
    refused: Warnings,
    skipped: Warnings,
}

impl Chosen {
    pub(super) fn new(
        snapshot: &Snapshot,
        selection: &Selection,
        choose: &dyn Choose,
        trusted: &TrustedKeys,
    ) -> Result<Self, CommandError> {
        let mut chosen = Self {
            wishes: BTreeMap::new(),
            said: BTreeMap::new(),
            others: Vec::new(),
            refused: Warnings::default(),
            skipped: Warnings::default(),
        };
        let at = now();
        for (agent, seen) in snapshot.machines() {
            if !selection.means(agent, Some(seen), at) {
                continue;
            }
            let machine = Machine::new(snapshot.fleet().clone(), agent.clone());
            let about = About {
                machine: &machine,
                seen,
                trusted,
                now: at,
            };
            match choose.choose(&about)? {
                Choice::Send(wish, said) => {
                    chosen.wishes.insert(agent.clone(), *wish);
                    chosen.said.insert(agent.clone(), said);
                }
                Choice::Skip(why) => {
                    let report = MachineReport::nothing_to_do(agent.clone(), &why);
                    chosen.others.push(report);
                    chosen.skipped.add(why, agent);
                }
                Choice::Refuse(why) => {
                    let report = MachineReport::unsigned(agent.clone(), &why, Closure::default());
                    chosen.others.push(report);
                    chosen.refused.add(why, agent);
                }
                Choice::NotMeant => {}
            }
        }
        let fleet = Fleet {
            snapshot,
            trusted,
            now: at,
        };
        choose.complete(&mut chosen, &fleet)?;
        Ok(chosen)
    }

    /// Whether no machine is meant at all.
    pub(super) fn is_empty(&self) -> bool {
        self.wishes.is_empty() && self.others.is_empty()
    }

    /// Makes a deployment all the same for a machine for which there was nothing to do.
    pub(super) fn send_instead(&mut self, agent: &AgentName, wish: Wish, said: String) {
        self.others.retain(|report| report.agent != *agent);
        self.skipped.remove(agent);
        self.wishes.insert(agent.clone(), wish);
        self.said.insert(agent.clone(), said);
    }

    /// Says it, before anything is published.
    pub(super) fn tell(&self, console: &Console) {
        for (agent, said) in self.said.iter().take(NAMED) {
            console.note(&format!("{agent}: {said}"));
        }
        if let Some(more @ 1..) = self.said.len().checked_sub(NAMED) {
            console.note(&format!("and so for {more} more"));
        }
        for sentence in self.skipped.sentences() {
            console.note(&sentence);
        }
        for sentence in self.refused.sentences() {
            console.warn(&sentence);
        }
    }
}

/// Whether all machines that are named exist.
pub(super) async fn check_names(
    link: &mut Link,
    fleet: &FleetName,
    selection: &Selection,
    snapshot: &Snapshot,
) -> Result<(), CommandError> {
    for agent in selection.selectors.iter().flat_map(Selector::names) {
        if snapshot.machine(agent).is_none() {
            return Err(unknown_machine(link, fleet, agent).await);
        }
    }
    Ok(())
}

/// Runs such a command. `task` ends the sentence about a certificate that cannot do it.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub(super) async fn run(
    command: &'static str,
    task: &'static str,
    (agents, args): (&[Selector], &ChosenArgs),
    flags: Flags,
    choose: Box<dyn Choose>,
) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let caller = settings.caller(task, &[Role::Publisher])?;
    let keys = settings.keys(&args.signing)?;
    let sending = Sending::new(command, &args.deployment, &args.follow, caller, keys)?;
    let selection = Selection {
        selectors: agents.to_vec(),
        conditions: args.selection.conditions.clone(),
        heard_within: None,
    };
    let task = Task::Chosen(selection, choose);
    if args.dry_run {
        return preview::run(&sending, &task).await;
    }
    sending.run(task).await
}
