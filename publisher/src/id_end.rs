//! A deployment or a rollout as people name it on a command line.

use std::fmt;
use std::str::FromStr;

use hoist_protocol::{DeploymentId, Text};

/// A whole id, or the 8 digits that it ends with, as `hoist history` and `hoist status` show them.
///
/// The same goes for rollouts, whose ids are UUIDs too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdEnd {
    /// All of it.
    Whole(DeploymentId),
    /// Its last 8 hexadecimal digits.
    End(u32),
}

/// A text that is neither.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no id: that is a UUID, or the last 8 digits of one")]
pub struct IdEndError(Text<64>);

impl FromStr for IdEnd {
    type Err = IdEndError;

    fn from_str(text: &str) -> Result<Self, IdEndError> {
        let trimmed = text.trim();
        let is_end = trimmed.len() == 8 && trimmed.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_end && let Ok(end) = u32::from_str_radix(trimmed, 16) {
            return Ok(Self::End(end));
        }
        let whole = trimmed.parse().map(Self::Whole);
        whole.map_err(|_| IdEndError(Text::lossy(text)))
    }
}

impl IdEnd {
    /// Whether `id` is the one that is meant, or may be.
    #[must_use]
    pub const fn fits(self, id: DeploymentId) -> bool {
        match self {
            Self::Whole(whole) => whole.as_uuid().as_u128() == id.as_uuid().as_u128(),
            // The last 32 bits.
            Self::End(end) => id.as_uuid().as_u128() as u32 == end,
        }
    }

    /// The one of `ids` that is meant; none when there is none, or several of them end so.
    pub fn among(self, ids: impl IntoIterator<Item = DeploymentId>) -> Option<DeploymentId> {
        let mut fitting = ids.into_iter().filter(|id| self.fits(*id));
        let found = fitting.next();
        found.filter(|_| fitting.next().is_none())
    }
}

impl fmt::Display for IdEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(id) => id.fmt(f),
            Self::End(end) => write!(f, "{end:08x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::id;

    const SEVEN: u128 = 0x0196_0000_0000_7000_8000_0000_ABCD_EF07;

    fn read(text: &str) -> IdEnd {
        text.parse().unwrap()
    }

    #[test]
    fn an_id_is_meant_by_all_of_it_or_by_its_last_8_digits() {
        let seven = id(SEVEN);
        for text in [
            "abcdef07",
            " ABCDEF07 ",
            "01960000-0000-7000-8000-0000abcdef07",
            "0196000000007000800000 00abcdef07"
                .replace(' ', "")
                .as_str(),
        ] {
            assert!(read(text).fits(seven), "{text}");
            assert!(!read(text).fits(id(SEVEN + 1)), "{text}");
        }
        assert_eq!(read(&seven.short()).to_string(), seven.short());
        assert_eq!(read(&seven.to_string()).to_string(), seven.to_string());
        assert_eq!(read("0000000a").to_string(), "0000000a");
    }

    #[test]
    fn whatever_else_is_refused_and_quoted() {
        for bad in ["", "1", "0000000g", "+0000001", "latest", "abcdef070"] {
            let error = bad.parse::<IdEnd>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`{bad}` is no id: that is a UUID, or the last 8 digits of one")
            );
        }
    }

    #[test]
    fn of_two_that_end_alike_none_is_chosen() {
        let (one, other) = (id(0x1_0000_0001), id(0x2_0000_0001));
        assert_eq!(read("00000001").among([one, id(2)]), Some(one));
        assert_eq!(read("00000001").among([one, other]), None);
        assert_eq!(read("00000003").among([one, other]), None);
        assert_eq!(read(&other.to_string()).among([one, other]), Some(other));
    }
}
