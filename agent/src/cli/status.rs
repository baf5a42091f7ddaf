//! `hoist-agent status`: how this machine is.

use hoist_certs::program::now;
use hoist_protocol::{Status, StorePath, Timestamp};
use serde_json::{Value, json};

use super::exit::Exit;
use super::seen::{AgentSeen, Seen, look};
use super::show::{Screen, Tone, ago, bytes, one_line, print, words};
use crate::config::PlaceFlags;

/// The arguments.
#[derive(clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// Print the agent's status report as JSON, with `agent_running`, `connected` and `connection` added
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Nothing can be told.
pub(super) async fn run(args: StatusArgs) -> anyhow::Result<Exit> {
    let seen = look(&args.place.place()?).await?;
    let text = if args.json {
        serde_json::to_string_pretty(&to_json(&seen))? + "\n"
    } else {
        to_text(&seen, now(), Screen::stdout())
    };
    print(&text)?;
    Ok(Exit::Ok)
}

fn to_json(seen: &Seen) -> Value {
    let mut value: Value =
        serde_json::from_slice(&seen.status.to_json()).expect("a status is written as JSON");
    let connection = seen.agent.connection();
    if let Some(fields) = value.as_object_mut() {
        if !seen.is_named {
            fields.remove("agent");
            fields.remove("fleet");
        }
        if connection.is_none() {
            // Of an agent's life, and there is none.
            fields.remove("session");
        }
        let runs = !matches!(seen.agent, AgentSeen::Stopped | AgentSeen::Alone);
        fields.insert("agent_running".to_owned(), runs.into());
        let connected = connection.map(|connection| connection.connected);
        fields.insert("connected".to_owned(), json!(connected.unwrap_or(false)));
        if let Some(connection) = connection {
            fields.insert("connection".to_owned(), json!(connection));
        }
        if let Some(hold) = seen.hold.as_ref().filter(|hold| !hold.reason.is_empty()) {
            fields.insert("hold_reason".to_owned(), json!(hold.reason));
        }
    }
    value
}

fn to_text(seen: &Seen, now: Timestamp, screen: Screen) -> String {
    let status = &seen.status;
    let mut pairs = vec![agent(seen, now), state(status, now)];
    let plain = |name: &'static str, text: String| (name, text, Tone::Plain);
    if !status.message.is_empty() {
        pairs.push(plain("", one_line(status.message.as_str())));
    }
    if status.state.is_final() && !status.state.is_good() {
        pairs.extend(log(status));
    }
    if let Some(fetch) = status.fetch.filter(|_| !status.state.is_final()) {
        pairs.push(plain(
            "fetched",
            format!(
                "{} of {}",
                bytes(fetch.fetched_bytes),
                bytes(fetch.fetch_bytes)
            ),
        ));
    }
    if let Some(id) = status.id {
        pairs.push(plain("deployment", id.to_string()));
    }
    if let Some(path) = status
        .path
        .as_ref()
        .filter(|path| status.current_path.as_ref() != Some(path))
    {
        pairs.push(plain("its closure", path.to_string()));
    }
    pairs.extend(facts(status));
    if status.held {
        pairs.push(("held", held(seen, now), Tone::Mild));
    }
    let mut name = "warning";
    for warning in &status.warnings {
        pairs.push((name, one_line(warning.as_str()), Tone::Mild));
        name = "";
    }
    if let Some(refused) = &status.refused {
        let text = format!(
            "a message, {}: {}",
            ago(refused.refused_at, now),
            one_line(refused.refused_message.as_str())
        );
        pairs.push(("refused", text, Tone::Mild));
    }
    let title = match seen.is_named {
        true => format!("{} of fleet {}", status.agent, status.fleet),
        false => "this machine".to_owned(),
    };
    format!("{title}\n{}", screen.pairs(&pairs))
}

/// The end of what the deployment logged: nothing else of it is kept at the machine.
fn log(status: &Status) -> Vec<(&'static str, String, Tone)> {
    let names = std::iter::once("log").chain(std::iter::repeat(""));
    let lines = status.log_tail.iter().zip(names);
    let shown = lines.map(|(line, name)| (name, one_line(line.as_str()), Tone::Plain));
    shown.collect()
}

fn agent(seen: &Seen, now: Timestamp) -> (&'static str, String, Tone) {
    let (text, tone) = match &seen.agent {
        AgentSeen::Stopped => (
            "does not run: nothing is deployed to this machine; start it with `systemctl start hoist-agent`, or \
             `hoist-agent run`"
                .to_owned(),
            Tone::Bad,
        ),
        AgentSeen::Alone => (
            "does not run; another command does what was ordered here, without it".to_owned(),
            Tone::Mild,
        ),
        AgentSeen::Silent(why) => (
            format!("runs, and cannot be asked: {}; what follows is what it wrote last", one_line(why)),
            Tone::Mild,
        ),
        AgentSeen::Running(connection) if connection.connected => {
            let since = connection.since.map(|since| format!(", since {}", ago(since, now)));
            (
                format!(
                    "version {}, connected to {}{}",
                    seen.status.agent_version,
                    connection.broker,
                    since.unwrap_or_default().trim_end_matches(" ago")
                ),
                Tone::Good,
            )
        }
        AgentSeen::Running(connection) => {
            let why = match connection.problem.is_empty() {
                true => format!("connecting to {}", connection.broker),
                false => one_line(connection.problem.as_str()),
            };
            (
                format!("version {}, not connected: {why}", seen.status.agent_version),
                Tone::Mild,
            )
        }
    };
    ("agent", text, tone)
}

fn state(status: &Status, now: Timestamp) -> (&'static str, String, Tone) {
    let mut text = words(status.state);
    if let Some(percent) = status.progress.filter(|_| !status.state.is_final()) {
        text += &format!(" {percent} %");
    }
    if let Some(reason) = status.reason {
        text += &format!(" [{reason}]");
    }
    // A status is made at the moment it is asked for: only what has not ended is of that moment.
    if status.ts < now && status.ts.as_ms() > 0 && now.since(status.ts).as_secs() >= 5 {
        text += &format!(", {}", ago(status.ts, now));
    }
    ("state", text, Tone::of(status.state))
}

/// What runs, and where the other facts differ from it.
fn facts(status: &Status) -> Vec<(&'static str, String, Tone)> {
    let show = |path: &Option<StorePath>| {
        path.as_ref()
            .map_or_else(|| "unknown".to_owned(), StorePath::to_string)
    };
    let runs = &status.current_path;
    let mut pairs = vec![("runs", show(runs), Tone::Plain)];
    let mut other = |name, path: &Option<StorePath>| {
        if path.is_some() && path != runs {
            pairs.push((name, show(path), Tone::Mild));
        }
    };
    other("profile", &status.profile_path);
    other("next boot", &status.boot_default_path);
    other("booted", &status.booted_path);
    if !status.reboot_reasons.is_empty() {
        let reasons = status.reboot_reasons.iter();
        let names: Vec<_> = reasons
            .map(|reason| reason.as_str().replace('_', " "))
            .collect();
        let text = format!(
            "needed: {} of what runs is not what was booted",
            names.join(", ")
        );
        pairs.push(("reboot", text, Tone::Mild));
    }
    pairs
}

fn held(seen: &Seen, now: Timestamp) -> String {
    let mut text = match seen.status.held_until {
        Some(until) => format!(
            "until {until} (for {} more)",
            super::show::duration(until.since(now))
        ),
        None => "until `hoist-agent release`".to_owned(),
    };
    if let Some(hold) = seen.hold.as_ref().filter(|hold| !hold.reason.is_empty()) {
        text += &format!(": {}", one_line(hold.reason.as_str()));
    }
    text
}

#[cfg(test)]
mod tests {
    use hoist_agent_core::Hold;
    use hoist_protocol::{State, Text};

    use super::*;
    use crate::control::Connection;

    const PATH: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web";

    fn seen(agent: AgentSeen) -> Seen {
        let status = serde_json::json!({
            "agent": "web-1", "fleet": "prod", "state": "failed", "ts": 1_000, "reason": "missing_path",
            "message": "no cache\nhas it", "current_path": PATH, "profile_path": PATH,
            "booted_path": format!("{PATH}-old"), "reboot_reasons": ["kernel", "kernel_modules"],
            "held": true, "agent_version": "1", "system": "x86_64-linux", "formats": [1], "session": "s",
            "warnings": ["one", "two"],
        });
        Seen {
            status: serde_json::from_value(status).unwrap(),
            is_named: true,
            agent,
            hold: Some(Hold {
                since: Timestamp::from_ms(0),
                until: None,
                reason: Text::lossy("a demo"),
            }),
        }
    }

    fn connection() -> Connection {
        Connection {
            connected: true,
            broker: "mqtts://broker".parse().unwrap(),
            since: Some(Timestamp::from_ms(1_000)),
            problem: Text::default(),
            denied: Vec::new(),
            echo: None,
        }
    }

    #[test]
    fn what_differs_from_what_runs_is_shown_and_what_does_not_is_left_out() {
        let text = to_text(
            &seen(AgentSeen::Running(connection())),
            Timestamp::from_ms(4_000),
            Screen::PLAIN,
        );
        for line in [
            "web-1 of fleet prod",
            "connected to mqtts://broker:8883, since 3s",
            "failed [missing_path]",
            "no cache has it",
            "booted   /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web-old",
            "needed: kernel, kernel modules of what runs",
            "until `hoist-agent release`: a demo",
            "warning  one",
            "         two",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
        assert!(!text.contains("profile"), "{text}");
    }

    #[test]
    fn the_end_of_the_log_is_shown_of_what_did_not_end_well_and_of_nothing_else() {
        let mut seen = seen(AgentSeen::Stopped);
        seen.status.log_tail = (1..=20)
            .map(|n| Text::lossy(&format!("line {n}")))
            .collect();
        let shown = |seen: &Seen| to_text(seen, Timestamp::from_ms(4_000), Screen::PLAIN);
        let text = shown(&seen);
        assert!(
            text.contains("  log      line 1\n           line 2\n"),
            "{text}"
        );
        assert!(text.contains("           line 20\n"), "{text}");
        for state in [State::Succeeded, State::Activating] {
            seen.status.state = state;
            assert!(!shown(&seen).contains("line 20"));
        }
    }

    #[test]
    fn the_json_is_the_agents_report_with_what_only_this_machine_knows() {
        let json = to_json(&seen(AgentSeen::Running(connection())));
        assert_eq!(
            (&json["state"], &json["connected"]),
            (&"failed".into(), &true.into())
        );
        assert_eq!(json["hold_reason"], "a demo");
        assert_eq!(json["connection"]["broker"], "mqtts://broker:8883");
        let nobody = Seen {
            is_named: false,
            ..seen(AgentSeen::Stopped)
        };
        let json = to_json(&nobody);
        assert_eq!(
            (&json["agent_running"], &json["connected"]),
            (&false.into(), &false.into())
        );
        assert_eq!((json.get("agent"), json.get("session")), (None, None));
        assert!(
            to_text(&nobody, Timestamp::from_ms(1), Screen::PLAIN).starts_with("this machine\n")
        );
    }
}
