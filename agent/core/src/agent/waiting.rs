//! What keeps the newest deployment from being begun, though nothing is under way.

use std::time::Duration;

use hoist_protocol::{Deployment, Held, Machine, Timestamp, digest};

use super::Agent;
use crate::input::{Moment, Origin};
use crate::ledger::Task;

/// Why the next task waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wait {
    /// Somebody at the machine holds it.
    HeldHere,
    /// The deployment itself holds the machine, until then when it says so.
    HeldFromAfar(Option<Timestamp>),
    /// It begins at this time: a fleet does not begin at once.
    Spread(Timestamp),
}

impl Agent {
    /// Why the next task is not begun now; none when nothing speaks against it.
    pub(crate) fn wait(&self, now: Timestamp) -> Option<Wait> {
        let task = self.ledger.next.as_ref()?;
        let deployment = self.offered.as_ref()?;
        match deployment.parts().held {
            Held::UntilReleased => return Some(Wait::HeldFromAfar(None)),
            Held::Until(until) if now < until => return Some(Wait::HeldFromAfar(Some(until))),
            Held::Until(_) | Held::No => {}
        }
        if self.ledger.is_held(now) {
            return Some(Wait::HeldHere);
        }
        let begins = self.begins(task, deployment);
        (now < begins).then_some(Wait::Spread(begins))
    }

    /// When a deployment that is spread over a time is begun.
    fn begins(&self, task: &Task, deployment: &Deployment) -> Timestamp {
        let spread = deployment.target().spread_ms;
        let delay = delay(&self.config.machine, deployment, spread);
        task.admitted_at.plus(delay)
    }

    /// A clock that was set back starts the wait anew: else it would last for as long as that besides.
    pub(super) fn follow_clock(&mut self, moment: &Moment) {
        if let Some(task) = &mut self.ledger.next
            && task.admitted_at > moment.now
        {
            task.admitted_at = moment.now;
            self.may_persist = true;
        }
    }

    /// When the machine has to look again whether the next task still waits, or the hold has ended.
    pub(super) fn wait_ends_at(&self) -> Option<Duration> {
        let (now, uptime) = self.clocks;
        let hold = self.ledger.hold.as_ref().and_then(|hold| hold.until);
        let waits = match self.wait(now) {
            Some(Wait::Spread(until) | Wait::HeldFromAfar(Some(until)))
                if self.ledger.current.is_none() =>
            {
                Some(until)
            }
            _ => None,
        };
        let first = hold.into_iter().chain(waits).min()?;
        Some(uptime + first.since(now))
    }

    /// Ends a hold whose time is over, and says whether there was one.
    pub(super) fn end_hold(&mut self, moment: &Moment) -> bool {
        let is_over = self.ledger.hold.is_some() && !self.ledger.is_held(moment.now);
        if is_over {
            self.ledger.hold = None;
            self.must_persist = true;
        }
        is_over
    }

    /// Stops a fetch for what a publisher ordered: it waits until the machine is not held any more.
    pub(super) fn stop_for_hold(&mut self) {
        let is_ours = |task: &mut Task| task.origin == Origin::Publisher;
        let super::Work::Fetching(_) = &self.work else {
            return;
        };
        if let Some(mut task) = self.ledger.current.take_if(is_ours) {
            let id = task.order.id;
            if let super::Work::Fetching(fetching) =
                std::mem::replace(&mut self.work, super::Work::Idle)
            {
                self.offered = Some(fetching.into_deployment());
            }
            self.effects.push(crate::effect::Effect::CancelFetch(id));
            // That somebody holds the machine is no failure of the deployment.
            task.attempts = task.attempts.saturating_sub(1);
            self.ledger.next = Some(task);
        }
    }
}

/// How long a machine waits before it begins: anything up to `spread_ms`, as evenly over a fleet as if it were
/// rolled with dice, but the same again after a restart.
fn delay(machine: &Machine, deployment: &Deployment, spread_ms: u64) -> Duration {
    let what = format!("{machine} {}", deployment.id());
    share(&what, Duration::from_millis(spread_ms))
}

/// Anything from nothing to `longest`, to the millisecond: as evenly over all that `what` can be as if it were
/// rolled with dice, and always the same for one.
pub(super) fn share(what: &str, longest: Duration) -> Duration {
    let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    let digits = digest(what.as_bytes());
    let dice = digits
        .as_str()
        .get(..12)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_default();
    Duration::from_millis(dice % longest.saturating_add(1))
}
