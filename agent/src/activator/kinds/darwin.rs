//! nix-darwin systems, activated as root.
//!
//! `/run/current-system` is linked last, so it tells whether an activation came to its end. At boot it is made
//! from the profile: what ran before is activated while the profile still names the new system, and the profile
//! is restored after that.

use std::fs;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Facts;
use hoist_protocol::{Kind, Reason, StorePath};

use super::{Call, ClosureKind, need_program};
use crate::activator::failure::Failure;
use crate::activator::program::Program;
use crate::activator::system;
use crate::job::JobSpec;
use crate::nix::{self, SYSTEM_PROFILE};

pub(super) struct Darwin;

impl ClosureKind for Darwin {
    fn is(&self, kind: &Kind) -> bool {
        *kind == Kind::Darwin
    }

    fn found(&self) -> Option<Kind> {
        Some(Kind::Darwin)
    }

    fn markers(&self) -> &'static [&'static str] {
        &["darwin-version", "darwin-version.json"]
    }

    fn check(&self, spec: &JobSpec, _kind: &Kind) -> Result<(), Failure> {
        need_program(
            &spec.closure,
            "activate",
            "deploy `system` of its configuration",
        )?;
        let unsupported = |message: String| Err(Failure::untouched(Reason::Unsupported, message));
        if !cfg!(target_os = "macos") {
            return unsupported(format!(
                "{} is a nix-darwin system, and this machine does not run macOS",
                spec.closure
            ));
        }
        if !system::is_root() {
            return unsupported(
                "only root can activate a nix-darwin system; run hoist-agent as a daemon of launchd"
                    .to_owned(),
            );
        }
        if needs_user(&spec.closure) {
            return unsupported(format!(
                "{} is of a nix-darwin that activates one half as a user, from before May 2025; update nix-darwin",
                spec.closure
            ));
        }
        Ok(())
    }

    fn profile(&self, _spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
        Ok(SYSTEM_PROFILE.into())
    }

    fn facts(&self, _profile: &Utf8Path) -> io::Result<Facts> {
        let facts = nix::facts_of_nixos()?;
        Ok(Facts {
            booted: None,
            boot_default: None,
            ..facts
        })
    }

    fn activation(&self, call: &Call) -> Option<Program> {
        Some(call.program("activate", &[]))
    }

    fn dry_activation(&self, call: &Call) -> Option<Program> {
        let mut program = call.program("activate", &[]);
        program
            .environment
            .push(("checkActivation".into(), "1".into()));
        Some(program)
    }
}

/// Whether it has a second script, to be run as the user: one that is executable and not marked as obsolete.
fn needs_user(closure: &StorePath) -> bool {
    let script = format!("{closure}/activate-user");
    super::has_program(closure, "activate-user")
        && !fs::read_to_string(script).is_ok_and(|text| text.contains("# nix-darwin: deprecated"))
}
