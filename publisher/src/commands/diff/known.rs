//! What a machine has said of its deployments, to be compared.

use hoist_protocol::{AgentName, Changes, DeploymentId, StorePath};

use super::{Compared, DiffError, Found, Side};
use crate::commands::CommandError;
use crate::id_end::IdEnd;
use crate::snapshot::Seen;

/// One deployment, by the word of its machine.
#[derive(Clone, Debug)]
struct Deployed {
    id: DeploymentId,
    /// What ran before.
    before: Option<StorePath>,
    brought: Option<StorePath>,
    /// Of what it brought, in bytes.
    size: Option<u64>,
    changes: Option<Changes>,
}

impl Deployed {
    fn side(&self) -> Side {
        Side {
            path: self.brought.clone(),
            id: Some(self.id),
            size: self.size,
        }
    }
}

/// The deployments of a machine, newest first.
#[derive(Clone, Debug)]
pub(super) struct Known(Vec<Deployed>);

impl Known {
    /// The status names packages, which the history does not, and may be ahead of it.
    pub(super) fn of(seen: &Seen) -> Self {
        let entries = seen.history.iter().flat_map(|history| &history.entries);
        let mut known: Vec<Deployed> = entries
            .map(|entry| Deployed {
                id: entry.id,
                before: entry.previous_path.clone(),
                brought: entry.path.clone(),
                size: entry.closure_size,
                changes: entry.changes.clone(),
            })
            .collect();
        if let Some(status) = &seen.status
            && let Some(id) = status.id
        {
            match known.iter_mut().find(|deployed| deployed.id == id) {
                Some(deployed) => {
                    let newer = status.changes.clone();
                    deployed.changes = newer.or_else(|| deployed.changes.take());
                }
                None => known.insert(
                    0,
                    Deployed {
                        id,
                        before: status.previous_path.clone(),
                        brought: status.path.clone(),
                        size: status.closure_size,
                        changes: status.changes.clone(),
                    },
                ),
            }
        }
        Self(known)
    }

    /// Compares what the deployments with these ids brought; of one, or the newest, with what ran before it.
    pub(super) fn compare(
        &self,
        agent: &AgentName,
        ids: &[IdEnd],
    ) -> Result<Compared, CommandError> {
        let (from, to, changes) = match ids {
            [] => {
                let newest = self.0.first();
                self.brought_by(newest.ok_or_else(|| DiffError::Nothing(agent.clone()))?)
            }
            [id] => self.brought_by(self.find(agent, *id)?),
            [from, to, ..] => {
                let (from, to) = (self.find(agent, *from)?, self.find(agent, *to)?);
                let follows = from.brought.is_some() && to.before == from.brought;
                (
                    from.side(),
                    to.side(),
                    to.changes.clone().filter(|_| follows),
                )
            }
        };
        let is_same = from.path.is_some() && from.path == to.path;
        let found = match changes {
            _ if is_same => Found::Same,
            Some(changes) => Found::Said(changes),
            None => Found::Sizes,
        };
        Ok(Compared {
            agent: Some(agent.clone()),
            from,
            to,
            found,
        })
    }

    fn brought_by(&self, deployed: &Deployed) -> (Side, Side, Option<Changes>) {
        let mut from = Side {
            path: deployed.before.clone(),
            ..Side::default()
        };
        // What ran before was deployed too, as a rule.
        let earlier = self.0.iter().find(|other| {
            other.id != deployed.id && other.brought.is_some() && other.brought == deployed.before
        });
        if let Some(earlier) = earlier {
            from = earlier.side();
        } else if let (Some(size), Some(changes)) = (deployed.size, &deployed.changes) {
            from.size = size.checked_add_signed(changes.size_difference.saturating_neg());
        }
        (from, deployed.side(), deployed.changes.clone())
    }

    fn find(&self, agent: &AgentName, given: IdEnd) -> Result<&Deployed, CommandError> {
        let id = given.among(self.0.iter().map(|deployed| deployed.id));
        let found = self.0.iter().find(|deployed| Some(deployed.id) == id);
        found.ok_or_else(|| CommandError::NotInHistory {
            agent: agent.clone(),
            given,
        })
    }
}
