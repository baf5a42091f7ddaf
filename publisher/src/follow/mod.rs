//! What a run knows and decides, without a connection, a clock or a terminal.

mod cancelled;
mod delivery;
mod run;
mod watch;

pub use cancelled::Cancelled;
pub use delivery::{ATTEMPTS, Delivery, Found, QUIET, Refusal, Stage};
pub use run::{Action, Heard, Outlook, Phase, Published, Run, Step, WINDOW};
pub use watch::{End, NEWER_GRACE, OFFLINE_GRACE, SETTLE, Said, Verdict, Wait, Watch};
