//! Rates: what is earned over time and spent, with a burst.
//!
//! A generic cell rate algorithm in thirty lines, and not the library `governor`: that one refuses what is above a rate,
//! and here what has come already is spent in any case and its sender waits (a debt, of which `governor` knows
//! nothing); it takes its own clock where sessions share one read of tokio's, which tests can stop; and an identity's
//! bucket here has the same lifetime as its connections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hoist_certs::Role;
use tokio::time::Instant;

use crate::settings::{Limits, Rate};

/// What is earned within this time need not be remembered.
const SOON: Duration = Duration::from_millis(100);

/// What is spent of one rate: the time at which all of it is earned again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket(Option<Instant>);

impl Bucket {
    /// Takes one if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let next = self.after(rate, 1, now);
        if next > now + rate.window() {
            return false;
        }
        self.0 = Some(next);
        true
    }

    /// Spends `count`, earned or not.
    fn spend(&mut self, rate: Rate, count: u32, now: Instant) {
        self.0 = Some(self.after(rate, count, now));
    }

    /// When what was spent too much is earned.
    fn in_debt_until(&self, rate: Rate, now: Instant) -> Option<Instant> {
        let all = self.0?;
        let until = all.checked_sub(rate.window())?;
        (until > now).then_some(until)
    }

    /// Whether nothing of it is spent.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.0.is_none_or(|all| all <= now)
    }

    fn after(&self, rate: Rate, count: u32, now: Instant) -> Instant {
        self.0.unwrap_or(now).max(now) + rate.time_for(count)
    }
}

/// What several connections spend together.
#[derive(Debug)]
struct Account {
    rate: Rate,
    bucket: Mutex<Bucket>,
}

impl Account {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            bucket: Mutex::default(),
        }
    }

    fn spend(&self, count: u32, now: Instant) {
        self.lock().spend(self.rate, count, now);
    }

    fn in_debt_until(&self, now: Instant) -> Option<Instant> {
        self.lock().in_debt_until(self.rate, now)
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        // Nothing here panics while the lock is held.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the clients of one fleet publish together.
#[derive(Debug)]
pub(crate) struct FleetMeter(Option<Account>);

impl FleetMeter {
    pub(crate) fn new(publishes: Option<Rate>) -> Arc<Self> {
        Arc::new(Self(publishes.map(Account::new)))
    }
}

/// What the connections of one identity send, each for itself and all of its fleet together.
///
/// Who is above a rate is not refused: it is read no further until it has earned what it has sent. TCP tells it to
/// wait, and nobody else does.
#[derive(Debug)]
pub(crate) struct Meter {
    publishes: Account,
    bytes: Account,
    fleet: Arc<FleetMeter>,
}

impl Meter {
    /// For an identity of `role`.
    pub(crate) fn new(role: Role, limits: &Limits, fleet: Arc<FleetMeter>) -> Self {
        let (publishes, bytes) = match role {
            Role::Agent => (limits.agent_publishes, limits.agent_bytes),
            Role::Publisher | Role::Monitor | Role::Admin | Role::Broker => {
                (limits.publishes, limits.bytes)
            }
        };
        Self {
            publishes: Account::new(publishes),
            bytes: Account::new(bytes),
            fleet,
        }
    }

    /// Notes that so many bytes came.
    pub(crate) fn received(&self, bytes: usize, now: Instant) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.bytes.spend(bytes, now);
    }

    /// Notes a publish.
    pub(crate) fn published(&self, now: Instant) {
        self.publishes.spend(1, now);
        if let Some(fleet) = &self.fleet.0 {
            fleet.spend(1, now);
        }
    }

    /// Notes what costs the broker as much as so many publishes, and the fleet nothing.
    pub(crate) fn asked(&self, count: u32, now: Instant) {
        self.publishes.spend(count, now);
    }

    /// Whether all that was sent is earned. A moment's worth does not count: who keeps to its rates has always
    /// just sent something.
    pub(crate) fn is_settled(&self, now: Instant) -> bool {
        let soon = now + SOON;
        self.publishes.lock().is_full(soon) && self.bytes.lock().is_full(soon)
    }

    /// Until when nothing more is read, when too much came.
    pub(crate) fn wait(&self, now: Instant) -> Option<Instant> {
        let fleet = self.fleet.0.as_ref();
        let fleet = fleet.and_then(|fleet| fleet.in_debt_until(now));
        let own = self.publishes.in_debt_until(now);
        own.max(self.bytes.in_debt_until(now)).max(fleet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_is_there_at_once_and_then_what_is_earned() {
        let (mut bucket, start, rate) = (Bucket::default(), Instant::now(), rate("2/s burst 3"));
        for _ in 0..3 {
            assert!(bucket.take(rate, start));
        }
        assert!(!bucket.take(rate, start));
        assert!(!bucket.take(rate, start + Duration::from_millis(499)));
        assert!(bucket.take(rate, start + Duration::from_millis(500)));
        assert!(!bucket.take(rate, start + Duration::from_millis(999)));
        // After a long time there is a burst, and no more.
        let later = start + Duration::from_secs(3600);
        assert!(bucket.is_full(later));
        for _ in 0..3 {
            assert!(bucket.take(rate, later));
        }
        assert!(!bucket.take(rate, later) && !bucket.is_full(later));
    }

    #[test]
    fn who_sends_too_much_waits_for_as_long_as_it_takes_to_earn_it() {
        let limits = Limits {
            agent_bytes: rate("100/s burst 200"),
            ..Limits::default()
        };
        let meter = Meter::new(Role::Agent, &limits, FleetMeter::new(None));
        let start = Instant::now();
        meter.received(200, start);
        assert_eq!(meter.wait(start), None);
        meter.received(150, start);
        assert_eq!(meter.wait(start), Some(start + Duration::from_millis(1500)));
        assert_eq!(meter.wait(start + Duration::from_millis(1500)), None);
    }

    #[test]
    fn a_fleet_waits_together_and_another_does_not() {
        let limits = Limits::default();
        let shared = FleetMeter::new(Some(rate("1/s burst 2")));
        let one = Meter::new(Role::Agent, &limits, Arc::clone(&shared));
        let two = Meter::new(Role::Publisher, &limits, shared);
        let other = Meter::new(
            Role::Agent,
            &limits,
            FleetMeter::new(Some(rate("1/s burst 2"))),
        );
        let start = Instant::now();
        one.published(start);
        two.published(start);
        assert_eq!(one.wait(start), None);
        two.published(start);
        assert!(one.wait(start).is_some() && two.wait(start).is_some());
        assert_eq!(other.wait(start), None);
    }
}
