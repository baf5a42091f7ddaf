//! Where the fleet's brokers are, and which of them is tried next.

use std::fmt;
use std::str::FromStr;

use hoist_protocol::{BrokerUrl, BrokerUrlError};
use serde::Deserialize;

/// Most brokers that an agent knows.
pub const MAX_BROKERS: usize = 8;

/// The brokers of a fleet, in the order in which they are tried: 1 to [`MAX_BROKERS`], no two alike.
///
/// In a file one URL or a list of them, as a flag one or several with commas between.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "Written")]
pub struct Brokers(Vec<BrokerUrl>);

/// Why these are no brokers.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BrokersError {
    /// One of them is no URL.
    #[error(transparent)]
    Url(#[from] BrokerUrlError),
    /// There is none.
    #[error(
        "there is no broker in the list; give one at least, such as mqtts://broker.example.org"
    )]
    None,
    /// There are too many.
    #[error("there are {0} brokers in the list, and {MAX_BROKERS} at most are allowed")]
    Many(usize),
    /// One is there twice.
    #[error("the broker {0} is in the list twice")]
    Twice(BrokerUrl),
}

/// As it stands in a file.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`broker` is neither a URL such as \"mqtts://broker.example.org\" nor a list of them"
)]
enum Written {
    One(String),
    List(Vec<String>),
}

impl Brokers {
    /// Takes `urls`.
    ///
    /// # Errors
    /// [`BrokersError`]
    pub fn new(urls: Vec<BrokerUrl>) -> Result<Self, BrokersError> {
        match urls.len() {
            0 => return Err(BrokersError::None),
            1..=MAX_BROKERS => {}
            many => return Err(BrokersError::Many(many)),
        }
        for (index, url) in urls.iter().enumerate() {
            if urls[..index].contains(url) {
                return Err(BrokersError::Twice(url.clone()));
            }
        }
        Ok(Self(urls))
    }

    /// All of them, the preferred one first.
    #[must_use]
    pub fn urls(&self) -> &[BrokerUrl] {
        &self.0
    }

    /// The one whose turn it is.
    #[must_use]
    pub fn at(&self, turn: &Turn) -> &BrokerUrl {
        // In range even for the turn of another list.
        &self.0[turn.index % self.0.len()]
    }
}

impl TryFrom<Written> for Brokers {
    type Error = BrokersError;

    fn try_from(written: Written) -> Result<Self, BrokersError> {
        let texts = match written {
            Written::One(text) => vec![text],
            Written::List(texts) => texts,
        };
        let urls: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
        Self::new(urls?)
    }
}

impl FromStr for Brokers {
    type Err = BrokersError;

    fn from_str(text: &str) -> Result<Self, BrokersError> {
        let urls: Result<_, _> = text.split(',').map(|url| url.trim().parse()).collect();
        Self::new(urls?)
    }
}

impl fmt::Display for Brokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, url) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{url}")?;
        }
        Ok(())
    }
}

/// Whose turn it is to be connected to.
///
/// The first broker is preferred whenever a connection is made; the others stand in for it while it does not
/// answer. A connection to one of them is kept as long as it lasts: going back to a first broker that comes and
/// goes would cost more than it gives.
#[derive(Debug)]
pub struct Turn {
    brokers: usize,
    index: usize,
    /// How many have failed since one was connected, or since the last wait.
    failed: usize,
}

impl Turn {
    /// The first of `brokers`.
    #[must_use]
    pub fn first(brokers: &Brokers) -> Self {
        Self {
            brokers: brokers.0.len(),
            index: 0,
            failed: 0,
        }
    }

    /// Its place in the list, from 0.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Whether it is the preferred broker's.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.index == 0
    }

    /// The broker could not be reached, or did not take us. Whether another one is to be tried at once;
    /// otherwise all have failed, and the first comes next, after a wait.
    pub const fn failed(&mut self) -> bool {
        self.failed += 1;
        self.index = (self.index + 1) % self.brokers;
        if self.failed < self.brokers {
            return true;
        }
        self.restart();
        false
    }

    /// A connection that was accepted has ended. One that lasted proves its broker to be no worse than others;
    /// after one that did not, another broker comes first.
    pub const fn lost(&mut self, lasted: bool) {
        let next = (self.index + 1) % self.brokers;
        self.restart();
        if !lasted {
            self.index = next;
        }
    }

    /// The first again, as if nothing had been tried.
    pub const fn restart(&mut self) {
        self.index = 0;
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(text: &str) -> Result<Brokers, String> {
        text.parse()
            .map_err(|error: BrokersError| error.to_string())
    }

    fn three() -> (Brokers, Turn) {
        let brokers = brokers("mqtts://a,mqtts://b,mqtts://c").unwrap();
        let turn = Turn::first(&brokers);
        (brokers, turn)
    }

    #[derive(Debug, Deserialize)]
    struct File {
        broker: Brokers,
    }

    #[test]
    fn one_broker_or_a_list_of_them_is_read() {
        let hosts = |brokers: &Brokers| -> Vec<String> {
            let urls = brokers.urls().iter();
            urls.map(|url| url.host().to_owned()).collect()
        };
        let file = |text: &str| serde_json::from_str::<File>(text).unwrap().broker;
        assert_eq!(hosts(&file(r#"{"broker": "mqtts://a"}"#)), ["a"]);
        assert_eq!(
            hosts(&file(r#"{"broker": ["mqtts://a", "mqtts://b:1"]}"#)),
            ["a", "b"]
        );
        let flag = brokers("mqtts://a, mqtts://b:1").unwrap();
        assert_eq!(flag.to_string(), "mqtts://a:8883, mqtts://b:1");
    }

    #[test]
    fn a_list_that_cannot_work_is_refused_with_the_reason() {
        let nine: Vec<String> = (1..=9).map(|n| format!("mqtts://b{n}")).collect();
        for (text, said) in [
            ("", "`` is no broker URL"),
            ("mqtts://a,", "`` is no broker URL"),
            ("mqtts://a,mqtt://b", "`mqtt://b` is no broker URL"),
            (
                "mqtts://a,mqtts://a:8883",
                "mqtts://a:8883 is in the list twice",
            ),
            (&nine.join(","), "9 brokers in the list, and 8 at most"),
        ] {
            let error = brokers(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        for (json, said) in [
            (r#"{"broker": []}"#, "no broker in the list"),
            (r#"{"broker": 7}"#, "neither a URL such as"),
            (r#"{"broker": "mqtt://a"}"#, "`mqtt://a` is no broker URL"),
        ] {
            let error = serde_json::from_str::<File>(json).unwrap_err().to_string();
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn each_broker_is_tried_once_before_a_wait() {
        let (brokers, mut turn) = three();
        let mut hosts = Vec::new();
        loop {
            hosts.push(brokers.at(&turn).host().to_owned());
            if !turn.failed() {
                break;
            }
        }
        assert_eq!(hosts, ["a", "b", "c"]);
        assert!(
            turn.is_first(),
            "after the wait the preferred one comes first"
        );
    }

    #[test]
    fn after_a_good_connection_to_another_broker_the_preferred_one_comes_first() {
        let (brokers, mut turn) = three();
        assert!(turn.failed());
        assert_eq!(brokers.at(&turn).host(), "b");
        turn.lost(true);
        assert_eq!(brokers.at(&turn).host(), "a");
    }

    #[test]
    fn a_broker_that_accepts_and_breaks_off_is_passed_over_once() {
        let (brokers, mut turn) = three();
        turn.lost(false);
        let mut hosts = Vec::new();
        loop {
            hosts.push(brokers.at(&turn).host().to_owned());
            if !turn.failed() {
                break;
            }
        }
        assert_eq!(hosts, ["b", "c", "a"]);
    }

    #[test]
    fn with_one_broker_every_failure_is_followed_by_a_wait() {
        let brokers = brokers("mqtts://a").unwrap();
        let mut turn = Turn::first(&brokers);
        assert!(!turn.failed());
        turn.lost(false);
        assert_eq!(brokers.at(&turn).host(), "a");
    }
}
