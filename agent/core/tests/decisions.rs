//! What the core decides, one decision at a time.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::time::Duration;

use hoist_agent_core::{
    Agent, Config, Effect, Facts, FetchFailure, FoundJob, HISTORY, Input, JobEnd, JobPhase, KNOWN,
    Ledger, Moment, Offer, Origin, Realised,
};
use hoist_protocol::limits::SEQUENCE_AHEAD_MS;
use hoist_protocol::{
    AgentName, Deployment, DeploymentId, DeploymentParts, FetchProgress, FleetName, Goal, KeyName,
    Machine, Order, Provenance, Reason, RollbackTo, SigningKey, State, Status, StorePath, System,
    Target, Text, Timestamp, TrustedKeys, digest, sign,
};
use uuid::Uuid;

const NOW: u64 = 1_795_000_000_000;
const HOUR: u64 = 60 * 60 * 1_000;

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new(name).unwrap(), &[seed; 32].into())
}

fn machine() -> Machine {
    Machine::new(
        FleetName::new("prod").unwrap(),
        AgentName::new("web-1").unwrap(),
    )
}

fn path(name: &str) -> StorePath {
    StorePath::new(format!(
        "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}"
    ))
    .unwrap()
}

fn id(n: u64) -> DeploymentId {
    DeploymentId::new(Uuid::from_u128(u128::from(n)))
}

fn order(n: u64) -> Order {
    Order {
        epoch: 0,
        sequence: NOW + n,
        id: id(n),
    }
}

/// The `n`th deployment, of a closure of its own.
fn parts(n: u64) -> DeploymentParts {
    DeploymentParts {
        machine: machine(),
        order: order(n),
        issued: Timestamp::from_ms(NOW),
        expires: Timestamp::from_ms(NOW + 24 * HOUR),
        target: Target::new(Goal::Closure(path(&format!("v{n}")))),
        held: false,
        cancels: None,
        provenance: Provenance::default(),
    }
}

fn trusted() -> TrustedKeys {
    let (ci, admin) = (key("ci", 1).public(), key("admin", 2).public());
    TrustedKeys::with_policy(vec![ci, admin.clone()], 1, vec![admin]).unwrap()
}

fn signed_by(parts: DeploymentParts, key: SigningKey) -> Input {
    let signed = sign(&Deployment::new(parts).unwrap(), &[key]).unwrap();
    let deployment = trusted().verify(&signed, &machine()).unwrap();
    Input::Offered(Box::new(Offer { deployment, signed }))
}

fn signed(parts: DeploymentParts) -> Input {
    signed_by(parts, key("ci", 1))
}

fn deployment(n: u64) -> Input {
    signed(parts(n))
}

/// An agent, its clock, and the last ledger that it wanted to be durable.
struct TestAgent {
    agent: Agent,
    moment: Moment,
    disk: Ledger,
}

impl TestAgent {
    fn new() -> Self {
        Self::from(Ledger::default(), trusted(), Vec::new()).0
    }

    fn from(ledger: Ledger, trusted: TrustedKeys, jobs: Vec<FoundJob>) -> (Self, Vec<Effect>) {
        let config = Config {
            machine: machine(),
            system: System::new("x86_64-linux").unwrap(),
            trusted,
            version: Text::lossy("0.1.0"),
            session: Text::lossy("test"),
            tags: Vec::new(),
            boot_id: Text::lossy("boot-1"),
        };
        let moment = Moment {
            now: Timestamp::from_ms(NOW + HOUR),
            synchronised: true,
            uptime: Duration::ZERO,
            facts: running("v0"),
            warnings: Vec::new(),
        };
        let mut agent = Self {
            agent: Agent::new(config, ledger.clone()),
            moment,
            disk: ledger,
        };
        let effects = agent.input(Input::Started(jobs));
        (agent, effects)
    }

    fn input(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.agent.handle(&self.moment, input);
        for effect in &effects {
            if let Effect::Persist(ledger) = effect {
                self.disk = (**ledger).clone();
            }
        }
        effects
    }

    fn fetched(&mut self, n: u64) -> Vec<Effect> {
        let result = Ok(Realised {
            closure_size: Some(7),
            kind: None,
            fetched: FetchProgress::default(),
            changes: None,
            facts: self.moment.facts.clone(),
        });
        self.input(Input::Fetched { id: id(n), result })
    }

    fn fetch_failed(&mut self, n: u64, reason: Reason) -> Vec<Effect> {
        let message = Text::lossy("no luck");
        let result = Err(FetchFailure { reason, message });
        self.input(Input::Fetched { id: id(n), result })
    }

    fn ended(&mut self, n: u64, state: State) -> Vec<Effect> {
        let end = Box::new(end(state));
        self.input(Input::JobEnded { id: id(n), end })
    }

    /// Deployment `n` from its arrival to its good end.
    fn succeed(&mut self, n: u64) {
        self.input(deployment(n));
        self.fetched(n);
        self.ended(n, State::Succeeded);
    }

    fn status(&self) -> Status {
        self.agent.status(&self.moment)
    }

    fn outcome(&self, n: u64) -> Option<State> {
        let mut history = self.disk.history.iter().map(|record| &record.entry);
        history.find(|entry| entry.id == id(n)).map(|e| e.state)
    }
}

fn running(name: &str) -> Facts {
    Facts {
        current: Some(path(name)),
        profile: Some(path(name)),
        ..Facts::default()
    }
}

fn end(state: State) -> JobEnd {
    JobEnd {
        state,
        reason: None,
        message: Text::default(),
        kind: None,
        boot_id: Some(Text::lossy("boot-1")),
        previous: Some(path("v0")),
        log_lines: 2,
        log_tail: vec![Text::lossy("a line")],
    }
}

/// The effects by name, without reports.
fn deeds(effects: &[Effect]) -> Vec<&'static str> {
    let names = effects.iter().map(|effect| match effect {
        Effect::Persist(_) => "persist",
        Effect::Fetch(_) => "fetch",
        Effect::CancelFetch(_) => "cancel fetch",
        Effect::CreateJob(_) => "create job",
        Effect::StartActivator(_) => "start activator",
        Effect::ReachBroker(_) => "reach broker",
        Effect::Confirm(_) => "confirm",
        Effect::Forget(_) => "forget",
        Effect::Answer { .. } => "answer",
        Effect::Report(_) | Effect::ReportHistory { .. } => "",
    });
    names.filter(|name| !name.is_empty()).collect()
}

fn reported(effects: &[Effect]) -> Vec<(State, Option<DeploymentId>)> {
    let reports = effects.iter().filter_map(|effect| match effect {
        Effect::Report(status) => Some((status.state, status.id)),
        _ => None,
    });
    reports.collect()
}

fn refused(agent: &TestAgent) -> Option<Reason> {
    agent.status().refused.map(|refused| refused.refused_reason)
}

#[test]
fn a_deployment_goes_from_its_arrival_to_its_outcome() {
    let mut agent = TestAgent::new();
    assert_eq!(deeds(&agent.input(deployment(1))), ["persist", "fetch"]);
    assert_eq!(
        deeds(&agent.fetched(1)),
        ["create job", "start activator", "persist"]
    );
    let phase = |phase| Input::JobPhase { id: id(1), phase };
    assert!(deeds(&agent.input(phase(JobPhase::Checking))).is_empty());
    assert_eq!(
        deeds(&agent.input(phase(JobPhase::Confirming))),
        ["reach broker"]
    );
    assert_eq!(agent.status().state, State::Confirming);
    assert_eq!(
        deeds(&agent.input(Input::BrokerReached { id: id(1) })),
        ["confirm"]
    );
    assert_eq!(
        deeds(&agent.ended(1, State::Succeeded)),
        ["persist", "forget"]
    );
    let status = agent.status();
    assert_eq!(
        (status.state, status.path),
        (State::Succeeded, Some(path("v1")))
    );
    assert_eq!((status.log_lines, status.closure_size), (Some(2), Some(7)));
}

#[test]
fn a_replayed_deployment_is_refused() {
    let mut agent = TestAgent::new();
    agent.succeed(8);
    let effects = agent.input(deployment(7));
    assert!(deeds(&effects).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
    assert_eq!(reported(&effects), [(State::Succeeded, Some(id(8)))]);
}

#[test]
fn the_same_deployment_again_does_nothing() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    assert!(agent.input(deployment(1)).is_empty());
    agent.fetch_failed(1, Reason::MissingPath);
    // Not even when it failed: a path that failed is not tried in a loop.
    assert!(agent.input(deployment(1)).is_empty());
}

#[test]
fn another_deployment_with_the_same_order_is_refused() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let mut twin = parts(1);
    twin.target = Target::new(Goal::Closure(path("evil")));
    assert!(deeds(&agent.input(signed(twin))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
}

#[test]
fn an_id_is_never_used_twice() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let mut again = parts(2);
    again.order.id = id(1);
    assert!(deeds(&agent.input(signed(again))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
}

#[test]
fn an_expired_deployment_raises_the_floor_and_is_not_carried_out() {
    let mut agent = TestAgent::new();
    agent.moment.now = Timestamp::from_ms(NOW + 24 * HOUR);
    assert_eq!(deeds(&agent.input(deployment(5))), ["persist"]);
    assert_eq!(agent.outcome(5), Some(State::Expired));
    agent.moment.now = Timestamp::from_ms(NOW + HOUR);
    assert!(deeds(&agent.input(deployment(4))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::Stale));
}

#[test]
fn a_deployment_that_expires_while_it_is_fetched_is_not_activated() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.moment.now = Timestamp::from_ms(NOW + 25 * HOUR);
    assert_eq!(deeds(&agent.fetched(1)), ["persist", "forget"]);
    assert_eq!(agent.outcome(1), Some(State::Expired));
}

#[test]
fn a_sequence_far_ahead_is_refused_and_leaves_the_floor_alone() {
    let mut agent = TestAgent::new();
    let ahead = || {
        let mut parts = parts(1);
        parts.order.sequence = NOW + HOUR + SEQUENCE_AHEAD_MS + 1;
        signed(parts)
    };
    assert!(deeds(&agent.input(ahead())).is_empty());
    assert_eq!(refused(&agent), Some(Reason::TooFarAhead));
    assert_eq!(agent.status().floor, 0);
    // A clock that nobody keeps right proves nothing.
    agent.moment.synchronised = false;
    assert_eq!(deeds(&agent.input(ahead())), ["persist", "fetch"]);
}

#[test]
fn only_a_key_that_may_raises_the_epoch() {
    let mut agent = TestAgent::new();
    let raised = || {
        let mut parts = parts(1);
        parts.order.epoch = 1;
        parts
    };
    assert!(deeds(&agent.input(signed(raised()))).is_empty());
    assert_eq!(refused(&agent), Some(Reason::EpochNotAllowed));
    let allowed = signed_by(raised(), key("admin", 2));
    assert_eq!(deeds(&agent.input(allowed)), ["persist", "fetch"]);
    assert_eq!(agent.status().floor_epoch, 1);
}

#[test]
fn what_nobody_trusted_signed_changes_nothing_but_the_report() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let error = trusted().verify(b"junk", &machine()).unwrap_err();
    let unverified = || Input::Unverified {
        error: error.clone(),
        digest: digest(b"junk"),
    };
    let before = agent.disk.clone();
    let effects = agent.input(unverified());
    assert!(deeds(&effects).is_empty());
    assert_eq!(reported(&effects), [(State::Succeeded, Some(id(1)))]);
    assert_eq!(refused(&agent), Some(Reason::Unverified));
    // It comes again at every connection, and is old news then.
    assert!(agent.input(unverified()).is_empty());
    assert_eq!(agent.disk, before);
}

#[test]
fn a_newer_deployment_cancels_the_fetch_of_the_older_one() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let effects = agent.input(deployment(2));
    assert_eq!(
        deeds(&effects),
        ["persist", "cancel fetch", "forget", "fetch"]
    );
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    // The cancelled fetch may still answer.
    assert!(agent.fetched(1).is_empty());
    assert_eq!(agent.status().id, Some(id(2)));
}

#[test]
fn a_newer_deployment_waits_for_the_end_of_an_activation() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let effects = agent.input(deployment(2));
    assert_eq!(deeds(&effects), ["persist"]);
    assert_eq!(reported(&effects), [(State::Waiting, Some(id(2)))]);
    // Of those that wait, only the newest is taken.
    agent.input(deployment(3));
    assert_eq!(agent.outcome(2), Some(State::Superseded));
    let effects = agent.ended(1, State::RolledBack);
    assert_eq!(deeds(&effects), ["persist", "forget", "fetch"]);
    assert_eq!(agent.outcome(1), Some(State::RolledBack));
    assert_eq!(agent.status().id, Some(id(3)));
}

#[test]
fn a_newer_deployment_that_expired_still_supersedes_the_older_one() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let mut expired = parts(2);
    expired.expires = Timestamp::from_ms(NOW + 1);
    assert_eq!(
        deeds(&agent.input(signed(expired))),
        ["persist", "cancel fetch", "forget"]
    );
    assert_eq!(agent.outcome(1), Some(State::Superseded));
    assert_eq!(agent.outcome(2), Some(State::Expired));
    assert_eq!(agent.status().id, Some(id(2)));
}

#[test]
fn what_runs_already_is_unchanged() {
    let mut agent = TestAgent::new();
    agent.moment.facts = running("v1");
    agent.input(deployment(1));
    assert_eq!(deeds(&agent.fetched(1)), ["persist", "forget"]);
    assert_eq!(agent.outcome(1), Some(State::Unchanged));
    // What runs but is not what the profile names would be gone after the next boot.
    agent.moment.facts = running("v2");
    agent.moment.facts.profile = Some(path("v1"));
    agent.input(deployment(2));
    assert_eq!(
        deeds(&agent.fetched(2)),
        ["create job", "start activator", "persist"]
    );
}

#[test]
fn a_rollback_goes_to_what_the_machine_itself_ran() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.succeed(2);
    for (n, to, expected) in [
        (3, RollbackTo::Deployment(id(1)), path("v1")),
        (4, RollbackTo::Before(id(2)), path("v0")),
    ] {
        let mut rollback = parts(n);
        rollback.target = Target::new(Goal::Rollback(to));
        let effects = agent.input(signed(rollback));
        let fetch = effects.iter().find_map(|effect| match effect {
            Effect::Fetch(fetch) => Some(fetch.path.clone()),
            _ => None,
        });
        assert_eq!(fetch, Some(expected));
        agent.fetch_failed(n, Reason::MissingPath);
    }
}

#[test]
fn a_rollback_to_what_did_not_end_well_is_rejected() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    agent.ended(1, State::RolledBack);
    for (n, of) in [(2, 1), (3, 77)] {
        let mut rollback = parts(n);
        rollback.target = Target::new(Goal::Rollback(RollbackTo::Deployment(id(of))));
        assert_eq!(deeds(&agent.input(signed(rollback))), ["persist"]);
        assert_eq!(agent.outcome(n), Some(State::Rejected));
        assert_eq!(agent.status().reason, Some(Reason::UnknownDeployment));
    }
}

#[test]
fn a_fetch_that_may_work_later_is_tried_three_times() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    for wait in [3, 6] {
        assert!(deeds(&agent.fetch_failed(1, Reason::FetchFailed)).is_empty());
        assert_eq!(
            agent.agent.wake_at(),
            Some(agent.moment.uptime + Duration::from_secs(wait))
        );
        assert!(agent.input(Input::Tick).is_empty(), "too early");
        agent.moment.uptime += Duration::from_secs(wait);
        assert_eq!(deeds(&agent.input(Input::Tick)), ["fetch"]);
        assert_eq!(agent.agent.wake_at(), None);
    }
    assert_eq!(
        deeds(&agent.fetch_failed(1, Reason::FetchFailed)),
        ["persist", "forget"]
    );
    assert_eq!(agent.outcome(1), Some(State::Failed));
}

#[test]
fn progress_is_reported_once_a_second_at_most() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let mut reports = 0;
    for n in 0..50 {
        agent.moment.uptime = Duration::from_millis(n * 100);
        let progress = FetchProgress {
            fetched_bytes: n,
            fetch_bytes: 100,
            ..FetchProgress::default()
        };
        reports += agent
            .input(Input::FetchProgress {
                id: id(1),
                progress,
            })
            .len();
    }
    assert_eq!(reports, 4);
    assert_eq!(agent.status().progress, Some(49));
}

#[test]
fn a_crash_while_fetching_fetches_again() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let (again, effects) = TestAgent::from(agent.disk, trusted(), Vec::new());
    assert_eq!(deeds(&effects), ["persist", "fetch"]);
    assert_eq!(again.status().attempts, 2);
}

#[test]
fn a_deployment_that_the_agent_never_survives_is_given_up() {
    let mut disk = {
        let mut agent = TestAgent::new();
        agent.input(deployment(1));
        agent.disk
    };
    for _ in 0..30 {
        disk = TestAgent::from(disk, trusted(), Vec::new()).0.disk;
    }
    let (agent, effects) = TestAgent::from(disk, trusted(), Vec::new());
    assert!(deeds(&effects).is_empty());
    assert_eq!(agent.outcome(1), Some(State::Failed));
}

#[test]
fn a_key_that_was_withdrawn_while_the_agent_was_down_counts_no_more() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let other = TrustedKeys::new(vec![key("new", 9).public()]).unwrap();
    let (agent, effects) = TestAgent::from(agent.disk, other, Vec::new());
    assert_eq!(deeds(&effects), ["persist"]);
    assert_eq!(agent.outcome(1), Some(State::Rejected));
    assert_eq!(agent.status().reason, Some(Reason::Unverified));
}

fn found(n: u64, phase: Option<JobPhase>, alive: bool) -> FoundJob {
    FoundJob {
        order: order(n),
        origin: Origin::Publisher,
        path: path(&format!("v{n}")),
        target: parts(n).target,
        phase,
        alive,
        end: None,
    }
}

#[test]
fn a_job_found_after_a_crash_is_followed_or_recovered() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let confirming = Some(JobPhase::Confirming);
    for (job, expected) in [
        (found(1, None, false), vec!["start activator"]),
        (found(1, confirming, false), vec!["start activator"]),
        (found(1, confirming, true), vec!["reach broker"]),
        (found(1, Some(JobPhase::RollingBack), true), vec![]),
    ] {
        let (again, effects) = TestAgent::from(agent.disk.clone(), trusted(), vec![job]);
        assert_eq!(deeds(&effects), expected);
        assert_eq!(again.status().attempts, 1);
    }
    let mut job = found(1, Some(JobPhase::RollingBack), false);
    job.end = Some(end(State::RolledBack));
    let (again, effects) = TestAgent::from(agent.disk, trusted(), vec![job]);
    assert_eq!(deeds(&effects), ["persist", "forget"]);
    assert_eq!(again.outcome(1), Some(State::RolledBack));
}

#[test]
fn a_job_whose_outcome_is_known_is_only_removed() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    let (again, effects) = TestAgent::from(agent.disk, trusted(), vec![found(1, None, false)]);
    assert_eq!(deeds(&effects), ["forget"]);
    assert_eq!(again.outcome(1), Some(State::Succeeded));
}

#[test]
fn a_job_that_a_lost_ledger_forgot_is_brought_to_its_end() {
    let job = found(5, Some(JobPhase::Confirming), true);
    let (mut agent, effects) = TestAgent::from(Ledger::default(), trusted(), vec![job]);
    assert_eq!(deeds(&effects), ["persist", "reach broker"]);
    // It raised the floor, and its own deployment is known.
    assert!(agent.input(deployment(5)).is_empty());
    assert!(deeds(&agent.input(deployment(4))).is_empty());
    agent.ended(5, State::Succeeded);
    assert_eq!(agent.outcome(5), Some(State::Succeeded));
}

#[test]
fn a_dead_activator_is_started_again_without_end_but_not_in_a_loop() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    let lost = || Input::ActivatorLost {
        id: id(1),
        message: Text::lossy("gone"),
    };
    assert_eq!(deeds(&agent.input(lost())), ["start activator"]);
    let mut waits = Vec::new();
    for _ in 0..10 {
        assert!(deeds(&agent.input(lost())).is_empty());
        let at = agent.agent.wake_at().unwrap();
        waits.push((at - agent.moment.uptime).as_secs());
        agent.moment.uptime = at;
        assert_eq!(deeds(&agent.input(Input::Tick)), ["start activator"]);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
}

#[test]
fn nothing_is_confirmed_but_the_job_that_asks_for_it() {
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    agent.fetched(1);
    assert!(agent.input(Input::BrokerReached { id: id(1) }).is_empty());
    let phase = JobPhase::Confirming;
    agent.input(Input::JobPhase { id: id(1), phase });
    assert!(agent.input(Input::BrokerReached { id: id(9) }).is_empty());
    let phase = JobPhase::RollingBack;
    agent.input(Input::JobPhase { id: id(1), phase });
    assert!(agent.input(Input::BrokerReached { id: id(1) }).is_empty());
}

#[test]
fn an_outcome_is_told_until_it_is_acknowledged() {
    let told = |effects: Vec<Effect>| {
        effects
            .into_iter()
            .find_map(|effect| match effect {
                Effect::ReportHistory {
                    history,
                    undelivered,
                } => Some((history.entries.len(), undelivered)),
                _ => None,
            })
            .unwrap()
    };
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let effects = agent.fetch_failed(1, Reason::MissingPath);
    assert_eq!(told(effects), (1, vec![id(1)]));
    let (mut agent, _) = TestAgent::from(agent.disk, trusted(), Vec::new());
    assert_eq!(told(agent.input(Input::Connected)), (1, vec![id(1)]));
    assert_eq!(
        deeds(&agent.input(Input::Delivered(vec![id(1)]))),
        ["persist"]
    );
    let (mut agent, _) = TestAgent::from(agent.disk, trusted(), Vec::new());
    assert_eq!(told(agent.input(Input::Connected)), (1, Vec::new()));
}

#[test]
fn the_ledger_does_not_grow_without_end() {
    let mut agent = TestAgent::new();
    for n in 1..200 {
        agent.succeed(n);
    }
    let Ledger { history, known, .. } = &agent.disk;
    assert_eq!((history.len(), known.len()), (HISTORY, KNOWN));
    assert_eq!((history[0].entry.id, known[0].id), (id(199), id(199)));
    assert!(serde_json::to_vec(&agent.disk).unwrap().len() < 64 * 1024);
}
