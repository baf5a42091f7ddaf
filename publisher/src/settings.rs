//! Settings: flags before environment variables before the configuration file, each named when it is wrong.

mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::program::{ConfigError, read_toml};
use hoist_certs::{ClientTls, Pem, Role, SigningKeyError, SigningKeySource, TlsError, files};
use hoist_protocol::{
    BrokerUrl, CacheKey, FleetName, PublicKey, SubstituterUrl, TrustedKeys, TrustedKeysError,
};
use serde::Deserialize;

use crate::flake::CacheUrl;
use crate::signer::{Signer, SignerCommand};
use crate::spec::Aliases;

pub use sources::Source;

/// The settings as flags, unparsed: where a bad value came from is said by [`Origin`].
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct Flags {
    /// Configuration file [env: HOIST_CONFIG] [default: ./hoist.toml, else ~/.config/hoist/hoist.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<Utf8PathBuf>,
    /// Where the broker is: mqtts://HOST[:PORT] [env: HOIST_BROKER]
    #[arg(long, global = true, value_name = "URL")]
    pub broker: Option<String>,
    /// The fleet that the certificate must be of, as a check [env: HOIST_FLEET]
    #[arg(long, global = true, value_name = "NAME")]
    pub fleet: Option<String>,
    /// CA file of the fleet [env: HOIST_CA, the path or the text itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<String>,
    /// Certificate file [env: HOIST_CERTIFICATE, the path or the text itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub certificate: Option<String>,
    /// The certificate's private key file [env: HOIST_KEY, the path or the text itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub key: Option<String>,
}

/// The settings of commands that sign.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct SigningFlags {
    /// Signing key file, more than once for several [env: HOIST_SIGNING_KEY, paths or keys, separated by
    /// commas]
    #[arg(long, value_name = "FILE")]
    pub signing_key: Vec<String>,
    /// Public half of another publisher's signing key, hoist-NAME:base64, more than once for several
    /// [env: HOIST_TRUSTED_KEYS, separated by commas]
    #[arg(long = "trusted-key", value_name = "KEY")]
    pub trusted_keys: Vec<String>,
    /// Command that signs, for KMS and hardware keys: it gets the bytes to sign on standard input, and writes the base64 of the
    /// Ed25519 signature [env: HOIST_SIGNER]
    #[arg(long, value_name = "COMMAND")]
    pub signer: Option<String>,
    /// Public half of the key that this command uses, hoist-NAME:base64 [env: HOIST_SIGNER_KEY]
    #[arg(long, value_name = "KEY")]
    pub signer_key: Option<String>,
    /// How many of the trusted keys have to sign each deployment, as the machines' own `required_signatures`
    /// [default: 1] [env: HOIST_REQUIRED_SIGNATURES]
    #[arg(long, value_name = "NUMBER")]
    pub required_signatures: Option<String>,
}

/// What a configuration file may hold; every key is a setting of the same name.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    broker: Option<String>,
    fleet: Option<String>,
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    #[serde(default)]
    signing_key: OneOrMany,
    #[serde(default)]
    trusted_keys: Vec<String>,
    required_signatures: Option<usize>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    substituters: Vec<String>,
    #[serde(default)]
    substituter_keys: Vec<String>,
    cache: Option<String>,
}

impl File {
    fn signing_keys(&self) -> &[String] {
        match &self.signing_key {
            OneOrMany::One(text) => std::slice::from_ref(text),
            OneOrMany::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Where a setting came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// This flag.
    Flag(&'static str),
    /// This environment variable.
    Variable(&'static str),
    /// This key of this configuration file.
    File(Utf8PathBuf, &'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "the flag {flag}"),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
            Self::File(path, key) => write!(f, "`{key}` in {path}"),
        }
    }
}

/// Why settings cannot be used. Nothing has been sent when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration file cannot be used.
    #[error("the configuration cannot be used")]
    Config(#[source] ConfigError),
    /// There is no such setting anywhere.
    #[error(
        "no {what} is given; use {flag}, the environment variable {variable}, or `{key}` in {file}"
    )]
    Missing {
        /// What for.
        what: &'static str,
        /// The flag.
        flag: &'static str,
        /// The environment variable.
        variable: &'static str,
        /// The key of the configuration file.
        key: &'static str,
        /// The configuration file, or what it would be called.
        file: Utf8PathBuf,
    },
    /// A value is not valid.
    #[error("{0} is not valid")]
    Invalid(
        Origin,
        #[source] Box<dyn std::error::Error + Send + Sync + 'static>,
    ),
    /// A secret stands where every user of the computer can read it.
    #[error(
        "{flag} takes a file: on a command line every user of this computer could read the key; \
         put the text into the environment variable {variable} instead"
    )]
    SecretInFlag {
        /// The flag.
        flag: &'static str,
        /// The environment variable that may hold it.
        variable: &'static str,
    },
    /// The certificates cannot be used.
    #[error("the certificates cannot be used")]
    Tls(#[source] TlsError),
    /// The certificate is another fleet's.
    #[error("the certificate is of the fleet `{found}`, but {origin} says `{expected}`")]
    Fleet {
        /// The certificate's fleet.
        found: FleetName,
        /// What was said.
        expected: FleetName,
        /// Where.
        origin: Origin,
    },
    /// The certificate may not do this.
    #[error(
        "the certificate is that of the {found} `{name}`, which cannot {task}; \
         use one that `hoist-certs issue {needed} NAME` made"
    )]
    Role {
        /// Its role.
        found: Role,
        /// Whose it is.
        name: String,
        /// What it was to do.
        task: &'static str,
        /// A role that can.
        needed: Role,
    },
    /// A signing key cannot be used.
    #[error("the signing key of {0} cannot be used")]
    SigningKey(Origin, #[source] SigningKeyError),
    /// A command that signs comes without the key that it uses, or the other way round.
    #[error("{0} is given without {1}: what the command answers is checked against its public key")]
    Signer(&'static str, &'static str),
    /// The keys cannot be used together.
    #[error("the signing keys and trusted keys do not fit together")]
    Keys(#[source] TrustedKeysError),
}

/// A value and where it came from. Not printed: it may be a secret.
struct Given {
    text: String,
    origin: Origin,
}

impl Given {
    fn parse<T: FromStr>(&self) -> Result<T, SettingsError>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        self.text
            .trim()
            .parse()
            .map_err(|error| SettingsError::Invalid(self.origin.clone(), Box::new(error)))
    }

    /// The path as it is meant: what a configuration file names is relative to that file.
    fn path(&self, path: &Utf8Path) -> Utf8PathBuf {
        match &self.origin {
            Origin::File(file, _) => file
                .parent()
                .map_or_else(|| path.to_owned(), |folder| folder.join(path)),
            Origin::Flag(_) | Origin::Variable(_) => path.to_owned(),
        }
    }
}

/// One setting's names.
struct Names {
    what: &'static str,
    flag: &'static str,
    variable: &'static str,
    key: &'static str,
}

const BROKER: Names = Names {
    what: "broker",
    flag: "--broker",
    variable: "HOIST_BROKER",
    key: "broker",
};
const FLEET: Names = Names {
    what: "fleet",
    flag: "--fleet",
    variable: "HOIST_FLEET",
    key: "fleet",
};
const CA: Names = Names {
    what: "CA",
    flag: "--ca",
    variable: "HOIST_CA",
    key: "ca",
};
const CERTIFICATE: Names = Names {
    what: "certificate",
    flag: "--certificate",
    variable: "HOIST_CERTIFICATE",
    key: "certificate",
};
const KEY: Names = Names {
    what: "private key of the certificate",
    flag: "--key",
    variable: "HOIST_KEY",
    key: "key",
};
const SIGNING_KEY: Names = Names {
    what: "signing key",
    flag: "--signing-key",
    variable: "HOIST_SIGNING_KEY",
    key: "signing_key",
};
const TRUSTED_KEYS: Names = Names {
    what: "trusted key",
    flag: "--trusted-key",
    variable: "HOIST_TRUSTED_KEYS",
    key: "trusted_keys",
};
const SIGNER: Names = Names {
    what: "signer",
    flag: "--signer",
    variable: "HOIST_SIGNER",
    key: "signer",
};
const SIGNER_KEY: Names = Names {
    what: "signer's public key",
    flag: "--signer-key",
    variable: "HOIST_SIGNER_KEY",
    key: "signer_key",
};
const REQUIRED_SIGNATURES: Names = Names {
    what: "number of required signatures",
    flag: "--required-signatures",
    variable: "HOIST_REQUIRED_SIGNATURES",
    key: "required_signatures",
};
const SUBSTITUTERS: Names = Names {
    what: "substituter",
    flag: "--substituter",
    variable: "HOIST_SUBSTITUTERS",
    key: "substituters",
};
const SUBSTITUTER_KEYS: Names = Names {
    what: "substituter key",
    flag: "--substituter-key",
    variable: "HOIST_SUBSTITUTER_KEYS",
    key: "substituter_keys",
};

const CACHE: Names = Names {
    what: "cache to copy to",
    flag: "--cache",
    variable: "HOIST_CACHE",
    key: "cache",
};

/// Environment variables, by name; a test gives its own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process. A variable that is empty counts as not set: CI systems give an empty
/// text for a secret that a run may not see.
#[must_use]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .filter(|text| !text.trim().is_empty())
}

/// All settings before they are parsed.
pub struct Settings<'a> {
    flags: Flags,
    environment: Environment<'a>,
    file: File,
    /// The configuration file, or what it would be called.
    path: Utf8PathBuf,
    has_file: bool,
}

/// Whom to connect as, and where; everything checked.
pub struct Caller {
    /// Where the broker is.
    pub broker: BrokerUrl,
    /// Who we are.
    pub tls: ClientTls,
    /// The fleet that our certificate names.
    pub fleet: FleetName,
}

/// The keys of a command that signs.
#[derive(Debug)]
pub struct Keys {
    /// Those that sign.
    pub signing: Vec<Signer>,
    /// How many of the trusted ones have to have signed what counts.
    pub required: usize,
    /// Their public halves and those of other publishers.
    pub trusted: TrustedKeys,
}

impl<'a> Settings<'a> {
    /// Finds and reads the configuration file, if there is one.
    ///
    /// # Errors
    /// [`SettingsError::Config`]; a file that is named but missing is an error, one that is not named is not.
    pub fn load(flags: Flags, environment: Environment<'a>) -> Result<Self, SettingsError> {
        let named = flags
            .config
            .clone()
            .or_else(|| environment("HOIST_CONFIG").map(Utf8PathBuf::from));
        let path = match named {
            Some(path) => Some(path),
            None => default_files(environment)
                .into_iter()
                .find(|path| path.is_file()),
        };
        let file = match &path {
            Some(path) => read_toml(path).map_err(SettingsError::Config)?,
            None => File::default(),
        };
        Ok(Self {
            flags,
            environment,
            file,
            has_file: path.is_some(),
            path: path.unwrap_or_else(|| "hoist.toml".into()),
        })
    }

    /// Checks the broker's address and the certificates, and that their role is one of `roles`, the first of
    /// which is named as the one to use for `task`.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn caller(&self, task: &'static str, roles: &[Role]) -> Result<Caller, SettingsError> {
        let flags = &self.flags;
        let broker: BrokerUrl = self
            .required(&BROKER, flags.broker.as_ref(), self.file.broker.as_ref())?
            .parse()?;
        let credentials = self.credentials()?;
        let tls = credentials.client().map_err(SettingsError::Tls)?;
        let identity = tls.identity();
        if let Some(given) = self.one(&FLEET, flags.fleet.as_ref(), self.file.fleet.as_ref()) {
            let expected: FleetName = given.parse()?;
            if expected != *identity.fleet() {
                return Err(SettingsError::Fleet {
                    found: identity.fleet().clone(),
                    expected,
                    origin: given.origin,
                });
            }
        }
        if let Some(needed) = roles.first().filter(|_| !roles.contains(&identity.role())) {
            return Err(SettingsError::Role {
                found: identity.role(),
                name: identity.name().to_string(),
                task,
                needed: *needed,
            });
        }
        Ok(Caller {
            broker,
            fleet: identity.fleet().clone(),
            tls,
        })
    }

    /// Reads the signing keys, and trusts them and the other publishers' keys.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn keys(&self, flags: &SigningFlags) -> Result<Keys, SettingsError> {
        let keys = self.trusted(flags);
        match keys {
            Ok(keys) if keys.signing.is_empty() => Err(self.missing(&SIGNING_KEY)),
            Err(SettingsError::Missing { .. }) => Err(self.missing(&SIGNING_KEY)),
            keys => keys,
        }
    }

    /// The same for somebody who may have no signing key, and only tells who has signed.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn trusted(&self, flags: &SigningFlags) -> Result<Keys, SettingsError> {
        let signing: Vec<Signer> = self
            .signing_keys(flags)
            .into_iter()
            .collect::<Result<_, _>>()?;
        let mut trusted: Vec<PublicKey> = signing.iter().map(Signer::public).collect();
        for key in self.trusted_keys(flags) {
            let key = key?;
            // One list for the whole fleet may well hold one's own key too.
            if trusted.iter().all(|known| known.bytes() != key.bytes()) {
                trusted.push(key);
            }
        }
        if trusted.is_empty() {
            return Err(self.missing(&TRUSTED_KEYS));
        }
        let in_file = self.file.required_signatures.map(|count| count.to_string());
        let given = self.one(
            &REQUIRED_SIGNATURES,
            flags.required_signatures.as_ref(),
            in_file.as_ref(),
        );
        let required = given.map_or(Ok(1), |given| given.parse::<usize>())?;
        let trusted =
            TrustedKeys::with_policy(trusted, required, Vec::new()).map_err(SettingsError::Keys)?;
        Ok(Keys {
            signing,
            required,
            trusted,
        })
    }

    /// Each signing key that is given, and the command that signs, or why it cannot be used.
    #[must_use]
    pub fn signing_keys(&self, flags: &SigningFlags) -> Vec<Result<Signer, SettingsError>> {
        let given = self.signing_keys_given(flags).into_iter();
        let keys = given.map(|given| {
            let source = match SigningKeySource::from(given.text.clone()) {
                SigningKeySource::File(path) => SigningKeySource::File(given.path(&path)),
                SigningKeySource::Inline(_) if matches!(given.origin, Origin::Flag(_)) => {
                    return Err(secret_in(&SIGNING_KEY));
                }
                inline @ SigningKeySource::Inline(_) => inline,
            };
            files::read_signing_key(&source)
                .map(Signer::Key)
                .map_err(|error| SettingsError::SigningKey(given.origin, error))
        });
        keys.chain(self.signer(flags).transpose()).collect()
    }

    /// Each public key of other publishers that is given, or why it is none.
    #[must_use]
    pub fn trusted_keys(&self, flags: &SigningFlags) -> Vec<Result<PublicKey, SettingsError>> {
        let given = self.many(&TRUSTED_KEYS, &flags.trusted_keys, &self.file.trusted_keys);
        given.iter().map(Given::parse).collect()
    }

    fn signing_keys_given(&self, flags: &SigningFlags) -> Vec<Given> {
        self.many(&SIGNING_KEY, &flags.signing_key, self.file.signing_keys())
    }

    /// The command that signs. A configuration file cannot name it: `hoist.toml` is read from whatever folder somebody
    /// is in, and must not run anything.
    fn signer(&self, flags: &SigningFlags) -> Result<Option<Signer>, SettingsError> {
        let command = self.one(&SIGNER, flags.signer.as_ref(), None);
        let key = self.one(&SIGNER_KEY, flags.signer_key.as_ref(), None);
        match (command, key) {
            (None, None) => Ok(None),
            (Some(command), Some(key)) => Ok(Some(Signer::Command(SignerCommand {
                command: command.text,
                key: key.parse()?,
            }))),
            (Some(_), None) => Err(SettingsError::Signer("--signer", "--signer-key")),
            (None, Some(_)) => Err(SettingsError::Signer("--signer-key", "--signer")),
        }
    }

    /// Which machines the names of specs mean that are none here: `aliases` in the configuration file.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`]
    pub fn aliases(&self) -> Result<Aliases, SettingsError> {
        let mut aliases = Aliases::default();
        for (name, agent) in &self.file.aliases {
            let given = Given {
                text: agent.clone(),
                origin: Origin::File(self.path.clone(), "aliases"),
            };
            let agent = given.parse()?;
            aliases
                .add(name.clone(), agent)
                .map_err(|error| SettingsError::Invalid(given.origin, Box::new(error)))?;
        }
        Ok(aliases)
    }

    /// The binary caches that machines use besides their own, and the keys of those caches.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`]
    pub fn caches(
        &self,
        substituters: &[String],
        keys: &[String],
    ) -> Result<(Vec<SubstituterUrl>, Vec<CacheKey>), SettingsError> {
        let urls = self.many(&SUBSTITUTERS, substituters, &self.file.substituters);
        let keys = self.many(&SUBSTITUTER_KEYS, keys, &self.file.substituter_keys);
        Ok((
            urls.iter().map(Given::parse).collect::<Result<_, _>>()?,
            keys.iter().map(Given::parse).collect::<Result<_, _>>()?,
        ))
    }

    /// Where closures are copied to, if anywhere.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`]
    pub fn cache(&self, flag: Option<&String>) -> Result<Option<CacheUrl>, SettingsError> {
        self.one(&CACHE, flag, self.file.cache.as_ref())
            .map(|given| given.parse())
            .transpose()
    }

    /// The same where there is nothing to do without.
    ///
    /// # Errors
    /// [`SettingsError::Missing`] and [`SettingsError::Invalid`]
    pub fn needed_cache(&self, flag: Option<&String>) -> Result<CacheUrl, SettingsError> {
        self.cache(flag)?.ok_or_else(|| self.missing(&CACHE))
    }

    fn one(&self, names: &Names, flag: Option<&String>, file: Option<&String>) -> Option<Given> {
        let given = |text: &String, origin| Given {
            text: text.clone(),
            origin,
        };
        flag.map(|text| given(text, Origin::Flag(names.flag)))
            .or_else(|| {
                (self.environment)(names.variable)
                    .map(|text| given(&text, Origin::Variable(names.variable)))
            })
            .or_else(|| file.map(|text| given(text, Origin::File(self.path.clone(), names.key))))
    }

    fn many(&self, names: &Names, flags: &[String], file: &[String]) -> Vec<Given> {
        let given = |texts: Vec<String>, origin: Origin| {
            texts
                .into_iter()
                .map(|text| Given {
                    text,
                    origin: origin.clone(),
                })
                .collect()
        };
        if !flags.is_empty() {
            return given(flags.to_vec(), Origin::Flag(names.flag));
        }
        match (self.environment)(names.variable) {
            Some(text) => {
                let parts = text.split([',', '\n']).map(str::trim);
                let parts = parts.filter(|part| !part.is_empty());
                given(
                    parts.map(str::to_owned).collect(),
                    Origin::Variable(names.variable),
                )
            }
            None => given(file.to_vec(), Origin::File(self.path.clone(), names.key)),
        }
    }

    fn required(
        &self,
        names: &Names,
        flag: Option<&String>,
        file: Option<&String>,
    ) -> Result<Given, SettingsError> {
        self.one(names, flag, file)
            .ok_or_else(|| self.missing(names))
    }

    fn missing(&self, names: &Names) -> SettingsError {
        SettingsError::Missing {
            what: names.what,
            flag: names.flag,
            variable: names.variable,
            key: names.key,
            file: self.path.clone(),
        }
    }

    fn pem(
        &self,
        names: &Names,
        flag: Option<&String>,
        file: Option<&String>,
    ) -> Result<Pem, SettingsError> {
        let given = self.required(names, flag, file)?;
        match Pem::from(given.text.clone()) {
            Pem::File(path) => Ok(Pem::File(given.path(&path))),
            Pem::Inline(_) if matches!(given.origin, Origin::Flag(_)) => Err(secret_in(names)),
            inline @ Pem::Inline(_) => Ok(inline),
        }
    }
}

fn secret_in(names: &Names) -> SettingsError {
    SettingsError::SecretInFlag {
        flag: names.flag,
        variable: names.variable,
    }
}

fn default_files(environment: Environment<'_>) -> Vec<Utf8PathBuf> {
    let folder = environment("XDG_CONFIG_HOME")
        .map(Utf8PathBuf::from)
        .or_else(|| environment("HOME").map(|home| Utf8PathBuf::from(home).join(".config")));
    let mut files = vec![Utf8PathBuf::from("hoist.toml")];
    files.extend(folder.map(|folder| folder.join("hoist/hoist.toml")));
    files
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
