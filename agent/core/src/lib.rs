//! What the Hoist agent decides, as a pure state machine.
//!
//! [`Agent::handle`] takes an [`Input`] and the [`Moment`] it came at, and returns [`Effect`]s, to be carried
//! out in order. There is no tokio, no MQTT, no file and no clock in here: the shell in `hoist-agent` has
//! those.
//!
//! What must survive is in the [`Ledger`]. [`Effect::Persist`] stands before every effect that depends on it,
//! so a crash is: drop the machine, and rebuild it from the last ledger that was completely written and from
//! the jobs found on disk. Once a job exists, the job directory is the truth about the activation; the ledger
//! knows what was admitted, and how everything ended.

mod admission;
mod agent;
mod effect;
mod input;
mod ledger;
mod local;
mod report;

pub use agent::{Agent, Config};
pub use effect::{Effect, FetchOrder, JobOrder};
pub use input::{
    BootId, Facts, FetchFailure, FoundJob, Input, JobEnd, JobPhase, Moment, Offer, Origin, Realised,
};
pub use ledger::{
    Ended, Floor, HISTORY, Hold, How, KNOWN, Known, LOG_TAIL, Ledger, Record, Signed, Staged, Task,
    Told,
};
pub use local::{LocalDone, LocalOrder, LocalWhat};
