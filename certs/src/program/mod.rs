//! What every program does the same way: logging, configuration files, errors, manual pages, the time, durations,
//! sizes.

mod config;
mod duration;
mod logging;
mod manual;
mod size;

use std::time::{SystemTime, UNIX_EPOCH};

use hoist_protocol::{Text, Timestamp};

pub use config::{ConfigError, read_toml};
pub use duration::{DurationError, parse_duration, parse_duration_within, show_duration};
pub use logging::{LogArgs, LogFormat, init_logging};
pub use manual::ManArgs;
pub use size::{show_size, show_size_difference};

/// The time by this machine's clock; 1970 when the clock stands before that.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// An error and what caused it, each said once, in one line that a terminal can show.
#[must_use]
pub fn report(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some libraries put their cause into their own message as well.
        if said.contains(&cause) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&cause);
    }
    Text::<8192>::lossy(&said).to_string()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_says_each_cause_once() {
        let io = std::io::Error::other("disk on fire");
        let error = anyhow::Error::from(io)
            .context("cannot write: disk on fire")
            .context("cannot save");
        assert_eq!(report(&error), "cannot save: cannot write: disk on fire");
    }

    #[test]
    fn an_error_never_reaches_the_terminal_with_control_characters() {
        let error = Err::<(), _>(std::io::Error::other("a\u{1b}[2Jb"))
            .context("c")
            .unwrap_err();
        assert_eq!(report(&error), "c: a\u{fffd}[2Jb");
    }
}
