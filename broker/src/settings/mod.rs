//! The broker's settings: a configuration file, flags with the same names, and limits with defaults.

mod absence;
mod fleets;
mod limits;
mod options;
mod rate;
mod seen;

use std::net::SocketAddr;
use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_certs::program::parse_duration;
use hoist_certs::{Credentials, Revocation, ServerSources};
use hoist_protocol::TrustedKeysError;

use crate::observe::AuditSettings;

pub use absence::Absence;
pub use fleets::{Fleet, FleetOptions, Fleets, Quota};
pub(crate) use limits::WATCHERS;
pub use limits::{Limits, SessionLimits, Timeouts};
pub use options::Options;
pub use rate::{Rate, RateError};

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
    /// A policy for an audit log that is not kept.
    #[error("`audit_failure` is set, but no `audit_log`")]
    NoAuditLog,
    /// Pages that could connect nowhere.
    #[error("`websocket_origins` is set, but no `websocket_listen`")]
    NoWebSocket,
    /// A text that is no address.
    #[error("`metrics_listen` is neither a port nor ADDRESS:PORT")]
    MetricsListen,
    /// A limit of zero.
    #[error("`{0}` must not be zero")]
    Zero(&'static str),
    /// What each fleet has of its own stands in one place only.
    #[error(
        "`{0}` is set beside tables of fleets; set it in the table of each fleet that it is for"
    )]
    BesideFleets(&'static str),
    /// A fleet's table makes no sense.
    #[error("the settings of fleet {fleet} cannot be used")]
    Fleet {
        /// Which one.
        fleet: hoist_protocol::FleetName,
        /// Why not.
        #[source]
        source: Box<SettingsError>,
    },
    /// A text that is no duration.
    #[error("`{key}` is no duration above zero, such as 500ms, 10s or 5m")]
    Duration {
        /// Which setting.
        key: &'static str,
    },
}

/// How browsers connect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WebSockets {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The origins of the pages that may connect, such as `https://fleet.example.org`.
    pub origins: Vec<String>,
}

/// Everything that a broker needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The broker's certificate, whose it trusts, and what was taken back.
    pub tls: ServerSources,
    /// The folder of the retained messages.
    pub state: Utf8PathBuf,
    /// The fleets that are served.
    pub fleets: Fleets,
    /// How many of what may be at once, and how often.
    pub limits: Limits,
    /// Where to listen for WebSockets, when that is wanted.
    pub websocket: Option<WebSockets>,
    /// What one session may have open.
    pub session: SessionLimits,
    /// How long what may take.
    pub timeouts: Timeouts,
    /// The audit log, when there is one.
    pub audit: Option<AuditSettings>,
    /// Where metrics and health are told, when they are.
    pub metrics: Option<SocketAddr>,
}

impl TryFrom<Options> for Settings {
    type Error = SettingsError;

    fn try_from(mut options: Options) -> Result<Self, SettingsError> {
        use SettingsError::Missing;
        let fleets = fleets(&mut options)?;
        let own_cas = match &fleets {
            Fleets::Any(_) => Default::default(),
            Fleets::These(fleets) => fleets
                .iter()
                .map(|(name, fleet)| (name.clone(), fleet.ca.clone()))
                .collect(),
        };
        let revocation = Revocation::default();
        Ok(Self {
            audit: seen::audit(&mut options)?,
            metrics: seen::metrics(&options)?,
            listen: options
                .listen
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8883))),
            limits: limits(&options)?,
            websocket: websocket(&mut options)?,
            session: session(&options)?,
            timeouts: timeouts(&options)?,
            tls: ServerSources {
                credentials: Credentials {
                    ca: options.ca.ok_or(Missing("ca"))?,
                    certificate: options.certificate.ok_or(Missing("certificate"))?,
                    key: options.key.ok_or(Missing("key"))?,
                },
                fleets: own_cas,
                revocation: Revocation {
                    crls: options.crl.unwrap_or_default(),
                    denylist: options.denylist,
                    on_expired: options.expired_crl.unwrap_or(revocation.on_expired),
                    on_missing: options.missing_crl.unwrap_or(revocation.on_missing),
                },
            },
            state: options.state.ok_or(Missing("state"))?,
            fleets,
        })
    }
}

fn fleets(options: &mut Options) -> Result<Fleets, SettingsError> {
    let same = FleetOptions {
        ca: None,
        trusted_keys: options.trusted_keys.take(),
        required_signatures: options.required_signatures.take(),
        epoch_keys: options.epoch_keys.take(),
        monitors_read_log: options.monitors_read_log.take(),
        max_connections: None,
        max_watchers: None,
        max_retained_messages: options.max_retained_messages.take(),
        max_retained_bytes: options.max_retained_bytes.take(),
        publish_rate: None,
    };
    let Some(tables) = options.fleets.take().filter(|tables| !tables.is_empty()) else {
        return Ok(Fleets::Any(Box::new(same.try_into()?)));
    };
    // A key at the top would seem to hold for all fleets, or for none: neither is what somebody means for sure.
    for (name, is_set) in [
        ("trusted_keys", same.trusted_keys.is_some()),
        ("required_signatures", same.required_signatures.is_some()),
        ("epoch_keys", same.epoch_keys.is_some()),
        ("monitors_read_log", same.monitors_read_log.is_some()),
        (
            "max_retained_messages",
            same.max_retained_messages.is_some(),
        ),
        ("max_retained_bytes", same.max_retained_bytes.is_some()),
    ] {
        if is_set {
            return Err(SettingsError::BesideFleets(name));
        }
    }
    let fleets = tables.into_iter().map(|(fleet, table)| {
        let settings = table.try_into().map_err(|source| SettingsError::Fleet {
            fleet: fleet.clone(),
            source: Box::new(source),
        })?;
        Ok((fleet, settings))
    });
    Ok(Fleets::These(fleets.collect::<Result<_, SettingsError>>()?))
}

fn limits(options: &Options) -> Result<Limits, SettingsError> {
    let usual = Limits::default();
    macro_rules! counts {
        ($($option:ident => $limit:ident),*) => {
            Limits {
                $($limit: count(stringify!($option), options.$option, usual.$limit)?,)*
                connect_rate: options.connect_rate.unwrap_or(usual.connect_rate),
                takeover_rate: options.takeover_rate.unwrap_or(usual.takeover_rate),
                agent_publishes: options.agent_publish_rate.unwrap_or(usual.agent_publishes),
                agent_bytes: options.agent_byte_rate.unwrap_or(usual.agent_bytes),
                publishes: options.publish_rate.unwrap_or(usual.publishes),
                bytes: options.byte_rate.unwrap_or(usual.bytes),
            }
        };
    }
    Ok(counts!(
        max_connections => connections,
        max_connections_per_identity => connections_per_identity,
        max_connections_per_address => connections_per_address,
        max_handshakes => handshakes,
        max_handshakes_per_address => handshakes_per_address,
        max_handshake_bytes => handshake_bytes
    ))
}

fn session(options: &Options) -> Result<SessionLimits, SettingsError> {
    let usual = SessionLimits::default();
    macro_rules! counts {
        ($($option:ident => $limit:ident),*) => {
            SessionLimits {
                $($limit: count(stringify!($option), options.$option, usual.$limit)?,)*
                absence: absence(options)?,
            }
        };
    }
    Ok(counts!(
        max_unsettled => unsettled,
        max_inflight => inflight,
        max_subscriptions => subscriptions,
        max_wildcard_subscriptions => wild_subscriptions
    ))
}

fn websocket(options: &mut Options) -> Result<Option<WebSockets>, SettingsError> {
    let origins = options.websocket_origins.take().unwrap_or_default();
    match options.websocket_listen {
        Some(listen) => Ok(Some(WebSockets { listen, origins })),
        None if origins.is_empty() => Ok(None),
        None => Err(SettingsError::NoWebSocket),
    }
}

fn absence(options: &Options) -> Result<Absence, SettingsError> {
    let usual = Absence::default();
    macro_rules! counts {
        ($($option:ident => $limit:ident),*) => {
            Absence {
                $($limit: count(stringify!($option), options.$option, usual.$limit)?,)*
                expiry: time("session_expiry", options.session_expiry.as_deref(), usual.expiry)?,
                keep_alive: time("keep_alive", options.keep_alive.as_deref(), usual.keep_alive)?,
            }
        };
    }
    Ok(counts!(
        max_queued => queued,
        max_kept_sessions => kept,
        max_kept_sessions_per_identity => kept_per_identity
    ))
}

fn timeouts(options: &Options) -> Result<Timeouts, SettingsError> {
    let usual = Timeouts::default();
    macro_rules! times {
        ($($option:ident => $timeout:ident),*) => {
            Timeouts {
                $($timeout: time(stringify!($option), options.$option.as_deref(), usual.$timeout)?,)*
            }
        };
    }
    Ok(times!(
        handshake_timeout => handshake,
        connect_timeout => connect,
        packet_timeout => packet,
        stalled_timeout => stalled,
        stop_timeout => stop
    ))
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
    parse_duration(text)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or(SettingsError::Duration { key })
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{KeyName, PublicKey, SigningKey};

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

    #[test]
    fn fleets_have_tables_and_what_is_theirs_stands_nowhere_else() {
        let tables = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let path = camino::Utf8Path::from_path(file.path()).unwrap();
            hoist_certs::program::read_toml::<Options>(path)
                .map_err(|error| error.to_string())
                .and_then(|file| {
                    Settings::try_from(file.or(complete())).map_err(|error| error.to_string())
                })
        };
        let text = format!(
            "[fleets.prod]\ntrusted_keys = ['{}']\nmax_connections = 7\npublish_rate = '10/s'\n\
             [fleets.test]\nca = 'test.pem'\n",
            key(1)
        );
        let settings = tables(&text).unwrap();
        let Fleets::These(fleets) = &settings.fleets else {
            panic!("{:?}", settings.fleets);
        };
        assert_eq!(fleets.len(), 2);
        let prod = settings.fleets.get(&"prod".parse().unwrap()).unwrap();
        assert!(prod.trusted_keys.is_some() && prod.ca.is_none());
        assert_eq!(prod.quota.connections, Some(7));
        assert!(settings.fleets.get(&"other".parse().unwrap()).is_none());
        assert_eq!(settings.tls.fleets.len(), 2);
        assert!(settings.tls.fleets[&"test".parse().unwrap()].is_some());
        let one = tables(&format!("trusted_keys = ['{}']\n", key(1))).unwrap();
        assert!(matches!(one.fleets, Fleets::Any(_)));
        for (text, said) in [
            (
                "monitors_read_log = true\n[fleets.prod]\n",
                "`monitors_read_log` is set beside",
            ),
            ("[fleets.prod]\nmax_connections = 0\n", "fleet prod"),
            ("[fleets.prod]\nmax_watchers = 0\n", "fleet prod"),
            (
                "[fleets.prod]\nmax_conections = 1\n",
                "did you mean `max_connections`",
            ),
            ("[fleets.Prod]\n", ""),
            ("[fleets.prod]\npublish_rate = '10'\n", ""),
            ("connect_rate = '10/h'\n", ""),
            ("expired_crl = 'ignore'\n", "accept"),
        ] {
            let error = tables(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
