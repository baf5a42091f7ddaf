//! The way back to what ran before.

use std::time::Duration;

use camino::Utf8Path;
use hoist_protocol::limits::DEFAULT_ACTIVATION_TIMEOUT_MS;
use hoist_protocol::{Reason, StorePath};

use super::Activator;
use super::failure::Failure;
use super::forward::named;
use super::kinds::{self, Call, ClosureKind};
use super::run::Ran;
use super::successor::AgentUnit;
use super::system;
use crate::job::{Before, Phase, Record};
use crate::nix::{self, Generation};

impl Activator {
    /// Goes back, and returns how the result reads then. It may be done again after a crash.
    pub(super) fn go_back(&mut self, before: &Before, failure: Failure) -> Failure {
        if failure.reason == Reason::ChangedByOthers {
            return failure;
        }
        let history = self.journal.history();
        if !history.has_been(Phase::Activating) && !history.has_been(Phase::Staging) {
            // Nothing was changed, and so nothing has to be restored.
            return failure;
        }
        let begun = history.phase() == Some(Phase::RollingBack);
        if system::is_shutting_down() {
            self.interrupted = true;
            return failure;
        }
        if !begun {
            let records = [
                Record::GoingBack {
                    state: failure.state,
                    reason: failure.reason,
                    message: failure.message.clone(),
                },
                Record::Phase(Phase::RollingBack),
            ];
            // A machine that goes back without a note of it is better off than one that does not.
            if let Err(error) = self.journal.append(records) {
                self.log
                    .say(&format!("cannot note that it goes back: {error}"));
            }
        }
        self.log.say(&format!("going back: {}", failure.message));
        let gone_back = kinds::of(&before.kind).and_then(|kind| {
            if let Some(conflict) = self.conflict(before, kind) {
                return Err(Failure::conflict(conflict));
            }
            self.restore(before, kind, failure.untouched)
        });
        match gone_back {
            Ok(None) => failure,
            Ok(Some(remark)) => failure.and(&remark),
            Err(conflict) if conflict.reason == Reason::ChangedByOthers => {
                Failure::conflict(format!(
                    "{}, so it was left as it was found; before that: {}",
                    conflict.message, failure.message
                ))
            }
            Err(error) => failure.worse(&format!("going back failed: {}", error.message)),
        }
    }

    /// What somebody else has moved, if anything.
    fn conflict(&self, before: &Before, kind: &dyn ClosureKind) -> Option<String> {
        let closure = &self.job.spec().closure;
        // What cannot be read is found out by what comes next.
        let facts = self.facts(before).ok()?;
        let was = before.named.as_ref().map(|named| &named.path);
        let history = self.journal.history();
        let profile_set = !kind.is_volatile()
            || history.has_been(Phase::Committing)
            || history.has_been(Phase::Staging);
        let profile = facts.profile.as_ref();
        if profile != was && !(profile_set && profile == Some(closure)) {
            return Some(format!(
                "somebody set {} to {} meanwhile",
                before.profile,
                named(profile)
            ));
        }
        let current = facts.current.as_ref();
        let mut known = vec![Some(&before.brings), before.running.as_ref(), None];
        if self.rebooted {
            known.extend([was, before.boot_default.as_ref(), Some(closure)]);
        }
        // Of the other kinds the profile is what runs, or what is to run after a boot.
        if kind.is_volatile() && !known.contains(&current) {
            return Some(format!("somebody activated {} meanwhile", named(current)));
        }
        None
    }

    /// Restores all that was recorded, by what it was.
    fn restore(
        &mut self,
        before: &Before,
        kind: &dyn ClosureKind,
        untouched: bool,
    ) -> Result<Option<String>, Failure> {
        if let Err(error) = kind.clear_leftovers() {
            self.log.say(&format!(
                "cannot clear what an activation that was stopped has left: {error}"
            ));
        }
        let unit = AgentUnit::of(&self.job.spec().agent, kind);
        if let Some(unit) = &unit {
            self.dismiss_stand_in(unit, before.running.as_ref());
        }
        let restored = self.restore_all(before, kind, untouched);
        // Whatever came of it: without an agent nobody hears of it.
        if let Some(unit) = &unit
            && let Err(error) = self.keep_stand_in(unit, before)
        {
            self.log.say(&format!(
                "cannot start the agent before again: {}",
                error.message
            ));
        }
        restored
    }

    fn restore_all(
        &mut self,
        before: &Before,
        kind: &dyn ClosureKind,
        untouched: bool,
    ) -> Result<Option<String>, Failure> {
        let history = self.journal.history();
        let boots = history.has_been(Phase::Committing) || history.has_been(Phase::Staging);
        let activated = history.has_been(Phase::Activating) && !untouched;
        if kind.is_volatile() || kind.runs_by_profile() {
            // The profile first: what makes the boot menu goes by it, and so do programs that look for
            // themselves there.
            let profile = self.restore_profile(before, kind);
            let loader = if boots && kind.is_volatile() {
                self.restore_boot_default(before, kind)
            } else {
                Ok(())
            };
            let remark = self.reactivate(before, kind, activated)?;
            let profile = profile?;
            loader?;
            return Ok(both(profile, remark));
        }
        // The profile last: programs take what is to be replaced from it.
        let remark = self.reactivate(before, kind, activated);
        let profile = self.restore_profile(before, kind)?;
        Ok(both(profile, remark?))
    }

    /// Activates what ran before, unless there is no need to.
    fn reactivate(
        &mut self,
        before: &Before,
        kind: &dyn ClosureKind,
        activated: bool,
    ) -> Result<Option<String>, Failure> {
        let runs = self.facts(before)?.current;
        if !activated && runs == before.running {
            return Ok(None);
        }
        if kind.is_volatile()
            && self.rebooted
            && runs.is_some()
            && (runs.as_ref() != Some(&before.brings) || runs == before.running)
        {
            return Ok(Some(format!(
                "the machine was booted meanwhile and runs {}",
                named(runs.as_ref())
            )));
        }
        let Some(previous) = before.running.clone() else {
            return self.nothing_to_go_back_to(before, kind, runs.as_ref());
        };
        let least = Duration::from_millis(DEFAULT_ACTIVATION_TIMEOUT_MS);
        let call = Call {
            path: previous.clone(),
            previous: Some(before.brings.clone()),
            back: true,
            ..self.call(
                before,
                self.job.spec().target.activation_timeout().max(least),
            )
        };
        if kind.activation(&call).is_none() {
            return Ok((!kind.sets_only()).then(|| {
                format!(
                    "{previous} has nothing that could activate it again, so only {} was restored",
                    before.profile
                )
            }));
        }
        self.log.say(&format!("activating {previous} again"));
        let remark = match self.run_activation(&call, Vec::new()) {
            Ok(Ran::Well) => None,
            Ok(Ran::UnitsFailed(units)) => Some(format!(
                "{previous} runs again, but these of its units failed: {}",
                units.join(", ")
            )),
            // It runs, whatever part of it did not work out.
            Err(failure) if failure.reason == Reason::ActivationScriptFailed => {
                Some(failure.message)
            }
            Ok(Ran::NeedsBoot) => {
                return Err(Failure::failed(
                    Reason::NeedsReboot,
                    format!("{previous} can only be brought back by a boot; boot the machine"),
                ));
            }
            Err(failure) => return Err(failure),
        };
        // The profile may be what tells, and comes last.
        if !kind.is_volatile() {
            return Ok(remark);
        }
        let runs = self.facts(before)?.current;
        if runs.as_ref() == Some(&previous) {
            return Ok(remark);
        }
        Err(Failure::failed(
            Reason::ActivationFailed,
            format!(
                "the activation of {previous} ended, but {} runs",
                named(runs.as_ref())
            ),
        ))
    }

    /// How it ends where nothing ran before.
    fn nothing_to_go_back_to(
        &self,
        before: &Before,
        kind: &dyn ClosureKind,
        runs: Option<&StorePath>,
    ) -> Result<Option<String>, Failure> {
        let nothing = "nothing ran before, so there is nothing to go back to";
        if kind.sets_only() {
            return Ok(None);
        }
        if kind.is_volatile() && runs.is_none() {
            return Ok(Some(nothing.to_owned()));
        }
        Err(Failure::failed(
            Reason::ActivationFailed,
            format!("{nothing}; {} was left as it is", before.brings),
        ))
    }

    /// Sets the profile to what it named, by the recorded generation: the next lower one need not be it.
    fn restore_profile(
        &mut self,
        before: &Before,
        kind: &dyn ClosureKind,
    ) -> Result<Option<String>, Failure> {
        let unreadable = |error| Failure::internal("cannot read the profile", &error);
        let profile = &before.profile;
        let now = Generation::of(profile).map_err(unreadable)?;
        if now == before.named {
            return Ok(None);
        }
        let Some(named) = &before.named else {
            if !kind.sets_only() && !kind.is_volatile() {
                // What was activated needs it: the garbage collector must not take that.
                return Ok(None);
            }
            // The link is ours. Its generation stays: whether it is worth keeping is not for us to say.
            std::fs::remove_file(profile)
                .map_err(|error| Failure::internal(&format!("cannot remove {profile}"), &error))?;
            return Ok(Some(format!(
                "{profile} did not exist before, so there is nothing to go back to and it was removed"
            )));
        };
        self.log
            .say(&format!("setting {profile} to {} again", named.path));
        match named.number {
            Some(number) if named.exists(profile).map_err(unreadable)? => {
                self.switch_generation(profile, number)?;
            }
            _ => {
                let program = system::set_profile(self.id(), profile, &named.path);
                self.nix_env(&program, Vec::new())?;
            }
        }
        let now = Generation::of(profile).map_err(unreadable)?;
        if now.as_ref().map(|now| &now.path) == Some(&named.path) {
            return Ok(None);
        }
        Err(Failure::failed(
            Reason::CommitFailed,
            format!("{profile} does not name {} after it was set", named.path),
        ))
    }

    fn switch_generation(&mut self, profile: &Utf8Path, number: u64) -> Result<(), Failure> {
        let program = system::switch_generation(self.id(), profile, number);
        let Err(failure) = self.nix_env(&program, Vec::new()) else {
            return Ok(());
        };
        // Nix cannot open its database on a full disk; the link it would make needs no room.
        let link = format!("{}-{number}-link", profile.file_name().unwrap_or_default());
        self.log.say(&format!(
            "{}; setting the link without Nix",
            failure.message
        ));
        nix::replace_link(&link, profile)
            .map_err(|error| Failure::internal(&format!("cannot set {profile}"), &error))
    }

    /// Makes what was to boot before the one that boots again: a commit that failed may have changed it.
    fn restore_boot_default(
        &mut self,
        before: &Before,
        kind: &dyn ClosureKind,
    ) -> Result<(), Failure> {
        let candidates = [
            before.boot_default.as_ref(),
            before.named.as_ref().map(|named| &named.path),
            before.running.as_ref(),
        ];
        let Some(default) = candidates.into_iter().flatten().next().cloned() else {
            return Ok(());
        };
        let call = Call {
            path: default.clone(),
            back: true,
            ..self.call(before, Duration::ZERO)
        };
        let Some(program) = kind.commitment(&call) else {
            return Ok(());
        };
        self.log
            .say(&format!("making {default} the one that boots again"));
        self.set_boot_loader(&call, &program)
            .map_err(|failure| failure.and("check what the machine will boot"))
    }
}

fn both(one: Option<String>, other: Option<String>) -> Option<String> {
    match (one, other) {
        (Some(one), Some(other)) => Some(format!("{one}; {other}")),
        (one, other) => one.or(other),
    }
}
