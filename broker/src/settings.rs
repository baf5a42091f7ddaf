//! The broker's settings: a configuration file, flags with the same names, and limits with defaults.

use std::net::SocketAddr;
use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_certs::{Credentials, Pem};
use hoist_protocol::{PublicKey, TrustedKeys, TrustedKeysError};
use jiff::SignedDuration;
use serde::Deserialize;

use crate::guard::Rules;

/// Why settings make no broker.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Something has no default and is not given.
    #[error("`{0}` is not set; give it in the configuration file or as --{flag}", flag = .0.replace('_', "-"))]
    Missing(&'static str),
    /// The keys cannot be trusted together.
    #[error("the trusted keys cannot be used")]
    TrustedKeys(#[from] TrustedKeysError),
    /// A policy for signatures without any key.
    #[error("`{0}` is set, but no `trusted_keys`")]
    NoTrustedKeys(&'static str),
    /// A limit of zero.
    #[error("`{0}` must not be zero")]
    Zero(&'static str),
    /// A text that is no duration.
    #[error("`{key}` is no duration above zero, such as 500ms, 10s or 5m")]
    Duration {
        /// Which setting.
        key: &'static str,
    },
}

/// What a configuration file or the flags say; what is missing there has a default or is asked for.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8883]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The certificate authority that clients' certificates are of (a path, or the PEM text)
    #[arg(long, value_name = "PEM")]
    pub ca: Option<Pem>,
    /// The broker's certificate (a path, or the PEM text)
    #[arg(long, value_name = "PEM")]
    pub certificate: Option<Pem>,
    /// The certificate's private key (a path)
    #[arg(long, value_name = "PATH")]
    pub key: Option<Pem>,
    /// The folder of the retained messages; made when it is missing
    #[arg(long, value_name = "DIR")]
    pub state: Option<Utf8PathBuf>,
    /// A key that deployments must be signed with; repeat it for several. Without any, the broker takes what
    /// publishers send, and the agents alone verify it
    #[arg(long, value_name = "hoist-NAME:BASE64")]
    pub trusted_keys: Option<Vec<PublicKey>>,
    /// How many of them must have signed [default: 1]
    #[arg(long, value_name = "N")]
    pub required_signatures: Option<usize>,
    /// A trusted key that may raise the epoch; repeat it for several
    #[arg(long, value_name = "hoist-NAME:BASE64")]
    pub epoch_keys: Option<Vec<PublicKey>>,
    /// Whether monitors may read the log [default: false]
    #[arg(long, value_name = "BOOL")]
    pub monitors_read_log: Option<bool>,
    /// Most connections at once [default: 20000]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Most connections at once with one certificate's name; an agent has at most 4 [default: 64]
    #[arg(long, value_name = "N")]
    pub max_connections_per_identity: Option<usize>,
    /// Most TLS handshakes at once from one address; many machines may share one [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_handshakes_per_address: Option<usize>,
    /// How long a TLS handshake may take [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub handshake_timeout: Option<String>,
    /// How long after it a CONNECT may take [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub connect_timeout: Option<String>,
    /// How long a client may take nothing of what waits for it [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub stalled_timeout: Option<String>,
    /// How long connections may take to end when the broker stops [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub stop_timeout: Option<String>,
}

impl Options {
    /// These options, and what is missing in them from `others`.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        macro_rules! first {
            ($($field:ident),*) => { Self { $($field: self.$field.or(others.$field)),* } };
        }
        first!(
            listen,
            ca,
            certificate,
            key,
            state,
            trusted_keys,
            required_signatures,
            epoch_keys,
            monitors_read_log,
            max_connections,
            max_connections_per_identity,
            max_handshakes_per_address,
            handshake_timeout,
            connect_timeout,
            stalled_timeout,
            stop_timeout
        )
    }
}

/// How many of what may be at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Connections of one identity.
    pub connections_per_identity: usize,
    /// TLS handshakes from one address.
    pub handshakes_per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_identity: 64,
            handshakes_per_address: 4096,
        }
    }
}

/// How long what may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// A TLS handshake.
    pub handshake: Duration,
    /// The time from there to a CONNECT.
    pub connect: Duration,
    /// The time in which a client takes nothing of what waits for it.
    pub stalled: Duration,
    /// The end of all connections when the broker stops.
    pub stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            stalled: Duration::from_secs(30),
            stop: Duration::from_secs(5),
        }
    }
}

/// Everything that a broker needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The broker's certificate, and whose it trusts.
    pub credentials: Credentials,
    /// The folder of the retained messages.
    pub state: Utf8PathBuf,
    /// The keys that deployments must be signed with.
    pub trusted_keys: Option<TrustedKeys>,
    /// What an operator has decided about access.
    pub rules: Rules,
    /// How many of what may be at once.
    pub limits: Limits,
    /// How long what may take.
    pub timeouts: Timeouts,
}

impl TryFrom<Options> for Settings {
    type Error = SettingsError;

    fn try_from(options: Options) -> Result<Self, SettingsError> {
        use SettingsError::Missing;
        let (limits, timeouts) = (Limits::default(), Timeouts::default());
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
        Ok(Self {
            listen: options
                .listen
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8883))),
            credentials: Credentials {
                ca: options.ca.ok_or(Missing("ca"))?,
                certificate: options.certificate.ok_or(Missing("certificate"))?,
                key: options.key.ok_or(Missing("key"))?,
            },
            state: options.state.ok_or(Missing("state"))?,
            trusted_keys,
            rules: Rules {
                monitors_read_log: options.monitors_read_log.unwrap_or_default(),
            },
            limits: Limits {
                connections: count(
                    "max_connections",
                    options.max_connections,
                    limits.connections,
                )?,
                connections_per_identity: count(
                    "max_connections_per_identity",
                    options.max_connections_per_identity,
                    limits.connections_per_identity,
                )?,
                handshakes_per_address: count(
                    "max_handshakes_per_address",
                    options.max_handshakes_per_address,
                    limits.handshakes_per_address,
                )?,
            },
            timeouts: Timeouts {
                handshake: time(
                    "handshake_timeout",
                    options.handshake_timeout.as_deref(),
                    timeouts.handshake,
                )?,
                connect: time(
                    "connect_timeout",
                    options.connect_timeout.as_deref(),
                    timeouts.connect,
                )?,
                stalled: time(
                    "stalled_timeout",
                    options.stalled_timeout.as_deref(),
                    timeouts.stalled,
                )?,
                stop: time(
                    "stop_timeout",
                    options.stop_timeout.as_deref(),
                    timeouts.stop,
                )?,
            },
        })
    }
}

fn count(key: &'static str, given: Option<usize>, default: usize) -> Result<usize, SettingsError> {
    match given {
        Some(0) => Err(SettingsError::Zero(key)),
        given => Ok(given.unwrap_or(default)),
    }
}

fn time(
    key: &'static str,
    given: Option<&str>,
    default: Duration,
) -> Result<Duration, SettingsError> {
    let Some(text) = given else {
        return Ok(default);
    };
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or(SettingsError::Duration { key })
}

#[cfg(test)]
mod tests {
    use hoist_protocol::KeyName;
    use hoist_protocol::SigningKey;

    use super::*;

    fn complete() -> Options {
        Options {
            ca: Some(Utf8PathBuf::from("ca.pem").into()),
            certificate: Some(Utf8PathBuf::from("broker.pem").into()),
            key: Some(Utf8PathBuf::from("broker.key").into()),
            state: Some("state".into()),
            ..Options::default()
        }
    }

    fn key(seed: u8) -> PublicKey {
        SigningKey::from_seed(KeyName::new("ci").unwrap(), &[seed; 32].into()).public()
    }

    #[test]
    fn what_is_not_set_has_a_default_or_is_asked_for() {
        let settings = Settings::try_from(complete()).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8883");
        assert_eq!(settings.limits, Limits::default());
        assert_eq!(settings.timeouts, Timeouts::default());
        let error = Settings::try_from(Options {
            state: None,
            ..complete()
        })
        .unwrap_err();
        assert!(error.to_string().contains("--state"), "{error}");
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let flags = Options {
            max_connections: Some(7),
            ..Options::default()
        };
        let file = Options {
            max_connections: Some(9),
            listen: None,
            ..complete()
        };
        let both = Settings::try_from(flags.or(file)).unwrap();
        assert_eq!(both.limits.connections, 7);
    }

    #[test]
    fn values_without_sense_are_refused() {
        let refused = |options: Options| Settings::try_from(options).unwrap_err().to_string();
        assert!(
            refused(Options {
                max_connections: Some(0),
                ..complete()
            })
            .contains("zero")
        );
        for bad in ["", "10", "-5s", "0s", "soon"] {
            let options = Options {
                stop_timeout: Some(bad.to_owned()),
                ..complete()
            };
            assert!(refused(options).contains("stop_timeout"), "{bad:?}");
        }
        let options = Options {
            required_signatures: Some(2),
            ..complete()
        };
        assert!(refused(options).contains("trusted_keys"));
        let options = Options {
            required_signatures: Some(2),
            trusted_keys: Some(vec![key(1)]),
            ..complete()
        };
        assert!(refused(options).contains("trusted keys"));
    }

    #[test]
    fn durations_have_units() {
        let options = Options {
            stalled_timeout: Some("1m 30s".to_owned()),
            ..complete()
        };
        let settings = Settings::try_from(options).unwrap();
        assert_eq!(settings.timeouts.stalled, Duration::from_secs(90));
    }
}
