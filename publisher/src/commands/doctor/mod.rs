//! `hoist doctor`: what keeps this computer from deploying, or from seeing the fleet, and what to do about it.
//!
//! Everything is tried as the other commands would do it, and nothing is published.

mod fleet;
mod local;

use clap::Args;
use hoist_certs::doctor::{Finding, Findings, Verdict, Wanted};
use hoist_certs::program::{now, report};
use hoist_protocol::Channel;
use tokio::time::Instant;

use super::status::READERS;
use super::{CommandError, look, unless_interrupted};
use crate::console::print;
use crate::console::table::{Page, Tone};
use crate::link::Link;
use crate::outcome::Exit;
use crate::report::{SCHEMA, document};
use crate::settings::{Caller, Flags, Settings, SettingsError, SigningFlags, process_environment};

/// `hoist doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Write JSON: {"schema": 1, "command": "doctor", "good", "findings": [{"check", "verdict": ok, note or wrong,
    /// "message", "advice"}]}
    #[arg(long)]
    pub json: bool,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// Whose credentials `hoist` needs.
const OURS: Wanted = Wanted {
    roles: &READERS,
    advice: "`hoist-certs issue publisher NAME` makes one that may deploy, `issue monitor NAME` one that may only look",
};

/// Runs the command: [`Exit::Ok`] when nothing is wrong.
///
/// # Errors
/// [`CommandError::Output`]
pub async fn run(args: &DoctorArgs, flags: Flags) -> Result<Exit, CommandError> {
    let looked = async { Ok(examine(flags, &args.signing).await) };
    let Some(findings) = unless_interrupted(looked).await? else {
        return Ok(Exit::Interrupted);
    };
    let page = Page::stdout();
    let text = match args.json {
        true => json(&findings),
        false => findings.to_text(|verdict, word| page.paint(tone(verdict), word)),
    };
    print(&text).map_err(CommandError::Output)?;
    Ok(match findings.are_good() {
        true => Exit::Ok,
        false => Exit::Error,
    })
}

const fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Ok => Tone::Good,
        Verdict::Note => Tone::Mild,
        Verdict::Wrong => Tone::Bad,
    }
}

async fn examine(flags: Flags, signing: &SigningFlags) -> Findings {
    let mut findings = Findings::default();
    let settings = match Settings::load(flags, &process_environment) {
        Ok(settings) => settings,
        Err(error) => {
            findings.add(
                Finding::wrong("configuration", report(&error.into()))
                    .advice("`hoist --help` says which settings there are"),
            );
            findings.add(local::nix().await);
            return findings;
        }
    };
    findings.extend(local::settings(&settings, signing));
    match settings.credentials() {
        Ok(credentials) => {
            findings.extend(hoist_certs::doctor::credentials(&credentials, OURS, now()));
        }
        Err(error) => findings.add(Finding::wrong("credentials", report(&error.into()))),
    }
    let caller = settings.caller("look at the fleet", &READERS);
    let role = caller
        .as_ref()
        .ok()
        .map(|caller| caller.tls.identity().role());
    findings.extend(local::keys(&settings, signing, role));
    match caller {
        Ok(caller) => findings.extend(connect(&caller).await),
        Err(error) => {
            // What is wrong with the certificates has been said.
            let is_new = !matches!(error, SettingsError::Tls(_) | SettingsError::Role { .. });
            if is_new {
                findings.add(Finding::wrong("settings", report(&error.into())));
            }
            findings.add(Finding::note(
                "broker",
                "not tried: something is wrong above",
            ));
        }
    }
    findings.add(local::nix().await);
    findings
}

/// Connects, and reads what is retained about the fleet.
async fn connect(caller: &Caller) -> Vec<Finding> {
    let begin = Instant::now();
    let mut link = match Link::open(caller).await {
        Ok(link) => link,
        Err(error) => {
            return vec![Finding::wrong("broker", report(&error.into()))];
        }
    };
    let took = begin.elapsed().as_millis();
    let mut findings = vec![Finding::ok(
        "broker",
        format!("{}: TLS and login work, within {took} ms", caller.broker),
    )];
    let channels = [Channel::Status, Channel::Presence];
    match look(&mut link, &caller.fleet, &[], &channels).await {
        Ok(snapshot) => {
            findings.push(fleet::read(&snapshot, &caller.fleet));
            findings.push(fleet::clock(&snapshot, now()));
        }
        Err(error) => findings.push(Finding::wrong("fleet", report(&error.into())).advice(
            "let the client with this certificate read the status and presence topics of its fleet",
        )),
    }
    link.close().await;
    findings
}

fn json(findings: &Findings) -> String {
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "doctor",
        "good": findings.are_good(),
        "findings": findings,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_fields_that_the_manual_names() {
        let mut findings = Findings::default();
        findings.add(Finding::wrong("broker", "away").advice("start it"));
        crate::manual::assert_names("doctor", &serde_json::from_str(&json(&findings)).unwrap());
    }
}
