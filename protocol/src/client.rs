//! How clients introduce themselves, and where they find the broker.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no broker URL.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is no broker URL; it is written `mqtts://HOST[:PORT]`, with port {DEFAULT_PORT} when none is given"
)]
pub struct BrokerUrlError(String);

/// The port of MQTT over TLS.
pub const DEFAULT_PORT: u16 = 8883;

/// Where a broker listens: `mqtts://HOST[:PORT]`. There is no form without TLS.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct BrokerUrl {
    host: String,
    port: u16,
}

impl BrokerUrl {
    /// Host name or address, without the brackets of IPv6.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        let error = || {
            BrokerUrlError(
                text.chars()
                    .take(200)
                    .flat_map(char::escape_debug)
                    .collect(),
            )
        };
        let rest = text.strip_prefix("mqtts://").ok_or_else(error)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = if let Some(v6) = rest.strip_prefix('[') {
            let (host, after) = v6.split_once(']').ok_or_else(error)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| error())?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(error)?),
            };
            (host, port)
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(allowed) {
            return Err(error());
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(error)?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "mqtts://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "mqtts://{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for BrokerUrl {
    type Error = BrokerUrlError;

    fn try_from(text: String) -> Result<Self, BrokerUrlError> {
        text.parse()
    }
}

impl From<BrokerUrl> for String {
    fn from(url: BrokerUrl) -> Self {
        url.to_string()
    }
}

/// The client id of a publisher, monitor or admin called `name`: the name, a dot and `suffix`.
///
/// An agent's client id is exactly its name. No name holds a dot, so no suffix can spell another's id, and
/// two CI jobs with one certificate live side by side.
#[must_use]
pub fn client_id(name: &str, suffix: u64) -> String {
    format!("{name}.{suffix:016x}")
}

/// Whether `id` is what [`client_id`] makes for `name`, whatever the suffix: 1 to 32 of `a-z`, `0-9`.
#[must_use]
pub fn is_client_id_of(id: &str, name: &str) -> bool {
    id.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|suffix| {
            (1..=32).contains(&suffix.len())
                && suffix
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_url_names_host_and_port() {
        for (text, host, port) in [
            ("mqtts://broker.example.org", "broker.example.org", 8883),
            ("mqtts://10.0.0.1:1234/", "10.0.0.1", 1234),
            ("mqtts://[::1]:99", "::1", 99),
            ("mqtts://[fe80::1]", "fe80::1", 8883),
        ] {
            let url: BrokerUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port()), (host, port), "{text}");
            assert_eq!(url.to_string().parse::<BrokerUrl>().unwrap(), url);
        }
        for bad in [
            "",
            "mqtt://a",
            "a:1",
            "mqtts://",
            "mqtts://a:0",
            "mqtts://a:b",
            "mqtts://[::1",
            "mqtts://a b",
        ] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_suffix_spells_another_client_id() {
        assert!(is_client_id_of(&client_id("ci", 7), "ci"));
        for bad in ["ci", "ci.", "ci.A", "ci.a/b", "ci2.a", "web-1", "ci.a.b"] {
            assert!(!is_client_id_of(bad, "ci"), "{bad:?}");
        }
    }
}
