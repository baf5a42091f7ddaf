//! How one machine gets on with one deployment, judged by what it says and by what is seen of it.
//!
//! Reports come late, twice, in any order, or only by way of the history. So nothing here depends on the
//! order: an outcome counts wherever it is found, the first one stays, and what is about another deployment
//! never counts as an answer.

use std::time::Duration;

use hoist_protocol::{
    DeploymentId, History, Order, Presence, Reason, State, Status, StorePath, Text, Timestamp,
};

use crate::outcome::Outcome;

/// How long a machine that is not (or no longer) connected is waited for before it counts as offline.
///
/// Long enough for a broker that restarts and for the fresh connection with which an agent confirms.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(120);

/// How long the machine's own word is waited for once it is clear that a newer deployment has come.
pub const NEWER_GRACE: Duration = Duration::from_secs(3);

/// How long after the publishing a machine that seems to be offline may still answer: a will that was late
/// may have made it look so.
pub const SETTLE: Duration = Duration::from_secs(1);

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
    /// What ran before.
    pub previous_path: Option<StorePath>,
    /// What runs now.
    pub current_path: Option<StorePath>,
    /// How many log lines there were.
    pub log_lines: Option<u64>,
    /// The last of them.
    pub log_tail: Vec<Text<256>>,
}

/// Whether a machine has to be waited for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is under way.
    Pending,
    /// It is offline and has not answered; it gets the deployment when it returns.
    Away,
    /// It has ended.
    Ended(End),
}

struct Newer {
    id: Option<DeploymentId>,
    since: Duration,
    /// The machine is done with this one, by its own word.
    went_on: bool,
}

/// One machine and one deployment. Pure: what is seen comes in, the verdict is looked at.
///
/// Every `now` is the time since the run began.
pub struct Watch {
    order: Order,
    digest: Text<64>,
    expires: Timestamp,
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
            said: Said::default(),
            answered: false,
            presence: None,
            away_since: Some(Duration::ZERO),
            was_online: false,
            newer: None,
            end: None,
        }
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
        }
        self.ended(entry.state, entry.reason, entry.message.as_str());
    }

    /// A deployment that is ordered after this one lies on the machine's topic.
    pub fn overtaken(&mut self, by: DeploymentId, now: Duration) {
        self.saw_newer(Some(by), false, now);
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
            self.said = Said {
                state: Some(status.state),
                progress: status.progress.map(|percent| percent.min(100)),
                message: status.message.clone(),
                ts: status.ts,
                previous_path: status.previous_path.clone(),
                current_path: status.current_path.clone(),
                log_lines: status.log_lines,
                log_tail: status.log_tail.clone(),
            };
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
        let message = by.map_or_else(
            || "the machine has taken a newer deployment".to_owned(),
            |id| format!("the newer deployment {id} took its place"),
        );
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
