//! SUBSCRIBE and UNSUBSCRIBE.

use hoist_certs::Role;
use hoist_protocol::{Channel, Text};

use super::outbox::Delivery;
use super::subscriptions::Subscription;
use super::{Effect, Ended, Grant, Request, Session};
use crate::frame::{Filter, ReasonCode, Retained, Subscribe, Unsubscribe};
use crate::guard::{Agents, FilterError, Pattern};
use crate::observe::Reason;
use crate::settings::WATCHERS;
use crate::store::Snapshot;

/// How many subscriptions the filters of one packet add.
#[derive(Default)]
struct Added {
    all: usize,
    wild: usize,
}

/// Why a subscription is not granted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NotGranted {
    /// There is nothing for this client in what it matches.
    #[error("there is nothing that this client may read")]
    Forbidden,
    /// It is no filter.
    #[error("{0}")]
    Filter(FilterError),
    /// A subscription that several clients share.
    #[error("shared subscriptions are not served")]
    Shared,
    /// The client has as many as it may.
    #[error("it has as many as it may (max_subscriptions, max_wildcard_subscriptions)")]
    TooMany,
    /// As many clients as there may be watch their fleets.
    #[error("{WATCHERS} clients watch their fleets already, which is as many as there may be")]
    Watchers,
    /// As many clients as there may be watch this fleet.
    #[error("as many clients as may already watch the fleet (its max_watchers)")]
    FleetWatchers,
}

impl NotGranted {
    /// What a client of MQTT 5 is told.
    pub(super) const fn code(self) -> ReasonCode {
        match self {
            Self::Forbidden => ReasonCode::NotAuthorized,
            Self::Filter(_) => ReasonCode::TopicFilterInvalid,
            Self::Shared => ReasonCode::SharedSubscriptionsNotSupported,
            Self::TooMany | Self::Watchers | Self::FleetWatchers => ReasonCode::QuotaExceeded,
        }
    }

    /// As a word for counters and the audit log.
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Forbidden | Self::Filter(_) | Self::Shared => Reason::Subscribe,
            Self::TooMany | Self::Watchers => Reason::Subscriptions,
            Self::FleetWatchers => Reason::Quota,
        }
    }

    /// The refusal of `filter`.
    pub(crate) fn of(self, filter: &str) -> Ended {
        let (filter, why) = (Text::lossy(filter), self);
        Ended::Subscription { filter, why }
    }
}

impl Request {
    /// Takes back what was granted.
    pub(crate) fn refuse(&mut self, why: NotGranted) -> Ended {
        self.granted = Err(why.code());
        why.of(&self.filter)
    }
}

impl Session {
    pub(super) fn subscribe(&mut self, subscribe: Subscribe) -> Result<(), Ended> {
        let mut added = Added::default();
        let mut requests = Vec::with_capacity(subscribe.filters.len());
        for filter in subscribe.filters {
            let granted = self.grant(&filter, subscribe.identifier, &mut added)?;
            let filter = filter.filter;
            let granted = granted.map_err(|why| {
                self.want(Effect::Refused(why.of(&filter)));
                why.code()
            });
            requests.push(Request { filter, granted });
        }
        self.want(Effect::Subscribe(subscribe.packet_id, requests));
        Ok(())
    }

    /// Grants a filter, or says why not. What is no filter at all ends a client of MQTT 3.1.1.
    fn grant(
        &self,
        filter: &Filter,
        identifier: Option<u32>,
        added: &mut Added,
    ) -> Result<Result<Grant, NotGranted>, Ended> {
        if self.speaks_v5() && filter.filter.starts_with("$share/") {
            return Ok(Err(NotGranted::Shared));
        }
        let pattern = match Pattern::parse(&filter.filter, &self.peer().fleet) {
            Ok(Some(pattern)) if self.may_read(&pattern) => pattern,
            Ok(_) => return Ok(Err(NotGranted::Forbidden)),
            Err(error) if self.speaks_v5() => return Ok(Err(NotGranted::Filter(error))),
            Err(error) => return Err(error.into()),
        };
        let (subscriptions, limits) = (&self.kept.subscriptions, &self.kept.policy.limits);
        let is_new = subscriptions.as_of(&filter.filter).is_none();
        if is_new {
            added.all += 1;
            added.wild += usize::from(pattern.agents == Agents::All);
            let all = subscriptions.len() + added.all;
            let wild = subscriptions.wild_len() + added.wild;
            if all > limits.subscriptions || wild > limits.wild_subscriptions {
                return Ok(Err(NotGranted::TooMany));
            }
        }
        Ok(Ok(Grant {
            pattern,
            qos: filter.qos,
            no_local: filter.no_local,
            retain_as_published: filter.retain_as_published,
            identifier,
            retained: match filter.retained {
                Retained::Always => true,
                Retained::IfNew => is_new,
                Retained::Never => false,
            },
        }))
    }

    /// Whether there can be anything for this client in what `pattern` matches. What is delivered is asked
    /// again, topic by topic.
    fn may_read(&self, pattern: &Pattern) -> bool {
        let mut machine = self.peer().machine();
        match &pattern.agents {
            // A machine asks for its own and nothing else: a wildcard is a mistake or a probe.
            Agents::All if self.peer().role == Role::Agent => return false,
            Agents::All => {}
            Agents::One(agent) => machine.agent = agent.clone(),
        }
        Channel::ALL
            .into_iter()
            .any(|channel| pattern.channels.hold(channel) && self.allows(&machine.topic(channel)))
    }

    /// The subscriptions of a SUBSCRIBE are in place and their snapshots read, one for each that was granted.
    pub(crate) fn subscribed(
        &mut self,
        packet_id: u16,
        requests: Vec<Request>,
        snapshots: Vec<Snapshot>,
    ) {
        let codes = requests.iter().map(|request| match &request.granted {
            Ok(grant) => Ok(grant.qos),
            Err(code) => Err(*code),
        });
        self.frames.suback(packet_id, codes, &mut self.output);
        let granted = requests.into_iter().filter_map(|request| {
            let grant = request.granted.ok()?;
            Some((request.filter, grant))
        });
        for ((filter, grant), snapshot) in granted.zip(snapshots) {
            let kept = &mut self.kept;
            // One that is replaced without its snapshot goes on where it is.
            let before = kept
                .subscriptions
                .as_of(&filter)
                .filter(|_| !grant.retained);
            kept.subscriptions.insert(Subscription {
                filter,
                pattern: grant.pattern,
                qos: grant.qos,
                no_local: grant.no_local,
                retain_as_published: grant.retain_as_published,
                identifier: grant.identifier,
                as_of: before.unwrap_or(snapshot.as_of),
            });
            if !grant.retained {
                continue;
            }
            for message in snapshot.messages {
                kept.outbox.push(Delivery {
                    qos: grant.qos.min(message.qos),
                    message,
                    retain: true,
                    identifiers: grant.identifier.into_iter().collect(),
                });
            }
        }
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        let mut codes = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let known = self.kept.subscriptions.as_of(filter).is_some();
            codes.push(if known {
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
            if let Some(agent) = self.kept.subscriptions.remove(filter) {
                self.want(Effect::Unwatch(agent));
            }
        }
        if self.kept.subscriptions.wild_len() == 0 {
            self.want(Effect::UnwatchAll);
        }
        self.frames
            .unsuback(unsubscribe.packet_id, codes.into_iter(), &mut self.output);
    }

    /// What the router had skipped on `channel` was read from the store.
    pub(crate) fn refreshed(&mut self, channel: Channel, changes: Snapshot) {
        self.kept.refreshed(channel, changes, false);
    }
}
