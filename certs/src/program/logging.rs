//! Logs: on stderr, for people or as JSON for machines.

use std::io::IsTerminal as _;

use clap::{ArgAction, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// The flags about logging, the same for every program.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct LogArgs {
    /// Log more: -v for information, -vv for details, -vvv for everything
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// How log lines on stderr look
    #[arg(
        long,
        value_enum,
        default_value_t,
        global = true,
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
}

impl LogArgs {
    /// Starts logging; a service passes `base` 1 so that information is logged without any flag.
    pub fn init(self, base: u8) {
        init_logging(self.verbose.saturating_add(base), self.log_format);
    }
}

/// Starts logging to stderr: 0 warnings, 1 information, 2 details of Hoist's own, 3 everything.
///
/// `HOIST_LOG` replaces the choice: levels, each for a part of the program or for all of it, in the syntax of
/// `tracing_subscriber::filter::Targets`. A second call in one process changes nothing.
pub fn init_logging(verbosity: u8, format: LogFormat) {
    let asked = std::env::var("HOIST_LOG").map(|asked| asked.parse());
    let (filter, wrong) = match asked {
        Ok(Ok(filter)) => (filter, None),
        Ok(Err(error)) => (chosen(verbosity), Some(error)),
        Err(_) => (chosen(verbosity), None),
    };
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let started = registry().with(lines).with(filter).try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
    if let Some(error) = wrong {
        tracing::warn!(%error, "HOIST_LOG is no filter and was not followed; it is written like `info,hoist_agent=debug`");
    }
}

/// What is logged unless somebody asks for something else.
fn chosen(verbosity: u8) -> Targets {
    let (all, ours) = match verbosity {
        0 => (LevelFilter::WARN, LevelFilter::WARN),
        1 => (LevelFilter::WARN, LevelFilter::INFO),
        2 => (LevelFilter::INFO, LevelFilter::DEBUG),
        _ => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    // All programs and libraries of Hoist begin so.
    let targets = Targets::new().with_default(all).with_target("hoist", ours);
    if all > LevelFilter::WARN {
        return targets;
    }
    // What rustls warns of, a client that names the server by its address for one, is for nobody to mend.
    targets
        .with_target("rustls", LevelFilter::ERROR)
        // That somebody who watches has fallen behind, many times a second: the broker reads its store for that.
        .with_target("rumqttd", LevelFilter::ERROR)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter as Level;

    use super::*;

    #[test]
    fn more_is_logged_of_hoist_than_of_others() {
        let logs = |verbosity, target, level: Level| {
            let level = level.into_level().unwrap();
            chosen(verbosity).would_enable(target, &level)
        };
        assert!(logs(0, "hoist_agent::runtime", Level::WARN));
        assert!(!logs(0, "hoist_agent::runtime", Level::INFO));
        assert!(logs(1, "hoist", Level::INFO) && logs(1, "hoist_broker::edge", Level::INFO));
        assert!(!logs(1, "rumqttc::state", Level::INFO));
        assert!(!logs(1, "rustls::client", Level::WARN) && logs(1, "rustls", Level::ERROR));
        assert!(!logs(1, "rumqttd::segments", Level::WARN) && logs(1, "rumqttd", Level::ERROR));
        assert!(logs(2, "hoist_certs", Level::DEBUG) && logs(2, "rustls", Level::INFO));
        assert!(logs(3, "rustls", Level::TRACE) && logs(9, "hoist", Level::TRACE));
    }
}
