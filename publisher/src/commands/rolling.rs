//! What a rollout adds to sending: the batches, and the way back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, DeploymentId, Goal, KnownOrders, RollbackTo, Rollout as Part, Text,
};
use uuid::Uuid;

use super::send::{Sending, new_id};
use crate::console::Console;
use crate::drive::{Driver, Interrupts, Stop};
use crate::follow::{End, Run, Wait};
use crate::link::{Filter, Link};
use crate::outcome::Outcome;
use crate::plan::Wish;
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
    pub(super) fn new(
        rollout: Rollout,
        wishes: &BTreeMap<AgentName, Wish>,
        snapshot: &Snapshot,
    ) -> Self {
        let known: Vec<Known> = wishes
            .iter()
            .map(|(agent, wish)| {
                let path = match &wish.target.goal {
                    Goal::Closure(path) => Some(path),
                    Goal::Rollback(_) | Goal::Stay => None,
                };
                Known::of(snapshot.machine(agent), path)
            })
            .collect();
        let (numbers, batches) = divide(rollout.division, &known);
        Self {
            id: Uuid::now_v7(),
            rollout,
            batches,
            of: wishes.keys().cloned().zip(numbers).collect(),
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
        format!(
            "rollout {}: {} machines in {} batches ({}{more})",
            DeploymentId::new(self.id).short(),
            self.of.len(),
            self.batches,
            shown.join(", ")
        )
    }

    pub(super) const fn goes_back(&self) -> bool {
        matches!(self.rollout.on_failure, OnFailure::Rollback)
    }

    pub(super) fn report(&self, pace: &Pace, stop: &Stop) -> RolloutReport {
        RolloutReport {
            id: self.id,
            batches: self.batches,
            batch: (pace.batch() + 1).min(self.batches),
            stopped: matches!(stop, Stop::Halted(_)),
        }
    }

    /// What somebody has to know of a rollout that stopped.
    pub(super) fn halted(&self, why: Why, sent_back: (usize, usize)) -> String {
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

/// How the machines came back.
pub(super) struct WayBack {
    ends: BTreeMap<AgentName, (DeploymentId, End)>,
    pub(super) stop: Stop,
}

impl WayBack {
    /// How many machines were to go back, and how many of them have.
    pub(super) fn counts(&self) -> (usize, usize) {
        let back = self.ends.values().filter(|(_, end)| end.outcome.is_good());
        (self.ends.len(), back.count())
    }

    /// Puts into the report of a machine that it was sent back.
    pub(super) fn note(&self, machine: &mut MachineReport) {
        let Some((id, end)) = self.ends.get(&machine.agent) else {
            return;
        };
        machine.sent_back = Some(*id);
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
    /// Sends every machine that `run` has moved back to what it ran before, each by the id of the deployment that
    /// moved it: no path is signed.
    pub(super) async fn take_back(
        &self,
        run: &Run,
        link: &mut Link,
        console: &mut Console,
        filters: &[Filter],
        interrupts: &mut Interrupts,
    ) -> Result<WayBack, super::CommandError> {
        let orders = self.orders();
        let mut signed = Vec::new();
        let mut online = Vec::new();
        for (moved, presence) in run.moved() {
            let target = self
                .way_back
                .target(Goal::Rollback(RollbackTo::Before(moved.order.id)))?;
            let known = KnownOrders {
                retained: Some((moved.order.epoch, moved.order.sequence)),
                floor: None,
            };
            signed.push(
                orders
                    .sign(moved.machine.clone(), Wish::of(target), known, new_id())
                    .await
                    .map_err(super::CommandError::Plan)?,
            );
            online.push(presence);
        }
        if signed.is_empty() {
            return Ok(WayBack {
                ends: BTreeMap::new(),
                stop: Stop::Over,
            });
        }
        console.note(&format!(
            "too many machines have failed: {} that had been moved are sent back",
            signed.len()
        ));
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
        let stop = driver.drive(&mut back, None, began, interrupts).await;
        let at: Duration = began.elapsed();
        let ends = back
            .ends(at, now())
            .map(|(signed, end, _)| (signed.machine.agent.clone(), (signed.order.id, end)))
            .collect();
        Ok(WayBack { ends, stop })
    }
}
