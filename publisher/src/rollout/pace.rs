//! When the next batch comes, and when none does. Pure: what became of the machines comes in, decisions come out.

use std::time::Duration;

use super::Share;
use crate::outcome::Outcome;

/// What is done when too many machines have failed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum OnFailure {
    /// Nothing more: the machines stay as they are
    #[default]
    Stop,
    /// The machines that were moved are sent back to what each ran before
    Rollback,
}

/// When a rollout goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// How long a batch must stay well before the next one comes.
    pub bake: Duration,
    /// How many machines may fail.
    pub max_failed: Share,
    /// Of how many, before a part of them says anything.
    pub min_sample: usize,
}

/// What became of a machine, for the rollout.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Judged {
    /// It runs it.
    Good,
    /// It proves that something is wrong.
    Bad,
    /// It proves nothing: away, held, or somebody else's by now.
    Neither,
    /// It is under way.
    Open,
}

impl Judged {
    /// What an outcome proves. `lost` is a machine that runs it and is not connected any more.
    #[must_use]
    pub const fn of(outcome: Outcome, lost: bool) -> Self {
        match outcome {
            Outcome::Succeeded | Outcome::Unchanged if lost => Self::Bad,
            Outcome::Succeeded
            | Outcome::Unchanged
            | Outcome::Staged
            | Outcome::DryActivated
            | Outcome::Held
            | Outcome::Skipped
            | Outcome::Prepared
            | Outcome::Published => Self::Good,
            Outcome::Failed
            | Outcome::RolledBack
            | Outcome::RollbackFailed
            | Outcome::Conflict
            | Outcome::Rejected
            | Outcome::Expired
            | Outcome::NotPublished
            | Outcome::TimedOut => Self::Bad,
            Outcome::Offline
            | Outcome::Deferred
            | Outcome::Superseded
            | Outcome::Cancelled
            | Outcome::NotBegun
            | Outcome::UnderWay => Self::Neither,
        }
    }
}

/// How the machines of the batches that came stand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Run it.
    pub good: usize,
    /// Prove that something is wrong.
    pub bad: usize,
    /// Prove nothing.
    pub neither: usize,
    /// Are under way.
    pub open: usize,
}

impl Tally {
    /// Counts one more.
    pub const fn add(&mut self, judged: Judged) {
        match judged {
            Judged::Good => self.good += 1,
            Judged::Bad => self.bad += 1,
            Judged::Neither => self.neither += 1,
            Judged::Open => self.open += 1,
        }
    }

    /// Those that prove something.
    const fn sample(self) -> usize {
        self.good + self.bad
    }
}

/// Why a rollout stops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Why {
    /// So many failed.
    pub failed: usize,
    /// Of so many that proved something.
    pub of: usize,
    /// In this batch, counted from 1.
    pub batch: u16,
    /// Of so many.
    pub batches: u16,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The batch with this number, counted from 0, comes now.
    Release(u16),
    /// The batch with this number has come well, and has to stay so until then.
    Bake {
        /// Which one.
        batch: u16,
        /// Until when, since the rollout began.
        until: Duration,
    },
    /// No batch comes any more.
    Stop(Why),
    /// Somebody has cancelled the rollout, and what had begun has ended.
    Cancelled,
    /// All batches have come.
    Done,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Deploying,
    Baking {
        until: Duration,
    },
    /// No batch comes any more; those that came are followed to their end.
    Cancelled,
    Over,
}

/// Where a rollout is.
#[derive(Debug)]
pub struct Pace {
    policy: Policy,
    batches: u16,
    batch: u16,
    phase: Phase,
}

impl Pace {
    /// Before the first batch has ended; it is released.
    #[must_use]
    pub const fn new(policy: Policy, batches: u16) -> Self {
        Self {
            policy,
            batches,
            batch: 0,
            phase: Phase::Deploying,
        }
    }

    /// The batch that is under way, counted from 0.
    #[must_use]
    pub const fn batch(&self) -> u16 {
        self.batch
    }

    /// How many batches there are.
    #[must_use]
    pub const fn batches(&self) -> u16 {
        self.batches
    }

    /// How long the batch that came last has still to stay well; none while it is under way.
    #[must_use]
    pub fn bakes_for(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::Baking { until } => Some(until.saturating_sub(now)),
            Phase::Deploying | Phase::Cancelled | Phase::Over => None,
        }
    }

    /// Somebody has cancelled the rollout. Whether that is news: it is none where it is over, or was cancelled before.
    pub fn cancel(&mut self) -> bool {
        match self.phase {
            Phase::Cancelled | Phase::Over => false,
            Phase::Deploying | Phase::Baking { .. } => {
                self.phase = Phase::Cancelled;
                true
            }
        }
    }

    /// What comes next, if anything does now. `tally` is of all batches that were released, `now` the time since the
    /// rollout began.
    pub fn decide(&mut self, tally: Tally, now: Duration) -> Option<Decision> {
        if self.phase == Phase::Over {
            return None;
        }
        if self.phase == Phase::Cancelled {
            if tally.open > 0 {
                return None;
            }
            self.phase = Phase::Over;
            return Some(Decision::Cancelled);
        }
        if self.is_too_bad(tally) {
            self.phase = Phase::Over;
            return Some(Decision::Stop(Why {
                failed: tally.bad,
                of: tally.sample(),
                batch: self.batch + 1,
                batches: self.batches,
            }));
        }
        if tally.open > 0 {
            return None;
        }
        match self.phase {
            Phase::Over | Phase::Cancelled => None,
            Phase::Deploying if self.batch + 1 >= self.batches => {
                self.phase = Phase::Over;
                Some(Decision::Done)
            }
            Phase::Deploying if self.policy.bake > Duration::ZERO => {
                let until = now + self.policy.bake;
                self.phase = Phase::Baking { until };
                Some(Decision::Bake {
                    batch: self.batch,
                    until,
                })
            }
            Phase::Baking { until } if now < until => None,
            Phase::Deploying | Phase::Baking { .. } => {
                self.phase = Phase::Deploying;
                self.batch += 1;
                Some(Decision::Release(self.batch))
            }
        }
    }

    /// Whether more have failed than may. A part of the machines is only reckoned with once enough of them, or all
    /// of the batch, have ended.
    fn is_too_bad(&self, tally: Tally) -> bool {
        match self.policy.max_failed {
            Share::Count(most) => tally.bad > most,
            share @ Share::Percent(_) => {
                let is_enough = tally.open == 0 || tally.sample() >= self.policy.min_sample;
                is_enough && tally.bad > share.round_down(tally.sample())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn starting(bake: Duration, max_failed: &str, batches: u16) -> Pace {
        let policy = Policy {
            bake,
            max_failed: max_failed.parse().unwrap(),
            min_sample: 5,
        };
        Pace::new(policy, batches)
    }

    fn tally(good: usize, bad: usize, open: usize) -> Tally {
        Tally {
            good,
            bad,
            neither: 1,
            open,
        }
    }

    #[test]
    fn a_batch_comes_when_the_one_before_has_ended() {
        let mut pace = starting(Duration::ZERO, "0", 3);
        assert_eq!(pace.decide(tally(0, 0, 2), SECOND), None);
        let next = |pace: &mut Pace, good| pace.decide(tally(good, 0, 0), SECOND);
        assert_eq!(next(&mut pace, 2), Some(Decision::Release(1)));
        assert_eq!(next(&mut pace, 4), Some(Decision::Release(2)));
        assert_eq!(next(&mut pace, 6), Some(Decision::Done));
        assert_eq!(next(&mut pace, 6), None);
    }

    #[test]
    fn a_batch_has_to_stay_well_before_the_next_one_comes() {
        let mut pace = starting(10 * SECOND, "0", 2);
        let until = 11 * SECOND;
        let bake = Decision::Bake { batch: 0, until };
        assert_eq!(pace.bakes_for(SECOND), None);
        assert_eq!(pace.decide(tally(1, 0, 0), SECOND), Some(bake));
        assert_eq!(pace.bakes_for(4 * SECOND), Some(7 * SECOND));
        assert_eq!(pace.decide(tally(1, 0, 0), 10 * SECOND), None);
        assert_eq!(
            pace.decide(tally(1, 0, 0), until),
            Some(Decision::Release(1))
        );
        assert_eq!(pace.bakes_for(until), None);
        // One that is lost while it bakes stops it.
        let mut pace = starting(10 * SECOND, "0", 2);
        assert_eq!(pace.decide(tally(1, 0, 0), SECOND), Some(bake));
        assert!(matches!(
            pace.decide(tally(0, 1, 0), 2 * SECOND),
            Some(Decision::Stop(_))
        ));
        assert_eq!(pace.decide(tally(1, 0, 0), 99 * SECOND), None);
    }

    #[test]
    fn no_batch_comes_once_it_is_cancelled_and_what_had_begun_is_followed() {
        let mut pace = starting(10 * SECOND, "0", 3);
        assert!(pace.cancel() && !pace.cancel());
        assert_eq!(pace.decide(tally(1, 0, 1), SECOND), None);
        // Whoever cancels it decides, and not how many fail by then.
        assert_eq!(
            pace.decide(tally(1, 1, 0), SECOND),
            Some(Decision::Cancelled)
        );
        assert_eq!(pace.decide(tally(2, 0, 0), 99 * SECOND), None);
        assert!(!pace.cancel());
        // One whose batch is to stay well is not waited for.
        let mut pace = starting(10 * SECOND, "0", 3);
        assert!(pace.decide(tally(1, 0, 0), SECOND).is_some());
        assert!(pace.cancel());
        assert_eq!(
            pace.decide(tally(1, 0, 0), SECOND),
            Some(Decision::Cancelled)
        );
    }

    #[test]
    fn more_failures_than_are_allowed_stop_it_at_once() {
        let mut strict = starting(Duration::ZERO, "1", 2);
        assert_eq!(strict.decide(tally(0, 1, 5), SECOND), None);
        let why = Why {
            failed: 2,
            of: 2,
            batch: 1,
            batches: 2,
        };
        assert_eq!(
            strict.decide(tally(0, 2, 4), SECOND),
            Some(Decision::Stop(why))
        );
    }

    #[test]
    fn a_part_of_the_machines_says_nothing_before_enough_have_ended() {
        let mut pace = starting(Duration::ZERO, "20%", 2);
        assert_eq!(
            pace.decide(tally(0, 1, 9), SECOND),
            None,
            "1 of 1 is no sample"
        );
        assert_eq!(
            pace.decide(tally(4, 1, 5), SECOND),
            None,
            "1 of 5 is allowed"
        );
        assert!(matches!(
            pace.decide(tally(3, 2, 5), SECOND),
            Some(Decision::Stop(_))
        ));
        let mut small = starting(Duration::ZERO, "20%", 2);
        assert!(matches!(
            small.decide(tally(0, 1, 0), SECOND),
            Some(Decision::Stop(_))
        ));
    }

    #[test]
    fn what_was_never_begun_or_is_away_proves_nothing() {
        for outcome in [
            Outcome::Offline,
            Outcome::Deferred,
            Outcome::Superseded,
            Outcome::NotBegun,
        ] {
            assert_eq!(Judged::of(outcome, true), Judged::Neither);
        }
        assert_eq!(Judged::of(Outcome::Succeeded, false), Judged::Good);
        assert_eq!(Judged::of(Outcome::Succeeded, true), Judged::Bad);
        assert_eq!(Judged::of(Outcome::RolledBack, false), Judged::Bad);
    }

    proptest! {
        #[test]
        fn no_batch_comes_after_too_many_failures_and_none_is_skipped(
            most in 0..4_usize,
            batches in 1..8_u16,
            seen in prop::collection::vec((0..6_usize, 0..6_usize, 0..2_usize), 1..60),
        ) {
            let mut pace = starting(SECOND, &most.to_string(), batches);
            let (mut at, mut last, mut stopped) = (Duration::ZERO, 0, false);
            for (good, bad, open) in seen {
                at += SECOND;
                match pace.decide(tally(good, bad, open), at) {
                    Some(Decision::Release(batch)) => {
                        prop_assert!(!stopped && bad <= most && open == 0);
                        prop_assert_eq!(batch, last + 1);
                        prop_assert!(batch < batches);
                        last = batch;
                    }
                    Some(Decision::Stop(why)) => {
                        prop_assert!(bad > most && why.failed == bad);
                        stopped = true;
                    }
                    Some(Decision::Done) => {
                        prop_assert_eq!(last + 1, batches);
                        stopped = true;
                    }
                    Some(Decision::Cancelled) => prop_assert!(false, "nobody cancelled it"),
                    Some(Decision::Bake { batch, until }) => {
                        prop_assert!(batch == last && until == at + SECOND);
                    }
                    None => {}
                }
            }
        }
    }
}
