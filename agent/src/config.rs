//! The agent's settings: a TOML file, and flags of the same names that replace what it says.

mod folders;
mod period;
mod place;
#[cfg(test)]
mod tests;

use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_agent_core::KNOWN;
use hoist_certs::program::ConfigError;
use hoist_certs::{ClientTls, Credentials, Pem, Role, TlsError};
use hoist_protocol::{Machine, PublicKey, Tag, TrustedKeys, TrustedKeysError, limits};
use serde::Deserialize;

use crate::mqtt::Brokers;
use folders::Account;
use period::PeriodSetting;

pub use folders::{CONFIG, PROFILE, STATE};
pub use period::Period;
pub use place::{Place, PlaceFlags};

/// How often the agent says again how things are unless told otherwise.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The longest wait between two tries to connect unless told otherwise.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5 * 60);

/// How long a connection may be silent before the agent asks whether the broker is there, unless told otherwise.
pub const KEEPALIVE: Duration = hoist_certs::mqtt::KEEP_ALIVE;

/// How many of the systems that were deployed last are kept from the garbage collector unless told otherwise.
pub const KEEP_GENERATIONS: usize = 3;

const INTERVAL_SETTING: PeriodSetting = PeriodSetting {
    key: "status_interval",
    default: STATUS_INTERVAL,
    min: Duration::from_secs(1),
    max: Duration::from_secs(24 * 60 * 60),
};

const BACKOFF_SETTING: PeriodSetting = PeriodSetting {
    key: "max_backoff",
    default: MAX_BACKOFF,
    min: Duration::from_secs(1),
    max: Duration::from_secs(60 * 60),
};

const KEEPALIVE_SETTING: PeriodSetting = PeriodSetting {
    key: "keepalive",
    default: KEEPALIVE,
    min: Duration::from_secs(2),
    max: Duration::from_secs(30 * 60),
};

/// What stands in `agent.toml`. All of it is optional there, since a flag may say it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    broker: Option<Brokers>,
    ca: Option<Pem>,
    certificate: Option<Pem>,
    key: Option<Pem>,
    trusted_keys: Option<Vec<PublicKey>>,
    required_signatures: Option<usize>,
    epoch_keys: Option<Vec<PublicKey>>,
    state: Option<Utf8PathBuf>,
    profile: Option<Utf8PathBuf>,
    tags: Option<Vec<Tag>>,
    keep_generations: Option<usize>,
    status_interval: Option<Period>,
    max_backoff: Option<Period>,
    keepalive: Option<Period>,
}

/// The settings as flags of `hoist-agent run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFlags {
    /// The configuration file: TOML, whose keys are the flags below with `_` for `-` [default: where it is there,
    /// /etc/hoist/agent.toml; for a user who is not root hoist/agent.toml in XDG_CONFIG_HOME or ~/.config]
    #[arg(long, value_name = "FILE")]
    pub config: Option<Utf8PathBuf>,
    /// Where the broker listens: mqtts://HOST[:PORT]. Up to 8, separated by commas, are tried in their order
    #[arg(long, value_name = "URL")]
    broker: Option<Brokers>,
    /// The certificate authority of the fleet, `ca.pem`
    #[arg(long, value_name = "FILE")]
    ca: Option<Utf8PathBuf>,
    /// This machine's certificate, which says its name and fleet
    #[arg(long, value_name = "FILE")]
    certificate: Option<Utf8PathBuf>,
    /// The certificate's private key
    #[arg(long, value_name = "FILE")]
    key: Option<Utf8PathBuf>,
    /// Public halves of the keys that may sign deployments, separated by commas
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    trusted_keys: Option<Vec<PublicKey>>,
    /// How many of them have to sign each [default: 1]
    #[arg(long, value_name = "N")]
    required_signatures: Option<usize>,
    /// Those of the trusted keys that may raise the epoch, separated by commas [default: none]
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    epoch_keys: Option<Vec<PublicKey>>,
    /// The folder of the ledger and the jobs [default: /var/lib/hoist-agent; for a user who is not root
    /// hoist-agent in XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    state: Option<Utf8PathBuf>,
    /// The profile of closures that are no system [default: /nix/var/nix/profiles/hoist; for a user who is not
    /// root ~/.local/state/nix/profiles/hoist]
    #[arg(long, value_name = "PATH")]
    profile: Option<Utf8PathBuf>,
    /// Words that this machine is selected by, separated by commas: 16 at most, each 1 to 64 of a-z 0-9 _ . : -
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    tags: Option<Vec<Tag>>,
    /// How many of the systems that were deployed last are kept from the garbage collector, 1 to 20, to go back to
    /// without a binary cache [default: 3]
    #[arg(long, value_name = "N")]
    keep_generations: Option<usize>,
    /// How often the status is published again, 1s to 24h [default: 5m]
    #[arg(long, value_name = "TIME")]
    status_interval: Option<Period>,
    /// The longest wait between two tries to connect, 1s to 1h [default: 5m]
    #[arg(long, value_name = "TIME")]
    max_backoff: Option<Period>,
    /// How long the connection may be silent before the broker is asked whether it is there, 2s to 30m; below
    /// 10s only for tests, since some brokers pause for longer than that [default: 45s]
    #[arg(long, value_name = "TIME")]
    keepalive: Option<Period>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be used.
    #[error("cannot use the configuration")]
    File(#[source] ConfigError),
    /// A setting that has no default is missing.
    #[error("`{key}` is not set; put `{key} = {example}` into agent.toml, or give --{flag}")]
    Missing {
        /// Its key in the file.
        key: &'static str,
        /// Its flag.
        flag: &'static str,
        /// What it may look like.
        example: &'static str,
    },
    /// A time lies outside of what is useful.
    #[error("`{key}` is {found:?}; it must be {min:?} to {max:?}")]
    Period {
        /// Its key in the file.
        key: &'static str,
        /// What it is.
        found: Duration,
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// A path is relative: services start in different folders.
    #[error("`{key}` is `{path}`; it must be an absolute path")]
    Relative {
        /// Its key in the file.
        key: &'static str,
        /// What it is.
        path: Utf8PathBuf,
    },
    /// A folder has no default here.
    #[error(
        "`{key}` is not set, and without HOME there is no folder of one's own to put it in; set HOME, or put \
         `{key} = \"/some/folder\"` into agent.toml"
    )]
    NoHome {
        /// Its key in the file.
        key: &'static str,
    },
    /// A number lies outside of what is useful.
    #[error("`{key}` is {found}; it must be {min} to {max}")]
    Number {
        /// Its key in the file.
        key: &'static str,
        /// What it is.
        found: usize,
        /// The least.
        min: usize,
        /// The most.
        max: usize,
    },
    /// There are too many tags.
    #[error("there are {0} tags, and {max} at most are allowed", max = limits::TAGS)]
    Tags(usize),
    /// The trusted keys do not go together.
    #[error("the trusted keys cannot be used")]
    TrustedKeys(#[source] TrustedKeysError),
    /// The certificates cannot be used.
    #[error("the agent cannot identify itself")]
    Tls(#[source] TlsError),
    /// The certificate is not an agent's.
    #[error(
        "the certificate is that of a {found}, `{name}`; an agent needs its own: \
         `hoist-certs issue agent NAME`"
    )]
    Role {
        /// The role in the certificate.
        found: Role,
        /// The name in the certificate.
        name: String,
    },
}

/// Everything checked and complete.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the brokers are.
    pub brokers: Brokers,
    /// Where the files are from which `tls` was made: they are read again when they change.
    pub credentials: Credentials,
    /// How to connect.
    pub tls: ClientTls,
    /// Which machine this is, by its certificate.
    pub machine: Machine,
    /// Who may deploy.
    pub trusted: TrustedKeys,
    /// The folder of ledger and jobs.
    pub state: Utf8PathBuf,
    /// The profile of plain closures.
    pub profile: Utf8PathBuf,
    /// What this machine is selected by; [`limits::TAGS`] at most, no two alike.
    pub tags: Vec<Tag>,
    /// How many of the systems that were deployed last are kept from the garbage collector, at least 1.
    pub keep_generations: usize,
    /// How often things are said again.
    pub status_interval: Duration,
    /// The longest wait between two tries to connect.
    pub max_backoff: Duration,
    /// How long a connection may be silent before the broker is asked whether it is there.
    pub keepalive: Duration,
}

const fn missing(key: &'static str, flag: &'static str, example: &'static str) -> SettingsError {
    SettingsError::Missing { key, flag, example }
}

/// How many systems are kept, between the one that runs and all that a rollback can name.
fn kept(found: Option<usize>) -> Result<usize, SettingsError> {
    let found = found.unwrap_or(KEEP_GENERATIONS);
    let (key, min, max) = ("keep_generations", 1, KNOWN);
    if (min..=max).contains(&found) {
        Ok(found)
    } else {
        Err(SettingsError::Number {
            key,
            found,
            min,
            max,
        })
    }
}

/// Each at most once, in their order.
fn distinct(tags: Vec<Tag>) -> Result<Vec<Tag>, SettingsError> {
    let mut distinct: Vec<Tag> = Vec::new();
    for tag in tags {
        if !distinct.contains(&tag) {
            distinct.push(tag);
        }
    }
    match distinct.len() {
        0..=limits::TAGS => Ok(distinct),
        many => Err(SettingsError::Tags(many)),
    }
}

fn absolute(key: &'static str, path: Utf8PathBuf) -> Result<Utf8PathBuf, SettingsError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(SettingsError::Relative { key, path })
    }
}

impl ConfigFlags {
    /// Reads the file, lets the flags replace what it says, and checks everything.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn settings(self) -> Result<Settings, SettingsError> {
        let account = Account::current();
        let (_, file) = place::read(self.config.as_deref(), &account)?;
        self.over(file, &account)
    }

    fn over(self, file: ConfigFile, account: &Account) -> Result<Settings, SettingsError> {
        let pem = |flag: Option<Utf8PathBuf>, file: Option<Pem>| flag.map(Pem::File).or(file);
        let brokers = self
            .broker
            .or(file.broker)
            .ok_or_else(|| missing("broker", "broker", "\"mqtts://broker.example.org:8883\""))?;
        let credentials = Credentials {
            ca: pem(self.ca, file.ca)
                .ok_or_else(|| missing("ca", "ca", "\"/etc/hoist/ca.pem\""))?,
            certificate: pem(self.certificate, file.certificate).ok_or_else(|| {
                missing(
                    "certificate",
                    "certificate",
                    "\"/etc/hoist/agent-web-1.pem\"",
                )
            })?,
            key: pem(self.key, file.key)
                .ok_or_else(|| missing("key", "key", "\"/etc/hoist/agent-web-1.key\""))?,
        };
        let keys = self
            .trusted_keys
            .or(file.trusted_keys)
            .ok_or_else(|| missing("trusted_keys", "trusted-keys", "[\"hoist-ci:…\"]"))?;
        let required = self.required_signatures.or(file.required_signatures);
        let epoch_keys = self.epoch_keys.or(file.epoch_keys).unwrap_or_default();
        let trusted = TrustedKeys::with_policy(keys, required.unwrap_or(1), epoch_keys)
            .map_err(SettingsError::TrustedKeys)?;
        let folder = |key, given: Option<Utf8PathBuf>, default: Option<Utf8PathBuf>| {
            let path = given.or(default).ok_or(SettingsError::NoHome { key })?;
            absolute(key, path)
        };
        let state = folder("state", self.state.or(file.state), account.state())?;
        let profile = folder("profile", self.profile.or(file.profile), account.profile())?;
        // An agent without a valid certificate still has jobs to bring to their end, and may get a new one.
        let tls = credentials
            .unattended_client()
            .map_err(SettingsError::Tls)?;
        let identity = tls.identity();
        if identity.role() != Role::Agent {
            return Err(SettingsError::Role {
                found: identity.role(),
                name: identity.name().to_string(),
            });
        }
        Ok(Settings {
            brokers,
            machine: Machine::new(identity.fleet().clone(), identity.name().clone()),
            tls,
            credentials,
            trusted,
            state,
            profile,
            tags: distinct(self.tags.or(file.tags).unwrap_or_default())?,
            keep_generations: kept(self.keep_generations.or(file.keep_generations))?,
            status_interval: INTERVAL_SETTING
                .take(self.status_interval.or(file.status_interval))?,
            max_backoff: BACKOFF_SETTING.take(self.max_backoff.or(file.max_backoff))?,
            keepalive: KEEPALIVE_SETTING.take(self.keepalive.or(file.keepalive))?,
        })
    }
}
