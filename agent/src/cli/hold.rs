//! `hoist-agent hold` and `release`: whether this machine takes what publishers order.

use std::time::Duration;

use anyhow::Context as _;
use hoist_certs::program::{DurationError, now, parse_duration_within};
use hoist_protocol::{Text, Timestamp};

use super::exit::Exit;
use super::order::carry_out;
use super::show::print;
use crate::config::PlaceFlags;
use crate::control::Ask;

/// The shortest hold that ends by itself,
const SHORTEST: Duration = Duration::from_secs(1);

/// and the longest.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The arguments of `hold`.
#[derive(clap::Args)]
pub(super) struct HoldArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// End the hold by itself after this time, such as 30m, 8h or 3d [default: until `release`]
    #[arg(long = "for", value_name = "TIME", value_parser = parse)]
    period: Option<Duration>,
    /// Why, for whoever wonders: shown in `status` here; 256 bytes at most
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<Text<256>>,
}

/// The arguments of `release`.
#[derive(clap::Args)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    place: PlaceFlags,
}

/// Runs `hold`.
///
/// # Errors
/// The machine is not held.
pub(super) async fn hold(args: HoldArgs) -> anyhow::Result<Exit> {
    let place = args.place.place()?;
    let until = args.period.map(|period| now().plus(period));
    let ask = Ask::Hold {
        until,
        reason: args.reason.unwrap_or_default(),
    };
    let exit = carry_out(&place, ask, false)
        .await
        .context("the machine is not held")?;
    if exit == Exit::Ok {
        print(&held(until))?;
    }
    Ok(exit)
}

fn held(until: Option<Timestamp>) -> String {
    let end = match until {
        Some(until) => format!("until {until}, or `hoist-agent release`"),
        None => "until `hoist-agent release`".to_owned(),
    };
    format!("held {end}: deployments wait, and the newest is taken then\n")
}

/// Runs `release`.
///
/// # Errors
/// The machine is held still.
pub(super) async fn release(args: ReleaseArgs) -> anyhow::Result<Exit> {
    let place = args.place.place()?;
    let exit = carry_out(&place, Ask::Release, false)
        .await
        .context("the machine is held still")?;
    if exit == Exit::Ok {
        print("released: the newest deployment is taken\n")?;
    }
    Ok(exit)
}

fn reason(text: &str) -> Result<Text<256>, String> {
    Text::new(text).map_err(|error| error.to_string())
}

/// Reads a time of 1 s to a year; a day has 24 hours.
fn parse(text: &str) -> Result<Duration, DurationError> {
    parse_duration_within(text, &(SHORTEST..=LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_has_a_sensible_length() {
        assert_eq!(parse("3d"), Ok(Duration::from_secs(3 * 86_400)));
        assert_eq!(parse("1h 30m"), Ok(Duration::from_secs(5_400)));
        for bad in ["", "0s", "-1h", "500ms", "5", "9999d", "soon"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hold_says_when_it_ends() {
        assert!(held(None).contains("until `hoist-agent release`"));
        assert!(held(Some(Timestamp::from_ms(0))).contains("until 1970-01-01T00:00:00.000Z"));
    }
}
