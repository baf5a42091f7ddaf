//! What the agent is told.

use std::time::Duration;

use hoist_protocol::{
    BrokerUrl, Changes, DeploymentId, FetchProgress, Kind, Order, Reason, RebootReason, State,
    StorePath, Target, Text, Timestamp, VerifiedDeployment, VerifyError,
};
use serde::{Deserialize, Serialize};

use crate::ledger::Told;
use crate::local::LocalOrder;

/// What the machine's own links say at a moment: facts that can differ.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// What runs; of a plain profile, what it names.
    pub current: Option<StorePath>,
    /// What the profile names.
    pub profile: Option<StorePath>,
    /// What the next boot brings; none where there is no boot loader, or where it cannot be read.
    pub boot_default: Option<StorePath>,
    /// What the machine was booted with, on NixOS.
    pub booted: Option<StorePath>,
    /// What of the running system takes effect at the next boot only.
    pub reboot_reasons: Vec<RebootReason>,
}

impl Facts {
    /// Whether `path` runs, is what the profile names and what the next boot brings: there is nothing left
    /// to do for it. A boot default that is not known counts as the same.
    #[must_use]
    pub fn are_all(&self, path: &StorePath) -> bool {
        let is = |fact: &Option<StorePath>| fact.as_ref() == Some(path);
        is(&self.current)
            && is(&self.profile)
            && (self.boot_default.is_none() || is(&self.boot_default))
    }
}

/// Which run of the machine's kernel it is: another one after every boot.
pub type BootId = Text<64>;

/// Who ordered something.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A deployment that the trusted keys signed.
    #[default]
    Publisher,
    /// Somebody at the machine: confirmed by the health checks alone, and no reason to refuse what publishers
    /// ordered before.
    Local,
}

/// When an input came, and how the machine was then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Moment {
    /// The wall clock.
    pub now: Timestamp,
    /// Whether the wall clock is kept right by something such as NTP.
    pub synchronised: bool,
    /// Time since the agent started, from a clock that never jumps.
    pub uptime: Duration,
    /// What runs and what the profile names.
    pub facts: Facts,
    /// The broker that the agent is connected to.
    pub broker: Option<BrokerUrl>,
    /// What people should know although the machine does its work: a certificate that ends soon, for instance.
    pub warnings: Vec<Text<256>>,
}

/// A verified deployment together with the bytes that were verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// What the trusted keys signed.
    pub deployment: VerifiedDeployment,
    /// The message as received; kept, and verified again after a restart.
    pub signed: Vec<u8>,
}

/// A closure that is in the store and kept from the garbage collector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Realised {
    /// Its size with everything it needs, in bytes, where Nix could tell.
    pub closure_size: Option<u64>,
    /// What it is: the kind that `auto` stands for, where that was found out.
    pub kind: Option<Kind>,
    /// How much had to be fetched.
    pub fetched: FetchProgress,
    /// What it changes against what runs, where Nix could tell.
    pub changes: Option<Changes>,
    /// The facts of the closure's kind on this machine.
    pub facts: Facts,
}

/// Why a closure could not be had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FetchFailure {
    /// The reason, for programs.
    pub reason: Reason,
    /// The reason, for people.
    pub message: Text<1024>,
    /// How far this try came.
    pub fetched: FetchProgress,
}

/// How far the activator is, as it stands in its journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JobPhase {
    /// The activation runs.
    Activating,
    /// The health checks run.
    Checking,
    /// It waits for the confirmation.
    Confirming,
    /// It was confirmed and is being made permanent.
    Committing,
    /// It goes back to what ran before.
    RollingBack,
}

/// How a job ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JobEnd {
    /// The final state.
    pub state: State,
    /// Why it did not end well.
    pub reason: Option<Reason>,
    /// The same for people.
    pub message: Text<1024>,
    /// How it was activated: the kind that `auto` stood for, once that was found out.
    pub kind: Option<Kind>,
    /// The boot in which it ended: what was staged takes effect in another one.
    pub boot_id: Option<BootId>,
    /// What ran before it.
    pub previous: Option<StorePath>,
    /// How many lines it logged.
    pub log_lines: u64,
    /// The last of them, oldest first.
    pub log_tail: Vec<Text<256>>,
}

/// A job directory that was there when the agent started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundJob {
    /// Which deployment it carries out.
    pub order: Order,
    /// Who ordered it.
    pub origin: Origin,
    /// Its closure.
    pub path: StorePath,
    /// How it gets there.
    pub target: Target,
    /// How far it is; none before the activator has begun.
    pub phase: Option<JobPhase>,
    /// Whether its activator lives.
    pub alive: bool,
    /// How it ended, when it has.
    pub end: Option<JobEnd>,
}

/// Something that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Input {
    /// The agent has started and found these jobs. The first input, exactly once.
    Started(Vec<FoundJob>),
    /// A deployment that the trusted keys signed for this machine was found on its topic.
    Offered(Box<Offer>),
    /// A message was found there that is none.
    Unverified {
        /// Why it is none.
        error: VerifyError,
        /// What the message is known by.
        digest: Text<64>,
    },
    /// There is a new connection to the broker: what it should know is told again.
    Connected,
    /// It is time to say again how things are.
    Refresh,
    /// The broker has acknowledged the history that held these outcomes.
    Delivered(Vec<Told>),
    /// Nix has come this far.
    FetchProgress {
        /// Which fetch.
        id: DeploymentId,
        /// How far.
        progress: FetchProgress,
    },
    /// Nix is done.
    Fetched {
        /// Which fetch.
        id: DeploymentId,
        /// What came of it.
        result: Result<Realised, FetchFailure>,
    },
    /// The job directory could not be made: nothing was begun.
    JobNotCreated {
        /// Whose job.
        id: DeploymentId,
        /// Why.
        message: Text<1024>,
    },
    /// The activator is dead, or could not be started, and has left no result.
    ActivatorLost {
        /// Whose activator.
        id: DeploymentId,
        /// What is known about it.
        message: Text<1024>,
    },
    /// The activator's journal has a new phase.
    JobPhase {
        /// Whose job.
        id: DeploymentId,
        /// The phase.
        phase: JobPhase,
    },
    /// The activator has written its result.
    JobEnded {
        /// Whose job.
        id: DeploymentId,
        /// The result.
        end: Box<JobEnd>,
    },
    /// What [`Effect::ReachBroker`](crate::Effect::ReachBroker) asked for has worked: a nonce came back over
    /// a fresh connection.
    BrokerReached {
        /// Which deployment it was tried for.
        id: DeploymentId,
    },
    /// Somebody at the machine wants something; answered by [`Effect::Answer`](crate::Effect::Answer).
    Local(LocalOrder),
    /// The time that [`Agent::wake_at`](crate::Agent::wake_at) named has come.
    Tick,
}
