//! What the shell has to do.

use hoist_protocol::{
    CacheKey, ClosureDigest, DeploymentId, History, Order, Status, StorePath, SubstituterUrl,
    Target, Text,
};

use crate::input::Origin;
use crate::ledger::{Ledger, Told};
use crate::local::LocalDone;

/// What Nix has to fetch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FetchOrder {
    /// For which deployment.
    pub id: DeploymentId,
    /// The closure.
    pub path: StorePath,
    /// How it gets there: it says which of the machine's systems or profiles the closure is for.
    pub target: Target,
    /// What it has to hold, to the byte, when the deployment says so.
    pub digest: Option<ClosureDigest>,
    /// The programs of its health checks on this machine's system.
    pub programs: Vec<StorePath>,
    /// Binary caches besides the machine's own.
    pub substituters: Vec<SubstituterUrl>,
    /// Keys of binary caches besides the machine's own.
    pub keys: Vec<CacheKey>,
}

/// What the activator has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JobOrder {
    /// Which deployment it is.
    pub order: Order,
    /// Who ordered it: what somebody at the machine did is confirmed by its health checks alone.
    pub origin: Origin,
    /// The closure, in the store by now.
    pub path: StorePath,
    /// How it gets there, as it was signed.
    pub target: Target,
}

/// Something to do. Effects are carried out in the order in which they were returned; when
/// [`Effect::Persist`] fails, nothing after it may happen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Make this ledger durable before anything else is done.
    Persist(Box<Ledger>),
    /// Fetch a closure; answered by [`Input::Fetched`](crate::Input::Fetched).
    Fetch(Box<FetchOrder>),
    /// Stop fetching. No answer is needed, and one that comes is ignored.
    CancelFetch(DeploymentId),
    /// Make a job directory, durably; on failure [`Input::JobNotCreated`](crate::Input::JobNotCreated).
    CreateJob(Box<JobOrder>),
    /// Start the activator of a job, which begins or recovers; on failure
    /// [`Input::ActivatorLost`](crate::Input::ActivatorLost).
    StartActivator(DeploymentId),
    /// Prove the way to the broker and back over a fresh connection, and try again while the job waits for
    /// its confirmation; [`Input::BrokerReached`](crate::Input::BrokerReached) when it worked.
    ReachBroker(DeploymentId),
    /// Tell the activator that the machine is in reach.
    Confirm(DeploymentId),
    /// Remove the job directory and the garbage collector roots of a deployment that has ended.
    Forget(DeploymentId),
    /// Answer somebody at the machine. What the answer says is durable.
    Answer {
        /// The number of the order.
        request: u64,
        /// What was done, or why nothing was.
        result: Result<LocalDone, Text<1024>>,
    },
    /// Publish the status. Lost when there is no connection: at the next one it is published anew.
    Report(Box<Status>),
    /// Publish the history. When the broker has acknowledged it:
    /// [`Input::Delivered`](crate::Input::Delivered) with the same outcomes.
    ReportHistory {
        /// What to publish.
        history: Box<History>,
        /// The outcomes in it that were not acknowledged so far.
        undelivered: Vec<Told>,
    },
}
