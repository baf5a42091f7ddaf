//! What survives a crash: what was admitted, what is under way, and how everything ended.

mod readable;
mod records;

use hoist_protocol::{DeploymentId, Kind, Refused, RollbackTo, State, StorePath, Text, Timestamp};
use serde::{Deserialize, Serialize};

pub use records::{Ended, Floor, Hold, How, Known, Record, Signed, Staged, Task, Told};

/// How many ended deployments the ledger remembers.
pub const HISTORY: usize = 50;

/// How many deployments that ended well can be rolled back to.
pub const KNOWN: usize = 20;

/// How many of the last log lines of a deployment are kept with its outcome.
pub const LOG_TAIL: usize = 20;

/// All that survives. Fields are only ever added, so that an agent that was rolled back still reads it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Ledger {
    /// The highest order that was verified.
    pub floor: Option<Floor>,
    /// What is under way.
    pub current: Option<Task>,
    /// What is begun after it: the newest desired state.
    pub next: Option<Task>,
    /// What waits for a reboot.
    #[serde(deserialize_with = "readable::option")]
    pub staged: Option<Staged>,
    /// The newest deployment that has ended.
    #[serde(deserialize_with = "readable::option")]
    pub last: Option<Ended>,
    /// What a rollback can name, newest first, [`KNOWN`] at most.
    #[serde(deserialize_with = "readable::list")]
    pub known: Vec<Known>,
    /// How deployments ended, newest first, [`HISTORY`] at most. Those not delivered are the outbox.
    #[serde(deserialize_with = "readable::list")]
    pub history: Vec<Record>,
    /// The newest message that was refused.
    #[serde(deserialize_with = "readable::option")]
    pub refused: Option<Refused>,
    /// Whether somebody at the machine wants it left as it is.
    pub hold: Option<Hold>,
    /// That the ledger was damaged, and what that means; until the next outcome.
    pub damage: Option<Text<256>>,
}

impl Ledger {
    /// Whether `id` has ended; what is staged has, as far as its activation goes.
    #[must_use]
    pub fn has_ended(&self, id: DeploymentId) -> bool {
        self.history.iter().any(|record| record.entry.id == id)
    }

    /// As what the closure that is under way is activated, as far as its kind is found out, and else the one that has
    /// ended last.
    #[must_use]
    pub fn latest_how(&self) -> Option<&How> {
        let current = self.current.as_ref().and_then(|task| task.how.as_ref());
        let last = self.last.as_ref().and_then(|ended| ended.how.as_ref());
        let mut known = current.into_iter().chain(last);
        known.find(|how| how.kind != Kind::Auto)
    }

    /// Whether `id` is under way, waits, or has ended.
    #[must_use]
    pub fn knows(&self, id: DeploymentId) -> bool {
        let mut tasks = self.current.iter().chain(&self.next);
        let staged = self.staged.as_ref().map(Staged::id);
        tasks.any(|task| task.order.id == id) || staged == Some(id) || self.has_ended(id)
    }

    /// Whether somebody at the machine holds it at this time.
    #[must_use]
    pub fn is_held(&self, now: Timestamp) -> bool {
        let hold = self.hold.as_ref();
        hold.is_some_and(|hold| hold.until.is_none_or(|until| now < until))
    }

    /// The path that a rollback names, and how it was activated: only what this machine itself once ran with a
    /// good end, or what it ran before it staged something.
    #[must_use]
    pub fn resolve(&self, to: RollbackTo) -> Option<(&StorePath, How)> {
        let find = |id| self.known.iter().find(|known| known.id == id);
        match to {
            RollbackTo::Deployment(id) => find(id).map(|known| (&known.path, known.how.clone())),
            RollbackTo::Before(id) => {
                let staged = self.staged.as_ref().filter(|staged| staged.id() == id);
                let previous = match (find(id), staged) {
                    (Some(known), _) => known.previous.as_ref(),
                    (None, Some(staged)) => staged.ended.entry.previous_path.as_ref(),
                    (None, None) => None,
                };
                previous.map(|path| (path, self.how(path)))
            }
        }
    }

    /// How this machine activated `path` when it last did.
    #[must_use]
    pub fn how(&self, path: &StorePath) -> How {
        let known = self.known.iter().find(|known| known.path == *path);
        known.map(|known| known.how.clone()).unwrap_or_default()
    }

    /// What ran before what runs now, as far as this machine brought it there itself.
    #[must_use]
    pub fn before(&self, running: Option<&StorePath>) -> Option<&StorePath> {
        let ran = self
            .known
            .iter()
            .flat_map(|known| [Some(&known.path), known.previous.as_ref()]);
        ran.flatten().find(|path| Some(*path) != running)
    }

    /// The deployments that have not ended: the one that is carried out, what waits, and what is staged.
    #[must_use]
    pub fn under_way(&self) -> Vec<DeploymentId> {
        let tasks = self.current.iter().chain(&self.next);
        let staged = self.staged.as_ref().map(Staged::id);
        tasks.map(|task| task.order.id).chain(staged).collect()
    }

    /// Whose closures have to be kept from the garbage collector: what is under way, what waits, and of those
    /// that ended well the newest `retention` different ones.
    #[must_use]
    pub fn kept(&self, retention: usize) -> Vec<DeploymentId> {
        let mut kept = self.under_way();
        let mut paths: Vec<&StorePath> = Vec::new();
        for known in &self.known {
            if paths.len() < retention && !paths.contains(&&known.path) {
                paths.push(&known.path);
                kept.push(known.id);
            }
        }
        kept
    }

    /// Records how a deployment ended. The first outcome of an id is its outcome, and a second is ignored; only
    /// what was staged gets another one, by the next boot.
    pub(crate) fn record(&mut self, ended: Ended) {
        let entry = &ended.entry;
        if let Some(n) = self.history.iter().position(|r| r.entry.id == entry.id) {
            if self.history[n].entry.state != State::Staged || entry.state == State::Staged {
                return;
            }
            self.history.remove(n);
        }
        self.damage = None;
        let ran = matches!(entry.state, State::Succeeded | State::Unchanged);
        if let Some(path) = entry.path.clone().filter(|_| ran) {
            let (id, previous) = (entry.id, entry.previous_path.clone());
            let how = ended.how.clone().unwrap_or_default();
            let known = Known {
                id,
                path,
                previous,
                how,
            };
            self.known.insert(0, known);
            self.known.truncate(KNOWN);
        }
        let record = Record {
            entry: entry.clone(),
            delivered: false,
        };
        self.history.insert(0, record);
        self.history.truncate(HISTORY);
        // Of several jobs that a lost ledger forgot, the newest may not be the last to end.
        if self
            .last
            .as_ref()
            .is_none_or(|last| last.gives_way_to(&ended))
        {
            self.last = Some(ended);
        }
    }

    /// The outbox: outcomes that no broker has acknowledged so far.
    pub fn undelivered(&self) -> impl Iterator<Item = Told> {
        let undelivered = self.history.iter().filter(|record| !record.delivered);
        undelivered.map(Record::told)
    }

    /// Takes outcomes out of the outbox; says whether there was one to take.
    pub(crate) fn deliver(&mut self, told: &[Told]) -> bool {
        let mut changed = false;
        for record in &mut self.history {
            if !record.delivered && told.contains(&record.told()) {
                record.delivered = true;
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::HistoryEntry;
    use uuid::Uuid;

    use super::*;

    fn ended(n: u64, state: State) -> Ended {
        Ended {
            entry: HistoryEntry {
                id: DeploymentId::new(Uuid::from_u128(u128::from(n))),
                epoch: 0,
                sequence: n,
                state,
                reason: None,
                local: false,
                message: Text::default(),
                path: None,
                previous_path: None,
                started_at: Timestamp::from_ms(1),
                ended_at: Timestamp::from_ms(2),
                closure_size: None,
                fetched_bytes: None,
                changes: None,
            },
            message: Text::default(),
            attempts: 1,
            how: None,
            action: None,
            fetch: None,
            changes: None,
            log_lines: None,
            log_tail: Vec::new(),
        }
    }

    #[test]
    fn the_first_outcome_of_an_id_is_its_outcome() {
        let mut ledger = Ledger::default();
        ledger.record(ended(1, State::Failed));
        ledger.record(ended(1, State::Succeeded));
        let states: Vec<_> = ledger.history.iter().map(|r| r.entry.state).collect();
        assert_eq!(states, [State::Failed]);
    }

    #[test]
    fn the_status_is_about_the_newest_that_ended_not_the_latest() {
        let mut ledger = Ledger::default();
        ledger.record(ended(2, State::Succeeded));
        ledger.record(ended(1, State::Failed));
        assert_eq!(ledger.last, Some(ended(2, State::Succeeded)));
    }

    #[test]
    fn what_a_newer_version_added_is_no_obstacle() {
        let json = r#"{"floor": null, "added_later": {"a": 1}}"#;
        let ledger: Ledger = serde_json::from_str(json).unwrap();
        assert_eq!(ledger, Ledger::default());
    }
}
