//! When to try again: full jitter, and minutes when two machines fight for one identity.

use std::time::Duration;

use rand::RngExt as _;

/// The first wait is up to this long.
const FIRST: Duration = Duration::from_secs(1);

/// A connection that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(30);

/// So many connections in a row that broke right after they were made are no coincidence.
const TAKEOVERS: u32 = 5;

/// What to make of a connection that ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It happens.
    Ordinary,
    /// It was taken away again and again right after it was made: another machine has this identity.
    TakenOver,
}

/// Chooses the waits between tries to connect.
#[derive(Debug)]
pub struct Backoff {
    max: Duration,
    failures: u32,
    takeovers: u32,
}

impl Backoff {
    /// With waits of up to `max`.
    #[must_use]
    pub const fn new(max: Duration) -> Self {
        Self {
            max,
            failures: 0,
            takeovers: 0,
        }
    }

    /// The broker could not be reached, or did not take us.
    pub const fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.takeovers = 0;
    }

    /// A connection that the broker had accepted broke after `lasted`.
    pub fn lost(&mut self, lasted: Duration) -> Verdict {
        if lasted >= STABLE {
            self.failures = 0;
            self.takeovers = 0;
            return Verdict::Ordinary;
        }
        self.failures = self.failures.saturating_add(1);
        self.takeovers = self.takeovers.saturating_add(1);
        if self.takeovers >= TAKEOVERS {
            Verdict::TakenOver
        } else {
            Verdict::Ordinary
        }
    }

    /// The longest that the next wait may be.
    #[must_use]
    fn ceiling(&self) -> Duration {
        if self.takeovers >= TAKEOVERS {
            return self.max;
        }
        let doublings = self.failures.saturating_sub(1).min(16);
        (FIRST * 2_u32.pow(doublings)).min(self.max)
    }

    /// How long to wait now. Spread evenly from nothing to the ceiling, so that a fleet comes back spread out
    /// after its broker was away; of two machines with one identity, neither comes back soon.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let ceiling = self.ceiling();
        let floor = if self.takeovers >= TAKEOVERS {
            ceiling / 2
        } else {
            Duration::ZERO
        };
        rand::rng().random_range(floor..=ceiling)
    }
}

/// `interval`, a fifth shorter or longer by chance.
#[must_use]
pub fn jittered(interval: Duration) -> Duration {
    rand::rng().random_range(interval.mul_f64(0.8)..=interval.mul_f64(1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(300);

    #[test]
    fn waits_grow_to_the_maximum_and_no_further() {
        let mut backoff = Backoff::new(MAX);
        let mut ceilings = Vec::new();
        for _ in 0..12 {
            backoff.failed();
            assert!(backoff.wait() <= backoff.ceiling());
            ceilings.push(backoff.ceiling().as_secs());
        }
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn a_stable_connection_makes_the_waits_short_again() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..9 {
            backoff.failed();
        }
        assert_eq!(backoff.lost(Duration::from_secs(60)), Verdict::Ordinary);
        assert_eq!(backoff.ceiling(), FIRST);
    }

    #[test]
    fn two_machines_with_one_identity_leave_each_other_minutes() {
        let mut backoff = Backoff::new(MAX);
        let verdicts: Vec<_> = (0..5)
            .map(|_| backoff.lost(Duration::from_millis(50)))
            .collect();
        assert_eq!(verdicts[3..], [Verdict::Ordinary, Verdict::TakenOver]);
        for _ in 0..50 {
            assert!(backoff.wait() >= MAX / 2);
        }
    }

    #[test]
    fn a_broker_that_is_down_for_long_is_no_second_machine() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..4 {
            backoff.lost(Duration::ZERO);
            backoff.failed();
        }
        assert_eq!(backoff.lost(Duration::ZERO), Verdict::Ordinary);
    }

    #[test]
    fn the_interval_is_jittered_by_a_fifth() {
        for _ in 0..100 {
            let found = jittered(Duration::from_secs(100));
            assert!((80..=120).contains(&found.as_secs()), "{found:?}");
        }
    }
}
