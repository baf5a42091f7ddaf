//! Who signs: a key that this process has, or a command that has one where nobody can read it.
//!
//! The contract with the command of `--signer`, for KMS and hardware keys:
//!
//! * It is run by `sh -c`, once for each signature, with standard error and the terminal as they are, so that it
//!   can ask for a PIN or a touch. `HOIST_SIGNING_KEY` and `HOIST_KEY` are not in its environment;
//!   `HOIST_SIGN_FLEET`, `HOIST_SIGN_AGENT` and `HOIST_SIGN_DEPLOYMENT` say what it is asked for, for its log.
//! * On standard input it gets the exact bytes that are to be signed, and then the end: not a hash of them, and at
//!   most 16 KiB.
//! * On standard output it answers with the Ed25519 signature (RFC 8032, 64 bytes, no pre-hash) in base64, with
//!   padding, on one line, and exits with 0 within a minute.
//! * The answer is checked against the public key of `--signer-key` before it is used.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hoist_protocol::{AddError, Draft, KeyName, PublicKey, SignError, SigningKey, Text};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// How long the command may take for one signature.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Longest answer that is read, in bytes; a signature has 88 in base64.
const ANSWER_LEN: u64 = 1024;

/// What the command does not get to see.
const SECRETS: [&str; 2] = ["HOIST_SIGNING_KEY", "HOIST_KEY"];

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A key of this process cannot sign it.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The command does not run.
    #[error("cannot run the command of --signer")]
    Start(#[source] std::io::Error),
    /// It takes too long.
    #[error("the command of --signer gave no signature within {} s, and was stopped", TIME_LIMIT.as_secs())]
    TimedOut,
    /// It says that something is wrong.
    #[error("the command of --signer ended with {0}; what it said stands above")]
    Failed(std::process::ExitStatus),
    /// Its answer is something else.
    #[error(
        "the command of --signer answered `{0}`, which is not the base64 of a signature of 64 bytes on one line"
    )]
    Answer(Text<64>),
    /// Its answer is a signature, and does not hold.
    #[error(
        "the answer of the command of --signer does not hold; does --signer-key name the key that it uses?"
    )]
    Wrong(#[source] AddError),
}

/// Something that signs deployments.
#[derive(Debug)]
pub enum Signer {
    /// A key.
    Key(SigningKey),
    /// A command.
    Command(SignerCommand),
}

/// A command that signs.
#[derive(Debug)]
pub struct SignerCommand {
    /// What `sh -c` runs.
    pub command: String,
    /// The public half of the key that it uses.
    pub key: PublicKey,
}

impl Signer {
    /// What its key is called.
    #[must_use]
    pub const fn name(&self) -> &KeyName {
        match self {
            Self::Key(key) => key.name(),
            Self::Command(command) => command.key.name(),
        }
    }

    /// The public half of its key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Key(key) => key.public(),
            Self::Command(command) => command.key.clone(),
        }
    }

    /// Adds its signature.
    ///
    /// # Errors
    /// [`SignerError`]
    pub async fn sign(&self, draft: &mut Draft) -> Result<(), SignerError> {
        match self {
            Self::Key(key) => Ok(draft.sign(key)?),
            Self::Command(command) => command.sign(draft).await,
        }
    }
}

impl SignerCommand {
    async fn sign(&self, draft: &mut Draft) -> Result<(), SignerError> {
        let answer = timeout(TIME_LIMIT, self.ask(draft))
            .await
            .map_err(|_| SignerError::TimedOut)??;
        let text = String::from_utf8_lossy(&answer);
        let signature = STANDARD
            .decode(text.trim())
            .ok()
            .and_then(|bytes| <[u8; 64]>::try_from(bytes).ok())
            .ok_or_else(|| SignerError::Answer(Text::lossy(text.trim())))?;
        draft.add(&self.key, signature).map_err(SignerError::Wrong)
    }

    async fn ask(&self, draft: &Draft) -> Result<Vec<u8>, SignerError> {
        let deployment = draft.deployment();
        let machine = deployment.machine();
        let mut command = Command::new("sh");
        command
            .args(["-c", &self.command])
            .env("HOIST_SIGN_FLEET", machine.fleet.as_str())
            .env("HOIST_SIGN_AGENT", machine.agent.as_str())
            .env("HOIST_SIGN_DEPLOYMENT", deployment.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        for secret in SECRETS {
            command.env_remove(secret);
        }
        let mut child = command.spawn().map_err(SignerError::Start)?;
        let no_pipe = || SignerError::Start(std::io::Error::other("it has no pipes"));
        let mut stdin = child.stdin.take().ok_or_else(no_pipe)?;
        let stdout = child.stdout.take().ok_or_else(no_pipe)?;
        let message = draft.message();
        let write = async move {
            // A command that does not read, and answers all the same, is judged by its answer.
            if let Err(error) = stdin.write_all(&message).await {
                tracing::debug!(%error, "the command of --signer does not read what it is to sign");
            }
            drop(stdin);
        };
        let mut answer = Vec::new();
        let mut stdout = stdout.take(ANSWER_LEN);
        let ((), read) = tokio::join!(write, stdout.read_to_end(&mut answer));
        read.map_err(SignerError::Start)?;
        // Whatever more it writes is not waited for.
        drop(stdout);
        let status = child.wait().await.map_err(SignerError::Start)?;
        if !status.success() {
            return Err(SignerError::Failed(status));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Goal, KnownOrders, Target};

    use super::*;
    use crate::plan::Wish;
    use crate::testing::{block_on, draft, id, key, machine};

    fn unsigned() -> Draft {
        let wish = Wish::of(Target::new(Goal::Stay));
        draft(machine("web-1"), wish, KnownOrders::default(), id(1))
    }

    /// What a command that runs this makes of a deployment.
    fn signed(command: &str, name: &str) -> Result<Draft, SignerError> {
        let signer = Signer::Command(SignerCommand {
            command: command.to_owned(),
            key: key(name).public(),
        });
        let mut draft = unsigned();
        block_on(signer.sign(&mut draft)).map(|()| draft)
    }

    /// The signature of `ci` over what is to be signed, as a command would write it.
    fn answer() -> String {
        let mut signed = unsigned();
        signed.sign(&key("ci")).unwrap();
        let bytes = signed.finish().unwrap();
        // The signature is followed by the count of delegations, which is none.
        STANDARD.encode(&bytes[bytes.len() - 65..bytes.len() - 1])
    }

    #[test]
    fn the_answer_of_a_command_is_taken_when_it_holds() {
        let by_command = signed(&format!("cat > /dev/null; echo {}", answer()), "ci").unwrap();
        assert!(by_command.is_signed_by(&key("ci").public()));
        let other = signed(&format!("echo {}", answer()), "ops");
        assert!(matches!(other, Err(SignerError::Wrong(_))));
    }

    #[test]
    fn it_gets_exactly_what_is_to_be_signed() {
        let expected = hoist_protocol::digest(&unsigned().message());
        let check = format!(
            "test \"$(sha256sum | cut -c1-64) $HOIST_SIGN_FLEET $HOIST_SIGN_AGENT\" = \"{expected} prod web-1\" \
             && echo {}",
            answer()
        );
        signed(&check, "ci").unwrap();
    }

    #[test]
    fn a_command_that_does_not_answer_well_is_said_so() {
        assert!(matches!(
            signed("exit 3", "ci"),
            Err(SignerError::Failed(_))
        ));
        assert!(matches!(
            signed("echo no", "ci"),
            Err(SignerError::Answer(_))
        ));
        assert!(matches!(signed("true", "ci"), Err(SignerError::Answer(_))));
        let endless = signed("yes", "ci");
        assert!(endless.is_err(), "it is not read for ever");
    }
}
