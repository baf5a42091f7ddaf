//! Why a command ended without a result, and what the program then exits with.

use hoist_protocol::{AgentName, FleetName, StorePath};

use super::diff::DiffError;
use super::forget::ForgetError;
use crate::digests::DigestError;
use crate::flake::FlakeError;
use crate::id_end::IdEnd;
use crate::link::LinkError;
use crate::options::OptionsError;
use crate::outcome::Exit;
use crate::plan::PlanError;
use crate::settings::SettingsError;
use crate::signed_file::SignedFileError;
use crate::snapshot::SnapshotError;
use crate::spec::{NotInSpec, SpecError, did_you_mean};

/// Why a command ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A setting is missing or not valid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The spec cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A machine was chosen that is not in the spec.
    #[error(transparent)]
    NotInSpec(#[from] NotInSpec),
    /// What the flags and the spec ask for does not go together.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Nix does not tell what the closures hold, and somebody relies on it.
    #[error("what the closures hold is not known here, and --require-digest asks for it")]
    Digests(#[source] DigestError),
    /// The store does not have a closure, and somebody relies on it.
    #[error(
        "agent `{agent}`: `{path}` is not in the store of this computer, so what it holds is not known, and \
         --require-digest asks for it; fetch it first, or give its `digest` in the spec"
    )]
    NoDigest {
        /// Whose closure.
        agent: AgentName,
        /// Which one.
        path: StorePath,
    },
    /// A key or a command did not sign.
    #[error("not everything could be signed, and nothing was published")]
    Signer(#[source] PlanError),
    /// What the flags ask for makes no deployment.
    #[error("what the flags ask for cannot be deployed")]
    Plan(#[source] PlanError),
    /// A text about where the deployment comes from is not valid.
    #[error("the value of {0} is not valid")]
    Provenance(&'static str, #[source] hoist_protocol::TextError),
    /// No machine has anything of the rollout.
    #[error(
        "no machine that is meant has a deployment of the rollout `{id}` as its newest{}; it is over on every machine, or \
         the id is wrong",
        match &known[..] {
            [] => String::new(),
            known => format!(" (rollouts that machines have: {})", known.join(", ")),
        }
    )]
    NoSuchRollout {
        /// As it was given.
        id: IdEnd,
        /// The newest that there are, by the end of their ids.
        known: Vec<String>,
    },
    /// Machines would be let go by an expiry, not by the time that was asked for.
    #[error("--for is not shorter than --expires: a deployment that has expired holds nothing")]
    HoldTooLong,
    /// What is signed here would be refused by every machine.
    #[error(
        "{required} signatures are required (`required_signatures`), and {have} can be made here; `hoist sign` lets \
         others sign what was prepared, and `hoist deploy --signed FILE` publishes it"
    )]
    TooFewSigners {
        /// How many keys there are.
        have: usize,
        /// How many signatures the machines want.
        required: usize,
    },
    /// A file of signed deployments cannot be used.
    #[error(transparent)]
    SignedFile(#[from] SignedFileError),
    /// What was signed cannot be read back.
    #[error("what was signed cannot be read back")]
    Prepared(#[source] hoist_protocol::VerifyError),
    /// What is prepared is published by a later command, which knows who is online then.
    #[error(
        "--prepare does not go with --canary and --batch: give them to `hoist deploy --signed`, which publishes what was \
         prepared"
    )]
    PreparedRollout,
    /// The way back of a rollout is signed when it is needed, and not by everybody who signed the rollout.
    #[error(
        "--signed does not go with --on-failure rollback: the way back would need as many signatures; without it the \
         rollout stops, and `hoist rollback --prepare` makes a way back for others to sign"
    )]
    SignedWayBack,
    /// What was prepared has expired.
    #[error("the deployment of `{0}` in `{1}` has expired; prepare it again")]
    PreparedExpired(AgentName, camino::Utf8PathBuf),
    /// A file is another fleet's.
    #[error(
        "the file has deployments of the fleet `{file}`, and the certificate is of the fleet `{certificate}`"
    )]
    OtherFleet {
        /// The file's fleet.
        file: FleetName,
        /// The certificate's.
        certificate: FleetName,
    },
    /// Too few have signed.
    #[error(
        "the deployment of `{0}` does not have the signatures that are required; `hoist sign FILE` adds one, and the \
         public keys of those who sign belong into --trusted-key or `trusted_keys`"
    )]
    NotSigned(AgentName, #[source] hoist_protocol::VerifyError),
    /// Nobody sits at the terminal.
    #[error(
        "nobody can be asked here whether to sign that; look at it with --show, and give --yes"
    )]
    NobodyToAsk,
    /// Nobody answered.
    #[error("cannot read the answer")]
    Answer(#[source] std::io::Error),
    /// There is no connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What is retained cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Nothing is known about a machine.
    #[error(
        "the broker knows nothing of a machine `{name}` in the fleet `{fleet}`{}",
        did_you_mean(.nearest.as_deref())
    )]
    UnknownMachine {
        /// Its name.
        name: AgentName,
        /// The fleet.
        fleet: FleetName,
        /// The machine whose name it resembles.
        nearest: Option<String>,
    },
    /// A rollout that waits for nobody would be none.
    #[error(
        "a rollout waits for the machines of a batch before the next one comes, so neither --async nor --wait none \
         goes with --canary and --batch"
    )]
    RolloutWithoutWaiting,
    /// There is no spec of the flake, or its closures are not where they shall be.
    #[error(transparent)]
    Flake(FlakeError),
    /// A command that knows no broker is to choose by what machines say.
    #[error(
        "`{selector}` takes what machines say of themselves, and `hoist {command}` asks nobody; give names, or patterns \
         such as 'web-*'"
    )]
    AsksMachines {
        /// The command.
        command: &'static str,
        /// What was given.
        selector: String,
    },
    /// A file cannot be written.
    #[error("cannot write `{0}`")]
    Write(camino::Utf8PathBuf, #[source] std::io::Error),
    /// A machine's history does not have a deployment.
    #[error(
        "the history of `{agent}` has no deployment `{given}`, or several that end so; `hoist history {agent}` lists \
         them"
    )]
    NotInHistory {
        /// The machine.
        agent: AgentName,
        /// What was asked for.
        given: IdEnd,
    },
    /// A machine is not forgotten.
    #[error(transparent)]
    Forget(#[from] ForgetError),
    /// No machine has what is to be waited for.
    #[error(
        "no machine has the {what} `{id}` as its newest{}; `hoist history AGENT` shows how one ended that something \
         newer replaced",
        match .unknown { 0 => String::new(), count => format!(
            " ({count} have what no known key signed: --trusted-key or `trusted_keys` names another publisher's)"
        ) }
    )]
    NothingToWaitFor {
        /// A deployment, or a rollout.
        what: &'static str,
        /// Its id, as it was given.
        id: IdEnd,
        /// How many machines have something of an unknown key.
        unknown: usize,
    },
    /// All that there is to be waited for is signed by others.
    #[error(
        "nothing that is deployed to these machines is signed by a key that is known here ({machines} of them have \
         what others signed, {agent} among them), so nothing is waited for: the public key of whoever deploys there \
         belongs into --trusted-key or `trusted_keys`"
    )]
    SignedByOthers {
        /// One of the machines.
        agent: AgentName,
        /// How many there are.
        machines: usize,
    },
    /// Nothing can be compared.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The results cannot be written.
    #[error("cannot write to stdout")]
    Output(#[source] std::io::Error),
    /// The system refuses what every program needs.
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
}

impl CommandError {
    /// What the program exits with.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Diff(error) => error.exit(),
            Self::Forget(error) => error.exit(),
            Self::Settings(_)
            | Self::Spec(_)
            | Self::NotInSpec(_)
            | Self::Options(_)
            | Self::Plan(_)
            | Self::Provenance(..)
            | Self::RolloutWithoutWaiting
            | Self::AsksMachines { .. }
            | Self::Flake(
                FlakeError::Name { .. } | FlakeError::NotInSpec(_) | FlakeError::Spec(_),
            )
            | Self::HoldTooLong
            | Self::TooFewSigners { .. }
            | Self::SignedFile(_)
            | Self::PreparedRollout
            | Self::SignedWayBack
            | Self::PreparedExpired(..)
            | Self::OtherFleet { .. }
            | Self::NotSigned(..)
            | Self::NobodyToAsk => Exit::Usage,
            Self::Digests(_)
            | Self::Signer(_)
            | Self::Flake(_)
            | Self::Write(..)
            | Self::NoDigest { .. }
            | Self::Link(_)
            | Self::Snapshot(_)
            | Self::UnknownMachine { .. }
            | Self::NotInHistory { .. }
            | Self::NoSuchRollout { .. }
            | Self::NothingToWaitFor { .. }
            | Self::SignedByOthers { .. }
            | Self::Prepared(_)
            | Self::Answer(_)
            | Self::Output(_)
            | Self::Runtime(_) => Exit::Error,
        }
    }
}
