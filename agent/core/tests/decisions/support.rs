//! An agent to decide things, and deployments for it.

pub(crate) use std::time::Duration;

pub(crate) use hoist_agent_core::{
    Agent, Config, Effect, Facts, FetchFailure, FoundJob, HISTORY, Input, JobEnd, JobPhase, KNOWN,
    Ledger, LocalDone, LocalOrder, LocalWhat, Moment, Offer, Origin, Realised, Told,
};
pub(crate) use hoist_protocol::limits::SEQUENCE_AHEAD_MS;
pub(crate) use hoist_protocol::{
    AgentName, Deployment, DeploymentId, DeploymentParts, FetchProgress, FleetName, Goal, Held,
    KeyName, Machine, Order, Provenance, Reason, RollbackTo, SigningKey, State, Status, StorePath,
    System, Target, Text, Timestamp, TrustedKeys, digest, sign,
};
pub(crate) use uuid::Uuid;

pub(crate) const NOW: u64 = 1_795_000_000_000;
pub(crate) const HOUR: u64 = 60 * 60 * 1_000;

pub(crate) fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new(name).unwrap(), &[seed; 32].into())
}

pub(crate) fn machine() -> Machine {
    Machine::new(
        FleetName::new("prod").unwrap(),
        AgentName::new("web-1").unwrap(),
    )
}

pub(crate) fn path(name: &str) -> StorePath {
    StorePath::new(format!(
        "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}"
    ))
    .unwrap()
}

pub(crate) fn id(n: u64) -> DeploymentId {
    DeploymentId::new(Uuid::from_u128(u128::from(n)))
}

pub(crate) fn order(n: u64) -> Order {
    Order {
        epoch: 0,
        sequence: NOW + n,
        id: id(n),
    }
}

/// The `n`th deployment, of a closure of its own.
pub(crate) fn parts(n: u64) -> DeploymentParts {
    DeploymentParts {
        machine: machine(),
        order: order(n),
        issued: Timestamp::from_ms(NOW),
        expires: Timestamp::from_ms(NOW + 24 * HOUR),
        target: Target::new(Goal::Closure(path(&format!("v{n}")))),
        held: Held::No,
        cancels: None,
        renews: None,
        provenance: Provenance::default(),
    }
}

pub(crate) fn trusted() -> TrustedKeys {
    let (ci, admin) = (key("ci", 1).public(), key("admin", 2).public());
    TrustedKeys::with_policy(vec![ci, admin.clone()], 1, vec![admin]).unwrap()
}

pub(crate) fn signed_by(parts: DeploymentParts, key: SigningKey) -> Input {
    let signed = sign(&Deployment::new(parts).unwrap(), &[key]).unwrap();
    let deployment = trusted().verify(&signed, &machine()).unwrap();
    Input::Offered(Box::new(Offer { deployment, signed }))
}

pub(crate) fn signed(parts: DeploymentParts) -> Input {
    signed_by(parts, key("ci", 1))
}

pub(crate) fn deployment(n: u64) -> Input {
    signed(parts(n))
}

/// An agent, its clock, and the last ledger that it wanted to be durable.
pub(crate) struct TestAgent {
    pub(crate) agent: Agent,
    pub(crate) moment: Moment,
    pub(crate) disk: Ledger,
}

impl TestAgent {
    pub(crate) fn new() -> Self {
        Self::from(Ledger::default(), trusted(), Vec::new()).0
    }

    pub(crate) fn from(
        ledger: Ledger,
        trusted: TrustedKeys,
        jobs: Vec<FoundJob>,
    ) -> (Self, Vec<Effect>) {
        Self::booted("boot-1", running("v0"), ledger, trusted, jobs)
    }

    /// An agent in a boot of its own.
    pub(crate) fn booted(
        boot_id: &str,
        facts: Facts,
        ledger: Ledger,
        trusted: TrustedKeys,
        jobs: Vec<FoundJob>,
    ) -> (Self, Vec<Effect>) {
        let config = Config {
            machine: machine(),
            system: System::new("x86_64-linux").unwrap(),
            trusted,
            version: Text::lossy("0.1.0"),
            session: Text::lossy("test"),
            tags: Vec::new(),
            boot_id: Text::lossy(boot_id),
        };
        let moment = Moment {
            now: Timestamp::from_ms(NOW + HOUR),
            synchronised: true,
            uptime: Duration::ZERO,
            facts,
            broker: None,
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

    pub(crate) fn input(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.agent.handle(&self.moment, input);
        for effect in &effects {
            if let Effect::Persist(ledger) = effect {
                self.disk = (**ledger).clone();
            }
        }
        effects
    }

    pub(crate) fn fetched(&mut self, n: u64) -> Vec<Effect> {
        let result = Ok(Realised {
            closure_size: Some(7),
            kind: None,
            fetched: FetchProgress::default(),
            changes: None,
            facts: self.moment.facts.clone(),
        });
        self.input(Input::Fetched { id: id(n), result })
    }

    pub(crate) fn fetch_failed(&mut self, n: u64, reason: Reason) -> Vec<Effect> {
        self.fetch_failed_after(n, reason, FetchProgress::default())
    }

    pub(crate) fn fetch_failed_after(
        &mut self,
        n: u64,
        reason: Reason,
        fetched: FetchProgress,
    ) -> Vec<Effect> {
        let result = Err(FetchFailure {
            reason,
            message: Text::lossy("no luck"),
            fetched,
        });
        self.input(Input::Fetched { id: id(n), result })
    }

    pub(crate) fn ended(&mut self, n: u64, state: State) -> Vec<Effect> {
        let end = Box::new(JobEnd {
            previous: self.moment.facts.current.clone(),
            ..end(state)
        });
        self.input(Input::JobEnded { id: id(n), end })
    }

    /// Deployment `n` from its arrival to its good end.
    pub(crate) fn succeed(&mut self, n: u64) {
        self.input(deployment(n));
        self.fetched(n);
        self.ended(n, State::Succeeded);
    }

    pub(crate) fn locally(&mut self, n: u64, what: LocalWhat) -> Vec<Effect> {
        self.input(Input::Local(LocalOrder {
            request: n,
            id: id(n),
            what,
        }))
    }

    pub(crate) fn hold(&mut self) -> Vec<Effect> {
        let (until, reason) = (None, Text::lossy("maintenance"));
        self.locally(900, LocalWhat::Hold { until, reason })
    }

    pub(crate) fn release(&mut self) -> Vec<Effect> {
        self.locally(901, LocalWhat::Release)
    }

    /// The agent dies, and another one goes on in the same boot.
    pub(crate) fn restart(&mut self) -> Vec<Effect> {
        let (mut again, effects) = Self::from(self.disk.clone(), trusted(), Vec::new());
        again.moment = self.moment.clone();
        *self = again;
        effects
    }

    pub(crate) fn status(&self) -> Status {
        self.agent.status(&self.moment)
    }

    pub(crate) fn outcome(&self, n: u64) -> Option<State> {
        let mut history = self.disk.history.iter().map(|record| &record.entry);
        history.find(|entry| entry.id == id(n)).map(|e| e.state)
    }
}

pub(crate) fn running(name: &str) -> Facts {
    Facts {
        current: Some(path(name)),
        profile: Some(path(name)),
        ..Facts::default()
    }
}

pub(crate) fn end(state: State) -> JobEnd {
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
pub(crate) fn deeds(effects: &[Effect]) -> Vec<&'static str> {
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

pub(crate) fn reported(effects: &[Effect]) -> Vec<(State, Option<DeploymentId>)> {
    let reports = effects.iter().filter_map(|effect| match effect {
        Effect::Report(status) => Some((status.state, status.id)),
        _ => None,
    });
    reports.collect()
}

pub(crate) fn refused(agent: &TestAgent) -> Option<Reason> {
    agent.status().refused.map(|refused| refused.refused_reason)
}

pub(crate) fn found(n: u64, phase: Option<JobPhase>, alive: bool) -> FoundJob {
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

/// What a local order was answered.
pub(crate) fn answer(effects: &[Effect]) -> Result<LocalDone, String> {
    let mut answers = effects.iter().filter_map(|effect| match effect {
        Effect::Answer { result, .. } => Some(result.clone()),
        _ => None,
    });
    let answer = answers.next().expect("an answer");
    answer.map_err(|message| message.to_string())
}

pub(crate) fn activate(name: &str) -> LocalWhat {
    LocalWhat::Activate(Box::new(Target::new(Goal::Closure(path(name)))))
}

pub(crate) fn told(n: u64, state: State) -> Told {
    Told { id: id(n), state }
}
