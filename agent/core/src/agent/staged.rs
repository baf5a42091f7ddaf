//! What waits for a reboot.
//!
//! A deployment is staged when its activation has made it what the next boot brings. That is told under its
//! id like an outcome; the next boot decides what becomes of it, and that takes the outcome's place:
//!
//! * it was booted: succeeded;
//! * something else was booted: rolled back, with the reason `booted_other`;
//! * before the reboot another deployment became what the next boot brings: superseded, or cancelled. One that
//!   fails, or that leaves the boot alone (`test`, `dry-activate`), changes nothing about it.

use hoist_protocol::{Action, DeploymentId, Reason, State, StorePath, Text};

use super::Agent;
use super::task::Outcome;
use crate::input::{Facts, JobEnd, Moment};
use crate::ledger::{Ended, Staged};
use crate::report;

impl Agent {
    /// Whether the next boot brings `path` anyhow, in this boot, so that there is nothing left to do for it.
    pub(super) fn is_staged(&self, path: &StorePath, facts: &Facts) -> bool {
        let is = |fact: &Option<StorePath>| fact.as_ref() == Some(path);
        let staged = self.ledger.staged.as_ref();
        staged.is_some_and(|staged| staged.path == *path && staged.boot_id == self.config.boot_id)
            && is(&facts.profile)
            && (facts.boot_default.is_none() || is(&facts.boot_default))
    }

    /// What a job comes to that was staged: when the machine was booted since, that is decided already.
    pub(super) fn staged_outcome(&self, moment: &Moment, end: &JobEnd) -> Outcome {
        let path = self
            .ledger
            .current
            .as_ref()
            .and_then(|task| task.path.as_ref());
        let is_past = end
            .boot_id
            .as_ref()
            .is_some_and(|boot| *boot != self.config.boot_id);
        if let (true, Some(path), Some(booted)) = (is_past, path, &moment.facts.booted) {
            let (state, reason, message) = decided(path, booted);
            return Outcome::new(state, reason, &message);
        }
        Outcome::new(State::Staged, end.reason, end.message.as_str())
    }

    /// A deployment has ended: what that means for one that waits for a reboot.
    pub(super) fn stage(
        &mut self,
        moment: &Moment,
        ended: &Ended,
        cancels: Option<DeploymentId>,
        boot_id: Option<Text<64>>,
    ) {
        let sets_the_boot = match ended.entry.state {
            State::Staged => true,
            // What leaves the machine as it is has no path, and leaves also that alone.
            State::Succeeded | State::Unchanged => {
                ended.action != Some(Action::Test) && ended.entry.path.is_some()
            }
            _ => false,
        };
        if !sets_the_boot {
            return;
        }
        if let Some(before) = self.ledger.staged.take() {
            let by = ended.entry.id;
            let (state, message) = if cancels == Some(before.id()) {
                (
                    State::Cancelled,
                    format!("{by} cancelled it before a reboot"),
                )
            } else {
                (State::Superseded, format!("{by} came before a reboot"))
            };
            self.end_staged(moment, before, state, None, &message);
        }
        if ended.entry.state == State::Staged
            && let Some(path) = ended.entry.path.clone()
        {
            self.ledger.staged = Some(Staged {
                ended: ended.clone(),
                path,
                boot_id: boot_id.unwrap_or_else(|| self.config.boot_id.clone()),
            });
        }
    }

    /// After a reboot: by what was booted.
    pub(super) fn settle_staged(&mut self, moment: &Moment) {
        // Without the fact it is asked again at the next input.
        let Some(booted) = &moment.facts.booted else {
            return;
        };
        let rebooted = |staged: &mut Staged| staged.boot_id != self.config.boot_id;
        let Some(staged) = self.ledger.staged.take_if(rebooted) else {
            return;
        };
        let (state, reason, message) = decided(&staged.path, booted);
        self.end_staged(moment, staged, state, reason, &message);
    }

    fn end_staged(
        &mut self,
        moment: &Moment,
        staged: Staged,
        state: State,
        reason: Option<Reason>,
        message: &str,
    ) {
        let mut ended = staged.ended;
        ended.entry.state = state;
        ended.entry.reason = reason;
        ended.entry.message = Text::lossy(message);
        ended.entry.ended_at = moment.now;
        ended.message = Text::lossy(message);
        self.push_report(report::ended(self, moment, &ended));
        self.ledger.record(ended);
        self.must_persist = true;
        self.has_outcome = true;
    }
}

/// What a boot decides about `path`, which it should have brought.
fn decided(path: &StorePath, booted: &StorePath) -> (State, Option<Reason>, String) {
    if booted == path {
        (State::Succeeded, None, String::new())
    } else {
        let message = format!("the machine was booted into {booted}");
        (State::RolledBack, Some(Reason::BootedOther), message)
    }
}
