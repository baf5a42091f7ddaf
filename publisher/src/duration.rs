//! The durations of the command line and of specs, each with its limits.

use std::time::Duration;

pub use hoist_certs::program::DurationError;
pub use hoist_certs::program::show_duration as show;
use hoist_certs::program::{parse_duration, parse_duration_within};
use hoist_protocol::{Text, limits};

/// Reads a duration; a day has 24 hours.
///
/// # Errors
/// [`DurationError::Malformed`] for anything else, and for 0 or less.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let duration = parse_duration(text)?;
    if duration.is_zero() {
        return Err(DurationError::Malformed(
            Text::<40>::lossy(text).to_string(),
        ));
    }
    Ok(duration)
}

macro_rules! ranges {
    ($($(#[$doc:meta])* $name:ident: $range:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`DurationError`]
        pub fn $name(text: &str) -> Result<Duration, DurationError> {
            let (min, max) = (*limits::$range.start(), *limits::$range.end());
            let range = Duration::from_millis(min)..=Duration::from_millis(max);
            parse_duration_within(text, &range)
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

/// A duration in milliseconds, at most what fits.
#[must_use]
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_at_all_is_only_a_duration_where_that_has_a_meaning() {
        assert!(parse("0s").is_err());
        assert_eq!(parse("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(spread("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn each_duration_has_its_limits() {
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
