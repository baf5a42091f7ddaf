//! What a rollout adds to sending: the batches, and the way back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, DeploymentId, Goal, KnownOrders, RollbackTo, Rollout as Part, Target, Text,
};
use uuid::Uuid;

use super::making::Warnings;
use super::send::{Sending, new_id};
use crate::console::Console;
use crate::drive::{Driver, Interrupts, Stop};
use crate::follow::{Cancelled, End, Run, Wait};
use crate::link::{Filter, Link};
use crate::outcome::Outcome;
use crate::plan::{Hold, Signed, Wish};
use crate::report::{MachineReport, RolloutReport};
use crate::rollout::{Known, OnFailure, Pace, Rollout, Why, divide};
use crate::snapshot::{Seen, Snapshot};

/// A rollout whose machines are divided into batches.
pub(super) struct Divided {
    id: Uuid,
    rollout: Rollout,
    batches: u16,
    of: BTreeMap<AgentName, u16>,
}

impl Divided {
    /// Divides the machines, each with what it is to run and whether that finds it held, by what is known of them now.
    pub(super) fn new<'a>(
        id: Uuid,
        rollout: Rollout,
        machines: impl Iterator<Item = (&'a AgentName, &'a Target, Hold)>,
        snapshot: &Snapshot,
    ) -> Self {
        let (agents, known): (Vec<AgentName>, Vec<Known>) = machines
            .map(|(agent, target, hold)| {
                let path = match &target.goal {
                    Goal::Closure(path) => Some(path),
                    Goal::Rollback(_) | Goal::Stay => None,
                };
                let known = Known::of(snapshot.machine(agent), path, hold.goes_on());
                (agent.clone(), known)
            })
            .unzip();
        let (numbers, batches) = divide(rollout.division, &known);
        Self {
            id,
            rollout,
            batches,
            of: agents.into_iter().zip(numbers).collect(),
        }
    }

    /// The batch of a machine, counted from 0.
    pub(super) fn batch(&self, agent: &AgentName) -> u16 {
        self.of.get(agent).copied().unwrap_or_default()
    }

    /// What the deployment of a machine says of it.
    pub(super) fn part(&self, agent: &AgentName) -> Part {
        Part {
            id: self.id,
            batch: self.batch(agent).saturating_add(1),
            batches: self.batches,
        }
    }

    pub(super) const fn pace(&self) -> Pace {
        Pace::new(self.rollout.policy, self.batches)
    }

    /// How it goes, before it does.
    pub(super) fn said(&self) -> String {
        let mut sizes = vec![0_usize; self.batches.into()];
        for batch in self.of.values() {
            if let Some(size) = sizes.get_mut(usize::from(*batch)) {
                *size += 1;
            }
        }
        let shown: Vec<String> = sizes.iter().take(8).map(ToString::to_string).collect();
        let more = if sizes.len() > shown.len() {
            ", …"
        } else {
            ""
        };
        let machines = match self.of.len() {
            1 => "1 machine".to_owned(),
            machines => format!("{machines} machines"),
        };
        let batches = match self.batches {
            1 => "one batch".to_owned(),
            batches => format!("{batches} batches ({}{more})", shown.join(", ")),
        };
        let id = DeploymentId::new(self.id).short();
        format!("rollout {id}: {machines} in {batches}")
    }

    const fn goes_back(&self) -> bool {
        matches!(self.rollout.on_failure, OnFailure::Rollback)
    }

    pub(super) fn report(&self, pace: &Pace, stop: &Stop) -> RolloutReport {
        RolloutReport {
            id: self.id,
            batches: self.batches,
            batch: (pace.batch() + 1).min(self.batches),
            stopped: matches!(stop, Stop::Halted(_)),
            cancelled_by: match stop {
                Stop::Cancelled(cancelled) => Some(cancelled.by),
                _ => None,
            },
        }
    }

    pub(super) const fn id(&self) -> Uuid {
        self.id
    }

    /// What somebody has to know of a rollout that somebody else cancelled.
    fn cancelled(&self, by: &Cancelled, batch: u16) -> String {
        format!(
            "the rollout was cancelled in batch {} of {}, {}; the machines that have it keep it, and the same command again \
             goes on from here",
            batch.saturating_add(1).min(self.batches),
            self.batches,
            by.said()
        )
    }

    /// What somebody has to know of a rollout that stopped.
    fn halted(&self, why: Why, sent_back: (usize, usize)) -> String {
        let Why {
            failed,
            of,
            batch,
            batches,
        } = why;
        let allowed = self.rollout.policy.max_failed;
        let then = match (self.goes_back(), sent_back) {
            (true, (0, _)) => "no machine had been moved, so none was sent back".to_owned(),
            (true, (moved, back)) => {
                format!("{back} of {moved} machines that had been moved run again what they ran before")
            }
            (false, _) => "the machines that have it keep it; `hoist rollback` sends one back, and the same command \
                           again goes on from here"
                .to_owned(),
        };
        format!(
            "the rollout stopped in batch {batch} of {batches}: {failed} of {of} machines failed, and {allowed} may; {then}"
        )
    }
}

/// How a rollout came to its end, and what was done about it.
pub(super) struct Ended {
    /// Why nothing more is waited for.
    pub(super) stop: Stop,
    /// What somebody has to know of that.
    pub(super) warnings: Vec<String>,
    /// How the machines came back, where they were sent back.
    pub(super) way_back: Option<WayBack>,
}

/// What a run reaches the outside by: the broker, the terminal, and who interrupts it.
pub(super) struct Outside<'a> {
    pub(super) link: &'a mut Link,
    pub(super) console: &'a mut Console,
    pub(super) filters: &'a [Filter],
    pub(super) interrupts: &'a mut Interrupts,
}

/// How the machines came back.
pub(super) struct WayBack {
    /// The deployment that sends a machine back, none where it was not signed, and how that ended.
    ends: BTreeMap<AgentName, (Option<DeploymentId>, End)>,
}

impl WayBack {
    /// How many machines were to go back, and how many of them have.
    fn counts(&self) -> (usize, usize) {
        let back = self.ends.values().filter(|(_, end)| end.outcome.is_good());
        (self.ends.len(), back.count())
    }

    /// The machines that were moved and whose way back did not get to their topics, with why.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Warnings::default();
        for (agent, (_, end)) in &self.ends {
            if end.outcome == Outcome::NotPublished {
                let why = format!("it was moved and is not sent back: {}", end.message);
                warnings.add(why, agent);
            }
        }
        warnings.sentences()
    }

    /// Puts into the report of a machine that it was sent back.
    pub(super) fn note(&self, machine: &mut MachineReport) {
        let Some((id, end)) = self.ends.get(&machine.agent) else {
            return;
        };
        machine.sent_back = *id;
        machine.keeps_it = end.outcome == Outcome::NotPublished;
        machine.reason = end.reason;
        (machine.outcome, machine.message) = if end.outcome.is_good() {
            let message =
                "it went well here, and the machine was sent back because the rollout had failed";
            (Outcome::RolledBack, Text::lossy(message))
        } else {
            let message = format!(
                "it went well here; the machine was to be sent back because the rollout had failed, and that ended `{}`: {}",
                end.outcome, end.message
            );
            (end.outcome, Text::lossy(&message))
        };
    }
}

impl Sending<'_> {
    /// What follows from why a rollout, or a deployment that was none, is followed no longer.
    pub(super) async fn after(
        &self,
        stop: Stop,
        rollout: Option<(&Divided, &Pace)>,
        run: &Run,
        outside: Outside<'_>,
    ) -> Ended {
        let of = |stop, warnings| Ended {
            stop,
            warnings,
            way_back: None,
        };
        match (stop, rollout) {
            (Stop::Halted(why), Some((divided, _))) if divided.goes_back() => {
                let (way_back, ended) = self.take_back(run, outside).await;
                let mut warnings = vec![divided.halted(why, way_back.counts())];
                warnings.extend(way_back.warnings());
                // Whatever cut the way back short is how all of it ended.
                let stop = match ended {
                    cut @ (Stop::Interrupted | Stop::Lost(_)) => cut,
                    Stop::Over | Stop::TimeUp | Stop::Halted(_) | Stop::Cancelled(_) => {
                        Stop::Halted(why)
                    }
                };
                Ended {
                    way_back: Some(way_back),
                    ..of(stop, warnings)
                }
            }
            (Stop::Halted(why), Some((divided, _))) => {
                of(Stop::Halted(why), vec![divided.halted(why, (0, 0))])
            }
            (Stop::Cancelled(by), Some((divided, pace))) => {
                let warning = divided.cancelled(&by, pace.batch());
                of(Stop::Cancelled(by), vec![warning])
            }
            // What there is to say of these is said of every deployment, with its report.
            (stop @ (Stop::Over | Stop::TimeUp | Stop::Interrupted | Stop::Lost(_)), _)
            | (stop @ (Stop::Halted(_) | Stop::Cancelled(_)), None) => of(stop, Vec::new()),
        }
    }

    /// Sends every machine that `run` has moved back to what it ran before, each by the id of the deployment that
    /// moved it: no path is signed. Whatever cannot be signed is told of its machine. Why they are followed no longer
    /// comes with it.
    async fn take_back(&self, run: &Run, outside: Outside<'_>) -> (WayBack, Stop) {
        let Outside {
            link,
            console,
            filters,
            interrupts,
        } = outside;
        let moved: Vec<_> = run.moved().collect();
        if !moved.is_empty() {
            console.note(&format!(
                "too many machines have failed: {} that had been moved are sent back",
                moved.len()
            ));
        }
        let mut ends = BTreeMap::new();
        let mut signed = Vec::new();
        let mut no_more: Option<Text<1024>> = None;
        let mut stop = Stop::Over;
        for (moved, presence) in moved {
            let made = match &no_more {
                Some(why) => Err(why.clone()),
                None => tokio::select! {
                    made = self.way_back_of(moved) => made.map_err(|error| {
                        let why = Text::lossy(&hoist_certs::program::report(&error.into()));
                        // Whoever did not sign for one will not for another.
                        no_more = Some(why.clone());
                        why
                    }),
                    () = interrupts.next() => {
                        stop = Stop::Interrupted;
                        let why: Text<1024> = Text::lossy("interrupted before it was signed");
                        no_more = Some(why.clone());
                        Err(why)
                    }
                },
            };
            match made {
                Ok(made) => signed.push((made, presence)),
                Err(message) => {
                    let end = End {
                        message,
                        ..End::new(Outcome::NotPublished, "")
                    };
                    ends.insert(moved.machine.agent.clone(), (None, end));
                }
            }
        }
        if matches!(stop, Stop::Interrupted) {
            // Whoever interrupts it wants nothing more to be begun.
            let why = "interrupted before it was published";
            for (made, _) in signed.drain(..) {
                let end = End::new(Outcome::NotPublished, why);
                ends.insert(made.machine.agent, (None, end));
            }
        }
        if signed.is_empty() {
            return (WayBack { ends }, stop);
        }
        let (signed, online): (Vec<Signed>, Vec<_>) = signed.into_iter().unzip();
        let agents: Vec<AgentName> = (signed.iter())
            .map(|signed| signed.machine.agent.clone())
            .collect();
        let mut back = Run::new(signed, self.keys().trusted.clone(), Some(Wait::Online));
        for (agent, presence) in agents.iter().zip(online) {
            let seen = Seen {
                presence,
                ..Seen::default()
            };
            back.knows(agent, &seen);
        }
        let began = Instant::now();
        let mut driver = Driver::new(link, console, self.fleet(), filters, self.timeout());
        let ended = driver.drive(&mut back, None, began, interrupts).await;
        let at: Duration = began.elapsed();
        for (signed, end, _) in back.ends(at, now()) {
            ends.insert(signed.machine.agent.clone(), (Some(signed.order.id), end));
        }
        (WayBack { ends }, ended)
    }

    async fn way_back_of(&self, moved: &Signed) -> Result<Signed, super::CommandError> {
        let goal = Goal::Rollback(RollbackTo::Before(moved.order.id));
        let target = self.way_back.target(goal)?;
        let known = KnownOrders {
            retained: Some((moved.order.epoch, moved.order.sequence)),
            floor: None,
        };
        let orders = self.orders();
        let made = orders.sign(moved.machine.clone(), Wish::of(target), known, new_id());
        made.await.map_err(super::CommandError::Plan)
    }
}
