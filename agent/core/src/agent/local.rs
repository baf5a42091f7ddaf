//! What somebody at the machine orders.
//!
//! Who sits at the machine means it, and now: such an order does not wait. It takes the place of what is
//! fetched or waits for its time, it is not kept off by a hold (which is about publishers), and while
//! something is activated it is refused. It leaves the floor alone: the deployment that is retained was seen
//! before and does not undo it; a newer one takes its place as usual.

use std::time::Duration;

use hoist_protocol::{
    Deployment, DeploymentId, DeploymentParts, Goal, Held, Order, Provenance, RollbackTo, Target,
    Text,
};

use super::waiting::Wait;
use super::{Agent, Work};
use crate::effect::Effect;
use crate::input::{Moment, Origin};
use crate::ledger::{Hold, Task};
use crate::local::{LocalDone, LocalOrder, LocalWhat};

/// How long an order is good for that the machine's restarts keep from being begun: whoever gave it has left by
/// then.
const LIVES: Duration = Duration::from_secs(24 * 60 * 60);

impl Agent {
    pub(super) fn local(&mut self, moment: &Moment, order: LocalOrder) {
        let LocalOrder { request, id, what } = order;
        let begun = match what {
            LocalWhat::Hold { until, reason } => {
                let result = self.hold(moment, until, reason);
                return self.answer(request, result);
            }
            LocalWhat::Release => {
                self.must_persist |= self.ledger.hold.take().is_some();
                self.report(moment);
                return self.answer(request, Ok(LocalDone::Released));
            }
            LocalWhat::Rollback(to) => self.rollback_target(moment, to),
            LocalWhat::Activate(target) => Ok(*target),
        };
        match begun.and_then(|target| self.local_task(moment, id, target)) {
            Ok((task, done)) => {
                // The answer first: who asked wants to hear all that follows.
                self.answer(request, Ok(done));
                self.give_way(moment, id);
                self.begin(moment, task);
            }
            Err(message) => self.answer(request, Err(message)),
        }
    }

    fn answer(&mut self, request: u64, result: Result<LocalDone, String>) {
        let result = result.map_err(|message| Text::lossy(&message));
        self.effects.push(Effect::Answer { request, result });
    }

    fn hold(
        &mut self,
        moment: &Moment,
        until: Option<hoist_protocol::Timestamp>,
        reason: Text<256>,
    ) -> Result<LocalDone, String> {
        if let Some(until) = until.filter(|until| *until <= moment.now) {
            return Err(format!(
                "the hold would end at {until}, and it is {} here",
                moment.now
            ));
        }
        self.ledger.hold = Some(Hold {
            since: moment.now,
            until,
            reason,
        });
        self.must_persist = true;
        self.stop_for_hold();
        self.report(moment);
        Ok(LocalDone::Held)
    }

    /// What going back means now.
    fn rollback_target(&self, moment: &Moment, to: Option<DeploymentId>) -> Result<Target, String> {
        let running = moment.facts.current.as_ref();
        let found = match (to, &self.ledger.staged) {
            (Some(id), _) => {
                let known = self.ledger.resolve(RollbackTo::Deployment(id));
                let (path, how) = known.ok_or_else(|| {
                    format!(
                        "this machine knows no deployment {id} that ended well; `hoist-agent history` lists them"
                    )
                })?;
                Some((path, how))
            }
            // The newest step is the one that waits for a reboot: it is taken back, and what runs stays.
            (None, Some(_)) => running.map(|path| (path, self.ledger.how(path))),
            (None, None) => {
                let before = self.ledger.before(running);
                before.map(|path| (path, self.ledger.how(path)))
            }
        };
        let (path, how) = found.ok_or(
            "this machine knows nothing that ran before; `hoist-agent history` lists what it does know",
        )?;
        let mut target = Target::new(Goal::Closure(path.clone()));
        how.complete(&mut target);
        Ok(target)
    }

    fn local_task(
        &self,
        moment: &Moment,
        id: DeploymentId,
        target: Target,
    ) -> Result<(Task, LocalDone), String> {
        if let (Work::Activating(_), Some(task)) = (&self.work, &self.ledger.current) {
            return Err(format!(
                "{} is being activated; try again when it has ended: see `hoist-agent status`",
                task.order.id
            ));
        }
        if self.ledger.knows(id) {
            return Err(format!("the id {id} was used before"));
        }
        let Goal::Closure(path) = target.goal.clone() else {
            return Err("a local activation names a store path".to_owned());
        };
        let floor = self.ledger.floor.as_ref().map(|floor| floor.order);
        let order = Order {
            epoch: floor.map_or(0, |order| order.epoch),
            sequence: floor.map_or(0, |order| order.sequence),
            id,
        };
        let deployment = Deployment::new(DeploymentParts {
            machine: self.config.machine.clone(),
            order,
            issued: moment.now,
            expires: moment.now.plus(LIVES),
            target,
            held: Held::No,
            cancels: None,
            renews: None,
            provenance: Provenance::default(),
        })
        .map_err(|error| error.to_string())?;
        let task = Task {
            local: Some(Box::new(deployment.clone())),
            ..Task::admitted(&deployment, Origin::Local, moment.now)
        };
        Ok((task, LocalDone::Begun { id, path }))
    }

    /// Ends what a local order takes the place of: what is fetched, and what waits for its time. What is held
    /// waits on.
    fn give_way(&mut self, moment: &Moment, to: DeploymentId) {
        if let Some(task) = self.stop_fetching() {
            self.displaced(moment, task, to, None);
        }
        if let Some(Wait::Spread(_)) = self.wait(moment.now)
            && let Some(task) = self.ledger.next.take()
        {
            self.displaced(moment, task, to, None);
        }
    }
}
