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
use crate::input::{Facts, Moment};
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
            State::Succeeded | State::Unchanged => ended.action != Some(Action::Test),
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
        if *booted == staged.path {
            self.end_staged(moment, staged, State::Succeeded, None, "");
        } else {
            let message = format!("the machine was booted into {booted}");
            let reason = Some(Reason::BootedOther);
            self.end_staged(moment, staged, State::RolledBack, reason, &message);
        }
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
