//! `hoist-certs signing-key`

use std::process::ExitCode;

use anyhow::Context as _;
use hoist_certs::directory;
use hoist_protocol::KeyName;

use super::{Output, print};

/// Make a key that signs deployments
///
/// Writes `NAME.signing-key`, the secret, which goes to CI or an operator, and `NAME.signing-key.pub`, the
/// public half, and prints the public half alone, for the `trusted_keys` of agents and broker.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  hoist-certs signing-key ci")]
pub(crate) struct SigningKeyCommand {
    /// What the key is called
    name: KeyName,
    #[command(flatten)]
    output: Output,
}

impl SigningKeyCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let written = directory::signing_key(&self.output.dir, &self.name, self.output.overwrite())
            .with_context(|| format!("cannot make the signing key `{}`", self.name))?;
        // Stdout carries the public half alone, so that a script can take it as it is.
        eprintln!(
            "{}  the signing key: a secret, for whoever deploys\n\
             {}  its public half: for the trusted_keys of agents and broker",
            written.secret, written.public,
        );
        print(&format!("{}\n", written.key))?;
        Ok(ExitCode::SUCCESS)
    }
}
