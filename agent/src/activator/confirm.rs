//! What shows that the machine works with what was activated: its health checks, and the word of its agent.

use std::time::{Duration, Instant};

use hoist_protocol::{Reason, limits};

use super::Activator;
use super::failure::Failure;
use super::kinds;
use super::successor::AgentUnit;
use crate::job::{Before, ConfirmBy, Confirmation, Notice, Phase, Record, chain};

/// How often it is looked for the confirmation where the kernel does not tell that it came,
const POLL: Duration = Duration::from_millis(5);

/// and how often where it does: the end of the wait has to be noticed too.
const NOTIFIED_POLL: Duration = Duration::from_millis(100);

/// How long it is waited for a broker that is away.
const OUTAGE_CAP: Duration = Duration::from_millis(limits::OUTAGE_CAP_MS);

impl Activator {
    /// Checks and waits until it is shown that the machine works, the activation having ended at `begun`.
    pub(super) fn prove(&mut self, before: &Before, begun: Instant) -> Result<(), Failure> {
        let unit = AgentUnit::of(&self.job.spec().agent, kinds::of(&before.kind)?);
        if let Some(unit) = &unit {
            self.renew_agent(unit, before)?;
        }
        self.check(before, begun)?;
        match self.job.spec().confirm {
            ConfirmBy::Broker => self.wait_for_confirmation(before, unit.as_ref(), begun),
            ConfirmBy::HealthChecks => {
                self.log
                    .say("confirmed by its health checks alone, as ordered");
                Ok(())
            }
        }
    }

    fn wait_for_confirmation(
        &mut self,
        before: &Before,
        unit: Option<&AgentUnit>,
        begun: Instant,
    ) -> Result<(), Failure> {
        self.journal.append([Record::Phase(Phase::Confirming)])?;
        let mut limit = self.job.spec().target.confirm_timeout();
        let left = limit.saturating_sub(begun.elapsed());
        self.log.say(&format!(
            "activated; waiting {} for the agent to reach the broker",
            seconds(left)
        ));
        let mut objection = None;
        let mut outage = None;
        let notice = Notice::of(&self.job);
        loop {
            if let Some(notice) = &notice {
                notice.take();
            }
            match self.job.confirmation() {
                Ok(None) => {}
                Ok(Some(confirmation)) => match self.objection_to(before, unit, &confirmation) {
                    None => {
                        self.log
                            .say(&format!("confirmed by {}", confirmation.executable));
                        return Ok(());
                    }
                    found => self.say_once(&mut objection, found),
                },
                Err(error) => self.say_once(&mut objection, Some(chain(&error))),
            }
            if outage.is_none()
                && let Some(found) = self.outage()
            {
                limit = limit.max(OUTAGE_CAP);
                self.log.say(&format!(
                    "the broker is away ({found}); waiting until {} after the activation",
                    seconds(limit)
                ));
                outage = Some(found);
            }
            if begun.elapsed() >= limit {
                let why = self.why_not(unit, outage, objection);
                return Err(Failure::rolled_back(
                    Reason::NotConfirmed,
                    format!(
                        "the agent did not reach the broker within {} after the activation: {why}",
                        seconds(limit)
                    ),
                ));
            }
            match &notice {
                Some(notice) => {
                    let left = limit.saturating_sub(begun.elapsed());
                    notice.wait(NOTIFIED_POLL.min(left));
                }
                None => std::thread::sleep(POLL),
            }
        }
    }

    /// All that is known about why there was no confirmation.
    fn why_not(
        &self,
        unit: Option<&AgentUnit>,
        outage: Option<String>,
        objection: Option<String>,
    ) -> String {
        let outage = outage.map(|outage| format!("the broker was away, {outage}"));
        let objection = objection.map(|why| format!("a confirmation does not count, {why}"));
        let known: Vec<String> = [outage, self.trouble(), objection]
            .into_iter()
            .flatten()
            .collect();
        if !known.is_empty() {
            return known.join("; ");
        }
        let log = match unit {
            Some(unit) => format!("its log there (`{}`)", unit.journal()),
            None => "its log there".to_owned(),
        };
        format!("it did not say what it tried, so it may not have run; {log} tells more")
    }

    /// Why a confirmation does not count; none when it does.
    fn objection_to(
        &self,
        before: &Before,
        unit: Option<&AgentUnit>,
        confirmation: &Confirmation,
    ) -> Option<String> {
        if confirmation.nonce != self.job.spec().nonce {
            return Some("it is for another job".to_owned());
        }
        if confirmation.boot_id != self.boot_id {
            return Some("it is of another boot".to_owned());
        }
        self.foreign(unit?, before, confirmation)
    }

    fn say_once(&mut self, last: &mut Option<String>, objection: Option<String>) {
        if objection != *last
            && let Some(why) = &objection
        {
            self.log
                .say(&format!("a confirmation does not count: {why}"));
        }
        *last = objection;
    }

    /// What the agent says about the broker being away, when it is about this job and this boot.
    fn outage(&self) -> Option<String> {
        // One that cannot be read is none.
        let outage = self.job.outage().ok()??;
        let ours = outage.nonce == self.job.spec().nonce && outage.boot_id == self.boot_id;
        ours.then(|| outage.message.to_string())
    }

    /// What the agent says about why it has not reached the broker, when it is about this job and this boot.
    fn trouble(&self) -> Option<String> {
        // One that cannot be read is none.
        let trouble = self.job.trouble().ok()??;
        let ours = trouble.nonce == self.job.spec().nonce && trouble.boot_id == self.boot_id;
        ours.then(|| trouble.message.to_string())
    }
}

/// A time for people.
pub(super) fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
