//! The fleet's certificates and keys, made by `hoist-certs` as a person would.

use std::fs;

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::{ClientTls, Credentials};
use hoist_protocol::{PublicKey, SigningKey};

use crate::process::{self, Finished};
use crate::programs::Programs;

/// The folder of a certificate authority.
pub struct Authority {
    dir: Utf8PathBuf,
    program: Utf8PathBuf,
    logs: Utf8PathBuf,
}

/// The files with which somebody proves who they are.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `ca.pem`
    pub ca: Utf8PathBuf,
    /// The certificate.
    pub certificate: Utf8PathBuf,
    /// Its private key.
    pub key: Utf8PathBuf,
}

impl Identity {
    /// What these files are to a client.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn tls(&self) -> Result<ClientTls> {
        let credentials = Credentials {
            ca: self.ca.clone().into(),
            certificate: self.certificate.clone().into(),
            key: self.key.clone().into(),
        };
        Ok(credentials.client()?)
    }

    /// The three lines of a configuration file.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "ca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            self.ca.as_str(),
            self.certificate.as_str(),
            self.key.as_str()
        )
    }
}

/// The files of a signing key.
#[derive(Clone, Debug)]
pub struct SigningKeyFile {
    /// The secret half.
    pub path: Utf8PathBuf,
    /// The public half.
    pub public: PublicKey,
}

impl SigningKeyFile {
    /// Reads the secret half, to sign by hand what the publisher would not.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn read(&self) -> Result<SigningKey> {
        Ok(SigningKey::parse(&fs::read_to_string(&self.path)?)?)
    }
}

impl Authority {
    /// Makes the authority of `fleet` in `dir`.
    ///
    /// # Errors
    /// When `hoist-certs` fails.
    pub fn create(
        dir: &Utf8Path,
        fleet: &str,
        programs: &Programs,
        logs: &Utf8Path,
    ) -> Result<Self> {
        let authority = Self {
            dir: dir.to_owned(),
            program: programs.certs.clone(),
            logs: logs.to_owned(),
        };
        authority.run(&["init", "--fleet", fleet])?.success()?;
        Ok(authority)
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// Runs `hoist-certs` on the folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        let mut command = process::command(&self.program);
        command.args(args).args(["--dir", self.dir.as_str()]);
        process::run("hoist-certs", command, &self.logs)
    }

    /// Issues a certificate for `role` and `name`.
    ///
    /// # Errors
    /// When `hoist-certs` refuses to.
    pub fn issue(&self, role: &str, name: &str, more: &[&str]) -> Result<Identity> {
        self.run(&[&["issue", role, name], more].concat())?
            .success()?;
        Ok(self.identity(role, name))
    }

    /// Issues a certificate that expired yesterday, in the place of the one that there may be.
    ///
    /// # Errors
    /// When `hoist-certs` refuses to, or `faketime` is missing.
    pub fn issue_expired(&self, role: &str, name: &str) -> Result<Identity> {
        let mut command = process::command("faketime");
        command
            .args(["-f", "-3d", self.program.as_str(), "issue", role, name])
            .args(["--force", "--days", "2", "--dir", self.dir.as_str()]);
        process::run("hoist-certs-of-old", command, &self.logs)?.success()?;
        Ok(self.identity(role, name))
    }

    /// The files of a certificate that has been issued.
    #[must_use]
    pub fn identity(&self, role: &str, name: &str) -> Identity {
        Identity {
            ca: self.dir.join("ca.pem"),
            certificate: self.dir.join(format!("{role}-{name}.pem")),
            key: self.dir.join(format!("{role}-{name}.key")),
        }
    }

    /// Makes a signing key.
    ///
    /// # Errors
    /// When `hoist-certs` refuses to.
    pub fn signing_key(&self, name: &str) -> Result<SigningKeyFile> {
        let public = self.run(&["signing-key", name])?.success()?;
        Ok(SigningKeyFile {
            path: self.dir.join(format!("{name}.signing-key")),
            public: public
                .trim()
                .parse()
                .context("hoist-certs printed no public key")?,
        })
    }

    /// Every line of every secret file in the folder that must never be seen elsewhere.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn secrets(&self) -> Result<Vec<String>> {
        let mut secrets = Vec::new();
        for entry in self.dir.read_dir_utf8()? {
            let path = entry?.into_path();
            if matches!(path.extension(), Some("key" | "signing-key")) {
                let text = fs::read_to_string(&path)?;
                // A PEM line as it is; of a signing key what follows `hoist-NAME:`, without the public half at
                // its end.
                let lines = text.lines().filter(|line| !line.starts_with("-----"));
                secrets.extend(lines.map(|line| match line.split_once(':') {
                    Some((_, both_halves)) => both_halves.chars().take(40).collect(),
                    None => line.to_owned(),
                }));
            }
        }
        Ok(secrets)
    }
}
