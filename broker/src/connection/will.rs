//! Last wills, when they are due.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::Shared;
use crate::message::now_ms;
use crate::observe::Origin;
use crate::session::{Admitted, Ended, Will};

/// A will, with who left it: it is its client's doing, also long after the client is gone.
pub(crate) struct LeftWill {
    will: Box<Will>,
    origin: Arc<Origin>,
}

impl LeftWill {
    pub(super) const fn new(will: Box<Will>, origin: Arc<Origin>) -> Self {
        Self { will, origin }
    }

    /// How long after the end of the connection it is due, while the session lives.
    pub(crate) fn delay(&self) -> Duration {
        self.will.delay
    }

    /// What stands of it once its client's certificate no longer counts: that the client is offline, and nothing else.
    pub(crate) fn of_a_stranger(self) -> Option<Self> {
        self.will.says_offline().then_some(self)
    }
}

impl Shared {
    /// Publishes a will that is due.
    pub(crate) async fn leave_will(&self, left: LeftWill) {
        let LeftWill { will, origin } = left;
        let publication = match will.publication(now_ms()) {
            Admitted::Store(publication) => publication,
            Admitted::Relay(message) => return self.relay(message),
        };
        let topic = publication.topic.clone();
        let published = self
            .store
            .publish_and_wait(publication, Arc::clone(&origin));
        match published.await.map(Ended::of_outcome) {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => {
                let Some(reason) = refusal.reason() else {
                    return;
                };
                let (what, why) = (topic.to_string(), format!("a last will is lost: {refusal}"));
                self.observer.refused(&origin, reason, &what, &why);
                if self.log_limit.allows(reason, std::time::Instant::now()) {
                    warn!(%topic, "{why}");
                }
            }
            // The process ends with the store's own error.
            Err(error) => debug!(%topic, %error, "a will is lost"),
        }
    }
}
