//! Logs: on stderr, for people or as JSON for machines.

use std::io::IsTerminal as _;

use clap::{ArgAction, ValueEnum};
use tracing_subscriber::EnvFilter;

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
/// `HOIST_LOG` replaces the choice, in the syntax of `tracing_subscriber::EnvFilter`. A second call in one
/// process changes nothing.
pub fn init_logging(verbosity: u8, format: LogFormat) {
    // What rustls warns of, a client that names the server by its address for one, is for nobody to mend.
    let chosen = match verbosity {
        0 => "warn,rustls=error",
        1 => {
            "warn,rustls=error,hoist=info,hoist_agent=info,hoist_broker=info,hoist_certs=info,hoist_publisher=info"
        }
        2 => {
            "info,hoist=debug,hoist_agent=debug,hoist_broker=debug,hoist_certs=debug,hoist_publisher=debug"
        }
        _ => "trace",
    };
    let asked = std::env::var("HOIST_LOG").map(EnvFilter::try_new);
    let (filter, wrong) = match asked {
        Ok(Ok(filter)) => (filter, None),
        Ok(Err(error)) => (EnvFilter::new(chosen), Some(error)),
        Err(_) => (EnvFilter::new(chosen), None),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
    if let Some(error) = wrong {
        tracing::warn!(%error, "HOIST_LOG is no filter and was not followed; it is written like `info,hoist_agent=debug`");
    }
}
