//! When to try again: full jitter, and minutes when two machines fight for one identity.

use std::time::Duration;

use rand::RngExt as _;

/// The first wait is up to this long.
const FIRST: Duration = Duration::from_secs(1);

/// A connection that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(30);

/// So many connections in a row that broke right after they were made are no coincidence.
const TAKEOVERS: u32 = 5;

/// So many are worth telling, while it is still possible to tell.
const SUSPICIOUS: u32 = 3;

/// The shortest that the longest wait of two machines with one identity is.
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// The longest wait while the broker hears nothing of our tries: the network may be back at any moment.
const OFFLINE: Duration = Duration::from_secs(10);

/// What to make of a connection that ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It happens.
    Ordinary,
    /// It was taken away again and again right after it was made: another machine has this identity.
    TakenOver,
}

/// How a connection ended that the broker had accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// All that was said over it was answered, and then the broker, which goes on running, closed it: as it does when
    /// another client comes with the same identity.
    Closed,
    /// The broker itself is gone.
    BrokerGone,
    /// It ended before all was answered, or without a goodbye: what was said may be why, or the network, or a broker
    /// that was killed and is back.
    Broken,
}

/// Chooses the waits between tries to connect.
#[derive(Debug)]
pub struct Backoff {
    max: Duration,
    failures: u32,
    /// Whether the last try got no further than this machine.
    offline: bool,
    takeovers: u32,
}

impl Backoff {
    /// With waits of up to `max`.
    #[must_use]
    pub const fn new(max: Duration) -> Self {
        Self {
            max,
            failures: 0,
            offline: false,
            takeovers: 0,
        }
    }

    /// No broker could be reached, or took us; `offline` when none of them has heard of it, since this machine has
    /// no network.
    pub const fn failed(&mut self, offline: bool) {
        self.failures = self.failures.saturating_add(1);
        self.offline = offline;
        if !self.is_taken_over() {
            self.takeovers = 0;
        }
    }

    /// A connection that the broker had accepted broke after `lasted`, for the reason `end`.
    ///
    /// Two machines that take each other's connection with pauses of up to the longest wait are still two: only a
    /// connection that lasts for twice as long ends the suspicion.
    pub fn lost(&mut self, lasted: Duration, end: End) -> Verdict {
        self.offline = false;
        if !self.is_short(lasted) {
            self.reset();
            self.takeovers = 0;
            return Verdict::Ordinary;
        }
        self.failures = self.failures.saturating_add(1);
        match end {
            End::Closed => self.takeovers = self.takeovers.saturating_add(1),
            End::BrokerGone if !self.is_taken_over() => self.takeovers = 0,
            End::BrokerGone | End::Broken => {}
        }
        if self.is_taken_over() {
            Verdict::TakenOver
        } else {
            Verdict::Ordinary
        }
    }

    /// Whether a connection that `lasted` so long is too short to have been a good one.
    #[must_use]
    pub fn is_short(&self, lasted: Duration) -> bool {
        lasted < self.stable()
    }

    /// How long a good connection lasts at least.
    fn stable(&self) -> Duration {
        match self.is_taken_over() {
            true => self.longest() * 2,
            false => STABLE,
        }
    }

    /// Whether another machine seems to have this identity.
    #[must_use]
    pub const fn is_taken_over(&self) -> bool {
        self.takeovers >= TAKEOVERS
    }

    /// Whether people should know that another machine may have this identity: a little before it is certain, since
    /// one of the two then waits for long, and until a connection has lasted for so long that there cannot be two.
    #[must_use]
    pub fn is_suspicious(&self, connected_for: Option<Duration>) -> bool {
        let is_over = connected_for.is_some_and(|lasted| lasted >= self.max.max(TAKEN_OVER) * 2);
        self.takeovers >= SUSPICIOUS && !is_over
    }

    /// Whether the last connection was a good one.
    #[must_use]
    pub const fn is_calm(&self) -> bool {
        self.failures == 0
    }

    /// The machine or its network is not what it was: what failed before says nothing any more.
    pub const fn reset(&mut self) {
        self.failures = 0;
        self.offline = false;
    }

    /// The longest wait there is now.
    fn longest(&self) -> Duration {
        if self.is_taken_over() {
            self.max.max(TAKEN_OVER)
        } else if self.offline {
            self.max.min(OFFLINE)
        } else {
            self.max
        }
    }

    /// The longest that the next wait may be.
    #[must_use]
    fn ceiling(&self) -> Duration {
        if self.is_taken_over() {
            return self.longest();
        }
        let doublings = self.failures.saturating_sub(1).min(16);
        (FIRST * 2_u32.pow(doublings)).min(self.longest())
    }

    /// How long to wait now. Spread evenly from nothing to the ceiling, so that a fleet comes back spread out
    /// after its broker was away; of two machines with one identity, neither comes back soon.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let ceiling = self.ceiling();
        let floor = match self.is_taken_over() {
            true => ceiling / 2,
            false => Duration::ZERO,
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

    fn ceilings(offline: bool) -> Vec<u64> {
        let mut backoff = Backoff::new(MAX);
        let mut ceilings = Vec::new();
        for _ in 0..12 {
            backoff.failed(offline);
            assert!(backoff.wait() <= backoff.ceiling());
            ceilings.push(backoff.ceiling().as_secs());
        }
        ceilings
    }

    fn taken_over(max: Duration) -> Backoff {
        let mut backoff = Backoff::new(max);
        for _ in 0..TAKEOVERS {
            backoff.lost(Duration::from_millis(50), End::Closed);
        }
        backoff
    }

    #[test]
    fn waits_grow_to_the_maximum_and_no_further() {
        assert_eq!(
            ceilings(false),
            [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
        );
    }

    #[test]
    fn without_a_network_the_waits_stay_short() {
        assert_eq!(ceilings(true), [1, 2, 4, 8, 10, 10, 10, 10, 10, 10, 10, 10]);
    }

    #[test]
    fn a_stable_connection_makes_the_waits_short_again() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..9 {
            backoff.failed(false);
        }
        assert_eq!(
            backoff.lost(Duration::from_secs(60), End::Closed),
            Verdict::Ordinary
        );
        assert_eq!(backoff.ceiling(), FIRST);
    }

    #[test]
    fn a_machine_that_woke_up_tries_soon() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..9 {
            backoff.failed(false);
        }
        backoff.reset();
        assert_eq!(backoff.ceiling(), FIRST);
    }

    #[test]
    fn two_machines_with_one_identity_leave_each_other_minutes() {
        let mut backoff = Backoff::new(MAX);
        let verdicts: Vec<_> = (0..5)
            .map(|_| backoff.lost(Duration::from_millis(50), End::Closed))
            .collect();
        assert_eq!(verdicts[3..], [Verdict::Ordinary, Verdict::TakenOver]);
        for _ in 0..50 {
            assert!(backoff.wait() >= MAX / 2);
        }
        assert!(taken_over(Duration::from_secs(1)).wait() >= TAKEN_OVER / 2);
    }

    #[test]
    fn two_machines_that_take_turns_of_minutes_are_not_taken_for_one() {
        let mut backoff = taken_over(MAX);
        for _ in 0..10 {
            assert_eq!(backoff.lost(MAX, End::Closed), Verdict::TakenOver);
        }
        // Neither a failure between nor a nap makes one machine of them.
        backoff.failed(false);
        backoff.reset();
        assert_eq!(backoff.lost(MAX, End::Closed), Verdict::TakenOver);
        assert_eq!(backoff.lost(MAX * 2, End::Closed), Verdict::Ordinary);
        assert!(!backoff.is_taken_over());
        assert_eq!(backoff.ceiling(), FIRST);
    }

    #[test]
    fn a_second_machine_is_suspected_until_a_connection_lasts() {
        let mut backoff = Backoff::new(MAX);
        let suspected: Vec<_> = (0..4)
            .map(|_| {
                backoff.lost(Duration::from_millis(50), End::Closed);
                backoff.is_suspicious(None)
            })
            .collect();
        assert_eq!(suspected, [false, false, true, true]);
        assert!(backoff.is_suspicious(Some(MAX)));
        assert!(!backoff.is_suspicious(Some(MAX * 2)));
    }

    #[test]
    fn a_broker_that_is_down_for_long_is_no_second_machine() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..4 {
            backoff.lost(Duration::ZERO, End::Closed);
            backoff.failed(false);
        }
        assert_eq!(backoff.lost(Duration::ZERO, End::Closed), Verdict::Ordinary);
    }

    #[test]
    fn a_broker_that_dies_right_after_every_connection_is_no_second_machine() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..20 {
            let verdict = backoff.lost(Duration::ZERO, End::BrokerGone);
            assert_eq!(verdict, Verdict::Ordinary);
            assert!(!backoff.is_suspicious(None));
        }
        assert_eq!(backoff.ceiling(), MAX, "and it is left alone all the same");
    }

    #[test]
    fn a_broker_that_closes_for_what_we_say_is_no_second_machine() {
        let mut backoff = Backoff::new(MAX);
        for _ in 0..20 {
            let verdict = backoff.lost(Duration::ZERO, End::Broken);
            assert_eq!(verdict, Verdict::Ordinary);
        }
        // It says nothing for one either.
        for _ in 0..TAKEOVERS {
            backoff.lost(Duration::ZERO, End::Broken);
            backoff.lost(Duration::ZERO, End::Closed);
        }
        assert!(backoff.is_taken_over());
    }

    #[test]
    fn two_machines_stay_two_when_their_broker_dies() {
        let mut backoff = taken_over(MAX);
        let verdict = backoff.lost(Duration::ZERO, End::BrokerGone);
        assert_eq!(verdict, Verdict::TakenOver);
    }

    #[test]
    fn the_interval_is_jittered_by_a_fifth() {
        for _ in 0..100 {
            let found = jittered(Duration::from_secs(100));
            assert!((80..=120).contains(&found.as_secs()), "{found:?}");
        }
    }
}
