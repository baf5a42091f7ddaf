//! How often something may happen: so often a second, and how much of it at once after a quiet time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A text that is no rate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a rate is written like `100/s`, `30/min` or `100/s burst 2000`, with numbers above zero; without `burst` \
     a second's or minute's worth may come at once"
)]
pub struct RateError;

/// So much for each second or minute, and a burst: what may come at once after a time without any.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Rate {
    count: u32,
    per: Per,
    burst: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Per {
    Second,
    Minute,
}

impl Rate {
    /// `count` a second, `burst` at once. Both at least 1.
    pub(super) const fn a_second(count: u32, burst: u32) -> Self {
        let per = Per::Second;
        Self { count, per, burst }
    }

    /// `count` a minute, `burst` at once. Both at least 1.
    pub(super) const fn a_minute(count: u32, burst: u32) -> Self {
        let per = Per::Minute;
        Self { count, per, burst }
    }

    /// The time in which `count` of it are earned.
    pub(crate) fn time_for(self, count: u32) -> Duration {
        let per = match self.per {
            Per::Second => Duration::from_secs(1),
            Per::Minute => Duration::from_secs(60),
        };
        let nanos = per.as_nanos() * u128::from(count) / u128::from(self.count);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The time in which a whole burst is earned.
    pub(crate) fn window(self) -> Duration {
        self.time_for(self.burst)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (rate, burst) = match words.as_slice() {
            [rate] => (*rate, None),
            [rate, "burst", burst] => (*rate, Some(*burst)),
            _ => return Err(RateError),
        };
        let (count, per) = match rate.split_once('/') {
            Some((count, "s")) => (count, Per::Second),
            Some((count, "min")) => (count, Per::Minute),
            _ => return Err(RateError),
        };
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(RateError),
            Ok(number) => Ok(number),
        };
        let count = number(count)?;
        let burst = burst.map_or(Ok(count), number)?;
        Ok(Self { count, per, burst })
    }
}

impl TryFrom<String> for Rate {
    type Error = RateError;

    fn try_from(text: String) -> Result<Self, RateError> {
        text.parse()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            Per::Second => "s",
            Per::Minute => "min",
        };
        write!(f, "{}/{per} burst {}", self.count, self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_as_it_is_written() {
        for (text, rate) in [
            ("100/s burst 2000", Rate::a_second(100, 2000)),
            ("30/min burst 30", Rate::a_minute(30, 30)),
        ] {
            assert_eq!(text.parse(), Ok(rate));
            assert_eq!(rate.to_string(), text);
        }
        assert_eq!("7/s".parse(), Ok(Rate::a_second(7, 7)));
        for bad in [
            "",
            "100",
            "0/s",
            "5/s burst 0",
            "5/h",
            "5/s 7",
            "-1/s",
            "5/s burst",
        ] {
            assert_eq!(bad.parse::<Rate>(), Err(RateError), "{bad:?}");
        }
    }

    #[test]
    fn a_burst_is_earned_in_its_time() {
        assert_eq!(Rate::a_second(100, 2000).window(), Duration::from_secs(20));
        assert_eq!(Rate::a_minute(30, 30).time_for(1), Duration::from_secs(2));
    }
}
