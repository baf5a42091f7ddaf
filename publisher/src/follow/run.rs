//! All machines of one run: what to publish next, what was seen of whom, and whether it is over.

use std::collections::HashMap;
use std::time::Duration;

use hoist_protocol::{
    AgentName, Channel, Deployment, FetchProgress, History, LogLine, Presence, ReportError, State,
    Status, Text, Timestamp, Topic, TrustedKeys, digest,
};
use uuid::Uuid;

use super::cancelled::Cancelled;
use super::delivery::{Delivery, Found, Refusal, Stage};
use super::watch::{End, NEWER_GRACE, Said, Verdict, Wait, Watch};
use crate::outcome::Outcome;
use crate::plan::Signed;
use crate::rollout::{Judged, Tally};
use crate::snapshot::Seen;

/// Most deployments that are on their way to the broker at the same time.
pub const WINDOW: usize = 64;

/// How long what is retained is waited for after a connection was closed on us.
const HOLD: Duration = Duration::from_millis(200);

/// After so many machines were refused, and none accepted, the broker refuses this publisher itself.
const HOPELESS: usize = 3;

/// What is to be done on the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Publish the deployment of this machine; its number comes back in [`Run::acknowledged`].
    Publish(usize),
    /// Subscribe again to the `deploy` topics of these machines, to be shown what is retained there.
    ReadBack(Vec<AgentName>),
}

/// What was heard of a machine that somebody may want to see at once.
#[derive(Debug)]
pub enum Heard {
    /// A line that the deployment of this run wrote.
    Line(LogLine),
    /// A report that cannot be read, for the first time.
    Unreadable(Channel, ReportError),
}

/// Where a machine that has answered stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// Its state.
    pub state: State,
    /// How much of that is done, in percent.
    pub percent: Option<u8>,
    /// How far the fetch is, while it fetches.
    pub fetch: Option<FetchProgress>,
    /// How fast it fetches, in bytes a second.
    pub rate: Option<u64>,
}

impl Step {
    fn new(state: State, said: &Said) -> Self {
        let fetch = said.fetch.filter(|_| state == State::Fetching);
        Self {
            state,
            percent: said.progress.or_else(|| percent(&fetch?)),
            fetch,
            rate: said.rate,
        }
    }
}

/// How much has come, in percent; none before it is known how much will.
fn percent(fetch: &FetchProgress) -> Option<u8> {
    let share = u128::from(fetch.fetched_bytes) * 100 / u128::from(fetch.fetch_bytes).max(1);
    u8::try_from(share.min(100))
        .ok()
        .filter(|_| fetch.fetch_bytes > 0)
}

/// Where a machine stands, to be shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Its batch has not come.
    Queued,
    /// Its deployment is not yet on its topic.
    Publishing,
    /// Its deployment is there, and it has not answered.
    Published,
    /// It is offline.
    Away,
    /// It has answered.
    Reported(Step),
    /// It has ended.
    Ended(Outcome),
}

/// How far the publishing is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Published {
    /// So many deployments are on their topic, or a newer one is.
    pub there: usize,
    /// So many will not get there.
    pub refused: usize,
    /// So many there are.
    pub of: usize,
    /// Whether somebody else has published all of them, so that nothing is to be said of it.
    pub by_others: bool,
}

impl Published {
    /// Whether nothing is left to publish.
    #[must_use]
    pub const fn is_over(self) -> bool {
        self.there + self.refused >= self.of
    }
}

/// One machine of a run, to be shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outlook<'a> {
    /// Which one.
    pub agent: &'a AgentName,
    /// With which batch of a rollout it comes, counted from 0.
    pub batch: u16,
    /// Where it stands.
    pub phase: Phase,
    /// What it says of that.
    pub message: String,
}

struct Member {
    signed: Signed,
    /// With which batch it comes, counted from 0.
    batch: u16,
    delivery: Delivery,
    watch: Watch,
    unreadable: bool,
    /// The digest of what lay on its topic when the run began.
    before: Option<Text<64>>,
    /// Something else lies there since, which nobody known here signed.
    replaced: bool,
    /// Since when it says that its deployment was cancelled.
    cancelled_since: Option<Duration>,
}

/// One run: some signed deployments, published and followed together.
///
/// Every `now` is the time since the run began, `wall` this computer's clock.
pub struct Run {
    members: Vec<Member>,
    numbers: HashMap<AgentName, usize>,
    /// The last batch that has come.
    released: u16,
    trusted: TrustedKeys,
    /// Whom to wait for; none when the run is over once all is published.
    wait: Option<Wait>,
    connected: bool,
    hold_until: Duration,
    reading_back: bool,
    quiet_since: Duration,
    /// How much may be on its way: all at once where that works, one by one after the broker has closed the
    /// connection on something, to find out on what.
    window: usize,
    accepted_any: bool,
    /// See [`Run::picked_up`].
    picked_up: bool,
    /// What its deployments are called together.
    rollout: Option<Uuid>,
    cancelled: Option<Cancelled>,
}

impl Run {
    /// A run on a connection that is up and subscribed. `trusted` tells other publishers' deployments
    /// from junk.
    #[must_use]
    pub fn new(deployments: Vec<Signed>, trusted: TrustedKeys, wait: Option<Wait>) -> Self {
        Self::with(deployments, trusted, wait, &Delivery::default())
    }

    /// The same for deployments that are on their topics already, whoever published them: they are followed, and
    /// nothing is published.
    #[must_use]
    pub fn picked_up(deployments: Vec<Signed>, trusted: TrustedKeys, wait: Wait) -> Self {
        Self {
            picked_up: true,
            ..Self::with(deployments, trusted, Some(wait), &Delivery::picked_up())
        }
    }

    fn with(
        deployments: Vec<Signed>,
        trusted: TrustedKeys,
        wait: Option<Wait>,
        delivery: &Delivery,
    ) -> Self {
        let members: Vec<Member> = deployments
            .into_iter()
            .map(|signed| Member {
                delivery: delivery.clone(),
                watch: Watch::new(signed.order, signed.digest.clone(), signed.expires)
                    .that_holds(signed.hold.is_asked_for()),
                unreadable: false,
                before: None,
                replaced: false,
                cancelled_since: None,
                batch: 0,
                signed,
            })
            .collect();
        let numbers = members
            .iter()
            .enumerate()
            .map(|(n, member)| (member.signed.machine.agent.clone(), n))
            .collect();
        Self {
            members,
            numbers,
            released: 0,
            trusted,
            wait,
            connected: true,
            hold_until: Duration::ZERO,
            reading_back: false,
            quiet_since: Duration::ZERO,
            window: WINDOW,
            accepted_any: false,
            picked_up: false,
            rollout: None,
            cancelled: None,
        }
    }

    /// The same as the rollout `id`: a deployment of that which is not of this run cancels it.
    #[must_use]
    pub fn of_rollout(self, id: Option<Uuid>) -> Self {
        Self {
            rollout: id,
            ..self
        }
    }

    /// Who has cancelled the rollout.
    #[must_use]
    pub const fn cancelled(&self) -> Option<&Cancelled> {
        self.cancelled.as_ref()
    }

    /// What has not been published is not any more, as if its batch had not come.
    pub fn halt(&mut self) {
        for member in &mut self.members {
            if !member.delivery.was_published() {
                member.batch = u16::MAX;
            }
        }
    }

    /// Puts the machine with this number into a batch other than the first, to be published when that comes.
    pub fn put_off(&mut self, number: usize, batch: u16) {
        self.members[number].batch = batch;
    }

    /// The batches up to this one have come.
    pub fn release(&mut self, batch: u16, now: Duration) {
        for member in &mut self.members {
            if member.batch > self.released && member.batch <= batch {
                member.watch.begins(now);
            }
        }
        self.released = self.released.max(batch);
    }

    /// The machines whose batch has come.
    fn begun(&self) -> impl Iterator<Item = &Member> {
        let released = self.released;
        (self.members.iter()).filter(move |member| member.batch <= released)
    }

    /// How the machines whose batch has come stand, for who decides about the next one.
    #[must_use]
    pub fn tally(&self, now: Duration, wall: Timestamp) -> Tally {
        let mut tally = Tally::default();
        for member in self.begun() {
            tally.add(self.judge(member, now, wall));
        }
        tally
    }

    fn judge(&self, member: &Member, now: Duration, wall: Timestamp) -> Judged {
        if member.refusal().is_some() {
            return Judged::Bad;
        }
        if !member.is_settled() {
            return Judged::Open;
        }
        let Some(wait) = self.wait else {
            return Judged::Good;
        };
        match member.watch.verdict(wait, now, wall) {
            Verdict::Pending => Judged::Open,
            Verdict::Away | Verdict::Held => Judged::Neither,
            // Whether the whole rollout is cancelled says the deployment that did it, which may be on its way here.
            Verdict::Ended(end) if end.outcome == Outcome::Cancelled => {
                let since = member.cancelled_since.unwrap_or(now);
                let is_known = matches!(member.delivery.stage(), Stage::Overtaken(_));
                match is_known || now.saturating_sub(since) >= NEWER_GRACE {
                    true => Judged::Neither,
                    false => Judged::Open,
                }
            }
            Verdict::Ended(end) => Judged::of(end.outcome, member.watch.is_lost(now)),
        }
    }

    /// The deployments that machines run by now because of this run, to be taken back, and whether each machine is
    /// connected.
    pub fn moved(&self) -> impl Iterator<Item = (&Signed, Option<Presence>)> {
        let moved = |member: &&Member| member.watch.has_moved();
        self.begun()
            .filter(moved)
            .map(|member| (&member.signed, member.watch.presence()))
    }

    /// Takes what was known of a machine when the run began.
    pub fn knows(&mut self, agent: &AgentName, seen: &Seen) {
        let Some(number) = self.numbers.get(agent) else {
            return;
        };
        let member = &mut self.members[*number];
        member.before = seen.deploy.as_deref().map(digest);
        let watch = &mut member.watch;
        if let Some(presence) = seen.presence {
            watch.saw_presence(presence, Duration::ZERO);
        }
        if let Some(status) = &seen.status {
            watch.saw_status(status, Duration::ZERO);
        }
        if let Some(history) = &seen.history {
            watch.saw_history(history);
        }
    }

    /// The deployment of the machine with this number.
    #[must_use]
    pub fn deployment(&self, number: usize) -> &Signed {
        &self.members[number].signed
    }

    /// What is to be done now, to be done in order.
    pub fn actions(&mut self, now: Duration) -> Vec<Action> {
        if !self.connected || now < self.hold_until {
            return Vec::new();
        }
        self.give_up_when_hopeless();
        let mut actions = Vec::new();
        let mut on_the_way = self.count(|stage| *stage == Stage::Sent);
        let mut unsent = false;
        let released = self.released;
        let begun = |member: &&mut Member| member.batch <= released;
        let members = self.members.iter_mut().enumerate();
        for (number, member) in members.filter(|(_, member)| begun(member)) {
            member.delivery.tick(now, self.quiet_since);
            if member.lost_to_unknown() {
                member.watch.overtaken_by_unknown(now);
            }
            if *member.delivery.stage() != Stage::Queued {
                continue;
            }
            if on_the_way < self.window {
                member.delivery.sent();
                on_the_way += 1;
                actions.push(Action::Publish(number));
            } else {
                unsent = true;
            }
        }
        if on_the_way == 0 && !unsent && !self.reading_back {
            let mut agents = Vec::new();
            for member in &mut self.members {
                if *member.delivery.stage() == Stage::Acknowledged {
                    member.delivery.requested();
                    agents.push(member.signed.machine.agent.clone());
                }
            }
            if !agents.is_empty() {
                self.reading_back = true;
                actions.push(Action::ReadBack(agents));
            }
        }
        actions
    }

    /// The broker acknowledged the deployment of the machine with this number.
    pub fn acknowledged(&mut self, number: usize) {
        if let Some(member) = self.members.get_mut(number) {
            member.delivery.acknowledged();
            self.accepted_any = true;
            self.window = (self.window + 1).min(WINDOW);
        }
    }

    /// The broker granted the subscription that reads back.
    pub fn granted(&mut self, now: Duration) {
        self.reading_back = false;
        self.quiet_since = now;
        for member in &mut self.members {
            member.delivery.granted(now);
        }
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.reading_back = false;
        let on_the_way = self.count(|stage| *stage == Stage::Sent);
        if on_the_way > 0 {
            self.window = 1;
        }
        for member in &mut self.members {
            member.delivery.disconnected(on_the_way == 1);
        }
    }

    /// There is a new connection, and everything is subscribed to on it.
    ///
    /// What is retained comes right after. Where the broker may have closed the last connection because of a
    /// newer deployment, that is waited for, or the same would happen again.
    pub fn connected(&mut self, now: Duration) {
        self.connected = true;
        self.hold_until = if self.window < WINDOW {
            now + HOLD
        } else {
            now
        };
    }

    /// A message was seen; `retained` when it was there before the subscription.
    pub fn saw(
        &mut self,
        topic: &Topic,
        payload: &[u8],
        retained: bool,
        now: Duration,
    ) -> Option<Heard> {
        let number = *self.numbers.get(&topic.machine.agent)?;
        let member = &mut self.members[number];
        if topic.machine != member.signed.machine {
            return None;
        }
        let unreadable = match topic.channel {
            Channel::Deploy => {
                if retained {
                    self.quiet_since = now;
                }
                let (found, newer) = found(&member.signed, &self.trusted, payload);
                if let Some(newer) = newer {
                    member.watch.overtaken(newer.id(), now);
                    let rollout = newer.parts().provenance.rollout.map(|rollout| rollout.id);
                    if rollout.is_some() && rollout == self.rollout {
                        self.cancelled.get_or_insert_with(|| Cancelled::new(&newer));
                    }
                }
                if matches!(found, Found::Unknown(_)) {
                    member.replaced = member.before != Some(digest(payload));
                }
                member.delivery.saw(&found, retained);
                return None;
            }
            Channel::Presence => {
                let presence = Presence::from_payload(payload)?;
                member.watch.saw_presence(presence, now);
                return None;
            }
            Channel::Status => match Status::from_json(payload, &topic.machine) {
                Ok(status) => {
                    member.watch.saw_status(&status, now);
                    member.note_cancelled(now);
                    return None;
                }
                Err(error) => error,
            },
            // An emptied history says nothing.
            Channel::History if payload.is_empty() => return None,
            Channel::History => match History::from_json(payload, &topic.machine) {
                Ok(history) => {
                    member.watch.saw_history(&history);
                    member.note_cancelled(now);
                    return None;
                }
                Err(error) => error,
            },
            Channel::Log => match LogLine::from_json(payload) {
                Ok(line) if line.id == member.signed.order.id => return Some(Heard::Line(line)),
                Ok(_) => return None,
                Err(error) => error,
            },
            Channel::Echo => return None,
        };
        if payload.is_empty() || std::mem::replace(&mut member.unreadable, true) {
            return None;
        }
        Some(Heard::Unreadable(topic.channel, unreadable))
    }

    /// How far the publishing is.
    #[must_use]
    pub fn published(&self) -> Published {
        let settled = self.begun().filter(|member| member.is_settled());
        let (refused, there): (Vec<_>, Vec<_>) =
            settled.partition(|member| member.refusal().is_some());
        Published {
            there: there.len(),
            refused: refused.len(),
            of: self.begun().count(),
            by_others: self.picked_up,
        }
    }

    /// Whether there is nothing left to wait for of the batches that have come.
    #[must_use]
    pub fn is_over(&self, now: Duration, wall: Timestamp) -> bool {
        self.begun().all(|member| {
            member.is_settled()
                && (member.refusal().is_some()
                    || self.wait.is_none_or(|wait| {
                        member.watch.verdict(wait, now, wall) != Verdict::Pending
                    }))
        })
    }

    /// Every machine as it stands now.
    pub fn outlook(&self, now: Duration, wall: Timestamp) -> impl Iterator<Item = Outlook<'_>> {
        let wait = self.wait.unwrap_or(Wait::Online);
        self.members.iter().map(move |member| {
            let said = member.watch.said();
            let (phase, message) = match (member.watch.verdict(wait, now, wall), said.state) {
                _ if member.refusal().is_some() => {
                    (Phase::Ended(Outcome::NotPublished), String::new())
                }
                _ if member.batch > self.released && !member.watch.is_overtaken() => {
                    (Phase::Queued, String::new())
                }
                _ if self.wait.is_none() && *member.delivery.stage() == Stage::Stands => {
                    (Phase::Ended(Outcome::Published), String::new())
                }
                (Verdict::Ended(end), _) => (Phase::Ended(end.outcome), end.message.to_string()),
                (_, Some(state)) => (
                    Phase::Reported(Step::new(state, said)),
                    said.held
                        .clone()
                        .unwrap_or_else(|| said.message.to_string()),
                ),
                _ if !member.is_settled() => (Phase::Publishing, String::new()),
                (Verdict::Away, None) => (Phase::Away, String::new()),
                (Verdict::Pending | Verdict::Held, None) => (
                    match member.watch.presence() {
                        Some(Presence::Online) => Phase::Published,
                        Some(Presence::Offline) | None => Phase::Away,
                    },
                    String::new(),
                ),
            };
            Outlook {
                agent: &member.signed.machine.agent,
                batch: member.batch,
                phase,
                message,
            }
        })
    }

    /// How it ended for each machine, when nobody waits any longer.
    pub fn ends(
        &self,
        now: Duration,
        wall: Timestamp,
    ) -> impl Iterator<Item = (&Signed, End, &Said)> {
        self.members.iter().map(move |member| {
            let end = match (member.refusal(), self.wait) {
                (Some(refusal), _) => End::new(Outcome::NotPublished, &refusal.to_string()),
                (None, _) if member.batch > self.released && !member.watch.is_overtaken() => {
                    let why = match self.cancelled {
                        None => "the rollout ended before its batch came",
                        Some(_) => "the rollout was cancelled before its batch came",
                    };
                    End::new(Outcome::NotBegun, why)
                }
                (None, _) if !member.is_settled() => End::new(
                    Outcome::NotPublished,
                    "the time was up before the broker showed it on its topic",
                ),
                (None, None) if member.watch.is_overtaken() => member.watch.given_up(),
                (None, None) => End::new(Outcome::Published, ""),
                (None, Some(wait)) => match member.watch.verdict(wait, now, wall) {
                    Verdict::Ended(end) => end,
                    Verdict::Pending | Verdict::Away | Verdict::Held => member.watch.given_up(),
                },
            };
            (&member.signed, end, member.watch.said())
        })
    }

    fn count(&self, of: impl Fn(&Stage) -> bool) -> usize {
        self.members
            .iter()
            .filter(|member| of(member.delivery.stage()))
            .count()
    }

    /// With a wrong key every machine is refused: four attempts for each of a thousand would take hours.
    fn give_up_when_hopeless(&mut self) {
        let closed = self.count(|stage| *stage == Stage::Refused(Refusal::Closed));
        if self.accepted_any || closed < HOPELESS {
            return;
        }
        for member in &mut self.members {
            if *member.delivery.stage() == Stage::Queued {
                member.delivery.refuse(Refusal::LikeOthers);
            }
        }
    }
}

impl Member {
    fn note_cancelled(&mut self, now: Duration) {
        if self.watch.says_cancelled() {
            self.cancelled_since.get_or_insert(now);
        }
    }

    /// Whether its deployment is where it shall be, or known not to get there.
    ///
    /// A machine that answers has it, whatever the broker shows.
    fn is_settled(&self) -> bool {
        match self.delivery.stage() {
            Stage::Stands | Stage::Overtaken(_) | Stage::Refused(_) => true,
            Stage::Queued
            | Stage::Sent
            | Stage::Acknowledged
            | Stage::Requested
            | Stage::Awaited { .. } => self.watch.has_answered(),
        }
    }

    /// Why its deployment did not get there, unless the machine has it all the same, or a newer one.
    fn refusal(&self) -> Option<&Refusal> {
        match self.delivery.stage() {
            Stage::Refused(refusal) if !self.watch.has_answered() && !self.watch.is_overtaken() => {
                Some(refusal)
            }
            _ => None,
        }
    }

    /// Whether the broker refuses it, and holds something else than when the run began, which nobody known here
    /// signed: a broker that verifies what is published keeps what is newer.
    fn lost_to_unknown(&self) -> bool {
        let refused = matches!(
            self.delivery.stage(),
            Stage::Refused(Refusal::Closed | Refusal::LikeOthers)
        );
        refused && self.replaced
    }
}

/// What lies on the topic of a machine, and the deployment when it is a newer one.
fn found(ours: &Signed, trusted: &TrustedKeys, payload: &[u8]) -> (Found, Option<Deployment>) {
    if payload == ours.envelope {
        return (Found::Ours, None);
    }
    if payload.is_empty() {
        return (Found::Cleared, None);
    }
    match trusted.verify(payload, &ours.machine) {
        Ok(other) if other.deployment().order() > ours.order => {
            let other = other.deployment().clone();
            (Found::Newer(other.order()), Some(other))
        }
        Ok(other) => (Found::Older(other.deployment().id()), None),
        Err(error) => (Found::Unknown(error.to_string()), None),
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
