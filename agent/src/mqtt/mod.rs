//! One connection to the broker at a time, and when to try the next.

mod backoff;
mod link;

pub use backoff::{Backoff, Verdict, jittered};
pub use link::{Link, LinkEvent, Payload, Receipt};
