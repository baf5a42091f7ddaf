//! What is made for the machines before anything is sent: a signed deployment for each, and what to warn of.

use std::collections::BTreeMap;
use std::time::Duration;

use hoist_certs::program::now;
use hoist_protocol::{AgentName, FORMAT, Machine, Presence, Rollout};
use uuid::Uuid;

use super::CommandError;
use super::ending::NAMED;
use super::rolling::Divided;
use super::send::{Sending, new_id};
use crate::already::Already;
use crate::plan::{PlanError, Signed, Wish};
use crate::report::{Closure, MachineReport};
use crate::snapshot::{Seen, Snapshot};

/// A machine that is connected says something every five minutes: what differs by more than this is a clock.
const CLOCKS_APART: Duration = Duration::from_secs(60 * 60);

/// What was made for the machines.
pub(super) struct Made {
    pub(super) divided: Option<Divided>,
    pub(super) signed: Vec<Signed>,
    pub(super) unsigned: Vec<MachineReport>,
    pub(super) skipped: Vec<MachineReport>,
    pub(super) closures: BTreeMap<AgentName, Closure>,
    pub(super) warnings: Warnings,
}

impl Sending<'_> {
    pub(super) async fn make(
        &self,
        mut wishes: BTreeMap<AgentName, Wish>,
        snapshot: &Snapshot,
    ) -> Result<Made, CommandError> {
        let orders = self.orders();
        let skipped = self.skip(&mut wishes, snapshot);
        let mut made = Made {
            divided: (self.rollout.filter(|_| !wishes.is_empty()))
                .map(|rollout| Divided::new(rollout, &wishes, snapshot)),
            signed: Vec::new(),
            unsigned: Vec::new(),
            skipped,
            closures: BTreeMap::new(),
            warnings: Warnings::default(),
        };
        let nothing = Seen::default();
        for (agent, mut wish) in wishes {
            let machine = Machine::new(self.fleet().clone(), agent.clone());
            let seen = snapshot.machine(&agent).unwrap_or(&nothing);
            let (known, unknown) = seen.orders(&machine, &self.keys().trusted);
            for warning in self.warnings(seen) {
                made.warnings.add(warning, &agent);
            }
            if let Some(error) = unknown {
                let warning = format!(
                    "the deployment on its topic is not taken into account: {error}; another publisher's public \
                     key belongs into --trusted-key or `trusted_keys`"
                );
                made.warnings.add(warning, &agent);
            }
            let closure = Closure::of(&wish.target);
            wish.rollout = (made.divided.as_ref())
                .map(|divided| divided.part(&agent))
                .or_else(|| self.picked_up_as().map(whole))
                .or(wish.rollout);
            match orders.sign(machine, wish, known, new_id()).await {
                Ok(signed) => {
                    made.closures.insert(agent, closure);
                    made.signed.push(signed);
                }
                // Whoever did not sign for one will not for another; a wrong PIN must not be tried a thousand times.
                Err(error @ PlanError::Signer(..)) => return Err(CommandError::Signer(error)),
                Err(error) => {
                    let message = hoist_certs::program::report(&error.into());
                    made.warnings.add(message.clone(), &agent);
                    made.unsigned
                        .push(MachineReport::unsigned(agent, &message, closure));
                }
            }
        }
        Ok(made)
    }

    /// Takes out of `wishes` what machines have already.
    fn skip(
        &self,
        wishes: &mut BTreeMap<AgentName, Wish>,
        snapshot: &Snapshot,
    ) -> Vec<MachineReport> {
        let deployment = self.deployment();
        // A higher epoch is something new for every machine.
        if !self.skips || deployment.raise_epoch {
            return Vec::new();
        }
        let already = match Already::new(&self.keys().signing, now(), deployment.expires) {
            Ok(already) => already,
            Err(error) => {
                tracing::debug!(%error, "no machine is left out");
                return Vec::new();
            }
        };
        let mut skipped = Vec::new();
        wishes.retain(|agent, wish| {
            let machine = Machine::new(self.fleet().clone(), agent.clone());
            let seen = snapshot.machine(agent);
            let Some(by) = seen.and_then(|seen| already.by(&machine, seen, &wish.target)) else {
                return true;
            };
            skipped.push(MachineReport::skipped(&by, Closure::of(&wish.target)));
            false
        });
        skipped
    }

    /// What may keep the machine from carrying it out, by its own word.
    fn warnings(&self, seen: &Seen) -> Vec<String> {
        if !seen.has_reported() {
            let warning = "never reported; the deployment waits for it. Is the name right?";
            return vec![warning.to_owned()];
        }
        let mut warnings = Vec::new();
        if let Some((channel, error)) = &seen.unreadable {
            warnings.push(format!(
                "what it says on its {channel} topic cannot be read ({error}); a newer version of Hoist may \
                 have written it"
            ));
        }
        let Some(status) = &seen.status else {
            return warnings;
        };
        let at = now();
        let apart = at.since(status.ts).max(status.ts.since(at));
        if seen.presence == Some(Presence::Online) && apart > CLOCKS_APART {
            warnings.push(format!(
                "its clock and this computer's differ by {}; check both, since a clock that is a day ahead makes \
                 deployments that others cannot follow with theirs",
                crate::duration::show(apart)
            ));
        }
        if !status.formats.contains(&FORMAT) {
            warnings.push(format!(
                "it does not say that it reads format {FORMAT}, which this version of hoist writes"
            ));
        }
        let signs = |name| self.keys().signing.iter().any(|key| key.name() == name);
        if !status.trusted_keys.is_empty() && !status.trusted_keys.iter().any(signs) {
            let names: Vec<&str> = status.trusted_keys.iter().map(AsRef::as_ref).collect();
            warnings.push(format!(
                "it trusts the keys {} and none that signs here, so it will refuse the deployment",
                names.join(", ")
            ));
        }
        warnings
    }
}

impl Made {
    /// That machines are left out, and what to do about it.
    pub(super) fn said_of_skipped(&self) -> String {
        let (skipped, all) = (self.skipped.len(), self.skipped.len() + self.signed.len());
        let have = match (skipped, self.signed.is_empty()) {
            (1, true) => "the machine has it already: nothing was published".to_owned(),
            (_, true) => format!("all {skipped} machines have it already: nothing was published"),
            (1, false) => format!("1 of {all} machines has it already and is left out"),
            (_, false) => format!("{skipped} of {all} machines have it already and are left out"),
        };
        format!("{have} (--no-skip deploys again)")
    }
}

/// A rollout whose only batch has all machines.
const fn whole(id: Uuid) -> Rollout {
    Rollout {
        id,
        batch: 1,
        batches: 1,
    }
}

/// Warnings about machines: what is true of a thousand is said once.
#[derive(Default)]
pub(super) struct Warnings(Vec<(String, Vec<AgentName>)>);

impl Warnings {
    pub(super) fn add(&mut self, warning: String, agent: &AgentName) {
        match self.0.iter_mut().find(|(known, _)| *known == warning) {
            Some((_, agents)) => agents.push(agent.clone()),
            None => self.0.push((warning, vec![agent.clone()])),
        }
    }

    pub(super) fn sentences(&self) -> Vec<String> {
        let sentence = |(warning, agents): &(String, Vec<AgentName>)| {
            let names: Vec<&str> = agents.iter().take(NAMED).map(AgentName::as_str).collect();
            let more = match agents.len() - names.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}{more}: {warning}", names.join(", "))
        };
        self.0.iter().map(sentence).collect()
    }
}
