//! The agent's settings: a TOML file, and flags of the same names that replace what it says.

use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_certs::program::{ConfigError, read_toml};
use hoist_certs::{ClientTls, Credentials, Pem, Role, TlsError};
use hoist_protocol::{BrokerUrl, Machine, PublicKey, TrustedKeys, TrustedKeysError};
use serde::Deserialize;

/// Where the agent keeps its ledger and jobs unless told otherwise.
pub const STATE: &str = "/var/lib/hoist-agent";

/// The profile of plain closures unless told otherwise.
pub const PROFILE: &str = "/nix/var/nix/profiles/hoist";

/// How often the agent says again how things are unless told otherwise.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The longest wait between two tries to connect unless told otherwise.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5 * 60);

/// What stands in `agent.toml`. All of it is optional there, since a flag may say it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    broker: Option<BrokerUrl>,
    ca: Option<Pem>,
    certificate: Option<Pem>,
    key: Option<Pem>,
    trusted_keys: Option<Vec<PublicKey>>,
    required_signatures: Option<usize>,
    epoch_keys: Option<Vec<PublicKey>>,
    state: Option<Utf8PathBuf>,
    profile: Option<Utf8PathBuf>,
    status_interval: Option<Period>,
    max_backoff: Option<Period>,
}

/// The settings as flags of `hoist-agent run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFlags {
    /// The configuration file: TOML, whose keys are the flags below with `_` for `-`
    #[arg(long, value_name = "FILE")]
    pub config: Option<Utf8PathBuf>,
    /// Where the broker listens: mqtts://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    broker: Option<BrokerUrl>,
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
    /// The folder of the ledger and the jobs [default: /var/lib/hoist-agent]
    #[arg(long, value_name = "DIR")]
    state: Option<Utf8PathBuf>,
    /// The profile of closures that are no NixOS system [default: /nix/var/nix/profiles/hoist]
    #[arg(long, value_name = "PATH")]
    profile: Option<Utf8PathBuf>,
    /// How often the status is published again, 1s to 24h [default: 5m]
    #[arg(long, value_name = "TIME")]
    status_interval: Option<Period>,
    /// The longest wait between two tries to connect, 1s to 1h [default: 5m]
    #[arg(long, value_name = "TIME")]
    max_backoff: Option<Period>,
}

/// A time in a form such as `30s`, `5m` or `1h 30m`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Period(Duration);

/// A text that is no time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no time; a time is written like 30s, 5m or 1h")]
pub struct PeriodError(String);

impl std::str::FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        let shown = || PeriodError(text.chars().take(40).flat_map(char::escape_debug).collect());
        let signed: jiff::SignedDuration = text.parse().map_err(|_| shown())?;
        Duration::try_from(signed).map(Self).map_err(|_| shown())
    }
}

impl TryFrom<String> for Period {
    type Error = PeriodError;

    fn try_from(text: String) -> Result<Self, PeriodError> {
        text.parse()
    }
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
    /// Where the broker is.
    pub broker: BrokerUrl,
    /// How to connect to it.
    pub tls: ClientTls,
    /// Which machine this is, by its certificate.
    pub machine: Machine,
    /// Who may deploy.
    pub trusted: TrustedKeys,
    /// The folder of ledger and jobs.
    pub state: Utf8PathBuf,
    /// The profile of plain closures.
    pub profile: Utf8PathBuf,
    /// How often things are said again.
    pub status_interval: Duration,
    /// The longest wait between two tries to connect.
    pub max_backoff: Duration,
}

const fn missing(key: &'static str, flag: &'static str, example: &'static str) -> SettingsError {
    SettingsError::Missing { key, flag, example }
}

fn period(
    key: &'static str,
    given: Option<Period>,
    default: Duration,
    max: Duration,
) -> Result<Duration, SettingsError> {
    let found = given.map_or(default, |Period(given)| given);
    let min = Duration::from_secs(1);
    if found < min || found > max {
        return Err(SettingsError::Period {
            key,
            found,
            min,
            max,
        });
    }
    Ok(found)
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
        let file = match &self.config {
            Some(path) => read_toml(path).map_err(SettingsError::File)?,
            None => ConfigFile::default(),
        };
        self.over(file)
    }

    fn over(self, file: ConfigFile) -> Result<Settings, SettingsError> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        const HOUR: Duration = Duration::from_secs(60 * 60);
        let pem = |flag: Option<Utf8PathBuf>, file: Option<Pem>| flag.map(Pem::File).or(file);
        let broker = self
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
        let interval = self.status_interval.or(file.status_interval);
        let backoff = self.max_backoff.or(file.max_backoff);
        let state = self.state.or(file.state).unwrap_or_else(|| STATE.into());
        let profile = self
            .profile
            .or(file.profile)
            .unwrap_or_else(|| PROFILE.into());
        let tls = credentials.client().map_err(SettingsError::Tls)?;
        let identity = tls.identity();
        if identity.role() != Role::Agent {
            return Err(SettingsError::Role {
                found: identity.role(),
                name: identity.name().to_string(),
            });
        }
        Ok(Settings {
            broker,
            machine: Machine::new(identity.fleet().clone(), identity.name().clone()),
            tls,
            trusted,
            state: absolute("state", state)?,
            profile: absolute("profile", profile)?,
            status_interval: period("status_interval", interval, STATUS_INTERVAL, DAY)?,
            max_backoff: period("max_backoff", backoff, MAX_BACKOFF, HOUR)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hoist_certs::authority::{Authority, days};
    use hoist_protocol::{AgentName, FleetName, KeyName, SigningKey};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: ConfigFlags,
    }

    fn public_key() -> PublicKey {
        SigningKey::from_seed(KeyName::new("ci").unwrap(), &[7; 32].into()).public()
    }

    /// The credentials of `name` as settings.
    fn credentials(role: Role, name: &str) -> String {
        let fleet = FleetName::new("prod").unwrap();
        let authority = Authority::create(&fleet, days(2)).unwrap();
        let name = AgentName::new(name).unwrap();
        let issued = authority.issue(role, &name, &[], days(1)).unwrap();
        let (ca, certificate, key) = (
            authority.certificate_pem(),
            issued.certificate_pem,
            issued.key_pem.as_str(),
        );
        format!("ca = '''\n{ca}'''\ncertificate = '''\n{certificate}'''\nkey = '''\n{key}'''\n")
    }

    fn settings(toml: &str, flags: &[&str]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, toml).unwrap();
        let start = ["agent", "--config", file.to_str().unwrap()];
        let command = Command::parse_from(start.iter().chain(flags));
        let settings = command.flags.settings();
        settings.map_err(|error| crate::job::chain(&error))
    }

    fn complete() -> String {
        let (key, rest) = (public_key(), credentials(Role::Agent, "web-1"));
        format!("broker = 'mqtts://broker'\ntrusted_keys = ['{key}']\n{rest}")
    }

    #[test]
    fn the_certificate_says_which_machine_this_is() {
        let settings = settings(&complete(), &[]).unwrap();
        assert_eq!(settings.machine.to_string(), "prod/web-1");
        assert_eq!(settings.broker.to_string(), "mqtts://broker:8883");
        assert_eq!(settings.state.as_str(), STATE);
        assert_eq!(settings.profile.as_str(), PROFILE);
        assert_eq!(settings.status_interval, STATUS_INTERVAL);
    }

    #[test]
    fn a_flag_replaces_what_the_file_says() {
        let toml = format!("state = '/a'\nmax_backoff = '1m'\n{}", complete());
        let settings = settings(&toml, &["--state", "/b", "--max-backoff", "2s"]).unwrap();
        assert_eq!(settings.state.as_str(), "/b");
        assert_eq!(settings.max_backoff, Duration::from_secs(2));
    }

    #[test]
    fn what_is_missing_is_named_with_how_to_give_it() {
        let complete = complete();
        let without = |start: &str| {
            let lines = complete.lines().filter(|line| !line.starts_with(start));
            lines.collect::<Vec<_>>().join("\n")
        };
        let before_ca = complete.split("ca =").next().unwrap().to_owned();
        for (toml, key, flag) in [
            (without("broker"), "broker", "--broker"),
            (without("trusted_keys"), "trusted_keys", "--trusted-keys"),
            (before_ca, "ca", "--ca"),
        ] {
            let error = settings(&toml, &[]).unwrap_err();
            assert!(error.contains(&format!("`{key}` is not set")), "{error}");
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_the_reason() {
        for (more, said) in [
            ("state = 'x'", "`state` is `x`; it must be an absolute path"),
            ("status_interval = '5'", "written like 30s, 5m or 1h"),
            ("status_interval = '-5m'", "written like 30s, 5m or 1h"),
            ("status_interval = '10ms'", "10ms; it must be 1s to"),
            ("required_signatures = 2", "2 signatures are required"),
            ("stat = '/x'", "did you mean `state`?"),
        ] {
            let error = settings(&format!("{more}\n{}", complete()), &[]).unwrap_err();
            assert!(error.contains(said), "{more}: {error}");
        }
    }

    #[test]
    fn a_publishers_certificate_makes_no_agent() {
        let (key, rest) = (public_key(), credentials(Role::Publisher, "ci"));
        let toml = format!("broker = 'mqtts://broker'\ntrusted_keys = ['{key}']\n{rest}");
        let error = settings(&toml, &[]).unwrap_err();
        assert!(error.contains("that of a publisher, `ci`"), "{error}");
    }
}
