//! What of the settings is this machine's alone: commands at the machine need no more.
//!
//! Certificate and key may be credentials that only the agent's unit can read, so none of this looks at them.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::files::FileError;
use hoist_certs::program::{ConfigError, read_toml};
use hoist_certs::{Credentials, Pem};
use hoist_protocol::{Tag, TrustedKeys};

use super::folders::Account;
use super::{ConfigFile, ConfigFlags, Settings, SettingsError, absolute, distinct, kept};
use crate::mqtt::Brokers;

/// Where the configuration is, for commands that work on the machine's own agent.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PlaceFlags {
    /// The agent's configuration file [default: /etc/hoist/agent.toml; for a user who is not root
    /// hoist/agent.toml in XDG_CONFIG_HOME or ~/.config; neither has to exist]
    #[arg(long, value_name = "FILE")]
    config: Option<Utf8PathBuf>,
    /// The folder of the agent's ledger and jobs [default: as `hoist-agent run --help` says]
    #[arg(long, value_name = "DIR")]
    state: Option<Utf8PathBuf>,
}

/// Where this machine's agent keeps its things.
#[derive(Clone, Debug)]
pub struct Place {
    /// The configuration file, when there is one.
    pub config: Option<Utf8PathBuf>,
    /// The folder of ledger and jobs.
    pub state: Utf8PathBuf,
    /// The profile of plain closures.
    pub profile: Utf8PathBuf,
    /// What this machine is selected by.
    pub tags: Vec<Tag>,
    /// How many of the systems that were deployed last are kept from the garbage collector, at least 1.
    pub keep_generations: usize,
    /// The fleet's brokers, where they are known.
    pub brokers: Option<Brokers>,
    /// The certificates, where all three are named; they were not read.
    pub credentials: Option<Credentials>,
    /// Who may deploy, where that is said.
    pub trusted: Option<TrustedKeys>,
}

impl PlaceFlags {
    /// Reads the configuration file, and nothing that it names.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn place(&self) -> Result<Place, SettingsError> {
        let account = Account::current();
        let (config, file) = read(self.config.as_deref(), &account)?;
        self.over(config, file, &account)
    }

    /// All settings, as the agent has them.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let flags = ConfigFlags {
            config: self.config.clone(),
            state: self.state.clone(),
            ..ConfigFlags::default()
        };
        flags.settings()
    }

    fn over(
        &self,
        config: Option<Utf8PathBuf>,
        file: ConfigFile,
        account: &Account,
    ) -> Result<Place, SettingsError> {
        let folder = |key, given: Option<Utf8PathBuf>, default: Option<Utf8PathBuf>| {
            let path = given.or(default).ok_or(SettingsError::NoHome { key })?;
            absolute(key, path)
        };
        let credentials = |ca: Pem, certificate: Pem, key: Pem| Credentials {
            ca,
            certificate,
            key,
        };
        let trusted = |keys| {
            let epoch_keys = file.epoch_keys.unwrap_or_default();
            TrustedKeys::with_policy(keys, file.required_signatures.unwrap_or(1), epoch_keys)
                .map_err(SettingsError::TrustedKeys)
        };
        Ok(Place {
            config,
            state: folder("state", self.state.clone().or(file.state), account.state())?,
            profile: folder("profile", file.profile, account.profile())?,
            tags: distinct(file.tags.unwrap_or_default())?,
            keep_generations: kept(file.keep_generations)?,
            brokers: file.broker,
            credentials: (file.ca.zip(file.certificate).zip(file.key))
                .map(|((ca, certificate), key)| credentials(ca, certificate, key)),
            trusted: file.trusted_keys.map(trusted).transpose()?,
        })
    }
}

/// The configuration: the file that was named, else the usual one when it is there, else an empty one.
pub(super) fn read(
    named: Option<&Utf8Path>,
    account: &Account,
) -> Result<(Option<Utf8PathBuf>, ConfigFile), SettingsError> {
    if let Some(path) = named {
        let file = read_toml(path).map_err(SettingsError::File)?;
        return Ok((Some(path.to_owned()), file));
    }
    let Some(path) = account.config() else {
        return Ok((None, ConfigFile::default()));
    };
    match read_toml(&path) {
        Ok(file) => Ok((Some(path), file)),
        Err(ConfigError::Read(FileError::Read { source, .. }))
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok((None, ConfigFile::default()))
        }
        Err(error) => Err(SettingsError::File(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(config_home: &Utf8Path) -> Account {
        Account {
            is_root: false,
            home: Some("/home/ann".into()),
            state_home: None,
            config_home: Some(config_home.to_owned()),
        }
    }

    #[test]
    fn a_place_is_known_without_any_certificate() {
        let toml = "broker = 'mqtts://broker'\nstate = '/a'\nca = '/no/ca.pem'\n\
                    certificate = '/no/cert.pem'\nkey = '/no/key.pem'\n";
        let dir = tempfile::tempdir().unwrap();
        let home = Utf8Path::from_path(dir.path()).unwrap();
        std::fs::create_dir(home.join("hoist")).unwrap();
        std::fs::write(home.join("hoist/agent.toml"), toml).unwrap();
        let account = account(home);
        let (config, file) = read(None, &account).unwrap();
        assert_eq!(config, Some(home.join("hoist/agent.toml")));
        let place = PlaceFlags::default().over(config, file, &account).unwrap();
        assert_eq!(place.state, "/a");
        assert_eq!(place.profile, "/home/ann/.local/state/nix/profiles/hoist");
        assert!(place.credentials.is_some());
    }

    #[test]
    fn the_usual_file_may_be_missing_and_a_named_one_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = Utf8Path::from_path(dir.path()).unwrap();
        let account = account(home);
        let (config, file) = read(None, &account).unwrap();
        assert_eq!(config, None);
        let place = PlaceFlags::default().over(None, file, &account).unwrap();
        assert_eq!(place.state, "/home/ann/.local/state/hoist-agent");
        let missing = home.join("missing.toml");
        assert!(matches!(
            read(Some(&missing), &account),
            Err(SettingsError::File(_))
        ));
    }
}
