//! Durations as people write and read them: `30s`, `5m`, `2h`, `90d`, `1h 30m`.

use std::ops::RangeInclusive;
use std::str::FromStr as _;
use std::time::Duration;

use hoist_protocol::Text;
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

/// Reads a duration, 0 too; a day has 24 hours.
///
/// # Errors
/// [`DurationError::Malformed`] for anything else, and for less than 0.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let read = || {
        let span = Span::from_str(text.trim()).ok()?;
        let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
        Duration::try_from(duration).ok()
    };
    read().ok_or_else(|| DurationError::Malformed(shown(text)))
}

/// Reads a duration that lies within `range`.
///
/// # Errors
/// [`DurationError`]
pub fn parse_duration_within(
    text: &str,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, DurationError> {
    let duration = parse_duration(text)?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let limit = |limit: &Duration| match limit.is_zero() {
        true => "0s".to_owned(),
        false => show_duration(*limit),
    };
    Err(DurationError::Range {
        given: shown(text),
        min: limit(range.start()),
        max: limit(range.end()),
    })
}

fn shown(text: &str) -> String {
    Text::<40>::lossy(text).to_string()
}

/// Shows a duration in its one or two largest units: `5m 3s`, `2h 1m`, `90d`. Below a second: `120ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.subsec_millis());
    }
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let first = units
        .iter()
        .position(|(_, size)| seconds >= *size)
        .unwrap_or(units.len() - 1);
    let (name, size) = units[first];
    let rest = units
        .get(first + 1)
        .map(|(name, of)| (seconds % size / of, name))
        .filter(|(count, _)| *count > 0)
        .map_or_else(String::new, |(count, name)| format!(" {count}{name}"));
    format!("{}{name}{rest}", seconds / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, seconds) in [
            ("0s", 0),
            ("30s", 30),
            ("5m", 300),
            ("2h", 7_200),
            ("90d", 90 * 86_400),
            ("1h 30m", 5_400),
            ("1h30m", 5_400),
            ("2 min", 120),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in [
            "",
            "5",
            "m",
            "-5m",
            "soon",
            "1mo",
            "1y",
            "5m\u{1b}",
            "99999999999d",
        ] {
            let error = parse_duration(bad).unwrap_err().to_string();
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn a_duration_out_of_its_range_is_answered_with_the_range() {
        let hour = Duration::from_secs(3_600);
        let range = Duration::from_secs(1)..=hour;
        assert_eq!(parse_duration_within("1h", &range), Ok(hour));
        assert_eq!(
            parse_duration_within("2h", &range).unwrap_err().to_string(),
            "`2h` is outside of what is allowed, 1s to 1h"
        );
        assert_eq!(
            parse_duration_within("2h", &(Duration::ZERO..=hour))
                .unwrap_err()
                .to_string(),
            "`2h` is outside of what is allowed, 0s to 1h"
        );
    }

    #[test]
    fn a_duration_is_shown_in_its_largest_units() {
        for (ms, text) in [
            (120, "120ms"),
            (1_900, "1s"),
            (303_000, "5m 3s"),
            (300_000, "5m"),
            (7_260_000, "2h 1m"),
            (7_205_000, "2h"),
            (90 * 86_400_000, "90d"),
        ] {
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
    }
}
