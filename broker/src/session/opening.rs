//! CONNECT and CONNACK: who it is, what both sides agree on, and the will.

use std::sync::Arc;
use std::time::Duration;

use hoist_protocol::{Channel, Presence};

use super::{Admitted, Claim, Effect, Ended, Kept, Phase, Session};
use crate::frame::{Accepted, Connect, Said};
use crate::guard::admit_client_id;
use crate::message::Extras;

/// Most messages of QoS 1 and 2 that are taken from one client before they are settled. Those of QoS 1 are also
/// bounded by what waits for the store; at QoS 2 each is a packet id that is remembered.
pub(super) const RECEIVE_MAXIMUM: u16 = 1024;

/// What the CONNECT said and the CONNACK has to answer.
pub(super) struct Opening {
    /// Made by the broker.
    assigned: Option<String>,
    clean_start: bool,
    /// When it is not what was asked for, in seconds.
    session_expiry: Option<u32>,
    keep_alive: Option<u16>,
}

/// What is published when the client is gone.
#[derive(Clone, Debug)]
pub(crate) struct Will {
    admitted: Admitted,
    /// How long after the connection has ended, while the session lives.
    pub(crate) delay: Duration,
    /// How long the message is of use from then on, in seconds.
    expiry: Option<u32>,
}

impl Will {
    /// Whether it says that the client is offline, and nothing else.
    pub(crate) fn says_offline(&self) -> bool {
        match &self.admitted {
            Admitted::Store(publication) => {
                publication.topic.channel == Channel::Presence
                    && Presence::from_payload(&publication.payload) == Some(Presence::Offline)
            }
            Admitted::Relay(_) => false,
        }
    }

    /// The message, as it is published now, `now` in milliseconds since 1970.
    pub(crate) fn publication(self, now: u64) -> Admitted {
        let mut admitted = self.admitted;
        if let Some(seconds) = self.expiry {
            let extras = match &mut admitted {
                Admitted::Store(publication) => &mut publication.extras,
                Admitted::Relay(message) => &mut message.extras,
            };
            let said = extras.take().unwrap_or_default();
            *extras = Some(Arc::new(Extras {
                expires_at_ms: Some(expires_at_ms(now, seconds)),
                properties: said.properties.clone(),
            }));
        }
        admitted
    }
}

/// When a message that is of use for `seconds` expires.
pub(super) fn expires_at_ms(now: u64, seconds: u32) -> u64 {
    now.saturating_add(u64::from(seconds) * 1000)
}

impl Session {
    pub(super) fn connect(&mut self, connect: Connect) -> Result<(), Ended> {
        if connect.authentication {
            return Err(Ended::Authentication);
        }
        if connect.client_id.is_empty() && !self.speaks_v5() && !connect.clean_start {
            return Err(Ended::NoClientId);
        }
        let client_id = admit_client_id(self.peer(), &connect.client_id, self.kept.author.0)?;
        if let Some(will) = connect.will {
            let said = Said {
                expiry: None,
                properties: will.said.properties,
            };
            let payload = Arc::from(will.payload);
            let entry = self
                .admit(&will.topic, payload, will.qos, will.retain, said)
                .map_err(|ended| match ended {
                    Ended::Publish(refusal) => Ended::Will(refusal),
                    ended => ended,
                })?;
            let admitted = entry.verified(&self.kept.policy.deploys)?;
            self.will = Some(Box::new(Will {
                admitted,
                delay: Duration::from_secs(will.delay.into()),
                expiry: will.said.expiry,
            }));
        }
        self.kept.expiry = self.expiry(connect.session_expiry);
        let expiry = u32::try_from(self.kept.expiry.as_secs()).unwrap_or(u32::MAX);
        let keep_alive = self.agree_on_keep_alive(connect.keep_alive);
        let inflight = self.kept.policy.limits.inflight;
        self.receive_maximum = usize::from(connect.receive_maximum).min(inflight);
        self.opening = Some(Box::new(Opening {
            assigned: connect.client_id.is_empty().then(|| client_id.clone()),
            clean_start: connect.clean_start,
            session_expiry: (expiry != connect.session_expiry).then_some(expiry),
            keep_alive,
        }));
        self.phase = Phase::Claiming;
        self.want(Effect::Claim(Claim {
            client_id,
            clean_start: connect.clean_start,
            outlives: !self.kept.expiry.is_zero(),
        }));
        Ok(())
    }

    /// How long the session lives without a connection, of what the client asks for.
    pub(super) fn expiry(&self, seconds: u32) -> Duration {
        Duration::from_secs(seconds.into()).min(self.kept.policy.limits.absence.expiry)
    }

    /// Notes how long a silence may last. Returns what MQTT 5 has to be told: a keep-alive of the broker's own,
    /// in seconds.
    fn agree_on_keep_alive(&mut self, asked: u16) -> Option<u16> {
        let longest = self.kept.policy.limits.absence.keep_alive.as_secs();
        let longest = u16::try_from(longest).unwrap_or(u16::MAX);
        let own = self.speaks_v5() && (asked == 0 || asked > longest);
        let agreed = if own { longest } else { asked };
        if agreed > 0 {
            // One and a half times, section 3.1.2.10.
            self.keep_alive = Some(Duration::from_secs(agreed.into()) * 3 / 2);
        }
        own.then_some(agreed)
    }

    /// The session of an earlier connection of this client goes on in this one.
    pub(crate) fn resume(&mut self, mut kept: Box<Kept>) {
        kept.expiry = self.kept.expiry;
        kept.policy = Arc::clone(&self.kept.policy);
        self.kept = kept;
        self.resumed = true;
    }

    /// The client id is ours and the will of whoever had it is applied.
    pub(crate) fn claimed(&mut self) {
        let Some(opening) = self.opening.take() else {
            return;
        };
        debug_assert!(!(opening.clean_start && self.resumed));
        self.phase = Phase::Open;
        let accepted = Accepted {
            session_present: self.resumed,
            session_expiry: opening.session_expiry,
            keep_alive: opening.keep_alive,
            client_id: opening.assigned.as_deref(),
            receive_maximum: RECEIVE_MAXIMUM,
        };
        self.frames.accept(&accepted, &mut self.output);
    }

    /// The session cannot be opened after all.
    pub(crate) fn unavailable(&mut self, reason: Ended) {
        self.frames
            .refuse(reason.code(), &reason.explain(), &mut self.output);
        self.end(reason);
    }
}
