//! One random schedule of events and faults, and the quiet time after it.

use std::time::Duration;

use hoist_agent_core::{Input, LocalOrder, LocalWhat};
use hoist_protocol::{FetchProgress, Goal, Reason, State, Target, Text, Timestamp};

use crate::fleet::{LENGTH, local_id, path};
use crate::promises::Promises;
use crate::rng::Rng;
use crate::world::{After, Fate, World};

const STEPS: usize = 70;

/// How often the interesting things happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    counts: [usize; 20],
}

const COUNTED: [&str; 20] = [
    "agent killed",
    "activator killed",
    "power cut",
    "ledger lost",
    "refused",
    "succeeded",
    "unchanged",
    "rolled back",
    "failed",
    "rejected",
    "expired",
    "superseded",
    "cancelled",
    "staged",
    "dry activated",
    "ended by a boot",
    "held here",
    "held from afar",
    "ordered here",
    "refused here",
];

impl Coverage {
    fn count(&mut self, what: &str) {
        let n = COUNTED.iter().position(|counted| *counted == what).unwrap();
        self.counts[n] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, n) in self.counts.iter_mut().zip(other.counts) {
            *sum += n;
        }
    }

    pub(crate) fn assert_complete(&self) {
        for (what, n) in COUNTED.iter().zip(self.counts) {
            assert!(n >= 100, "{what} happened only {n} times");
        }
    }
}

struct Schedule {
    world: World,
    rng: Rng,
    /// How many of the fleet's deployments are published by now.
    published: usize,
    coverage: Coverage,
    /// Percent of effects before which the agent dies; some schedules are rougher than others.
    crashes: usize,
}

/// Runs the schedule of `seed`. With `tracing`, a failure comes with everything that happened.
pub(crate) fn run(seed: u64, tracing: bool) -> Result<Coverage, String> {
    let mut rng = Rng::new(seed);
    let crashes = [0, 1, 4, 12][rng.below(4)];
    let first = rng.below(6);
    let mut schedule = Schedule {
        world: World::new(tracing),
        rng,
        published: [0, 0, 12, 22, 26, 32][first],
        coverage: Coverage::default(),
        crashes,
    };
    let result = schedule.all();
    match (result, schedule.world.take_trace()) {
        (Ok(()), _) => Ok(schedule.coverage),
        (Err(broken), Some(trace)) => Err(format!("{trace}\nBROKEN: {broken}")),
        (Err(broken), None) => Err(broken),
    }
}

impl Schedule {
    fn all(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step()?;
        }
        self.world.note(|| "-- faults stop".to_owned());
        self.settle()?;
        Promises::arrived(&self.world)?;
        for (state, what) in [
            (State::Succeeded, "succeeded"),
            (State::Unchanged, "unchanged"),
            (State::RolledBack, "rolled back"),
            (State::Failed, "failed"),
            (State::Rejected, "rejected"),
            (State::Expired, "expired"),
            (State::Superseded, "superseded"),
            (State::Cancelled, "cancelled"),
            (State::Staged, "staged"),
            (State::DryActivated, "dry activated"),
        ] {
            for _ in 0..self.world.promises.count(state) {
                self.coverage.count(what);
            }
        }
        for _ in 0..self.world.promises.booted {
            self.coverage.count("ended by a boot");
        }
        Ok(())
    }

    /// Hands an input over, with faults.
    fn input(&mut self, input: Input) -> Result<(), String> {
        let (rng, crashes) = (&mut self.rng, self.crashes);
        let mut died = false;
        self.world.handle(input, || {
            if rng.chance(crashes) {
                died = true;
                After::Crash
            } else if rng.chance(crashes / 3) {
                After::Fault
            } else {
                After::GoOn
            }
        })?;
        if died {
            self.coverage.count("agent killed");
        }
        Ok(())
    }

    fn offer(&mut self, n: usize) -> Result<(), String> {
        let offer = Box::new(self.world.fleet.published[n].offer.clone());
        self.world.promises.offering = Some(n);
        let before = self.refusals();
        self.input(Input::Offered(offer))?;
        if self.refusals() != before {
            self.coverage.count("refused");
        }
        self.world.promises.offering = None;
        Ok(())
    }

    fn refusals(&self) -> Option<hoist_protocol::Refused> {
        self.world.agent.as_ref()?.ledger().refused.clone()
    }

    fn publish(&mut self) {
        // Publishers skip some, and so machines see different ones.
        self.published = (self.published + 1 + self.rng.below(3)).min(LENGTH);
        let newest = self.published - 1;
        let order = |n: usize| self.world.fleet.published[n].order();
        // Some brokers keep what came last, others what is highest.
        if self
            .world
            .retained
            .is_none_or(|held| order(held) < order(newest))
            || self.rng.chance(10)
        {
            self.world.retained = Some(newest);
        }
        self.world.note(|| format!("published {newest}"));
    }

    fn step(&mut self) -> Result<(), String> {
        if self.world.agent.is_none() {
            if self.rng.chance(60) {
                let started = self.world.start();
                return self.input(started);
            }
        } else if !self.world.connected && self.rng.chance(40) {
            self.world.connected = true;
            self.input(Input::Connected)?;
            return self.deliver_retained();
        }
        match self.rng.below(112) {
            100..107 => return self.order_locally(),
            107..110 => return self.settle_next(),
            110 => self.world.facts_known = !self.world.facts_known,
            111 => {
                // Not in the middle of anything that a crash would not interrupt as well.
                let chosen = self.rng.chance(25).then(|| path(self.rng.below(6)));
                self.world.power_cut(chosen);
                self.coverage.count("power cut");
            }
            0..8 => {
                self.publish();
                if self.world.connected && self.rng.chance(80) {
                    return self.deliver_retained();
                }
            }
            8..12 => return self.deliver_retained(),
            12..18 if self.published > 0 => {
                // A replay, a repeat, or one that was overtaken.
                let n = self.rng.below(self.published);
                return self.offer(n);
            }
            18..20 => {
                let n = self.rng.below(self.world.fleet.junk.len());
                let (error, digest) = self.world.fleet.junk[n].clone();
                return self.input(Input::Unverified { error, digest });
            }
            20..34 => {
                let failure = match self.rng.below(12) {
                    0 | 1 => Some(Reason::FetchFailed),
                    2 => Some(Reason::MissingPath),
                    _ => None,
                };
                return match self.world.fetched(failure) {
                    Some(fetched) => self.input(fetched),
                    None => Ok(()),
                };
            }
            34..37 => {
                if let Some(id) = self.world.fetch.as_ref().map(|fetch| fetch.id) {
                    let progress = FetchProgress {
                        fetched_bytes: self.rng.below(101) as u64,
                        fetch_bytes: 100,
                        ..FetchProgress::default()
                    };
                    return self.input(Input::FetchProgress { id, progress });
                }
            }
            37..58 => {
                let fate = match self.rng.below(100) {
                    0..15 => Fate::Fails,
                    15..20 => Fate::NeedsBoot,
                    _ => Fate::Good,
                };
                self.world.activator_step(fate);
            }
            58..74 => {
                if self.world.agent.is_some()
                    && let Some(seen) = self.world.poll()
                {
                    return self.input(seen);
                }
            }
            74..81 => {
                if let Some(reached) = self.world.reached() {
                    return self.input(reached);
                }
            }
            81..85 => self.world.connected = false,
            85..91 => return self.acknowledge(),
            91..93 if self.crashes > 0 => {
                self.world.kill_activator();
                self.coverage.count("activator killed");
            }
            93 if self.crashes > 0 => {
                let chosen = self.rng.chance(20).then(|| path(self.rng.below(6)));
                self.world.power_cut(chosen);
                self.coverage.count("power cut");
            }
            94 if self.crashes > 4 => {
                if self.rng.chance(20) {
                    self.world.lose_ledger();
                    self.coverage.count("ledger lost");
                }
            }
            95..97 => self.jump(),
            97..=98 => {
                if let Some(tick) = self.world.tick() {
                    return self.input(tick);
                }
            }
            _ => return self.input_if_alive(Input::Refresh),
        }
        Ok(())
    }

    /// Somebody at the machine wants something.
    fn order_locally(&mut self) -> Result<(), String> {
        if self.world.agent.is_none() {
            return Ok(());
        }
        let now = Timestamp::from_ms(self.world.now_ms);
        let what = match self.rng.below(10) {
            0..3 => LocalWhat::Hold {
                until: (self.rng.chance(50)).then(|| now.plus(Duration::from_secs(600))),
                reason: Text::default(),
            },
            3..6 => LocalWhat::Release,
            6 | 7 => LocalWhat::Rollback(None),
            _ => {
                let goal = Goal::Closure(path(self.rng.below(8)));
                LocalWhat::Activate(Box::new(Target::new(goal)))
            }
        };
        let is_hold = matches!(what, LocalWhat::Hold { .. });
        self.world.local_orders += 1;
        let n = self.world.local_orders;
        let before = self.world.promises.begun_locally();
        let is_order = matches!(what, LocalWhat::Rollback(_) | LocalWhat::Activate(_));
        self.input(Input::Local(LocalOrder {
            request: 0,
            id: local_id(n),
            what,
        }))?;
        if is_hold {
            self.coverage.count("held here");
        }
        if is_order {
            let begun = self.world.promises.begun_locally() > before;
            self.coverage.count(if begun {
                "ordered here"
            } else {
                "refused here"
            });
        }
        Ok(())
    }

    /// The time that the agent waits for comes.
    fn settle_next(&mut self) -> Result<(), String> {
        let held = self.world.status.as_ref().map(|status| status.state);
        if held == Some(State::Held) {
            self.coverage.count("held from afar");
        }
        match self.world.tick() {
            Some(tick) => self.input(tick),
            None => Ok(()),
        }
    }

    fn input_if_alive(&mut self, input: Input) -> Result<(), String> {
        match self.world.agent {
            Some(_) => self.input(input),
            None => Ok(()),
        }
    }

    fn deliver_retained(&mut self) -> Result<(), String> {
        match self.world.retained {
            Some(n) if self.world.connected => self.offer(n),
            _ => Ok(()),
        }
    }

    /// The broker acknowledges a history, or the acknowledgement is lost.
    fn acknowledge(&mut self) -> Result<(), String> {
        if self.world.unacknowledged.is_empty() {
            return Ok(());
        }
        let ids = self.world.unacknowledged.remove(0);
        if self.rng.chance(70) {
            self.input(Input::Delivered(ids))
        } else {
            Ok(())
        }
    }

    fn jump(&mut self) {
        let seconds = 1 << self.rng.below(14);
        let world = &mut self.world;
        match self.rng.below(4) {
            0 => world.now_ms -= seconds * 1_000,
            1 => world.synchronised = !world.synchronised,
            _ => world.now_ms += seconds * 1_000,
        }
        world.uptime += Duration::from_secs(seconds);
        world.note(|| format!("the clock jumps by {seconds} s"));
    }

    /// No more faults: what has to happen then, happens in a bounded number of rounds.
    fn settle(&mut self) -> Result<(), String> {
        self.crashes = 0;
        if self.world.agent.is_none() {
            let started = self.world.start();
            self.input(started)?;
        }
        self.world.connected = true;
        self.world.facts_known = true;
        self.input(Input::Connected)?;
        self.world.local_orders += 1;
        self.input(Input::Local(LocalOrder {
            request: 0,
            id: local_id(self.world.local_orders),
            what: LocalWhat::Release,
        }))?;
        for _ in 0..40 {
            self.deliver_retained()?;
            if let Some(fetched) = self.world.fetched(None) {
                self.input(fetched)?;
            }
            self.world.activator_step(Fate::Good);
            while let Some(seen) = self.world.poll() {
                let waits = matches!(seen, Input::ActivatorLost { .. });
                self.input(seen)?;
                if waits {
                    break;
                }
            }
            if let Some(reached) = self.world.reached() {
                self.input(reached)?;
            }
            if let Some(tick) = self.world.tick() {
                self.input(tick)?;
            }
            for ids in std::mem::take(&mut self.world.unacknowledged) {
                self.input(Input::Delivered(ids))?;
            }
        }
        // What a reconnect or the next refresh would say.
        self.input(Input::Refresh)?;
        for ids in std::mem::take(&mut self.world.unacknowledged) {
            self.input(Input::Delivered(ids))?;
        }
        Ok(())
    }
}
