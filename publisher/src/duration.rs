//! Durations as people type them: `30s`, `5m`, `2h`, `90d`, `1h 30m`.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub use hoist_certs::program::show_duration as show;
use hoist_protocol::{Text, limits};
use jiff::{Span, SpanRelativeTo};

/// A text that is not the duration that is asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// It is none.
    #[error("`{0}` is no duration; it is written like `30s`, `5m`, `2h` or `90d`")]
    Malformed(String),
    /// It is too short or too long.
    #[error("`{given}` is outside of what is allowed, {min} to {max}")]
    Range {
        /// What was given.
        given: String,
        /// The shortest that is allowed.
        min: String,
        /// The longest that is allowed.
        max: String,
    },
}

/// Reads a duration; a day has 24 hours.
///
/// # Errors
/// [`DurationError::Malformed`] for anything else, and for 0 or less.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    any(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| DurationError::Malformed(shown(text)))
}

/// Reads a duration that lies within `range`, in milliseconds; 0 where that is within.
///
/// # Errors
/// [`DurationError`]
pub fn within(text: &str, range: &RangeInclusive<u64>) -> Result<Duration, DurationError> {
    let duration = any(text).ok_or_else(|| DurationError::Malformed(shown(text)))?;
    if range.contains(&ms(duration)) {
        return Ok(duration);
    }
    let limit = |ms: u64| match ms {
        0 => "0s".to_owned(),
        ms => show(Duration::from_millis(ms)),
    };
    Err(DurationError::Range {
        given: shown(text),
        min: limit(*range.start()),
        max: limit(*range.end()),
    })
}

macro_rules! ranges {
    ($($(#[$doc:meta])* $name:ident: $range:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`DurationError`]
        pub fn $name(text: &str) -> Result<Duration, DurationError> {
            within(text, &limits::$range)
        }
    )*};
}

ranges! {
    /// Reads how long an activation may take.
    activation_timeout: ACTIVATION_TIMEOUT_MS;
    /// Reads how long a confirmation may take.
    confirm_timeout: CONFIRM_TIMEOUT_MS;
    /// Reads within which time machines begin.
    spread: SPREAD_MS;
    /// Reads for how long failures of a health check do not count.
    check_grace: CHECK_GRACE_MS;
    /// Reads the wait between two tries of a health check.
    check_interval: CHECK_INTERVAL_MS;
    /// Reads how long one try of a health check may take.
    check_timeout: CHECK_TIMEOUT_MS;
}

fn any(text: &str) -> Option<Duration> {
    let span = Span::from_str(text.trim()).ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok()
}

fn shown(text: &str) -> String {
    Text::<40>::lossy(text).to_string()
}

/// A duration in milliseconds, at most what fits.
#[must_use]
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_read() {
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("2h", 7_200),
            ("90d", 90 * 86_400),
            ("1h 30m", 5_400),
            ("1h30m", 5_400),
            ("2 min", 120),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in [
            "",
            "5",
            "m",
            "0s",
            "-5m",
            "soon",
            "1mo",
            "1y",
            "5m\u{1b}",
            "99999999999d",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn a_duration_out_of_its_range_is_answered_with_the_range() {
        assert_eq!(spread("0s"), Ok(Duration::ZERO));
        assert_eq!(
            confirm_timeout("2h").unwrap_err().to_string(),
            "`2h` is outside of what is allowed, 1s to 1h"
        );
        assert_eq!(
            check_interval("0s").unwrap_err().to_string(),
            "`0s` is outside of what is allowed, 10ms to 10m"
        );
        assert!(matches!(spread("soon"), Err(DurationError::Malformed(_))));
    }
}
