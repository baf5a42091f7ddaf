//! What survives a crash: what was admitted, what is under way, and how everything ended.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hoist_protocol::{
    DeploymentId, HistoryEntry, Order, Refused, RollbackTo, StorePath, Text, Timestamp,
};
use serde::{Deserialize, Serialize};

/// How many ended deployments the ledger remembers.
pub const HISTORY: usize = 50;

/// How many deployments that ended well can be rolled back to.
pub const KNOWN: usize = 20;

/// How many of the last log lines of a deployment are kept with its outcome.
pub const LOG_TAIL: usize = 20;

/// A deployment's message as it was received, 16 KiB at most.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signed(Vec<u8>);

impl Signed {
    /// Keeps a received message.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for Signed {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl From<Signed> for String {
    fn from(signed: Signed) -> Self {
        STANDARD.encode(signed.0)
    }
}

/// The highest order that was verified: nothing at or below it is ever begun again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Floor {
    /// The order.
    pub order: Order,
    /// The digest of the deployment that had it; none when only its job was found.
    pub content: Option<Text<64>>,
}

/// A deployment that was admitted and has not ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Task {
    /// Which one.
    pub order: Order,
    /// Its message, verified again before it is begun after a restart; none when only its job was found.
    pub signed: Option<Signed>,
    /// When it was admitted.
    pub admitted_at: Timestamp,
    /// How often it was begun.
    pub attempts: u32,
    /// Its closure, once a rollback's goal is resolved.
    pub path: Option<StorePath>,
    /// The size of its closure in bytes, once it is fetched.
    pub closure_size: Option<u64>,
}

/// A deployment that ended well: what a rollback can name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Known {
    /// Which one.
    pub id: DeploymentId,
    /// What it brought.
    pub path: StorePath,
    /// What ran before it.
    pub previous: Option<StorePath>,
}

/// How a deployment ended, and whether the broker has acknowledged that.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// How it ended.
    pub entry: HistoryEntry,
    /// Whether the broker has acknowledged a history that holds it.
    pub delivered: bool,
}

/// The newest deployment that has ended, with all that the status says about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ended {
    /// How it ended.
    pub entry: HistoryEntry,
    /// Why, for people.
    pub message: Text<1024>,
    /// How often it was begun.
    pub attempts: u32,
    /// How many lines it logged, when it came to an activation.
    pub log_lines: Option<u64>,
    /// The last [`LOG_TAIL`] of them.
    pub log_tail: Vec<Text<256>>,
}

impl Ended {
    /// Which deployment it is.
    #[must_use]
    pub const fn order(&self) -> Order {
        order_of(&self.entry)
    }
}

const fn order_of(entry: &HistoryEntry) -> Order {
    Order {
        epoch: entry.epoch,
        sequence: entry.sequence,
        id: entry.id,
    }
}

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
    /// The newest deployment that has ended.
    pub last: Option<Ended>,
    /// What a rollback can name, newest first, [`KNOWN`] at most.
    pub known: Vec<Known>,
    /// How deployments ended, newest first, [`HISTORY`] at most. Those not delivered are the outbox.
    pub history: Vec<Record>,
    /// The newest message that was refused.
    pub refused: Option<Refused>,
}

impl Ledger {
    /// Whether `id` has ended.
    #[must_use]
    pub fn has_ended(&self, id: DeploymentId) -> bool {
        self.history.iter().any(|record| record.entry.id == id)
    }

    /// Whether `id` is under way, waits, or has ended.
    #[must_use]
    pub fn knows(&self, id: DeploymentId) -> bool {
        let mut tasks = self.current.iter().chain(&self.next);
        tasks.any(|task| task.order.id == id) || self.has_ended(id)
    }

    /// The path that a rollback names: only what this machine itself once ran with a good end.
    #[must_use]
    pub fn resolve(&self, to: RollbackTo) -> Option<&StorePath> {
        let find = |id| self.known.iter().find(|known| known.id == id);
        match to {
            RollbackTo::Deployment(id) => find(id).map(|known| &known.path),
            RollbackTo::Before(id) => find(id).and_then(|known| known.previous.as_ref()),
        }
    }

    /// Records how a deployment ended. The first outcome of an id is its outcome: a second is ignored.
    pub(crate) fn record(&mut self, ended: Ended) {
        let entry = &ended.entry;
        if self.has_ended(entry.id) {
            return;
        }
        if let Some(path) = entry.path.clone().filter(|_| entry.state.is_good()) {
            let (id, previous) = (entry.id, entry.previous_path.clone());
            self.known.insert(0, Known { id, path, previous });
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
            .is_none_or(|last| last.order() < ended.order())
        {
            self.last = Some(ended);
        }
    }

    /// The outbox: outcomes that no broker has acknowledged so far.
    pub fn undelivered(&self) -> impl Iterator<Item = DeploymentId> {
        self.history
            .iter()
            .filter(|record| !record.delivered)
            .map(|record| record.entry.id)
    }

    /// Takes outcomes out of the outbox; says whether there was one to take.
    pub(crate) fn deliver(&mut self, ids: &[DeploymentId]) -> bool {
        let mut changed = false;
        for record in &mut self.history {
            if !record.delivered && ids.contains(&record.entry.id) {
                record.delivered = true;
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::State;
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
                message: Text::default(),
                path: None,
                previous_path: None,
                started_at: Timestamp::from_ms(1),
                ended_at: Timestamp::from_ms(2),
                closure_size: None,
            },
            message: Text::default(),
            attempts: 1,
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
