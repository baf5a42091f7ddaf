//! How one machine gets on with one deployment, judged by what it says and by what is seen of it.
//!
//! Reports come late, twice, in any order, or only by way of the history. So nothing here depends on the
//! order: an outcome counts wherever it is found, the first one stays, and what is about another deployment
//! never counts as an answer.

use std::time::Duration;

use hoist_protocol::{
    Changes, DeploymentId, FetchProgress, History, Order, Presence, Reason, RebootReason, State,
    Status, StorePath, Text, Timestamp,
};

use crate::outcome::Outcome;
use crate::said::held_at_machine;

/// How long a machine that is not (or no longer) connected is waited for before it counts as offline.
///
/// Long enough for a broker that restarts and for the fresh connection with which an agent confirms.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(120);

/// How long the machine's own word is waited for once it is clear that a newer deployment has come.
pub const NEWER_GRACE: Duration = Duration::from_secs(3);

/// How long after the publishing a machine that seems to be offline may still answer: a will that was late
/// may have made it look so.
pub const SETTLE: Duration = Duration::from_secs(1);

/// How long a machine that runs the deployment may be away before a rollout takes it for lost: longer than its agent
/// needs to connect anew.
const LOST: Duration = Duration::from_secs(20);

/// Which machines are waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// Those that are online, or come online meanwhile.
    Online,
    /// All, until the timeout.
    All,
}

/// How the deployment ended on a machine, as far as this publisher can tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct End {
    /// In one word.
    pub outcome: Outcome,
    /// Why, as a word for programs.
    pub reason: Option<Reason>,
    /// Why, for people.
    pub message: Text<1024>,
    /// The deployment that took its place.
    pub superseded_by: Option<DeploymentId>,
}

impl End {
    /// An end without a reason of the machine's.
    #[must_use]
    pub fn new(outcome: Outcome, message: &str) -> Self {
        Self {
            outcome,
            reason: None,
            message: Text::lossy(message),
            superseded_by: None,
        }
    }
}

/// What a machine said last about the deployment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// Where it stands.
    pub state: Option<State>,
    /// How much of that is done, in percent.
    pub progress: Option<u8>,
    /// For people.
    pub message: Text<1024>,
    /// When, by the machine's clock.
    pub ts: Timestamp,
    /// How the closure is activated.
    pub kind: Option<Text<16>>,
    /// How far the fetch is, or how much was fetched in all.
    pub fetch: Option<FetchProgress>,
    /// How fast it fetches, in bytes a second.
    pub rate: Option<u64>,
    /// The size of the closure in the store, in bytes.
    pub closure_size: Option<u64>,
    /// What it changes against what ran before.
    pub changes: Option<Changes>,
    /// What takes effect at the next boot only.
    pub reboot_reasons: Vec<RebootReason>,
    /// Who holds it, and what to do, while it is held.
    pub held: Option<String>,
    /// What somebody should look at.
    pub warnings: Vec<Text<256>>,
    /// What ran before.
    pub previous_path: Option<StorePath>,
    /// What runs now.
    pub current_path: Option<StorePath>,
    /// How many log lines there were.
    pub log_lines: Option<u64>,
    /// The last of them.
    pub log_tail: Vec<Text<256>>,
}

impl Said {
    fn new(status: &Status, before: &Self) -> Self {
        Self {
            state: Some(status.state),
            progress: status.progress.map(|percent| percent.min(100)),
            message: status.message.clone(),
            ts: status.ts,
            kind: status.kind.clone(),
            fetch: status.fetch,
            rate: rate(status, before),
            closure_size: status.closure_size,
            changes: status.changes.clone(),
            reboot_reasons: status.reboot_reasons.clone(),
            held: (status.state == State::Held).then(|| {
                if status.held {
                    held_at_machine(status.held_until)
                } else {
                    "held from afar; it takes this on release (`hoist release`), or when its hold ends"
                        .to_owned()
                }
            }),
            warnings: status.warnings.clone(),
            previous_path: status.previous_path.clone(),
            current_path: status.current_path.clone(),
            log_lines: status.log_lines,
            log_tail: status.log_tail.clone(),
        }
    }
}

/// How fast the machine fetches, by what it says now and said before; what is new counts half.
fn rate(status: &Status, before: &Said) -> Option<u64> {
    if status.state != State::Fetching || before.state != Some(State::Fetching) {
        return None;
    }
    let came = status
        .fetch?
        .fetched_bytes
        .checked_sub(before.fetch?.fetched_bytes)?;
    let ms = status.ts.as_ms().saturating_sub(before.ts.as_ms());
    if ms == 0 {
        return before.rate;
    }
    let now = came.saturating_mul(1000) / ms;
    Some(before.rate.map_or(now, |then| then / 2 + now / 2))
}

/// Whether a machine has to be waited for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is under way.
    Pending,
    /// It is offline and has not answered; it gets the deployment when it returns.
    Away,
    /// It is held; it begins when it is released.
    Held,
    /// It has ended.
    Ended(End),
}

struct Newer {
    id: Option<DeploymentId>,
    since: Duration,
    /// The machine is done with this one, by its own word.
    went_on: bool,
    /// Nobody known here signed it; that it is newer follows from what the broker did.
    unknown: bool,
}

/// One machine and one deployment. Pure: what is seen comes in, the verdict is looked at.
///
/// Every `now` is the time since the run began.
pub struct Watch {
    order: Order,
    digest: Text<64>,
    expires: Timestamp,
    /// The deployment holds the machine: that it is held is how it ends.
    holds: bool,
    said: Said,
    answered: bool,
    presence: Option<Presence>,
    /// Since when it is not connected, as far as anybody knows; none while it is.
    away_since: Option<Duration>,
    was_online: bool,
    newer: Option<Newer>,
    end: Option<End>,
}

impl Watch {
    /// Watches for what becomes of the deployment with this `order`, whose envelope has this `digest`.
    #[must_use]
    pub fn new(order: Order, digest: Text<64>, expires: Timestamp) -> Self {
        Self {
            order,
            digest,
            expires,
            holds: false,
            said: Said::default(),
            answered: false,
            presence: None,
            away_since: Some(Duration::ZERO),
            was_online: false,
            newer: None,
            end: None,
        }
    }

    /// The same for a deployment that holds the machine, if `holds`.
    #[must_use]
    pub const fn that_holds(mut self, holds: bool) -> Self {
        self.holds = holds;
        self
    }

    /// What the machine said last about the deployment.
    #[must_use]
    pub const fn said(&self) -> &Said {
        &self.said
    }

    /// Whether the machine has said anything about the deployment.
    #[must_use]
    pub const fn has_answered(&self) -> bool {
        self.answered
    }

    /// Whether it is connected, as far as anybody knows.
    #[must_use]
    pub const fn presence(&self) -> Option<Presence> {
        self.presence
    }

    /// Its deployment is published only now: a machine that seems to be away is given time from here on.
    pub fn begins(&mut self, now: Duration) {
        if let Some(since) = &mut self.away_since {
            *since = now;
        }
    }

    /// Whether it carried the deployment out and has been away for longer than an agent that only connects anew.
    #[must_use]
    pub fn is_lost(&self, now: Duration) -> bool {
        let away = self.away_since.map(|since| now.saturating_sub(since));
        self.presence == Some(Presence::Offline) && away.is_some_and(|away| away >= LOST)
    }

    /// Whether the machine runs the deployment now and ran something else before.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        let outcome = self.end.as_ref().map(|end| end.outcome);
        matches!(outcome, Some(Outcome::Succeeded | Outcome::Staged)) && self.newer.is_none()
    }

    /// Whether it says that its deployment was cancelled.
    #[must_use]
    pub fn says_cancelled(&self) -> bool {
        let outcome = self.end.as_ref().map(|end| end.outcome);
        outcome == Some(Outcome::Cancelled)
    }

    /// Its presence was seen.
    pub fn saw_presence(&mut self, presence: Presence, now: Duration) {
        self.presence = Some(presence);
        match presence {
            Presence::Online => {
                self.away_since = None;
                self.was_online = true;
            }
            Presence::Offline => {
                self.away_since.get_or_insert(now);
            }
        }
    }

    /// Its status was seen.
    pub fn saw_status(&mut self, status: &Status, now: Duration) {
        let ours = status.id == Some(self.order.id);
        if ours {
            self.heard(status, now);
        }
        // A newer one that waits may wait for this one to end: a machine ends what it has begun to activate.
        let went_on = !ours && status.state != State::Waiting;
        if status.order().is_some_and(|order| order > self.order) {
            self.saw_newer(status.id, went_on, now);
        }
        if (status.floor_epoch, status.floor) > (self.order.epoch, self.order.sequence) {
            self.saw_newer(None, went_on, now);
        }
        let refused = status.refused.as_ref();
        if let Some(refused) = refused.filter(|refused| refused.refused_digest == self.digest) {
            let message = refused.refused_message.as_str();
            self.ended(State::Rejected, Some(refused.refused_reason), message);
        }
    }

    /// Its history was seen: the outcome may have been followed by another deployment already.
    pub fn saw_history(&mut self, history: &History) {
        let Some(entry) = history
            .entries
            .iter()
            .find(|entry| entry.id == self.order.id)
        else {
            return;
        };
        if !self.said.state.is_some_and(State::is_final) {
            self.said.state = Some(entry.state);
            self.said.message = Text::lossy(entry.message.as_str());
            self.said.progress = None;
            self.said.previous_path.clone_from(&entry.previous_path);
            self.said.closure_size = entry.closure_size.or(self.said.closure_size);
            if entry.changes.is_some() {
                self.said.changes.clone_from(&entry.changes);
            }
        }
        self.ended(entry.state, entry.reason, entry.message.as_str());
    }

    /// A deployment that is ordered after this one lies on the machine's topic.
    pub fn overtaken(&mut self, by: DeploymentId, now: Duration) {
        self.saw_newer(Some(by), false, now);
    }

    /// Something that nobody known here signed lies on the machine's topic, and the broker does not let this
    /// deployment take its place.
    pub fn overtaken_by_unknown(&mut self, now: Duration) {
        self.saw_newer(None, false, now);
        if let Some(newer) = &mut self.newer {
            newer.unknown = true;
        }
    }

    /// Whether a newer deployment is known to have come.
    #[must_use]
    pub const fn is_overtaken(&self) -> bool {
        self.newer.is_some()
    }

    /// Whether it has to be waited for.
    #[must_use]
    pub fn verdict(&self, wait: Wait, now: Duration, wall: Timestamp) -> Verdict {
        if let Some(end) = &self.end {
            return Verdict::Ended(self.completed(end));
        }
        let away_for = self.away_since.map(|since| now.saturating_sub(since));
        if let Some(newer) = &self.newer {
            // It may be in the middle of this one still, and then says how that ended.
            let may_answer = away_for.is_none()
                && (now.saturating_sub(newer.since) < NEWER_GRACE
                    || (self.is_under_way() && !newer.went_on));
            if !may_answer {
                return Verdict::Ended(self.superseded());
            }
            return Verdict::Pending;
        }
        if wall > self.expires && !self.answered {
            let end = End::new(
                Outcome::Expired,
                "it expired before the machine answered; deploy again",
            );
            return Verdict::Ended(end);
        }
        if wait == Wait::Online && self.said.state == Some(State::Held) {
            return Verdict::Held;
        }
        if wait == Wait::All || self.is_changing() {
            return Verdict::Pending;
        }
        let allowed = if self.was_online || self.answered {
            OFFLINE_GRACE
        } else {
            SETTLE
        };
        match away_for {
            Some(away) if away >= allowed => Verdict::Away,
            _ => Verdict::Pending,
        }
    }

    /// How it ended when it is waited for no longer.
    #[must_use]
    pub fn given_up(&self) -> End {
        if let Some(end) = &self.end {
            return self.completed(end);
        }
        if self.newer.is_some() {
            return self.superseded();
        }
        if let Some(held) = &self.said.held {
            return End::new(Outcome::Deferred, held);
        }
        let state = self.said.state.map_or("", State::as_str);
        match (self.away_since, self.answered) {
            (Some(_), false) => End::new(
                Outcome::Offline,
                match self.presence {
                    None => "it has never connected; it gets the deployment when it does",
                    Some(_) => "it gets the deployment when it returns",
                },
            ),
            (Some(_), true) => End::new(
                Outcome::Offline,
                &format!("it went offline in the state `{state}` and goes on when it returns"),
            ),
            (None, false) => End::new(
                Outcome::TimedOut,
                "it is online but did not answer: does its agent trust the signing key, and is its clock right?",
            ),
            (None, true) => End::new(
                Outcome::TimedOut,
                &format!("it is still in the state `{state}` and goes on by itself"),
            ),
        }
    }

    fn heard(&mut self, status: &Status, now: Duration) {
        self.answered = true;
        self.away_since = match self.presence {
            // It may have left since, or its last will came late: it is given time to show which.
            Some(Presence::Offline) => Some(now),
            Some(Presence::Online) | None => None,
        };
        let had_ended = self.said.state.is_some_and(State::is_final);
        if !had_ended && (status.state.is_final() || status.ts >= self.said.ts) {
            self.said = Said::new(status, &self.said);
        }
        if self.holds && status.state == State::Held {
            self.end.get_or_insert(End {
                message: Text::lossy(status.message.as_str()),
                ..End::new(Outcome::Held, "")
            });
        }
        self.ended(status.state, status.reason, status.message.as_str());
    }

    fn ended(&mut self, state: State, reason: Option<Reason>, message: &str) {
        let Some(outcome) = Outcome::of(state) else {
            return;
        };
        // Stale means that a newer one was there first: somebody else's won.
        let outcome = match (outcome, reason) {
            (Outcome::Rejected, Some(Reason::Stale)) => Outcome::Superseded,
            _ => outcome,
        };
        self.end.get_or_insert(End {
            outcome,
            reason,
            message: Text::lossy(message),
            superseded_by: None,
        });
    }

    fn saw_newer(&mut self, id: Option<DeploymentId>, went_on: bool, now: Duration) {
        let newer = self.newer.get_or_insert(Newer {
            id,
            since: now,
            went_on,
            unknown: false,
        });
        newer.id = newer.id.or(id);
        if went_on && !newer.went_on {
            newer.went_on = true;
            newer.since = now;
        }
    }

    /// The winner's id may have become known only after the end.
    fn completed(&self, end: &End) -> End {
        let mut end = end.clone();
        if end.outcome == Outcome::Superseded && end.superseded_by.is_none() {
            end.superseded_by = self.newer.as_ref().and_then(|newer| newer.id);
        }
        end
    }

    fn superseded(&self) -> End {
        let by = self.newer.as_ref().and_then(|newer| newer.id);
        let message = match (by, &self.newer) {
            (Some(id), _) => format!("the newer deployment {} took its place", id.short()),
            (None, Some(newer)) if newer.unknown => {
                "a deployment that no key known here signed took its place, and the broker keeps that one; if it is \
                 another publisher's, its public key belongs into --trusted-key or `trusted_keys`"
                    .to_owned()
            }
            (None, _) => "the machine has taken a newer deployment".to_owned(),
        };
        End {
            superseded_by: by,
            ..End::new(Outcome::Superseded, &message)
        }
    }

    fn is_under_way(&self) -> bool {
        self.said.state.is_some_and(|state| !state.is_final())
    }

    /// In these states a machine cuts its own connection, and comes back by itself.
    fn is_changing(&self) -> bool {
        matches!(
            self.said.state,
            Some(State::Activating | State::Confirming | State::RollingBack)
        )
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
