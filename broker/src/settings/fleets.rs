//! Fleets that share one broker: what each has of its own.

use std::collections::BTreeMap;

use hoist_certs::Pem;
use hoist_protocol::{FleetName, PublicKey, TrustedKeys};
use serde::Deserialize;

use super::{Rate, SettingsError};
use crate::guard::Rules;

/// What a configuration file says of one fleet, in a table `[fleets.NAME]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetOptions {
    /// The CA that issues for this fleet and for no other; without it the broker's `ca` does.
    pub ca: Option<Pem>,
    /// The keys that its deployments must be signed with.
    pub trusted_keys: Option<Vec<PublicKey>>,
    /// How many of them must have signed.
    pub required_signatures: Option<usize>,
    /// Those that may raise the epoch.
    pub epoch_keys: Option<Vec<PublicKey>>,
    /// Whether its monitors may read the log.
    pub monitors_read_log: Option<bool>,
    /// Its share of the connections.
    pub max_connections: Option<usize>,
    /// Its share of the clients that watch all machines.
    pub max_watchers: Option<usize>,
    /// Most retained messages.
    pub max_retained_messages: Option<usize>,
    /// Most bytes of retained messages.
    pub max_retained_bytes: Option<u64>,
    /// How often its clients may publish, all together.
    pub publish_rate: Option<Rate>,
}

/// What one fleet has of its own.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// The CA that issues for it and for no other.
    pub ca: Option<Pem>,
    /// The keys that its deployments must be signed with.
    pub trusted_keys: Option<TrustedKeys>,
    /// What an operator has decided about access.
    pub rules: Rules,
    /// What it may use.
    pub quota: Quota,
}

/// What one fleet may use of the broker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quota {
    /// Connections after their handshake; none: as many as the broker has.
    pub connections: Option<usize>,
    /// Clients that watch all of its machines; none: as many as the broker has room for, which is 1,024.
    pub watchers: Option<usize>,
    /// Retained messages.
    pub retained_messages: usize,
    /// Bytes of retained messages, topics and payloads.
    pub retained_bytes: u64,
    /// Publishes of all its clients together; none: as often as each of them may.
    pub publishes: Option<Rate>,
}

impl Quota {
    /// Nothing at all.
    pub(crate) const NONE: Self = Self {
        connections: Some(0),
        watchers: Some(0),
        retained_messages: 0,
        retained_bytes: 0,
        publishes: None,
    };
}

impl Default for Quota {
    /// Four messages for each of 250,000 machines.
    fn default() -> Self {
        Self {
            connections: None,
            watchers: None,
            retained_messages: 1_000_000,
            retained_bytes: 4 * 1024 * 1024 * 1024,
            publishes: None,
        }
    }
}

/// The fleets of a broker.
#[derive(Clone, Debug)]
pub enum Fleets {
    /// All that certificates name, each with the same of its own.
    Any(Box<Fleet>),
    /// These and no others.
    These(BTreeMap<FleetName, Fleet>),
}

impl Default for Fleets {
    /// All, with nothing of their own.
    fn default() -> Self {
        Self::Any(Box::default())
    }
}

impl Fleets {
    /// What `fleet` has of its own; none when it is not served.
    #[must_use]
    pub fn get(&self, fleet: &FleetName) -> Option<&Fleet> {
        match self {
            Self::Any(same) => Some(same),
            Self::These(fleets) => fleets.get(fleet),
        }
    }

    /// All settings of fleets.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Option<&FleetName>, &Fleet)> {
        let (any, these) = match self {
            Self::Any(same) => (Some((None, &**same)), None),
            Self::These(fleets) => (None, Some(fleets)),
        };
        let these = these.into_iter().flatten();
        any.into_iter()
            .chain(these.map(|(name, fleet)| (Some(name), fleet)))
    }
}

impl TryFrom<FleetOptions> for Fleet {
    type Error = SettingsError;

    fn try_from(options: FleetOptions) -> Result<Self, SettingsError> {
        let usual = Quota::default();
        let required = options.required_signatures;
        let epoch_keys = options.epoch_keys.unwrap_or_default();
        let trusted_keys = match options.trusted_keys.filter(|keys| !keys.is_empty()) {
            Some(keys) => Some(TrustedKeys::with_policy(
                keys,
                required.unwrap_or(1),
                epoch_keys,
            )?),
            None if required.is_some() => {
                return Err(SettingsError::NoTrustedKeys("required_signatures"));
            }
            None if !epoch_keys.is_empty() => {
                return Err(SettingsError::NoTrustedKeys("epoch_keys"));
            }
            None => None,
        };
        for (name, limit) in [
            ("max_connections", options.max_connections),
            ("max_watchers", options.max_watchers),
        ] {
            if limit == Some(0) {
                return Err(SettingsError::Zero(name));
            }
        }
        Ok(Self {
            ca: options.ca,
            trusted_keys,
            rules: Rules {
                monitors_read_log: options.monitors_read_log.unwrap_or_default(),
            },
            quota: Quota {
                connections: options.max_connections,
                watchers: options.max_watchers,
                retained_messages: options
                    .max_retained_messages
                    .unwrap_or(usual.retained_messages),
                retained_bytes: options.max_retained_bytes.unwrap_or(usual.retained_bytes),
                publishes: options.publish_rate,
            },
        })
    }
}
