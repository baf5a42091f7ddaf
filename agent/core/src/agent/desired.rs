//! What arrives on the machine's `deploy` topic.

use hoist_protocol::{Reason, Refused, Text, VerifyError};

use super::Agent;
use crate::admission::{Admission, admit};
use crate::input::{Moment, Offer, Origin};
use crate::ledger::{Signed, Task};
use crate::report;

impl Agent {
    pub(super) fn offered(&mut self, moment: &Moment, offer: Offer) {
        let Offer { deployment, signed } = offer;
        let id = deployment.deployment().id();
        let floor = match admit(self.ledger.floor.as_ref(), &deployment, moment) {
            Admission::New(_) if self.ledger.knows(id) => {
                // Outcomes are told by id: with two of one id, nobody could tell which is meant.
                let digest = hoist_protocol::digest(&signed);
                let message =
                    format!("the id {id} was used before; a new deployment needs a new one");
                return self.refuse(moment, digest, Reason::Stale, &message);
            }
            Admission::New(floor) => floor,
            Admission::Repeat => return,
            Admission::Refused { reason, message } => {
                let digest = hoist_protocol::digest(&signed);
                return self.refuse(moment, digest, reason, &message);
            }
        };
        let order = floor.order;
        self.must_persist = true;
        // The floor rises before anything else is looked at: also an expired one makes the older ones old.
        self.ledger.floor = Some(floor);
        let deployment = deployment.deployment().clone();
        let cancels = deployment.parts().cancels;
        if let Some(waiting) = self.ledger.next.take() {
            self.displaced(moment, waiting, order.id, cancels);
        }
        let current = self.ledger.current.as_ref();
        let goes_on = current.is_some_and(|task| task.origin == Origin::Local)
            && self.ledger.is_held(moment.now);
        // What somebody at a held machine does is not for publishers to stop.
        if !goes_on && let Some(task) = self.stop_fetching() {
            self.displaced(moment, task, order.id, cancels);
        }
        self.ledger.next = Some(Task {
            signed: Some(Signed::new(signed)),
            ..Task::admitted(&deployment, Origin::Publisher, moment.now)
        });
        self.offered = Some(deployment);
        self.advance(moment);
        if self.ledger.next.is_some() {
            self.push_report(report::waiting(self, moment));
        }
    }

    pub(super) fn unverified(&mut self, moment: &Moment, error: &VerifyError, digest: Text<64>) {
        let reason = match error {
            VerifyError::OtherMachine { .. } => Reason::OtherMachine,
            VerifyError::Payload(_) => Reason::Unsupported,
            VerifyError::Envelope(_) | VerifyError::Excess | VerifyError::Untrusted { .. } => {
                Reason::Unverified
            }
        };
        let message = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        self.refuse(moment, digest, reason, &message);
    }

    /// Notes a message that is not followed. Not persisted by itself: the broker retains the message, so that
    /// it comes again after a crash, and a hostile broker must not wear out the disk.
    pub(super) fn refuse(
        &mut self,
        moment: &Moment,
        digest: Text<64>,
        reason: Reason,
        message: &str,
    ) {
        let known = self.ledger.refused.as_ref();
        if known.is_some_and(|r| r.refused_digest == digest && r.refused_reason == reason) {
            return;
        }
        self.ledger.refused = Some(Refused {
            refused_digest: digest,
            refused_reason: reason,
            refused_message: Text::lossy(message),
            refused_at: moment.now,
        });
        self.report(moment);
    }
}
