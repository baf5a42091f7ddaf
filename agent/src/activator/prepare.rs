//! Looks before anything is touched: what the closure is, what there is to go back to, and whether there is
//! anything that would have to fail later.

use std::time::{Duration, Instant};

use camino::Utf8Path;
use hoist_protocol::{Action, Reason, StorePath};

use super::Activator;
use super::failure::Failure;
use super::kinds::{self, ClosureKind};
use super::successor::{self, AgentUnit};
use super::system;
use crate::job::Before;
use crate::nix::{self, Generation};

/// How long something else that changes the system is waited for at the most.
const BUSY_LIMIT: Duration = Duration::from_secs(10 * 60);

/// How often it is looked whether it has ended.
const BUSY_POLL: Duration = Duration::from_millis(250);

impl Activator {
    /// Checks the closure, records what runs, and keeps it from the garbage collector.
    pub(super) fn prepare(&mut self) -> Result<Before, Failure> {
        let spec = self.job.spec().clone();
        let closure = Utf8Path::new(spec.closure.as_str());
        if closure.symlink_metadata().is_err() {
            return Err(Failure::untouched(
                Reason::MissingPath,
                format!("{closure} is not in the store; nothing was activated"),
            ));
        }
        let (kind, known) = kinds::find(&spec)?;
        let brings = known.brings(&spec)?;
        let profile = known.profile(&spec)?;
        self.wait_until_free(known)?;

        let unreadable = |error| Failure::internal("cannot find out what runs", &error);
        let facts = known.facts(&profile).map_err(unreadable)?;
        let named = Generation::of(&profile).map_err(unreadable)?;
        let booted = facts.booted;
        let mut before = Before {
            kind,
            profile,
            named,
            running: facts.current,
            boot_default: facts.boot_default,
            brings,
            failed_units: Vec::new(),
            failed_checks: Vec::new(),
            agent: None,
            agent_settings: Vec::new(),
        };
        let action = spec.target.action;
        if action == Action::DryActivate {
            return Ok(before);
        }
        if let Some(unit) = AgentUnit::of(&spec.agent, known) {
            if !spec.target.allow_no_agent {
                successor::refuse_without_agent(&unit, &before.brings, before.running.as_ref())?;
            }
            before.agent = unit.main_process();
            before.agent_settings = unit.settings_to_stand_in(&before);
        }
        if known.is_volatile() && action != Action::Test {
            let unknown =
                |error| Failure::internal("cannot ask the disk of the boot loader", &error);
            if let Some(why) = known.lacks_room(&spec.closure).map_err(unknown)? {
                return Err(Failure::untouched(
                    Reason::DiskFull,
                    format!(
                        "{closure} could not be made what boots, so it was not activated: {why}"
                    ),
                ));
            }
        }
        self.keep(&before, booted.as_ref())?;
        if action != Action::Boot {
            // Only to be compared with later: what cannot be asked now counts as sound.
            before.failed_units = system::failed_units().unwrap_or_else(|error| {
                self.log
                    .say(&format!("cannot find out which units have failed: {error}"));
                Vec::new()
            });
            before.failed_checks = self.failing_checks(&before)?;
        }
        Ok(before)
    }

    /// Waits while something else changes the system.
    fn wait_until_free(&mut self, kind: &dyn ClosureKind) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut said = false;
        loop {
            let busy = kind.is_busy().map_err(|error| {
                Failure::internal(
                    "cannot find out whether something else changes the system",
                    &error,
                )
            })?;
            if !busy {
                return Ok(());
            }
            if begun.elapsed() >= self.busy_limit() {
                return Err(busy_for(begun.elapsed()));
            }
            if !std::mem::replace(&mut said, true) {
                self.log
                    .say("something else changes the system; waiting for its end");
            }
            std::thread::sleep(BUSY_POLL);
        }
    }

    /// How long it is waited for something else: never longer than an activation may take.
    pub(super) fn busy_limit(&self) -> Duration {
        BUSY_LIMIT.min(self.job.spec().target.activation_timeout())
    }

    /// Keeps from the garbage collector what the machine may go back to, and the programs that are needed until
    /// the job has ended.
    fn keep(&self, before: &Before, booted: Option<&StorePath>) -> Result<(), Failure> {
        let roots = self.job.roots();
        let kept = [
            ("running", before.running.as_ref()),
            ("profile", before.named.as_ref().map(|named| &named.path)),
            ("boot-default", before.boot_default.as_ref()),
            ("booted", booted),
        ];
        let programs = [
            ("activator", std::env::current_exe().ok()),
            ("nix", program_in_path("nix-env")),
        ]
        .map(|(name, program)| (name, program.and_then(|program| in_store(&program))));
        let programs = programs.iter().map(|(name, path)| (*name, path.as_ref()));
        for (name, path) in kept.into_iter().chain(programs) {
            let Some(path) = path else {
                continue;
            };
            nix::keep(&roots, name, path).map_err(|error| {
                let what =
                    format!("cannot keep {path}, which is in use now, from the garbage collector");
                Failure::internal(&what, &error)
            })?;
        }
        Ok(())
    }
}

/// What a job that ends so is told.
pub(super) fn busy_for(waited: Duration) -> Failure {
    Failure::untouched(
        Reason::Busy,
        format!(
            "something else changed the system for longer than {} s; nothing was activated. Deploy again when it has ended",
            waited.as_secs()
        ),
    )
}

fn program_in_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The store path of a program, behind all links to it; none when it lies elsewhere.
fn in_store(program: &std::path::Path) -> Option<StorePath> {
    let real = program.canonicalize().ok()?;
    nix::store_path_behind(Utf8Path::from_path(&real)?).ok()?
}
