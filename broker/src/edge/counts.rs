//! How many there are of each, and where they come from.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::guard::Bucket;
use crate::settings::Rate;

/// Where a connection comes from, for counting: an IPv4 address, or the /64 of an IPv6 address, which is what one
/// customer has.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(network(address))
    }
}

/// What of an address one customer has no choice of: an IPv4 address, or the first of the /64 of an IPv6 address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
    }
}

/// How many there are of each.
#[derive(Debug)]
pub(super) struct Counts<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// One of them; it is counted until this is dropped.
pub(super) struct Counted<K: Eq + Hash> {
    key: K,
    counts: Arc<Counts<K>>,
}

impl<K: Clone + Eq + Hash> Counts<K> {
    /// Counts one more, unless there are `limit` already.
    pub(super) fn take(counts: &Arc<Self>, key: K, limit: usize) -> Option<Counted<K>> {
        let mut all = counts.lock();
        let count = all.entry(key.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Counted {
            key,
            counts: Arc::clone(counts),
        })
    }
}

impl<K> Counts<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        // Nothing here panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut all = self.counts.lock();
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

/// Most origins whose rate is remembered; when there are more at a time they share one.
const ORIGINS: usize = 65_536;

/// How often each origin has come.
#[derive(Debug, Default)]
pub(super) struct ConnectRates {
    origins: Mutex<(HashMap<Origin, Bucket>, Bucket)>,
}

impl ConnectRates {
    /// Whether `origin` may come once more.
    pub(super) fn allow(&self, origin: Origin, rate: Rate, now: Instant) -> bool {
        let mut origins = self.lock();
        let (known, others) = &mut *origins;
        if known.len() >= ORIGINS && !known.contains_key(&origin) {
            return others.take(rate, now);
        }
        known.entry(origin).or_default().take(rate, now)
    }

    /// Forgets those who have not come for long enough.
    pub(super) fn forget(&self, now: Instant) {
        self.lock().0.retain(|_, bucket| !bucket.is_full(now));
    }

    fn lock(&self) -> MutexGuard<'_, (HashMap<Origin, Bucket>, Bucket)> {
        // Nothing here panics while the lock is held.
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn origin(text: &str) -> Origin {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_place_is_free_again_when_it_is_given_back() {
        let counts = Arc::new(Counts::default());
        let first = Counts::take(&counts, "a", 2).unwrap();
        let _second = Counts::take(&counts, "a", 2).unwrap();
        assert!(Counts::take(&counts, "a", 2).is_none());
        assert!(Counts::take(&counts, "b", 2).is_some());
        drop(first);
        assert!(Counts::take(&counts, "a", 2).is_some());
        assert_eq!(counts.lock().len(), 1, "what is not counted is not kept");
    }

    #[test]
    fn a_network_of_ipv6_is_one_origin_and_an_address_of_ipv4_is() {
        assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff::9"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
    }

    #[test]
    fn origins_beyond_what_is_remembered_share_one_rate() {
        let (connect_rates, now) = (ConnectRates::default(), Instant::now());
        let rate = "1/s burst 2".parse().unwrap();
        for n in 0..u32::try_from(ORIGINS).unwrap() {
            let address = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            assert!(connect_rates.allow(address.into(), rate, now));
        }
        assert!(connect_rates.allow(origin("192.0.2.1"), rate, now));
        assert!(connect_rates.allow(origin("192.0.2.2"), rate, now));
        assert!(!connect_rates.allow(origin("192.0.2.3"), rate, now));
        assert!(
            connect_rates.allow(origin("10.0.0.1"), rate, now),
            "it is remembered"
        );
        connect_rates.forget(now + Duration::from_secs(5));
        assert!(connect_rates.lock().0.is_empty());
    }
}
