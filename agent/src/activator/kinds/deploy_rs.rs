//! Closures of deploy-rs, which bring `deploy-rs-activate`.
//!
//! Their script finds everything through the profile in `PROFILE`: so the profile names a closure before that is
//! activated, on the way back too.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Facts;
use hoist_protocol::Kind;

use super::{Call, ClosureKind, chosen_profile, has_program, need_program, wrong_kind};
use crate::activator::failure::Failure;
use crate::activator::program::Program;
use crate::activator::system;
use crate::job::JobSpec;
use crate::nix;

const SCRIPT: &str = "deploy-rs-activate";

/// Systems that have a profile of their own, which deploy-rs's wrapping hides.
const SYSTEMS: &[(&str, &str)] = &[
    ("nixos-version", "config.system.build.toplevel"),
    ("darwin-version", "system"),
    ("darwin-version.json", "system"),
];

pub(super) struct DeployRs;

impl ClosureKind for DeployRs {
    fn is(&self, kind: &Kind) -> bool {
        *kind == Kind::DeployRs
    }

    fn found(&self) -> Option<Kind> {
        Some(Kind::DeployRs)
    }

    fn markers(&self) -> &'static [&'static str] {
        &[SCRIPT]
    }

    fn check(&self, spec: &JobSpec, _kind: &Kind) -> Result<(), Failure> {
        let closure = Utf8Path::new(spec.closure.as_str());
        let system = SYSTEMS
            .iter()
            .find(|(marker, _)| closure.join(marker).exists());
        if spec.target.kind == Kind::Auto
            && let Some((_, attribute)) = system
        {
            return Err(wrong_kind(format!(
                "{closure} is a whole system that deploy-rs has wrapped, which hides its own profile; \
                 deploy `{attribute}` of its configuration itself"
            )));
        }
        need_program(
            &spec.closure,
            SCRIPT,
            "build it with deploy-rs's `activate.custom`",
        )
    }

    fn profile(&self, spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
        chosen_profile(spec)
    }

    fn facts(&self, profile: &Utf8Path) -> io::Result<Facts> {
        nix::facts_of_profile(profile)
    }

    fn runs_by_profile(&self) -> bool {
        true
    }

    fn activation(&self, call: &Call) -> Option<Program> {
        // The one before may have been set by another tool.
        has_program(&call.path, SCRIPT).then(|| script(call, call.profile.as_str(), "0"))
    }

    fn dry_activation(&self, call: &Call) -> Option<Program> {
        // The profile is not set, so the closure stands in for it.
        Some(script(call, call.path.as_str(), "1"))
    }
}

fn script(call: &Call, profile: &str, dry: &str) -> Program {
    let mut program = call.program(SCRIPT, &[]);
    program.environment.extend(system::user_environment());
    let own = [("PROFILE", profile), ("DRY_ACTIVATE", dry)];
    program
        .environment
        .extend(own.map(|(name, value)| (name.into(), value.into())));
    program
}
