//! The way forward: activate, check, wait for the confirmation, commit.

use std::time::{Duration, Instant};

use hoist_agent_core::Facts;
use hoist_protocol::{Reason, StorePath, System};

use super::Activator;
use super::failure::{Failure, meaning, shown};
use super::program::{End, Program};
use super::system::{self, BOOT_LIMIT, Switch};
use crate::job::{Before, Phase, Record, chain};
use crate::nix::{self, Generation};

/// How often it is looked for the confirmation.
const POLL: Duration = Duration::from_millis(10);

/// How long a health check is waited for at the least, so that it is one even when the time is nearly over.
const LEAST: Duration = Duration::from_millis(10);

impl Activator {
    /// From the first change to the result.
    pub(super) fn forward(&mut self, before: &Before) -> Result<(), Failure> {
        self.activate(before)?;
        // From here on the clock runs that the confirmation has to beat.
        let begun = Instant::now();
        self.check(before, begun)
            .and_then(|()| self.wait_for_confirmation(begun))
            .map_err(Failure::after_activation)?;
        self.commit(before)
    }

    fn activate(&mut self, before: &Before) -> Result<(), Failure> {
        let closure = self.job.spec().closure.clone();
        let limit = self.job.spec().target.activation_timeout();
        let records = [
            Record::Prepared(before.clone()),
            Record::Phase(Phase::Activating),
        ];
        if before.nixos {
            self.log.say(&format!("activating {closure}"));
            self.switch(&closure, Switch::Test, limit, records)?;
        } else {
            let profile = &before.profile;
            self.log.say(&format!("setting {profile} to {closure}"));
            if let Some(dir) = profile.parent() {
                std::fs::create_dir_all(dir).map_err(|error| {
                    Failure::internal(&format!("cannot make the folder of {profile}"), &error)
                })?;
            }
            let program = system::set_profile(self.id(), profile, &closure);
            let limit = limit.min(program.limit);
            self.nix_env(&Program { limit, ..program }, records)?;
        }
        let runs = self.facts(before)?.current;
        if runs.as_ref() == Some(&closure) {
            return Ok(());
        }
        Err(Failure::failed(
            Reason::ActivationFailed,
            format!(
                "the activation of {closure} ended well, but {} runs",
                named(runs.as_ref())
            ),
        ))
    }

    /// Runs `switch-to-configuration`, and lets nothing but success pass.
    fn switch(
        &mut self,
        system: &StorePath,
        action: Switch,
        limit: Duration,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), Failure> {
        let what = format!("`switch-to-configuration {}` of {system}", action.as_str());
        match self.run_switch(system, action, limit, records)? {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(Failure::failed(
                Reason::ActivationFailed,
                format!("{what} {}: {}", shown(status), meaning(status)),
            )),
            End::TimedOut => Err(Failure::failed(
                Reason::ActivationTimedOut,
                format!(
                    "{what} took longer than {} s and was stopped",
                    limit.as_secs()
                ),
            )),
        }
    }

    /// Runs `nix-env`, and lets nothing but success pass.
    pub(super) fn nix_env(
        &mut self,
        program: &Program,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), Failure> {
        match self.run(program, records)? {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(Failure::failed(
                Reason::ActivationFailed,
                format!("nix-env {}; see the log", shown(status)),
            )),
            End::TimedOut => Err(Failure::failed(
                Reason::ActivationTimedOut,
                format!(
                    "nix-env took longer than {} s and was stopped",
                    program.limit.as_secs()
                ),
            )),
        }
    }

    fn check(&mut self, before: &Before, begun: Instant) -> Result<(), Failure> {
        let spec = self.job.spec().clone();
        let system = System::current().map_err(|error| {
            Failure::internal("cannot tell which programs check this machine", &error)
        })?;
        let checks: Vec<_> = spec.target.programs(&system).cloned().collect();
        if checks.is_empty() {
            return Ok(());
        }
        self.journal.append([Record::Phase(Phase::Checking)])?;
        let mut environment = system::environment(spec.id);
        environment.push(("HOIST_CLOSURE".into(), spec.closure.as_str().into()));
        environment.push(("HOIST_PROFILE".into(), before.profile.as_str().into()));
        if let Some(previous) = &before.running {
            environment.push(("HOIST_PREVIOUS".into(), previous.as_str().into()));
        }
        for check in &checks {
            self.log.say(&format!("checking with {check}"));
            let program = Program {
                arguments: vec![check.as_str().into()],
                environment: environment.clone(),
                unit: None,
                limit: spec
                    .target
                    .confirm_timeout()
                    .saturating_sub(begun.elapsed())
                    .max(LEAST),
            };
            let failed = |message| {
                Err(Failure::rolled_back(
                    Reason::HealthCheckFailed,
                    format!("the health check {check} {message}"),
                ))
            };
            match self.run(&program, [])? {
                End::Exited(status) if status.success() => {}
                End::Exited(status) => return failed(shown(status)),
                End::TimedOut => {
                    return failed(format!(
                        "had not ended {} s after the activation, when everything has to be confirmed",
                        spec.target.confirm_timeout().as_secs()
                    ));
                }
            }
        }
        Ok(())
    }

    fn wait_for_confirmation(&mut self, begun: Instant) -> Result<(), Failure> {
        self.journal.append([Record::Phase(Phase::Confirming)])?;
        let spec = self.job.spec().clone();
        let left = spec
            .target
            .confirm_timeout()
            .saturating_sub(begun.elapsed());
        self.log.say(&format!(
            "activated; waiting {:.1} s for the agent to reach the broker",
            left.as_secs_f64()
        ));
        let mut objection = String::new();
        loop {
            let found = match self.job.confirmation() {
                Ok(None) => String::new(),
                Ok(Some(c)) if c.nonce != spec.nonce => "it is for another job".to_owned(),
                Ok(Some(c)) if c.boot_id != self.boot_id => "it is of another boot".to_owned(),
                Ok(Some(confirmation)) => {
                    self.log
                        .say(&format!("confirmed by {}", confirmation.executable));
                    return Ok(());
                }
                Err(error) => chain(&error),
            };
            if found != objection {
                self.log
                    .say(&format!("a confirmation does not count: {found}"));
                objection = found;
            }
            if begun.elapsed() >= spec.target.confirm_timeout() {
                return Err(Failure::rolled_back(
                    Reason::NotConfirmed,
                    format!(
                        "the agent did not reach the broker within {} s after the activation",
                        spec.target.confirm_timeout().as_secs()
                    ),
                ));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Makes what was confirmed the state that the machine keeps. It may be done again after a crash.
    pub(super) fn commit(&mut self, before: &Before) -> Result<(), Failure> {
        if self.journal.history().phase() != Some(Phase::Committing) {
            self.journal
                .append([Record::Phase(Phase::Committing)])
                .map_err(|error| Failure::from(error).after_activation())?;
        }
        self.commit_confirmed(before).map_err(|failure| {
            if failure.reason == Reason::ChangedByOthers {
                return failure;
            }
            Failure::failed(
                Reason::CommitFailed,
                format!(
                    "confirmed, but it could not be made permanent: {}",
                    failure.message
                ),
            )
        })?;
        // All is done: a journal that cannot say so any more is no reason to undo it.
        if let Err(error) = self.journal.append([Record::Phase(Phase::Committed)]) {
            self.log
                .say(&format!("cannot write the journal: {}", chain(&error)));
        }
        Ok(())
    }

    fn commit_confirmed(&mut self, before: &Before) -> Result<(), Failure> {
        let closure = self.job.spec().closure.clone();
        let facts = self.facts(before)?;
        let was = before.named.as_ref().map(|named| &named.path);
        let ours = facts.profile.as_ref() == Some(&closure);
        if !ours && (facts.profile.as_ref() != was || (!before.nixos && !self.rebooted)) {
            return Err(Failure::conflict(format!(
                "after {closure} was confirmed, somebody set {} to {}; it was left so",
                before.profile,
                named(facts.profile.as_ref())
            )));
        }
        if before.nixos && facts.current.as_ref() != Some(&closure) {
            let default = [before.running.as_ref(), was].contains(&facts.current.as_ref());
            if !(self.rebooted && default) {
                return Err(Failure::conflict(format!(
                    "after {closure} was confirmed, somebody activated {}; it was left so",
                    named(facts.current.as_ref())
                )));
            }
            // The power was cut between the confirmation and the boot loader.
            let limit = self.job.spec().target.activation_timeout();
            self.switch(&closure, Switch::Test, limit, [])?;
        }
        if !ours {
            let set = system::set_profile(self.id(), &before.profile, &closure);
            self.nix_env(&set, [])?;
        }
        if before.nixos {
            self.log
                .say(&format!("making {closure} the one that boots"));
            self.switch(&closure, Switch::Boot, BOOT_LIMIT, [])?;
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
        system::sync(&before.profile, before.nixos)
            .map_err(|error| Failure::internal("cannot sync the disk", &error))
    }

    /// What runs and what the profile names, as far as the job is about it.
    pub(super) fn facts(&self, before: &Before) -> Result<Facts, Failure> {
        if before.nixos {
            nix::facts_of_nixos()
        } else {
            nix::facts_of_profile(&before.profile)
        }
        .map_err(|error| Failure::internal("cannot find out what runs", &error))
    }
}

/// A store path for people.
pub(super) fn named(path: Option<&StorePath>) -> &str {
    path.map_or("nothing", StorePath::as_str)
}
