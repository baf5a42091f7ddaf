//! How one signed deployment gets to its topic: published, acknowledged, read back.
//!
//! An acknowledgement proves nothing: mosquitto and NATS acknowledge what they then drop. What counts is that
//! the broker shows the message as the retained one of its topic to somebody who subscribes afterwards.

use std::time::Duration;

use hoist_protocol::{DeploymentId, Order};

/// How often one deployment is published before its publisher gives up.
pub const ATTEMPTS: u8 = 3;

/// How long after a subscription was granted, and after the last message for it, nothing more is expected.
pub const QUIET: Duration = Duration::from_secs(2);

/// What was seen on the topic, compared with what was published there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// Exactly what was published.
    Ours,
    /// A deployment of a known key, ordered after this one: another publisher won.
    Newer(Order),
    /// A deployment of a known key, ordered before this one.
    Older(DeploymentId),
    /// Something that no known key has signed for this machine.
    Unknown(String),
    /// Nothing: somebody cleared the topic.
    Cleared,
}

impl Found {
    /// What the topic did, to end a sentence that begins with it.
    fn described(&self) -> String {
        match self {
            Self::Ours => "held this deployment".to_owned(),
            Self::Newer(order) => format!("held the newer deployment {}", order.id.short()),
            Self::Older(id) => format!("held the older deployment {}", id.short()),
            Self::Unknown(why) => format!("held what no key known here signed ({why})"),
            Self::Cleared => EMPTY.to_owned(),
        }
    }
}

/// What a topic is on which nothing is retained.
const EMPTY: &str = "was empty";

/// Why a deployment did not get to its topic.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The broker closed the connection at each attempt to publish it.
    #[error(
        "the broker closed the connection each of the {ATTEMPTS} times it was published: it does not trust the \
         signing key, has a newer deployment, or gives the certificate no right to; its log says which"
    )]
    Closed,
    /// It was given up after the same had happened to others.
    #[error("the broker refused every deployment before it, so this one was not tried any more")]
    LikeOthers,
    /// It was acknowledged but is not there.
    #[error(
        "the broker acknowledged it, but then the topic {0}: it does not trust the signing key, or gives the \
         certificate no right to publish there; its log may say which"
    )]
    NotThere(String),
    /// Somebody puts something else in its place each time.
    #[error(
        "it was published {ATTEMPTS} times, and soon after the topic {0}. Is another publisher at work?"
    )]
    Replaced(String),
    /// It was there when it was picked up, published by somebody else, and is not any more.
    #[error(
        "it was on the machine's topic, and then the topic {0}; it is not ours to publish again"
    )]
    Gone(String),
}

/// How far it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stage {
    /// To be published.
    Queued,
    /// Published, not yet acknowledged.
    Sent,
    /// Acknowledged, to be read back.
    Acknowledged,
    /// A subscription that shows it is under way.
    Requested,
    /// That subscription is granted; the message is waited for.
    Awaited {
        /// Since when.
        since: Duration,
    },
    /// Read back: it is what a machine that subscribes now gets.
    Stands,
    /// A deployment that is ordered after it took its place.
    Overtaken(Order),
    /// Given up.
    Refused(Refusal),
}

/// One deployment on its way to its topic. Pure: what happened comes in, the stage is looked at.
#[derive(Clone, Debug)]
pub struct Delivery {
    stage: Stage,
    attempts: u8,
    published: bool,
    /// Somebody else's: it is never published here.
    picked_up: bool,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            stage: Stage::Queued,
            attempts: 0,
            published: false,
            picked_up: false,
        }
    }
}

impl Delivery {
    /// One that somebody has published already, and that was found on its topic.
    #[must_use]
    pub fn picked_up() -> Self {
        Self {
            stage: Stage::Stands,
            published: true,
            picked_up: true,
            ..Self::default()
        }
    }

    /// How far it is.
    #[must_use]
    pub const fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Whether it may have reached the broker at all.
    #[must_use]
    pub const fn was_published(&self) -> bool {
        self.published
    }

    /// It is being published.
    pub fn sent(&mut self) {
        self.attempts += 1;
        self.published = true;
        self.stage = Stage::Sent;
    }

    /// The broker acknowledged it.
    pub fn acknowledged(&mut self) {
        if self.stage == Stage::Sent {
            self.stage = Stage::Acknowledged;
        }
    }

    /// A subscription was sent that will show what the topic holds.
    pub fn requested(&mut self) {
        if self.stage == Stage::Acknowledged {
            self.stage = Stage::Requested;
        }
    }

    /// That subscription was granted.
    pub fn granted(&mut self, now: Duration) {
        if self.stage == Stage::Requested {
            self.stage = Stage::Awaited { since: now };
        }
    }

    /// The connection is gone, and with it every acknowledgement that has not come.
    ///
    /// Only when nothing else was on its way, `alone`, may this message be why, and the attempt counts.
    pub fn disconnected(&mut self, alone: bool) {
        match self.stage {
            Stage::Sent => {
                if !alone {
                    self.attempts -= 1;
                }
                self.again(Refusal::Closed);
            }
            // It is read back once more: a broker that was restarted may have lost it.
            Stage::Requested | Stage::Awaited { .. } | Stage::Stands => {
                self.stage = Stage::Acknowledged;
            }
            _ => {}
        }
    }

    /// Something was seen on the topic: `retained` by a new subscription, otherwise as it was published.
    pub fn saw(&mut self, found: &Found, retained: bool) {
        match found {
            Found::Newer(order) => {
                // Never publish over what is newer, and a machine takes the newest.
                if !matches!(self.stage, Stage::Refused(_)) {
                    self.stage = Stage::Overtaken(*order);
                }
            }
            Found::Ours => {
                let reads_back = matches!(
                    self.stage,
                    Stage::Acknowledged | Stage::Requested | Stage::Awaited { .. }
                );
                if retained && reads_back {
                    self.stage = Stage::Stands;
                }
            }
            Found::Older(_) | Found::Unknown(_) | Found::Cleared => match self.stage {
                Stage::Stands => self.again(Refusal::Replaced(found.described())),
                // What was there before is there still.
                Stage::Requested | Stage::Awaited { .. } if retained => {
                    self.again(Refusal::NotThere(found.described()));
                }
                _ => {}
            },
        }
    }

    /// Time has passed; `quiet_since` is when the last message came that answers a subscription.
    pub fn tick(&mut self, now: Duration, quiet_since: Duration) {
        if let Stage::Awaited { since } = self.stage
            && now.saturating_sub(since.max(quiet_since)) >= QUIET
        {
            self.again(Refusal::NotThere(EMPTY.to_owned()));
        }
    }

    /// Gives up without a further attempt, when it is clear that none can help.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.stage = Stage::Refused(refusal);
    }

    fn again(&mut self, refusal: Refusal) {
        if self.picked_up {
            self.stage = Stage::Refused(match refusal {
                Refusal::NotThere(instead) | Refusal::Replaced(instead) => Refusal::Gone(instead),
                refusal @ (Refusal::Closed | Refusal::LikeOthers | Refusal::Gone(_)) => refusal,
            });
            return;
        }
        self.stage = if self.attempts < ATTEMPTS {
            Stage::Queued
        } else {
            Stage::Refused(refusal)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{id, order};

    const T: Duration = Duration::from_secs(1);

    fn read_back(delivery: &mut Delivery) {
        delivery.sent();
        delivery.acknowledged();
        delivery.requested();
        delivery.granted(T);
    }

    fn awaited() -> Delivery {
        let mut delivery = Delivery::default();
        read_back(&mut delivery);
        delivery
    }

    #[test]
    fn what_was_picked_up_is_never_published() {
        let mut delivery = Delivery::picked_up();
        assert_eq!(*delivery.stage(), Stage::Stands);
        delivery.disconnected(true);
        delivery.requested();
        delivery.granted(T);
        delivery.saw(&Found::Ours, true);
        assert_eq!(*delivery.stage(), Stage::Stands);
        delivery.saw(&Found::Cleared, false);
        let gone = Refusal::Gone(EMPTY.to_owned());
        assert_eq!(*delivery.stage(), Stage::Refused(gone));
    }

    #[test]
    fn only_what_is_read_back_stands() {
        let mut delivery = awaited();
        delivery.saw(&Found::Ours, false);
        assert!(matches!(delivery.stage(), Stage::Awaited { .. }));
        delivery.saw(&Found::Ours, true);
        assert_eq!(*delivery.stage(), Stage::Stands);
    }

    #[test]
    fn what_the_broker_acknowledged_and_dropped_is_published_again_and_then_given_up() {
        let mut delivery = Delivery::default();
        for _ in 0..ATTEMPTS {
            assert_eq!(*delivery.stage(), Stage::Queued);
            read_back(&mut delivery);
            delivery.tick(T + QUIET, Duration::ZERO);
        }
        let refusal = Refusal::NotThere(EMPTY.to_owned());
        assert_eq!(*delivery.stage(), Stage::Refused(refusal));
    }

    #[test]
    fn an_older_deployment_that_takes_its_place_is_published_over() {
        let mut delivery = awaited();
        delivery.saw(&Found::Ours, true);
        delivery.saw(&Found::Older(id(1)), false);
        assert_eq!(*delivery.stage(), Stage::Queued);
    }

    #[test]
    fn a_newer_deployment_is_never_published_over() {
        for mut delivery in [Delivery::default(), awaited()] {
            delivery.saw(&Found::Newer(order(9)), true);
            delivery.saw(&Found::Older(id(1)), true);
            delivery.disconnected(true);
            assert_eq!(*delivery.stage(), Stage::Overtaken(order(9)));
        }
    }

    #[test]
    fn a_lost_connection_publishes_again_only_what_was_not_acknowledged() {
        let mut delivery = Delivery::default();
        delivery.sent();
        delivery.disconnected(true);
        assert_eq!(*delivery.stage(), Stage::Queued);
        let mut delivery = awaited();
        delivery.disconnected(true);
        assert_eq!(*delivery.stage(), Stage::Acknowledged);
    }

    #[test]
    fn what_a_restarted_broker_has_lost_is_published_again() {
        let mut delivery = awaited();
        delivery.saw(&Found::Ours, true);
        delivery.disconnected(true);
        delivery.requested();
        delivery.granted(T);
        delivery.tick(T + QUIET, Duration::ZERO);
        assert_eq!(*delivery.stage(), Stage::Queued);
    }

    #[test]
    fn a_broker_that_closes_the_connection_each_time_is_given_up() {
        let mut delivery = Delivery::default();
        for _ in 0..ATTEMPTS {
            delivery.sent();
            delivery.disconnected(false);
            assert_eq!(*delivery.stage(), Stage::Queued);
            delivery.sent();
            delivery.disconnected(true);
        }
        assert_eq!(*delivery.stage(), Stage::Refused(Refusal::Closed));
    }
}
