//! The way back to what ran before.

use camino::Utf8Path;
use hoist_protocol::limits::DEFAULT_ACTIVATION_TIMEOUT_MS;
use hoist_protocol::{Reason, StorePath};

use super::Activator;
use super::failure::{Failure, meaning, shown};
use super::forward::named;
use super::program::End;
use super::system::{self, BOOT_LIMIT, Switch};
use crate::job::{Before, Phase, Record};
use crate::nix::{self, Generation};

/// Exit codes of `switch-to-configuration` after which the system it was asked for runs: 2 says that the
/// activation script failed somewhere, 4 that units failed, and these need not be its own.
const SWITCHED: &[i32] = &[0, 2, 4];

impl Activator {
    /// Goes back, and returns how the result reads then. It may be done again after a crash.
    pub(super) fn go_back(&mut self, before: &Before, failure: Failure) -> Failure {
        if failure.reason == Reason::ChangedByOthers {
            return failure;
        }
        if self.journal.history().phase() != Some(Phase::RollingBack) {
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
        if let Some(conflict) = self.conflict(before) {
            return Failure::conflict(format!(
                "{conflict}, so it was left as it was found; before that: {}",
                failure.message
            ));
        }
        let gone_back = if before.nixos {
            self.restore_nixos(before)
        } else {
            self.restore_profile(before)
        };
        match gone_back {
            Ok(None) => failure,
            Ok(Some(remark)) => failure.and(&remark),
            Err(error) => failure.worse(&format!("going back failed: {}", error.message)),
        }
    }

    /// What somebody else has moved, if anything.
    fn conflict(&self, before: &Before) -> Option<String> {
        let closure = &self.job.spec().closure;
        // What cannot be read is found out by what comes next.
        let facts = self.facts(before).ok()?;
        let was = before.named.as_ref().map(|named| &named.path);
        let committing = self.journal.history().is_confirmed() || !before.nixos;
        let profile = facts.profile.as_ref();
        if profile != was && !(committing && profile == Some(closure)) {
            return Some(format!(
                "somebody set {} to {} meanwhile",
                before.profile,
                named(profile)
            ));
        }
        let current = facts.current.as_ref();
        let mut known = vec![Some(closure), before.running.as_ref(), None];
        if self.rebooted {
            known.push(was);
        }
        if before.nixos && !known.contains(&current) {
            return Some(format!("somebody activated {} meanwhile", named(current)));
        }
        None
    }

    fn restore_nixos(&mut self, before: &Before) -> Result<Option<String>, Failure> {
        if let Err(error) = system::clear_switch_lists() {
            self.log.say(&format!(
                "cannot clear the lists of a switch that was stopped: {error}"
            ));
        }
        // The profile first: what makes the boot menu goes by it.
        let mut trouble = Vec::new();
        let profile = self.restore_profile(before);
        if self.journal.history().is_confirmed() {
            trouble.extend(self.restore_boot_default(before).err());
        }
        let remark = self.reactivate(before)?;
        profile?;
        match trouble.pop() {
            Some(failure) => Err(failure),
            None => Ok(remark),
        }
    }

    /// Activates what ran before, unless the machine has been booted into it.
    fn reactivate(&mut self, before: &Before) -> Result<Option<String>, Failure> {
        let closure = self.job.spec().closure.clone();
        let runs = self.facts(before)?.current;
        let was = before.named.as_ref().map(|named| &named.path);
        if self.rebooted
            && runs.is_some()
            && (runs.as_ref() != Some(&closure) || was == Some(&closure))
        {
            return Ok(Some(format!(
                "the machine was booted meanwhile and runs {}",
                named(runs.as_ref())
            )));
        }
        let Some(previous) = before.running.clone() else {
            let nothing = "no system ran before, so there is nothing to go back to";
            return if runs.is_none() {
                Ok(Some(nothing.to_owned()))
            } else {
                Err(Failure::failed(
                    Reason::ActivationFailed,
                    format!("{nothing}; {closure} was left as it is"),
                ))
            };
        };
        self.log.say(&format!("activating {previous} again"));
        let least = std::time::Duration::from_millis(DEFAULT_ACTIVATION_TIMEOUT_MS);
        let limit = self.job.spec().target.activation_timeout().max(least);
        let what = format!("`switch-to-configuration test` of {previous}");
        let remark = match self.run_switch(&previous, Switch::Test, limit, [])? {
            End::Exited(status) if status.success() => None,
            End::Exited(status) if status.code().is_some_and(|code| SWITCHED.contains(&code)) => {
                Some(format!("{what} {}: {}", shown(status), meaning(status)))
            }
            End::Exited(status) => {
                return Err(Failure::failed(
                    Reason::ActivationFailed,
                    format!("{what} {}: {}", shown(status), meaning(status)),
                ));
            }
            End::TimedOut => {
                return Err(Failure::failed(
                    Reason::ActivationTimedOut,
                    format!(
                        "{what} took longer than {} s and was stopped",
                        limit.as_secs()
                    ),
                ));
            }
        };
        let runs = self.facts(before)?.current;
        if runs.as_ref() == Some(&previous) {
            return Ok(remark);
        }
        Err(Failure::failed(
            Reason::ActivationFailed,
            format!("{what} ended, but {} runs", named(runs.as_ref())),
        ))
    }

    /// Sets the profile to what it named, by the recorded generation: the next lower one need not be it.
    fn restore_profile(&mut self, before: &Before) -> Result<Option<String>, Failure> {
        let unreadable = |error| Failure::internal("cannot read the profile", &error);
        let profile = &before.profile;
        let now = Generation::of(profile).map_err(unreadable)?;
        if now == before.named {
            return Ok(None);
        }
        let Some(named) = &before.named else {
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
                self.nix_env(&program, [])?;
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
        let Err(failure) = self.nix_env(&program, []) else {
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

    /// Makes what the profile named the one that boots again: a commit that failed may have changed it.
    fn restore_boot_default(&mut self, before: &Before) -> Result<(), Failure> {
        let named = before.named.as_ref().map(|named| &named.path);
        let Some(default): Option<StorePath> = named.or(before.running.as_ref()).cloned() else {
            return Ok(());
        };
        self.log
            .say(&format!("making {default} the one that boots again"));
        match self.run_switch(&default, Switch::Boot, BOOT_LIMIT, [])? {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(Failure::failed(
                Reason::CommitFailed,
                format!(
                    "`switch-to-configuration boot` of {default} {}: {}; check what the machine will boot",
                    shown(status),
                    meaning(status)
                ),
            )),
            End::TimedOut => Err(Failure::failed(
                Reason::CommitFailed,
                format!(
                    "`switch-to-configuration boot` of {default} took longer than {} s",
                    BOOT_LIMIT.as_secs()
                ),
            )),
        }
    }
}
