//! What is made for the machines before anything is sent: a signed deployment for each, and what to warn of.

use std::collections::BTreeMap;
use std::time::Duration;

use hoist_certs::program::now;
use hoist_protocol::{
    AgentName, FORMAT, Held, KnownOrders, Machine, Presence, Rollout, State, Timestamp, VerifyError,
};
use uuid::Uuid;

use super::CommandError;
use super::ending::NAMED;
use super::rolling::Divided;
use super::send::{Sending, new_id};
use super::standing::hold;
use crate::already::Already;
use crate::plan::{Hold, PlanError, Signed, Wish};
use crate::report::{Closure, MachineReport};
use crate::snapshot::{Seen, Snapshot};

/// A machine that is connected says something every five minutes: what differs by more than this is a clock.
const CLOCKS_APART: Duration = Duration::from_secs(60 * 60);

/// What was made for the machines.
pub(super) struct Made {
    pub(super) divided: Option<Divided>,
    /// What they are called together, by which `hoist wait` and `hoist cancel` find them; none where each stands alone.
    pub(super) rollout: Option<Uuid>,
    pub(super) signed: Vec<Signed>,
    pub(super) unsigned: Vec<MachineReport>,
    /// Those of machines that have it already.
    pub(super) left_out: Vec<MachineReport>,
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
        let left_out = self.leave_out(&mut wishes, snapshot);
        let before = self.before(&mut wishes, snapshot, orders.now);
        let mut made = Made {
            divided: (self.rollout.filter(|_| !wishes.is_empty())).map(|rollout| {
                let machines =
                    (wishes.iter()).map(|(agent, wish)| (agent, &wish.target, wish.hold));
                Divided::new(Uuid::now_v7(), rollout, machines, snapshot)
            }),
            rollout: None,
            signed: Vec::new(),
            unsigned: Vec::new(),
            left_out,
            closures: BTreeMap::new(),
            warnings: Warnings::default(),
        };
        let nothing = Seen::default();
        for ((agent, mut wish), Before { known, unknown }) in wishes.into_iter().zip(before) {
            let machine = Machine::new(self.fleet().clone(), agent.clone());
            let seen = snapshot.machine(&agent).unwrap_or(&nothing);
            for warning in (self.warnings(seen).into_iter()).chain(about_hold(wish.hold, seen)) {
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
            // One that cancels a rollout says of which.
            wish.rollout = (wish.rollout)
                .or_else(|| Some(made.divided.as_ref()?.part(&agent)))
                .or_else(|| self.picked_up_as().map(whole));
            made.rollout = made.rollout.or(wish.rollout.map(|part| part.id));
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

    /// What was signed for each of the machines before, in the order of `wishes`; where one is held and stays so, its
    /// wish says it from now on.
    fn before(
        &self,
        wishes: &mut BTreeMap<AgentName, Wish>,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Vec<Before> {
        let look = |(agent, wish): (&AgentName, &mut Wish)| {
            let Some(seen) = snapshot.machine(agent) else {
                return Before::default();
            };
            let machine = Machine::new(self.fleet().clone(), agent.clone());
            let (known, retained) = seen.orders(&machine, &self.keys().trusted);
            let unknown = match (retained, &mut wish.hold) {
                (Some(Ok(retained)), Hold::Stays(held)) => {
                    *held = hold(retained.deployment().parts(), now);
                    None
                }
                (Some(Err(error)), _) => Some(error),
                (Some(Ok(_)) | None, _) => None,
            };
            Before { known, unknown }
        };
        wishes.iter_mut().map(look).collect()
    }

    /// Takes out of `wishes` what machines have already.
    fn leave_out(
        &self,
        wishes: &mut BTreeMap<AgentName, Wish>,
        snapshot: &Snapshot,
    ) -> Vec<MachineReport> {
        let deployment = self.deployment();
        // A higher epoch is something new for every machine.
        if !self.leaves_out || deployment.raise_epoch {
            return Vec::new();
        }
        let already = match Already::new(&self.keys().signing, now(), deployment.expires) {
            Ok(already) => already,
            Err(error) => {
                tracing::debug!(%error, "no machine is left out");
                return Vec::new();
            }
        };
        let mut left_out = Vec::new();
        wishes.retain(|agent, wish| {
            let machine = Machine::new(self.fleet().clone(), agent.clone());
            let seen = snapshot.machine(agent);
            let Some(by) = seen.and_then(|seen| already.by(&machine, seen, &wish.target)) else {
                return true;
            };
            left_out.push(MachineReport::left_out(&by, Closure::of(&wish.target)));
            false
        });
        left_out
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
    pub(super) fn said_of_left_out(&self) -> String {
        let (left_out, all) = (self.left_out.len(), self.left_out.len() + self.signed.len());
        let have = match (left_out, self.signed.is_empty()) {
            (1, true) => "the machine has it already: nothing was published".to_owned(),
            (_, true) => format!("all {left_out} machines have it already: nothing was published"),
            (1, false) => format!("1 of {all} machines has it already and is left out"),
            (_, false) => format!("{left_out} of {all} machines have it already and are left out"),
        };
        format!("{have} (--no-skip deploys again)")
    }
}

/// What a machine was told before.
#[derive(Default)]
struct Before {
    known: KnownOrders,
    /// Why what lies on its topic is not taken into account.
    unknown: Option<VerifyError>,
}

/// What somebody has to know who deploys to a machine that is held from afar.
fn about_hold(hold: Hold, seen: &Seen) -> Option<String> {
    let says_so =
        (seen.status.as_ref()).is_some_and(|status| status.state == State::Held && !status.held);
    match hold {
        Hold::Stays(Held::UntilReleased) => Some(
            "held, and stays so: it takes this on release (`hoist release`)".to_owned(),
        ),
        Hold::Stays(Held::Until(until)) => Some(format!(
            "held, and stays so: it takes this at {until}, or on release before that (`hoist release`)"
        )),
        Hold::Stays(Held::No) if says_so => Some(
            "it says that a deployment holds it, and none on its topic does that a key known here has signed: this one \
             ends the hold"
                .to_owned(),
        ),
        Hold::Stays(Held::No) | Hold::Set(_) => None,
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

    pub(super) fn remove(&mut self, agent: &AgentName) {
        for (_, agents) in &mut self.0 {
            agents.retain(|known| known != agent);
        }
        self.0.retain(|(_, agents)| !agents.is_empty());
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
