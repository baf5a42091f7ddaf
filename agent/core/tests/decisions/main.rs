//! What the core decides, one decision at a time.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod activating;
mod admission;
mod fetching;
mod holding;
mod local;
mod newest;
mod outcomes;
mod staging;
mod standing;
mod support;
