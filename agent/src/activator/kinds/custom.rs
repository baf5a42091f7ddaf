//! Closures that bring an activator of their own: the program that the order names, called with `activate`.
//!
//! It is told by its environment what it is about: `HOIST_DEPLOYMENT`, `HOIST_CLOSURE`, `HOIST_PREVIOUS` and
//! `HOIST_PROFILE`. On the way back the same program of the closure before is called, if it has one.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Facts;
use hoist_protocol::Kind;

use super::{Call, ClosureKind, chosen_profile, has_program, need_program};
use crate::activator::failure::Failure;
use crate::activator::program::Program;
use crate::activator::system;
use crate::job::JobSpec;
use crate::nix;

pub(super) struct Custom;

impl ClosureKind for Custom {
    fn is(&self, kind: &Kind) -> bool {
        matches!(kind, Kind::Custom(_))
    }

    fn found(&self) -> Option<Kind> {
        None
    }

    fn markers(&self) -> &'static [&'static str] {
        &[]
    }

    fn check(&self, spec: &JobSpec, kind: &Kind) -> Result<(), Failure> {
        match kind {
            Kind::Custom(program) => need_program(
                &spec.closure,
                program.as_str(),
                "check the program that the order names",
            ),
            _ => Ok(()),
        }
    }

    fn profile(&self, spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
        chosen_profile(spec)
    }

    fn facts(&self, profile: &Utf8Path) -> io::Result<Facts> {
        nix::facts_of_profile(profile)
    }

    fn activation(&self, call: &Call) -> Option<Program> {
        let Kind::Custom(file) = &call.kind else {
            return None;
        };
        if !has_program(&call.path, file.as_str()) {
            return None;
        }
        let mut program = call.program(file.as_str(), &["activate"]);
        program.environment.extend(system::user_environment());
        program.environment.extend(system::about(
            call.id,
            &call.path,
            call.previous.as_ref(),
            &call.profile,
        ));
        Some(program)
    }
}
