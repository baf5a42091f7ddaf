//! What the agent is told.

use std::time::Duration;

use hoist_protocol::{
    DeploymentId, Order, Reason, State, StorePath, Text, Timestamp, VerifiedDeployment, VerifyError,
};

/// What the machine's own links say at a moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// What runs.
    pub current: Option<StorePath>,
    /// What the profile names, and so what the next boot brings.
    pub profile: Option<StorePath>,
    /// What the machine was booted with, on NixOS.
    pub booted: Option<StorePath>,
}

impl Facts {
    /// Whether `path` both runs and is what the profile names: there is nothing left to do for it.
    #[must_use]
    pub fn are_all(&self, path: &StorePath) -> bool {
        self.current.as_ref() == Some(path) && self.profile.as_ref() == Some(path)
    }
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
    /// Its closure.
    pub path: StorePath,
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
    /// The broker has acknowledged the history that held the outcomes of these deployments.
    Delivered(Vec<DeploymentId>),
    /// Nix has come this far.
    FetchProgress {
        /// Which fetch.
        id: DeploymentId,
        /// Percent of what has to be fetched.
        percent: u8,
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
    /// The time that [`Agent::wake_at`](crate::Agent::wake_at) named has come.
    Tick,
}
