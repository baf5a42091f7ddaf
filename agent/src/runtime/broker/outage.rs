//! Whose fault it is that no broker can be reached: the broker's, or the new system's.
//!
//! While a deployment waits for its confirmation, a broker that is down must not make healthy machines go back,
//! and a machine that was cut off by its deployment must not wait. So the rule is narrow: it is an outage only
//! when the very addresses that the broker had before do not take a TCP connection any more, while another host
//! that answered before still does. A name without an address, other addresses, and a failure of TLS or of the
//! login are never an outage: a deployment can bring about each of them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hoist_certs::mqtt::FailureKind;
use hoist_protocol::{BrokerUrl, SubstituterUrl};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a name lookup or a TCP connection may take.
const ANSWER: Duration = Duration::from_secs(3);

/// Most addresses that are tried at once.
const MAX_ADDRESSES: usize = 32;

/// Most addresses of one host that are witnesses: each is connected to at each deployment.
const MAX_OF_HOST: usize = 2;

/// What was in reach before a deployment was activated.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Known {
    /// The addresses of all brokers.
    pub(crate) brokers: BTreeSet<SocketAddr>,
    /// Addresses of other hosts that took a connection.
    pub(crate) witnesses: BTreeSet<SocketAddr>,
}

/// What is in reach now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Found {
    /// Why each broker could not be reached.
    pub(crate) failures: Vec<FailureKind>,
    /// The addresses of all brokers; none when a name has none.
    pub(crate) brokers: Option<BTreeSet<SocketAddr>>,
    /// Which of them take a connection after all.
    pub(crate) open_brokers: BTreeSet<SocketAddr>,
    /// Which of the known witnesses still do.
    pub(crate) witnesses: BTreeSet<SocketAddr>,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// The broker's: waiting longer is right.
    Outage,
    /// It must be taken for the new system's.
    Ours(Ground),
}

/// Why it is no outage of the broker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ground {
    /// Nothing is known about the time before the activation.
    NothingKnown,
    /// A try failed otherwise than at TCP.
    NotTcp(FailureKind),
    /// The name of a broker has no address now.
    NoName,
    /// A broker's name has other addresses than before.
    OtherAddress(SocketAddr),
    /// A broker takes connections: what failed comes after.
    Answers(SocketAddr),
    /// No other host is in reach: it is this machine's own network that is gone.
    NoWitness,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outage => f.write_str(
                "it takes no connections at the addresses it had before, while another host that answered before \
                 still does: an outage of the broker",
            ),
            Self::Ours(ground) => write!(f, "{ground}: it counts as the new system's fault"),
        }
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingKnown => {
                f.write_str("it is not known what could be reached before the activation")
            }
            Self::NotTcp(FailureKind::Name) | Self::NoName => {
                f.write_str("the broker's name has no address")
            }
            Self::NotTcp(FailureKind::NoNetwork) => f.write_str("this machine has no network"),
            Self::NotTcp(FailureKind::Tls) => f.write_str("the TLS handshake fails"),
            Self::NotTcp(FailureKind::Refused) => f.write_str("the broker refuses the login"),
            Self::NotTcp(FailureKind::Lost | FailureKind::Unreachable) => {
                f.write_str("connections are made and break")
            }
            Self::OtherAddress(address) => write!(
                f,
                "{address}, which the broker's name has now, was not its address before"
            ),
            Self::Answers(address) => {
                write!(f, "{address} takes connections, but no session comes about")
            }
            Self::NoWitness => f.write_str("no other host that answered before is in reach either"),
        }
    }
}

/// Judges by what was known `before` and what is found `now`.
pub(crate) fn judge(before: &Known, now: &Found) -> Verdict {
    let ours = Verdict::Ours;
    if before.brokers.is_empty() {
        return ours(Ground::NothingKnown);
    }
    let mut kinds = now.failures.iter();
    if let Some(kind) = kinds.find(|kind| **kind != FailureKind::Unreachable) {
        return ours(Ground::NotTcp(*kind));
    }
    let Some(brokers) = now.brokers.as_ref().filter(|found| !found.is_empty()) else {
        return ours(Ground::NoName);
    };
    if let Some(other) = brokers.difference(&before.brokers).next() {
        return ours(Ground::OtherAddress(*other));
    }
    if let Some(open) = now.open_brokers.first() {
        return ours(Ground::Answers(*open));
    }
    let counts = |witness: &&SocketAddr| {
        // What answers on this machine itself says nothing about its network, unless the broker is here as well.
        let says_something = !witness.ip().is_loopback()
            || before
                .brokers
                .iter()
                .all(|broker| broker.ip().is_loopback());
        before.witnesses.contains(witness) && !before.brokers.contains(witness) && says_something
    };
    match now.witnesses.iter().find(counts) {
        Some(_) => Verdict::Outage,
        None => ours(Ground::NoWitness),
    }
}

/// A host and port that something may listen on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Host {
    name: String,
    port: u16,
}

impl Host {
    pub(crate) fn of_broker(url: &BrokerUrl) -> Self {
        Self {
            name: url.host().to_owned(),
            port: url.port(),
        }
    }

    /// That of a binary cache over HTTP; none for another kind of cache, and for what is no URL.
    pub(crate) fn of_cache(url: &SubstituterUrl) -> Option<Self> {
        Self::of_url(url.as_str())
    }

    /// The same of a URL that is not known to be one.
    pub(crate) fn of_url(url: &str) -> Option<Self> {
        let (rest, default) = match url.split_once("://")? {
            ("https", rest) => (rest, 443),
            ("http", rest) => (rest, 80),
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        let (name, port) = match host.strip_prefix('[') {
            Some(v6) => {
                let (name, after) = v6.split_once(']')?;
                (name, after.strip_prefix(':'))
            }
            None => match host.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (host, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok()?,
            None => default,
        };
        (!name.is_empty()).then(|| Self {
            name: name.to_owned(),
            port,
        })
    }

    /// Its addresses; none when its name has none, or the resolver does not answer in time.
    async fn addresses(&self) -> Option<BTreeSet<SocketAddr>> {
        let lookup = lookup_host((self.name.as_str(), self.port));
        let found: BTreeSet<_> = timeout(ANSWER, lookup).await.ok()?.ok()?.collect();
        (!found.is_empty()).then_some(found)
    }
}

/// What is in reach before an activation: the brokers' addresses at once, then the `witnesses`, once it is known
/// who they are. The activation may begin meanwhile, and must not have a say in what the former are.
pub(crate) async fn look_before(
    brokers: Vec<Host>,
    witnesses: impl Future<Output = Vec<Host>>,
) -> Known {
    let mut known = Known {
        brokers: all_addresses(&brokers).await.unwrap_or_default(),
        witnesses: BTreeSet::new(),
    };
    let mut addresses = BTreeSet::new();
    for host in witnesses.await {
        let found = host.addresses().await.unwrap_or_default();
        addresses.extend(found.into_iter().take(MAX_OF_HOST));
    }
    known.witnesses = open_among(&addresses).await;
    known
}

/// What is in reach after one, when every broker failed as in `failures`.
pub(crate) async fn look_now(
    brokers: Vec<Host>,
    known: &Known,
    failures: Vec<FailureKind>,
) -> Found {
    let is_tcp = failures
        .iter()
        .all(|kind| *kind == FailureKind::Unreachable);
    if known.brokers.is_empty() || !is_tcp {
        // The verdict is clear without asking anybody.
        return Found {
            failures,
            ..Found::default()
        };
    }
    let addresses = all_addresses(&brokers).await;
    let candidates = addresses.clone().unwrap_or_default();
    let (open_brokers, witnesses) =
        tokio::join!(open_among(&candidates), open_among(&known.witnesses));
    Found {
        failures,
        brokers: addresses,
        open_brokers,
        witnesses,
    }
}

/// The addresses of all `hosts`; none when one of them has none.
async fn all_addresses(hosts: &[Host]) -> Option<BTreeSet<SocketAddr>> {
    let mut all = BTreeSet::new();
    for host in hosts {
        all.extend(host.addresses().await?);
    }
    Some(all)
}

/// Which of the first [`MAX_ADDRESSES`] of `addresses` take a TCP connection.
async fn open_among(addresses: &BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    let mut tries = JoinSet::new();
    for address in addresses.iter().copied().take(MAX_ADDRESSES) {
        tries.spawn(async move {
            let connected = timeout(ANSWER, TcpStream::connect(address)).await;
            matches!(connected, Ok(Ok(_))).then_some(address)
        });
    }
    tries.join_all().await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    const BROKER: &str = "192.0.2.1:8883";
    const CACHE: &str = "192.0.2.9:443";

    fn known() -> Known {
        Known {
            brokers: set(&[BROKER, "[2001:db8::1]:8883"]),
            witnesses: set(&[CACHE, "192.0.2.10:443", "127.0.0.1:5000"]),
        }
    }

    /// An outage: the broker's address refuses, a cache answers.
    fn outage() -> Found {
        Found {
            failures: vec![FailureKind::Unreachable],
            brokers: Some(set(&[BROKER])),
            open_brokers: set(&[]),
            witnesses: set(&[CACHE]),
        }
    }

    #[test]
    fn a_known_broker_that_takes_no_connection_while_a_cache_does_is_down() {
        assert_eq!(judge(&known(), &outage()), Verdict::Outage);
    }

    #[test]
    fn a_failure_after_tcp_is_never_an_outage() {
        for kind in [
            FailureKind::Name,
            FailureKind::NoNetwork,
            FailureKind::Tls,
            FailureKind::Refused,
            FailureKind::Lost,
        ] {
            let found = Found {
                // Of two brokers, one fails like this.
                failures: vec![FailureKind::Unreachable, kind],
                ..outage()
            };
            let verdict = Verdict::Ours(Ground::NotTcp(kind));
            assert_eq!(judge(&known(), &found), verdict);
        }
    }

    #[test]
    fn what_a_deployment_can_bring_about_is_no_outage() {
        for (found, ground) in [
            // It broke the resolver,
            (
                Found {
                    brokers: None,
                    ..outage()
                },
                Ground::NoName,
            ),
            // pointed the broker's name elsewhere,
            (
                Found {
                    brokers: Some(set(&[BROKER, "192.0.2.77:8883"])),
                    ..outage()
                },
                Ground::OtherAddress("192.0.2.77:8883".parse().unwrap()),
            ),
            // broke what comes after TCP,
            (
                Found {
                    open_brokers: set(&[BROKER]),
                    ..outage()
                },
                Ground::Answers(BROKER.parse().unwrap()),
            ),
            // took the network away,
            (
                Found {
                    witnesses: set(&[]),
                    ..outage()
                },
                Ground::NoWitness,
            ),
            // or all of it but the machine itself.
            (
                Found {
                    witnesses: set(&["127.0.0.1:5000"]),
                    ..outage()
                },
                Ground::NoWitness,
            ),
        ] {
            assert_eq!(judge(&known(), &found), Verdict::Ours(ground), "{found:?}");
        }
    }

    #[test]
    fn who_knows_nothing_of_before_never_calls_it_an_outage() {
        let verdict = Verdict::Ours(Ground::NothingKnown);
        assert_eq!(judge(&Known::default(), &outage()), verdict);
    }

    #[test]
    fn a_host_that_was_not_known_before_is_no_witness() {
        let found = Found {
            witnesses: set(&["192.0.2.200:443"]),
            ..outage()
        };
        assert_eq!(judge(&known(), &found), Verdict::Ours(Ground::NoWitness));
    }

    #[test]
    fn the_host_of_a_cache_is_read_from_its_url() {
        let host = |url: &str| Host::of_url(url).map(|host| (host.name, host.port));
        let at = |name: &str, port| Some((name.to_owned(), port));
        assert_eq!(host("https://cache.nixos.org"), at("cache.nixos.org", 443));
        assert_eq!(host("http://c:5000/x?priority=1"), at("c", 5000));
        assert_eq!(host("https://user@[2001:db8::2]:1/y"), at("2001:db8::2", 1));
        assert_eq!(host("https://[2001:db8::2]"), at("2001:db8::2", 443));
        for none in ["file:///tmp/cache", "ssh://host", "https://", "http://c:x"] {
            assert_eq!(host(none), None, "{none}");
        }
    }

    #[tokio::test]
    async fn what_listens_is_in_reach_and_what_does_not_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let host = |address: SocketAddr| Host {
            name: address.ip().to_string(),
            port: address.port(),
        };
        let witnesses = async { vec![host(open), host(closed)] };
        let known = look_before(vec![host(closed)], witnesses).await;
        assert_eq!(known.brokers, BTreeSet::from([closed]));
        assert_eq!(known.witnesses, BTreeSet::from([open]));
        let failures = vec![FailureKind::Unreachable];
        let found = look_now(vec![host(closed)], &known, failures).await;
        assert_eq!(judge(&known, &found), Verdict::Outage);
        drop(listener);
        let found = look_now(vec![host(closed)], &known, found.failures).await;
        assert_eq!(judge(&known, &found), Verdict::Ours(Ground::NoWitness));
    }
}
