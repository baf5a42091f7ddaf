//! Health checks: what must hold on a machine after an activation.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::conversions::text_conversions;
use crate::limits;
use crate::store_path::{StorePath, System};
use crate::word::UnitName;

/// What must hold on the machine after the activation; if it does not, the machine goes back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// Failures within this time after the activation do not count, in milliseconds: services take time to
    /// start.
    pub grace_ms: u64,
    /// How often it is tried again after a failure that counts.
    pub retries: u16,
    /// How long it waits between two tries, in milliseconds.
    pub interval_ms: u64,
    /// How long one try may take, in milliseconds.
    pub timeout_ms: u64,
    /// Whether a check that had failed before the activation too does not count: what was broken before is
    /// not the deployment's doing.
    pub only_if_held_before: bool,
}

impl HealthCheck {
    /// `probe` with everything else as it is by default: no grace, no retries.
    #[must_use]
    pub const fn new(probe: Probe) -> Self {
        Self {
            probe,
            grace_ms: 0,
            retries: 0,
            interval_ms: limits::DEFAULT_CHECK_INTERVAL_MS,
            timeout_ms: limits::DEFAULT_CHECK_TIMEOUT_MS,
            only_if_held_before: false,
        }
    }

    /// How long failures do not count.
    #[must_use]
    pub const fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// How long it waits between two tries.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// How long one try may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// The program to run on a machine of this system, when it is one that runs a program.
    #[must_use]
    pub fn program(&self, system: &System) -> Option<&StorePath> {
        match &self.probe {
            Probe::Program(programs) => programs.get(system),
            Probe::Unit(_) | Probe::Tcp(_) | Probe::Http(_) => None,
        }
    }

    pub(crate) fn times(&self) -> [(&'static str, u64, RangeInclusive<u64>); 3] {
        [
            (
                "grace of a health check",
                self.grace_ms,
                limits::CHECK_GRACE_MS,
            ),
            (
                "interval of a health check",
                self.interval_ms,
                limits::CHECK_INTERVAL_MS,
            ),
            (
                "timeout of a health check",
                self.timeout_ms,
                limits::CHECK_TIMEOUT_MS,
            ),
        ]
    }
}

/// What a health check tries.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// An executable file of the store for each system; any exit code but 0 fails.
    ///
    /// A machine whose system is not in the map has no such check.
    Program(BTreeMap<System, StorePath>),
    /// A systemd unit; any state but `active` fails.
    Unit(UnitName),
    /// A TCP connection; that it is accepted is enough.
    Tcp(Endpoint),
    /// A GET request; any status but 200 to 299 fails, redirections are not followed.
    Http(HttpUrl),
}

/// Why a text is no address that a check could connect to.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// It is no host with a port.
    #[error("`{0}` is no address; it is written HOST:PORT, an IPv6 address in brackets")]
    Endpoint(String),
    /// It is no URL of that kind.
    #[error(
        "`{0}` is no URL to check; it starts with http:// or https://, names a host and holds no user, white space or fragment"
    )]
    Url(String),
}

fn shown(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

/// A host and a TCP port, `localhost:80` or `[::1]:80`, 255 bytes at most.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint(String);

/// An `http://` or `https://` URL, 512 bytes at most.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpUrl(String);

fn is_host(text: &str) -> bool {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !text.is_empty()
                && !text.starts_with('-')
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    }
}

/// A host with a port, or without one where that is allowed.
fn is_authority(text: &str, port_required: bool) -> bool {
    let colon = match text.rfind(']') {
        Some(bracket) => text[bracket..].find(':').map(|at| bracket + at),
        None => text.rfind(':'),
    };
    match colon {
        Some(at) => {
            let port = &text[at + 1..];
            is_host(&text[..at])
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
        None => !port_required && is_host(text),
    }
}

impl Endpoint {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`EndpointError::Endpoint`]
    pub fn new(text: impl Into<String>) -> Result<Self, EndpointError> {
        let text = text.into();
        if text.len() <= 255 && is_authority(&text, true) {
            return Ok(Self(text));
        }
        Err(EndpointError::Endpoint(shown(&text)))
    }

    /// The text, as `std::net::ToSocketAddrs` takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HttpUrl {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`EndpointError::Url`]
    pub fn new(text: impl Into<String>) -> Result<Self, EndpointError> {
        let text = text.into();
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        let holds = rest.is_some_and(|rest| {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            is_authority(authority, false)
        });
        if holds
            && text.len() <= 512
            && !text.contains('#')
            && text.chars().all(|c| c.is_ascii_graphic())
        {
            return Ok(Self(text));
        }
        Err(EndpointError::Url(shown(&text)))
    }

    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

text_conversions!(EndpointError => Endpoint, HttpUrl);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_host_and_a_port() {
        for good in [
            "localhost:80",
            "10.0.0.1:8883",
            "[::1]:443",
            "a_b.example:1",
        ] {
            assert!(Endpoint::new(good).is_ok(), "{good:?}");
        }
        for bad in [
            "localhost",
            "::1:80",
            "[::1]",
            "a:0",
            "a:70000",
            "a:+1",
            ":80",
            "a b:1",
            "-a:1",
            "[x]:1",
            "",
        ] {
            assert!(Endpoint::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_url_to_check_names_a_host_and_no_user() {
        for good in [
            "http://localhost",
            "https://[::1]:8443/health?full=1",
            "http://a:80/",
        ] {
            assert!(HttpUrl::new(good).is_ok(), "{good:?}");
        }
        for bad in [
            "ftp://a",
            "http://",
            "http:///x",
            "http://u:p@a/",
            "http://a/ b",
            "http://a/#x",
            "http://a:x/",
        ] {
            assert!(HttpUrl::new(bad).is_err(), "{bad:?}");
        }
    }
}
