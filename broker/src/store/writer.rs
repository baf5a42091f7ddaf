//! The one thread that changes what is retained.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use hoist_protocol::{Channel, Machine, Topic};
use tokio::sync::mpsc;
use tracing::{debug, error};

use super::disk::{Disk, StoreError};
use super::index::Index;
use super::{Outcome, Publication, Reply};
use crate::deploys::{Deploys, Proof};
use crate::inbox::Event;
use crate::message::Message;
use crate::router::RouterError;

/// Most publications in one batch: what is acknowledged waits for all of its batch to be written.
const BATCH_LEN: usize = 1024;

pub(super) struct Writer<T> {
    disk: Disk,
    index: Arc<RwLock<Index>>,
    deploys: Arc<Deploys>,
    /// The proofs of retained deployments, as far as they were needed since the start.
    proofs: HashMap<Machine, Option<Proof>>,
    tell: T,
}

type Queued = (Publication, Reply);

impl<T: FnMut(&Arc<Message>) -> Result<(), RouterError>> Writer<T> {
    pub(super) fn new(
        disk: Disk,
        index: Arc<RwLock<Index>>,
        deploys: Arc<Deploys>,
        tell: T,
    ) -> Self {
        Self {
            disk,
            index,
            deploys,
            proofs: HashMap::new(),
            tell,
        }
    }

    /// Writes until no handle to the store is left.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Queued>) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH_LEN) > 0 {
            if let Err(error) = self.commit(std::mem::take(&mut batch)) {
                // The publishers of this batch and of what is queued are never acknowledged: the queue is
                // dropped with this thread and the process ends.
                error!("a batch could not be committed, its publishers are not acknowledged");
                return Err(error);
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: Vec<Queued>) -> Result<(), StoreError> {
        let outcomes = self.decide(&batch);
        let durable = batch
            .iter()
            .zip(&outcomes)
            .filter(|((publication, _), outcome)| {
                **outcome == Outcome::Retained && is_durable(&publication.topic)
            })
            .map(|((publication, _), _)| publication);
        let mut durable = durable.peekable();
        if durable.peek().is_some() {
            self.disk.write(durable)?;
        }
        let mut messages = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            for ((publication, reply), outcome) in batch.into_iter().zip(outcomes) {
                if outcome == Outcome::Retained {
                    messages.extend(index.apply(publication));
                }
                replies.push((reply, outcome));
            }
        }
        debug!(
            publications = replies.len(),
            changes = messages.len(),
            "committed"
        );
        for (reply, outcome) in replies {
            match reply {
                Reply::Session(inbox, ticket) => inbox.push(Event::Settled(ticket, outcome)),
                // Who no longer waits has no need to know.
                Reply::Waiting(waiting) => drop(waiting.send(outcome)),
            }
        }
        for message in &messages {
            (self.tell)(message).map_err(StoreError::Router)?;
        }
        Ok(())
    }

    /// Decides over a batch in its order: a later publication is held against the earlier ones as well.
    fn decide(&mut self, batch: &[Queued]) -> Vec<Outcome> {
        let mut newest: HashMap<&Machine, &[u8]> = HashMap::new();
        let mut outcomes = Vec::with_capacity(batch.len());
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        for (publication, _) in batch {
            let topic = &publication.topic;
            if topic.channel != Channel::Deploy {
                outcomes.push(Outcome::Retained);
                continue;
            }
            let machine = &topic.machine;
            let retained = match newest.get(machine) {
                Some(payload) => Some(*payload),
                None => index.get(topic).map(|message| &*message.payload),
            };
            let retained = retained.filter(|payload| !payload.is_empty());
            if retained.is_some_and(|payload| *payload == *publication.payload) {
                outcomes.push(Outcome::Repeat);
                continue;
            }
            if publication.payload.is_empty() {
                self.proofs.remove(machine);
            } else {
                let before = match (self.proofs.get(machine), retained) {
                    (Some(proof), _) => *proof,
                    // What was retained before the keys changed may not verify: then anything verified is newer.
                    (None, Some(payload)) => self.deploys.verify(machine, payload).ok().flatten(),
                    (None, None) => None,
                };
                if let Err(refusal) = Deploys::supersedes(machine, publication.proof, before) {
                    self.proofs.insert(machine.clone(), before);
                    outcomes.push(Outcome::Refused(refusal));
                    continue;
                }
                self.proofs.insert(machine.clone(), publication.proof);
            }
            newest.insert(machine, &publication.payload);
            outcomes.push(Outcome::Retained);
        }
        outcomes
    }
}

/// Whether a channel survives a restart. A presence does not: after one nobody is connected.
fn is_durable(topic: &Topic) -> bool {
    topic.channel.is_retained() && topic.channel != Channel::Presence
}
