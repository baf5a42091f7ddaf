//! Where a machine stands, in words.

use std::time::Duration;

use hoist_certs::program::show_size;
use hoist_protocol::FetchProgress;

use crate::console::one_line;
use crate::duration;
use crate::follow::{Outlook, Phase, Step};

/// One line, without the machine's name.
#[must_use]
pub fn describe(outlook: &Outlook<'_>) -> String {
    let said = match &outlook.phase {
        Phase::Queued => "waits for its batch".to_owned(),
        Phase::Publishing => "publishing".to_owned(),
        Phase::Published => "published, waiting for the machine".to_owned(),
        Phase::Away => "offline; it gets the deployment when it returns".to_owned(),
        Phase::Reported(step) => reported(step),
        Phase::Ended(outcome) => outcome.to_string(),
    };
    if outlook.message.is_empty() {
        return said;
    }
    format!("{said}: {}", one_line(&outlook.message))
}

fn reported(step: &Step) -> String {
    let state = step.state.as_str().replace('_', " ");
    let percent = step
        .percent
        .map_or_else(String::new, |percent| format!(" {percent} %"));
    let Some(fetch) = step.fetch.filter(|fetch| fetch.fetch_bytes > 0) else {
        return format!("{state}{percent}");
    };
    let rate = step.rate.filter(|rate| *rate > 0);
    let rate = rate.map_or_else(String::new, |rate| {
        let left = fetch.fetch_bytes.saturating_sub(fetch.fetched_bytes) / rate;
        let left = match left {
            0 => String::new(),
            left => format!(", {} left", duration::show(Duration::from_secs(left))),
        };
        format!(", {}/s{left}", show_size(rate))
    });
    format!("{state}{percent}: {}{rate}", fetched(&fetch))
}

/// How much has come of how much.
#[must_use]
pub fn fetched(fetch: &FetchProgress) -> String {
    format!(
        "{} of {}, {} of {} paths",
        show_size(fetch.fetched_bytes),
        show_size(fetch.fetch_bytes),
        fetch.fetched_paths,
        fetch.fetch_paths
    )
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{AgentName, State};

    use super::*;

    fn fetching(rate: Option<u64>) -> String {
        let agent = AgentName::new("web-1").unwrap();
        describe(&Outlook {
            agent: &agent,
            batch: 0,
            phase: Phase::Reported(Step {
                state: State::Fetching,
                percent: Some(41),
                fetch: Some(FetchProgress {
                    fetched_bytes: 510 << 20,
                    fetch_bytes: 1_240 << 20,
                    fetched_paths: 120,
                    fetch_paths: 340,
                }),
                rate,
            }),
            message: String::new(),
        })
    }

    #[test]
    fn a_fetch_is_said_in_bytes_and_paths_with_its_rate() {
        assert_eq!(
            fetching(None),
            "fetching 41 %: 510 MiB of 1.2 GiB, 120 of 340 paths"
        );
        assert_eq!(
            fetching(Some(10 << 20)),
            "fetching 41 %: 510 MiB of 1.2 GiB, 120 of 340 paths, 10 MiB/s, 1m 13s left"
        );
    }
}
