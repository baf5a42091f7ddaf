//! Plain profiles: they are set, and nothing runs. Never the system's.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Facts;
use hoist_protocol::Kind;

use super::{Call, ClosureKind, chosen_profile};
use crate::activator::failure::Failure;
use crate::activator::program::Program;
use crate::job::JobSpec;
use crate::nix;

pub(super) struct Profile;

impl ClosureKind for Profile {
    fn is(&self, kind: &Kind) -> bool {
        *kind == Kind::Profile
    }

    fn found(&self) -> Option<Kind> {
        Some(Kind::Profile)
    }

    fn markers(&self) -> &'static [&'static str] {
        &[]
    }

    fn check(&self, _spec: &JobSpec, _kind: &Kind) -> Result<(), Failure> {
        Ok(())
    }

    fn profile(&self, spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
        chosen_profile(spec)
    }

    fn facts(&self, profile: &Utf8Path) -> io::Result<Facts> {
        nix::facts_of_profile(profile)
    }

    fn sets_only(&self) -> bool {
        true
    }

    fn activation(&self, _call: &Call) -> Option<Program> {
        None
    }
}
