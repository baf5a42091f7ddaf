//! Rollouts: a deployment that reaches its machines batch by batch, and stops when it does harm.
//!
//! A rollout lives in the process that runs it. Its deployments are all signed when it begins and published when
//! their batch comes: whatever somebody else deploys meanwhile is newer, and the rollout lets that machine go.
//! A rollout that was stopped is gone on with by the same command: machines that have it are `unchanged`.

mod pace;
mod plan;
mod share;

pub use pace::{Decision, Judged, OnFailure, Pace, Policy, Tally, Why};
pub use plan::{Division, Known, divide};
pub use share::{Share, ShareError};

/// A rollout as it was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rollout {
    /// Who comes when.
    pub division: Division,
    /// When the next ones come.
    pub policy: Policy,
    /// And when too many have failed.
    pub on_failure: OnFailure,
}
