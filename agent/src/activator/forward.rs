//! The way forward: activate, check, wait for the confirmation, commit.

use std::time::{Duration, Instant};

use hoist_protocol::{Action, Reason, StorePath, UnitsFailed};

use super::confirm::seconds;
use super::failure::{Failure, shown};
use super::kinds::{self, Call};
use super::program::{End, Program};
use super::run::Ran;
use super::system;
use super::{Activator, Ending};
use crate::job::{Before, Phase, Record, chain};
use crate::nix::Generation;

/// How an activation went that went well.
enum Activated {
    /// It runs; what people should know about it.
    Runs(Option<String>),
    /// Nothing was activated, since only a boot can bring it: why.
    NeedsBoot(String),
}

impl Activator {
    /// From the first change to the result.
    pub(super) fn forward(&mut self, before: &Before) -> Result<Ending, Failure> {
        let spec = self.job.spec().clone();
        match spec.target.action {
            Action::DryActivate => return self.dry_activate(before),
            Action::Boot => return self.stage(before, "that is what was ordered"),
            Action::Switch | Action::Test => {}
        }
        let needs_boot = kinds::of(&before.kind)?
            .needs_boot(&before.brings, before.running.as_ref())
            .map_err(|error| Failure::internal("cannot read the switch inhibitors", &error))?;
        let activated = match needs_boot {
            Some(why) => Activated::NeedsBoot(why),
            None => self.activate(before)?,
        };
        let remark = match activated {
            Activated::Runs(remark) => remark,
            Activated::NeedsBoot(why) if spec.target.action == Action::Test => {
                return Err(Failure::untouched(
                    Reason::NeedsReboot,
                    format!(
                        "{} takes effect at a boot only, so it cannot be tested: {why}",
                        before.brings
                    ),
                ));
            }
            Activated::NeedsBoot(why) => return self.stage(before, &why),
        };
        // From here on the clock runs that the confirmation has to beat.
        let begun = Instant::now();
        self.prove(before, begun)
            .map_err(Failure::after_activation)?;
        self.commit(before)?;
        Ok(Ending::Succeeded(remark.unwrap_or_default()))
    }

    fn activate(&mut self, before: &Before) -> Result<Activated, Failure> {
        let closure = self.job.spec().closure.clone();
        let limit = self.job.spec().target.activation_timeout();
        let mut records = vec![
            Record::Prepared(Box::new(before.clone())),
            Record::Phase(Phase::Activating),
        ];
        if !kinds::of(&before.kind)?.is_volatile() {
            let records = std::mem::take(&mut records);
            self.set_profile(before, &closure, limit, records)?;
        }
        self.log.say(&format!("activating {}", before.brings));
        let call = self.call(before, limit);
        let remark = match self.run_activation(&call, records)? {
            Ran::Well => None,
            Ran::UnitsFailed(units) => Some(self.judge_units(before, units)?),
            Ran::NeedsBoot => {
                let why = "its init is not one that the running system can hand over to";
                return Ok(Activated::NeedsBoot(why.to_owned()));
            }
        };
        let runs = self.facts(before)?.current;
        if runs.as_ref() == Some(&before.brings) {
            return Ok(Activated::Runs(remark));
        }
        Err(Failure::failed(
            Reason::ActivationFailed,
            format!(
                "the activation of {} ended well, but {} runs",
                before.brings,
                named(runs.as_ref())
            ),
        ))
    }

    /// The activation of what the job brings.
    pub(super) fn call(&self, before: &Before, limit: Duration) -> Call {
        Call {
            id: self.id(),
            kind: before.kind.clone(),
            path: before.brings.clone(),
            previous: before.running.clone(),
            profile: before.profile.clone(),
            exit_code: self.job.dir().join("switch-exit"),
            limit,
            back: false,
        }
    }

    /// Whether failed units are a reason to go back: if not, what people should know about them.
    fn judge_units(&mut self, before: &Before, said: Vec<String>) -> Result<String, Failure> {
        let mut failed = said;
        match system::failed_units() {
            Ok(units) => failed.extend(units),
            Err(error) => self
                .log
                .say(&format!("cannot find out which units have failed: {error}")),
        }
        failed.sort();
        failed.dedup();
        let known = |unit: &String| before.failed_units.contains(unit);
        let new: Vec<_> = failed.iter().filter(|unit| !known(unit)).cloned().collect();
        let list = |units: &[String]| match units {
            [] => "units that could not be told".to_owned(),
            units => units.join(", "),
        };
        let failure = |units: &[String]| {
            Failure::rolled_back(
                Reason::UnitsFailed,
                format!(
                    "{} was activated, but these units failed: {}",
                    before.brings,
                    list(units)
                ),
            )
        };
        match self.job.spec().target.units_failed {
            UnitsFailed::Keep => Ok(format!(
                "it was kept, as ordered, although these units failed: {}",
                list(&failed)
            )),
            UnitsFailed::KeepIfFailedBefore if !failed.is_empty() && new.is_empty() => Ok(format!(
                "it was kept, as ordered: these units had failed before it too: {}",
                list(&failed)
            )),
            UnitsFailed::RollBack | UnitsFailed::KeepIfFailedBefore => {
                Err(failure(if new.is_empty() { &failed } else { &new }))
            }
        }
    }

    /// Has the closure say what its activation would do. Nothing is changed, and a crash begins it again.
    fn dry_activate(&mut self, before: &Before) -> Result<Ending, Failure> {
        let kind = kinds::of(&before.kind)?;
        let limit = self.job.spec().target.activation_timeout();
        let Some(program) = kind.dry_activation(&self.call(before, limit)) else {
            return Err(Failure::untouched(
                Reason::Unsupported,
                format!(
                    "closures of kind `{}` cannot say what their activation would do",
                    before.kind
                ),
            ));
        };
        let what = program.title.clone();
        self.log.say(&what);
        match self.run(&program, [])?.end {
            End::Exited(status) if status.success() => Ok(Ending::DryActivated),
            End::Exited(status) => Err(Failure::untouched(
                Reason::ActivationFailed,
                format!(
                    "`{what}` {}; see the log. Nothing was activated",
                    shown(status)
                ),
            )),
            End::TimedOut => Err(Failure {
                untouched: true,
                ..timed_out(&what, limit)
            }),
        }
    }

    /// Sets the profile of the job.
    pub(super) fn set_profile(
        &mut self,
        before: &Before,
        path: &StorePath,
        limit: Duration,
        records: Vec<Record>,
    ) -> Result<(), Failure> {
        let profile = &before.profile;
        self.log.say(&format!("setting {profile} to {path}"));
        if let Some(dir) = profile.parent() {
            std::fs::create_dir_all(dir).map_err(|error| {
                Failure::internal(&format!("cannot make the folder of {profile}"), &error)
            })?;
        }
        let program = system::set_profile(self.id(), profile, path);
        let limit = limit.min(program.limit);
        self.nix_env(&Program { limit, ..program }, records)
    }

    /// Runs `nix-env`, and lets nothing but success pass.
    pub(super) fn nix_env(
        &mut self,
        program: &Program,
        records: Vec<Record>,
    ) -> Result<(), Failure> {
        match self.run(program, records)?.end {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(Failure::failed(
                Reason::ActivationFailed,
                format!("nix-env {}; see the log", shown(status)),
            )),
            End::TimedOut => Err(timed_out("nix-env", program.limit)),
        }
    }

    /// Makes the closure what the next boot brings, and activates nothing. It may be done again after a crash.
    pub(super) fn stage(&mut self, before: &Before, why: &str) -> Result<Ending, Failure> {
        if self.journal.history().phase() != Some(Phase::Staging) {
            self.journal.append([
                Record::Prepared(Box::new(before.clone())),
                Record::Phase(Phase::Staging),
            ])?;
        }
        self.log
            .say(&format!("{} is for the next boot: {why}", before.brings));
        self.make_permanent(before).map_err(|failure| Failure {
            untouched: true,
            ..failure
        })?;
        self.done();
        Ok(Ending::Staged(format!("the next boot brings it: {why}")))
    }

    /// Makes what was confirmed the state that the machine keeps. It may be done again after a crash.
    pub(super) fn commit(&mut self, before: &Before) -> Result<(), Failure> {
        if self.journal.history().phase() != Some(Phase::Committing) {
            self.journal
                .append([Record::Phase(Phase::Committing)])
                .map_err(|error| Failure::from(error).after_activation())?;
        }
        // A test changes nothing that survives a boot.
        if self.job.spec().target.action != Action::Test {
            self.still_activated(before)
                .and_then(|()| self.make_permanent(before))
                .map_err(|failure| match failure.reason {
                    Reason::ChangedByOthers => failure,
                    Reason::BootLoaderFailed => Failure::failed(
                        Reason::BootLoaderFailed,
                        format!("confirmed, but {}", failure.message),
                    ),
                    _ => Failure::failed(
                        Reason::CommitFailed,
                        format!(
                            "confirmed, but it could not be made permanent: {}",
                            failure.message
                        ),
                    ),
                })?;
        }
        self.done();
        Ok(())
    }

    /// Notes that all is done: a journal that cannot say so any more is no reason to undo it.
    ///
    /// Only the result comes after it, which is synced: what a power cut takes of both is done once more.
    fn done(&mut self) {
        if let Err(error) = self.journal.note([Record::Phase(Phase::Committed)]) {
            self.log
                .say(&format!("cannot write the journal: {}", chain(&error)));
        }
    }

    /// Checks that what was confirmed still runs, and activates it again when only a boot has come between.
    fn still_activated(&mut self, before: &Before) -> Result<(), Failure> {
        if !kinds::of(&before.kind)?.is_volatile() {
            return Ok(());
        }
        let current = self.facts(before)?.current;
        if current.as_ref() == Some(&before.brings) {
            return Ok(());
        }
        let booted = [
            before.running.as_ref(),
            before.boot_default.as_ref(),
            before.named.as_ref().map(|named| &named.path),
            // The power was cut when it was to be permanent, and the loader has it already.
            Some(&self.job.spec().closure),
        ];
        if !(self.rebooted && booted.contains(&current.as_ref())) {
            return Err(Failure::conflict(format!(
                "after {} was confirmed, somebody activated {}; it was left so",
                before.brings,
                named(current.as_ref())
            )));
        }
        // The power was cut between the confirmation and the boot loader.
        let limit = self.job.spec().target.activation_timeout();
        self.log.say(&format!("activating {} again", before.brings));
        self.run_activation(&self.call(before, limit), Vec::new())?;
        Ok(())
    }

    /// Sets the profile and the boot loader, and looks whether they do what they should.
    fn make_permanent(&mut self, before: &Before) -> Result<(), Failure> {
        let closure = self.job.spec().closure.clone();
        let kind = kinds::of(&before.kind)?;
        let profile = self.facts(before)?.profile;
        let was = before.named.as_ref().map(|named| &named.path);
        let ours = profile.as_ref() == Some(&closure);
        let as_it_was = profile.as_ref() == was && (kind.is_volatile() || self.rebooted);
        if !(ours || as_it_was) {
            return Err(Failure::conflict(format!(
                "somebody set {} to {} meanwhile; it was left so",
                before.profile,
                named(profile.as_ref())
            )));
        }
        if !ours {
            let limit = self.job.spec().target.activation_timeout();
            self.set_profile(before, &closure, limit, Vec::new())?;
        }
        let call = Call {
            path: closure.clone(),
            ..self.call(before, Duration::ZERO)
        };
        if let Some(program) = kind.commitment(&call) {
            self.log
                .say(&format!("making {closure} the one that boots"));
            self.set_boot_loader(&call, &program)?;
        }
        let names = Generation::of(&before.profile)
            .map_err(|error| Failure::internal("cannot read the profile", &error))?;
        if names.as_ref().map(|names| &names.path) != Some(&closure) {
            return Err(Failure::failed(
                Reason::CommitFailed,
                format!(
                    "{} does not name {closure} after it was set",
                    before.profile
                ),
            ));
        }
        system::sync(&before.profile, kind.is_volatile())
            .map_err(|error| Failure::internal("cannot sync the disk", &error))
    }

    /// Runs what sets the boot loader, and reads back what it boots: some fail without an exit code.
    pub(super) fn set_boot_loader(
        &mut self,
        call: &Call,
        program: &Program,
    ) -> Result<(), Failure> {
        let what = &program.title;
        let failed = |message| Err(Failure::failed(Reason::BootLoaderFailed, message));
        match self.run_commitment(call, program)?.end {
            End::Exited(status) if status.success() => {}
            End::Exited(status) => {
                return failed(format!(
                    "the boot loader could not be set: `{what}` {}; see the log, and check the room on the boot partition",
                    shown(status)
                ));
            }
            End::TimedOut => {
                return failed(format!(
                    "the boot loader could not be set: `{what}` took longer than {}",
                    seconds(program.limit)
                ));
            }
        }
        let default = kinds::of(&call.kind)?
            .facts(&call.profile)
            .map_err(|error| Failure::internal("cannot read the boot loader", &error))?
            .boot_default;
        match default {
            Some(default) if default != call.path => failed(format!(
                "`{what}` ended well, but the boot loader still boots {default}"
            )),
            _ => Ok(()),
        }
    }
}

/// What is said of a program that was stopped.
pub(super) fn timed_out(what: &str, limit: Duration) -> Failure {
    Failure::failed(
        Reason::ActivationTimedOut,
        format!(
            "`{what}` took longer than {} and was stopped",
            seconds(limit)
        ),
    )
}

/// A store path for people.
pub(super) fn named(path: Option<&StorePath>) -> &str {
    path.map_or("nothing", StorePath::as_str)
}
