//! Durations as people type them: `30s`, `5m`, `2h`, `90d`, `1h 30m`.

use std::str::FromStr;
use std::time::Duration;

use hoist_protocol::Text;
use jiff::{Span, SpanRelativeTo};

/// A text that is no duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no duration; it is written like `30s`, `5m`, `2h` or `90d`")]
pub struct DurationError(String);

/// Reads a duration; a day has 24 hours.
///
/// # Errors
/// [`DurationError`] for anything else, and for 0 or less.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(Text::<40>::lossy(text).to_string());
    let span = Span::from_str(text.trim()).map_err(|_| error())?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| error())?;
    Duration::try_from(duration)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(error)
}

/// Shows a duration in its one or two largest units: `5m 3s`, `2h 1m`, `90d`. Below a second: `120ms`.
#[must_use]
pub fn show(duration: Duration) -> String {
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
    fn a_duration_is_shown_in_its_largest_units() {
        for (ms, text) in [
            (120, "120ms"),
            (1_900, "1s"),
            (303_000, "5m 3s"),
            (300_000, "5m"),
            (7_260_000, "2h 1m"),
            (90 * 86_400_000, "90d"),
        ] {
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
    }
}
