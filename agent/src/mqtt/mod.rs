//! One connection to a broker at a time, and when to try which one next.

mod backoff;
mod brokers;
mod link;
mod renewal;

pub use backoff::{Backoff, End, Verdict, jittered};
pub use brokers::{Brokers, BrokersError, MAX_BROKERS, Turn};
pub use link::{Link, LinkEvent, Payload, Receipt, Target, was_closed};
pub use renewal::Renewal;
