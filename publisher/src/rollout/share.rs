//! A part of a fleet: so many machines, or so many of a hundred.

use std::fmt;
use std::str::FromStr;

/// `3` or `10%`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Share {
    /// So many machines.
    Count(usize),
    /// So many of a hundred, 0 to 100.
    Percent(u8),
}

/// A text that is no part of a fleet.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is neither a number of machines, such as 3, nor a part of them, such as 10%")]
pub struct ShareError(String);

impl Share {
    /// How many of `all` that is, rounded up: a part of something is not nothing.
    #[must_use]
    pub fn round_up(self, all: usize) -> usize {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => part(all, percent).div_ceil(100),
        }
    }

    /// How many of `all` that is, rounded down: what must not be exceeded is not exceeded by a part.
    #[must_use]
    pub fn round_down(self, all: usize) -> usize {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => part(all, percent) / 100,
        }
    }
}

fn part(all: usize, percent: u8) -> usize {
    all.saturating_mul(percent.into())
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let wrong = || ShareError(text.to_owned());
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent: u8 = percent.trim_end().parse().map_err(|_| wrong())?;
                (percent <= 100)
                    .then_some(Self::Percent(percent))
                    .ok_or_else(wrong)
            }
            None => text.trim().parse().map(Self::Count).map_err(|_| wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_number_or_a_percentage() {
        for (text, share) in [
            ("0", Share::Count(0)),
            ("3", Share::Count(3)),
            ("10%", Share::Percent(10)),
            ("100 %", Share::Percent(100)),
        ] {
            assert_eq!(text.parse(), Ok(share));
        }
        for text in ["", "%", "101%", "-1", "1.5", "some"] {
            let error = text.parse::<Share>().unwrap_err().to_string();
            assert!(error.contains("10%"), "{error}");
        }
    }

    #[test]
    fn a_part_of_something_is_at_least_one_and_a_limit_is_not_exceeded() {
        let ten = Share::Percent(10);
        assert_eq!(
            (ten.round_up(1), ten.round_up(11), ten.round_up(0)),
            (1, 2, 0)
        );
        assert_eq!((ten.round_down(9), ten.round_down(19)), (0, 1));
        assert_eq!(
            Share::Percent(100).round_up(usize::MAX),
            usize::MAX.div_ceil(100)
        );
    }
}
