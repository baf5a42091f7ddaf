//! The one thread that changes what is retained.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hoist_protocol::{Channel, Machine, ScreenedDeployment, Topic};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tracing::{debug, error, info, warn};

use super::disk::{Disk, StoreError};
use super::index::Index;
use super::quota::Quotas;
use super::{Outcome, Publication, Reply, Unavailable};
use crate::deploys::Deploys;
use crate::inbox::Event;
use crate::message::Message;
use crate::observe::{Decision, Deploy, Observer};
use crate::router::RouterError;

/// Most publications in one batch: what is acknowledged waits for all of its batch to be written.
const BATCH_LEN: usize = 1024;

/// How often a disk that has failed is tried again, and how often it is looked for publications meanwhile.
const RETRY: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

pub(super) struct Writer<T> {
    disk: Disk,
    index: Arc<RwLock<Index>>,
    deploys: Arc<Deploys>,
    observer: Observer,
    /// The proofs of retained deployments, as far as they were needed since the start.
    proofs: HashMap<Machine, Option<ScreenedDeployment>>,
    /// Since when the disk takes nothing, and when it was last tried.
    failing: Option<Instant>,
    tell: T,
}

type Queued = (Publication, Reply);

impl<T: FnMut(&Arc<Message>) -> Result<(), RouterError>> Writer<T> {
    pub(super) fn new(
        disk: Disk,
        index: Arc<RwLock<Index>>,
        deploys: Arc<Deploys>,
        observer: Observer,
        tell: T,
    ) -> Self {
        observer.metrics().store_writable.set(1);
        Self {
            disk,
            index,
            deploys,
            observer,
            proofs: HashMap::new(),
            failing: None,
            tell,
        }
    }

    /// Writes until no handle to the store is left.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Queued>) -> Result<(), StoreError> {
        self.count_retained();
        let mut batch = Vec::new();
        loop {
            if self.disk.is_stale() && self.failing.is_none() {
                self.tidy();
            }
            if !self.receive(&mut queue, &mut batch) {
                break;
            }
            self.observer.writing(true);
            self.commit(std::mem::take(&mut batch))?;
            self.observer.writing(false);
        }
        // Without its last word the next start only takes it for one after a crash.
        if let Err(error) = self.disk.close() {
            warn!(%error, "the store could not be closed in order");
        }
        Ok(())
    }

    /// Waits for publications; false when there will be no more. A disk that has failed is tried meanwhile.
    fn receive(&mut self, queue: &mut mpsc::Receiver<Queued>, batch: &mut Vec<Queued>) -> bool {
        while let Some(tried) = self.failing {
            match queue.try_recv() {
                Ok(queued) => {
                    batch.push(queued);
                    return true;
                }
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => {}
            }
            if tried.elapsed() >= RETRY {
                self.heal();
            } else {
                std::thread::sleep(LOOK);
            }
        }
        queue.blocking_recv_many(batch, BATCH_LEN) > 0
    }

    /// Tries whether the disk takes something again.
    fn heal(&mut self) {
        let healed = if self.disk.is_suspect() {
            let all = self.all();
            self.disk.rewrite(&all)
        } else {
            self.disk.probe()
        };
        match healed {
            Ok(()) => {
                self.failing = None;
                self.observer.metrics().store_writable.set(1);
                info!("the store can be written again: publishes are taken");
            }
            Err(error) => {
                self.failing = Some(Instant::now());
                debug!(%error, source = %source(&error), "the store still cannot be written");
            }
        }
    }

    /// Writes the file anew, without what is out of date in it.
    fn tidy(&mut self) {
        let started = Instant::now();
        let all = self.all();
        match self.disk.rewrite(&all) {
            Ok(()) => {
                debug!(messages = all.len(), took = ?started.elapsed(), "wrote the store anew");
            }
            // The old one is as good as it was, and longer than it need be.
            Err(error) => warn!(%error, source = %source(&error), "cannot write the store anew"),
        }
    }

    fn all(&self) -> Vec<Arc<Message>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.all(is_durable)
    }

    fn count_retained(&self) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let retained = i64::try_from(index.len()).unwrap_or(i64::MAX);
        self.observer.metrics().retained.set(retained);
    }

    fn commit(&mut self, batch: Vec<Queued>) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut outcomes = self.decide(&batch);
        let deploys = describe(&batch, &outcomes);
        if let Err(error) = self.observer.deploys(&deploys) {
            debug!(%error, "deployments are refused: the audit log cannot be written");
            self.give_up(&batch, &mut outcomes, Unavailable::Audit, |topic| {
                topic.channel == Channel::Deploy
            });
        }
        if let Err(unwritten) = self.write(&batch, &outcomes) {
            self.give_up(&batch, &mut outcomes, unwritten, is_durable);
            self.say_failed(deploys);
        }
        let messages = self.apply_and_reply(batch, outcomes);
        let metrics = self.observer.metrics();
        metrics.committed(messages.len(), started.elapsed());
        debug!(changes = messages.len(), "committed");
        for message in &messages {
            (self.tell)(message).map_err(StoreError::Router)?;
        }
        Ok(())
    }

    /// Makes what is retained durable.
    fn write(&mut self, batch: &[Queued], outcomes: &[Outcome]) -> Result<(), Unavailable> {
        let durable = batch
            .iter()
            .zip(outcomes)
            .filter(|((publication, _), outcome)| {
                **outcome == Outcome::Retained && is_durable(&publication.topic)
            })
            .map(|((publication, _), _)| publication);
        let mut durable = durable.peekable();
        if durable.peek().is_none() {
            return Ok(());
        }
        if self.failing.is_some() {
            return Err(Unavailable::Disk);
        }
        if let Err(error) = self.disk.write(durable) {
            self.failing = Some(Instant::now());
            let metrics = self.observer.metrics();
            metrics.store_failures.inc();
            metrics.store_writable.set(0);
            error!(
                %error, source = %source(&error),
                "publishes are refused until the store can be written; nothing that was acknowledged is lost"
            );
            return Err(Unavailable::Disk);
        }
        Ok(())
    }

    /// Refuses all of a batch that `concerns`: whatever was decided rested on what is not written.
    fn give_up(
        &mut self,
        batch: &[Queued],
        outcomes: &mut [Outcome],
        why: Unavailable,
        concerns: impl Fn(&Topic) -> bool,
    ) {
        for ((publication, _), outcome) in batch.iter().zip(outcomes) {
            if concerns(&publication.topic) {
                *outcome = Outcome::Unavailable(why);
                self.proofs.remove(&publication.topic.machine);
            }
        }
    }

    /// Corrects what the audit log says of deployments that were not written.
    fn say_failed(&self, mut deploys: Vec<Deploy>) {
        deploys.retain(|deploy| matches!(deploy.decision, Decision::Accepted | Decision::Cleared));
        for deploy in &mut deploys {
            deploy.decision = Decision::Failed;
        }
        if let Err(error) = self.observer.deploys(&deploys) {
            debug!(%error, "the audit log does not say that deployments have failed");
        }
    }

    /// Changes the index and answers the publishers. Returns what is news.
    fn apply_and_reply(&self, batch: Vec<Queued>, outcomes: Vec<Outcome>) -> Vec<Arc<Message>> {
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
            let retained = i64::try_from(index.len()).unwrap_or(i64::MAX);
            self.observer.metrics().retained.set(retained);
        }
        for (reply, outcome) in replies {
            match reply {
                Reply::Session(inbox, ticket, _) => inbox.push(Event::Settled(ticket, outcome)),
                // Who no longer waits has no need to know.
                Reply::Waiting(waiting, _) => drop(waiting.send(outcome)),
            }
        }
        messages
    }

    /// Decides over a batch in its order: a later publication is held against the earlier ones as well.
    fn decide(&mut self, batch: &[Queued]) -> Vec<Outcome> {
        let mut newest: HashMap<&Machine, &[u8]> = HashMap::new();
        let mut outcomes = Vec::with_capacity(batch.len());
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut quotas = Quotas::new(&index);
        for (publication, _) in batch {
            let topic = &publication.topic;
            let quota = self.deploys.quota(&topic.machine.fleet);
            let full = Outcome::Unavailable(Unavailable::Quota);
            if topic.channel != Channel::Deploy {
                let fits = quotas.admit(publication, quota);
                outcomes.push(if fits { Outcome::Retained } else { full });
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
                    (None, Some(payload)) => {
                        self.deploys.verify_one(machine, payload).ok().flatten()
                    }
                    (None, None) => None,
                };
                if let Err(refusal) = Deploys::supersedes(machine, publication.proof, before) {
                    self.proofs.insert(machine.clone(), before);
                    outcomes.push(Outcome::Refused(refusal));
                    continue;
                }
                if !quotas.admit(publication, quota) {
                    outcomes.push(full);
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

/// What the audit log is told of a batch.
fn describe(batch: &[Queued], outcomes: &[Outcome]) -> Vec<Deploy> {
    let of_deploys = batch
        .iter()
        .zip(outcomes)
        .filter(|((publication, _), _)| publication.topic.channel == Channel::Deploy);
    of_deploys
        .map(|((publication, reply), outcome)| Deploy {
            machine: publication.topic.machine.clone(),
            origin: match reply {
                Reply::Session(_, _, origin) => origin.clone(),
                Reply::Waiting(_, origin) => Some(Arc::clone(origin)),
            },
            order: publication.proof.map(|proof| proof.order()),
            sha256: Deploy::digest(&publication.payload),
            len: publication.payload.len(),
            decision: match outcome {
                Outcome::Retained if publication.payload.is_empty() => Decision::Cleared,
                Outcome::Retained => Decision::Accepted,
                Outcome::Repeat => Decision::Repeat,
                Outcome::Refused(refusal) => Decision::Refused(refusal.reason()),
                Outcome::Unavailable(why) => Decision::Refused(why.reason()),
            },
        })
        .collect()
}

/// Whether a channel survives a restart. A presence does not: after one nobody is connected.
pub(super) fn is_durable(topic: &Topic) -> bool {
    topic.channel.is_retained() && topic.channel != Channel::Presence
}

/// What the system said.
fn source(error: &StoreError) -> String {
    std::error::Error::source(error).map_or_else(String::new, ToString::to_string)
}
