//! Times in settings.

use std::str::FromStr;
use std::time::Duration;

use hoist_certs::program::{DurationError, parse_duration};
use serde::Deserialize;

use super::SettingsError;

/// A time in a form such as `30s`, `5m` or `1h 30m`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Period(Duration);

impl Period {
    /// How long it is.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse_duration(text).map(Self)
    }
}

impl TryFrom<String> for Period {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

/// A setting that is a time.
pub(super) struct PeriodSetting {
    pub(super) key: &'static str,
    pub(super) default: Duration,
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl PeriodSetting {
    /// What was given, or the default.
    ///
    /// # Errors
    /// [`SettingsError::Period`] when it lies outside of what is useful.
    pub(super) fn take(&self, given: Option<Period>) -> Result<Duration, SettingsError> {
        let Self {
            key,
            default,
            min,
            max,
        } = *self;
        let found = given.map_or(default, |Period(given)| given);
        if found < min || found > max {
            return Err(SettingsError::Period {
                key,
                found,
                min,
                max,
            });
        }
        Ok(found)
    }
}
