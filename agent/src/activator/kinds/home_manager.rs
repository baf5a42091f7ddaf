//! home-manager generations, of the user as whom the agent runs.
//!
//! A generation with `gen-version` leaves its profile to whoever activates it; an older one sets the profile
//! itself. Both find what they replace by a root that the last activation left (home-manager,
//! `modules/lib-bash/activation-init.sh`), and older ones by the profile, so what ran before is activated while
//! the profile still names the new one.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::Facts;
use hoist_protocol::{Kind, StorePath};

use super::{Call, ClosureKind, Units, need_program};
use crate::activator::failure::Failure;
use crate::activator::program::Program;
use crate::activator::system::{self, Manager};
use crate::job::JobSpec;
use crate::nix;

pub(super) struct HomeManager;

impl ClosureKind for HomeManager {
    fn is(&self, kind: &Kind) -> bool {
        *kind == Kind::HomeManager
    }

    fn found(&self) -> Option<Kind> {
        Some(Kind::HomeManager)
    }

    fn markers(&self) -> &'static [&'static str] {
        &["hm-version", "gen-version"]
    }

    fn check(&self, spec: &JobSpec, _kind: &Kind) -> Result<(), Failure> {
        need_program(
            &spec.closure,
            "activate",
            "deploy `activationPackage` of its configuration",
        )
    }

    fn profile(&self, _spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
        profile()
    }

    fn facts(&self, profile: &Utf8Path) -> io::Result<Facts> {
        let facts = nix::facts_of_profile(profile)?;
        let roots = [
            state_home().map(|state| state.join("home-manager/gcroots/current-home")),
            per_user("/nix/var/nix/gcroots").map(|folder| folder.join("current-home")),
        ];
        let mut current = None;
        for root in roots.into_iter().flatten() {
            current = current.or(nix::store_path_behind(&root)?);
        }
        Ok(Facts {
            current: current.or(facts.current),
            booted: None,
            boot_default: None,
            ..facts
        })
    }

    fn activation(&self, call: &Call) -> Option<Program> {
        Some(activate(call))
    }

    fn dry_activation(&self, call: &Call) -> Option<Program> {
        let mut program = activate(call);
        program.environment.push(("DRY_RUN".into(), "1".into()));
        Some(program)
    }

    fn units(&self) -> Option<Units> {
        Some(Units {
            folder: "home-files/.config/systemd/user",
            manager: Manager::User,
        })
    }
}

/// Where home-manager itself looks for its profile.
///
/// # Errors
/// This account has no home, or no name.
pub(super) fn profile() -> Result<Utf8PathBuf, Failure> {
    let new = state_home()?.join("nix/profiles");
    let old = per_user("/nix/var/nix/profiles")?;
    let folder = if !new.is_dir() && old.is_dir() {
        old
    } else {
        new
    };
    Ok(folder.join("home-manager"))
}

fn activate(call: &Call) -> Program {
    let arguments: &[&str] = if is_versioned(&call.path) {
        &["--driver-version", "1"]
    } else {
        &[]
    };
    let mut program = call.program("activate", arguments);
    program.environment.extend(system::user_environment());
    program
}

fn is_versioned(generation: &StorePath) -> bool {
    Utf8Path::new(generation.as_str())
        .join("gen-version")
        .exists()
}

/// `XDG_STATE_HOME`, which home-manager goes by.
fn state_home() -> Result<Utf8PathBuf, Failure> {
    match std::env::var("XDG_STATE_HOME").map(Utf8PathBuf::from) {
        Ok(folder) if folder.is_absolute() => Ok(folder),
        _ => Ok(system::home()?.join(".local/state")),
    }
}

fn per_user(folder: &str) -> Result<Utf8PathBuf, Failure> {
    Ok(Utf8Path::new(folder).join("per-user").join(system::user()?))
}
