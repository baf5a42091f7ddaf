//! All that one machine says of itself, a line for each thing.

use hoist_certs::program::show_size;
use hoist_protocol::{Action, AgentName, Presence, Status, StorePath, Tag, Text, Timestamp};

use super::age;
use crate::console::fetched;
use crate::console::listing::Listing;
use crate::console::table::Page;
use crate::said;
use crate::snapshot::Seen;

/// The lines of one machine, its name first.
pub(super) fn details(agent: &AgentName, seen: &Seen, now: Timestamp, page: Page) -> String {
    let mut lines = Listing::of(page, agent.as_str());
    if let Some((channel, error)) = &seen.unreadable {
        lines.add("unreadable", &format!("its {channel}: {error}"));
    }
    let online = seen.presence.map_or("never connected", Presence::as_str);
    let Some(status) = &seen.status else {
        lines.add("state", &format!("not reported yet, {online}"));
        return lines.into_text();
    };
    let (age, _) = age(status.ts, seen.presence, now);
    let state = status.state.as_str().replace('_', " ");
    lines.add("state", &format!("{state}, said {age}, {online}"));
    deployment(&mut lines, status);
    paths(&mut lines, status);
    closure(&mut lines, status);
    lines.add("held", &said::held(status));
    lines.add("reboot", &said::reboot(&status.reboot_reasons));
    for warning in &status.warnings {
        lines.add("warning", warning.as_str());
    }
    if let Some(refused) = &status.refused {
        let (reason, message) = (refused.refused_reason, &refused.refused_message);
        let at = refused.refused_at;
        lines.add("refused", &format!("[{reason}] {message}, at {at}"));
    }
    let broker = status.broker.as_ref().map_or("", Text::as_str);
    lines.add("broker", broker);
    let tags: Vec<&str> = status.tags.iter().map(Tag::as_str).collect();
    lines.add("tags", &tags.join(", "));
    let keys: Vec<&str> = status.trusted_keys.iter().map(AsRef::as_ref).collect();
    lines.add("trusts", &keys.join(", "));
    let (version, system) = (&status.agent_version, &status.system);
    lines.add("agent", &format!("{version} on {system}"));
    lines.into_text()
}

fn deployment(lines: &mut Listing, status: &Status) {
    if let Some(id) = status.id {
        let whose = if status.local {
            ", ordered at the machine"
        } else {
            ""
        };
        let attempts = match status.attempts {
            0 | 1 => String::new(),
            attempts => format!(", begun {attempts} times"),
        };
        lines.add("deployment", &format!("{id}{whose}{attempts}"));
    }
    let kind = status.kind.as_ref().map(Text::as_str);
    let action = status.action.map(Action::as_str);
    let how: Vec<&str> = kind.into_iter().chain(action).collect();
    lines.add("kind", &how.join(", "));
    match status.reason {
        Some(reason) => {
            lines.add("message", &format!("[{reason}] {}", status.message));
            lines.add("advice", said::advice(reason).unwrap_or_default());
        }
        None => lines.add("message", status.message.as_str()),
    }
    if let Some(fetch) = status.fetch.filter(|fetch| fetch.fetch_bytes > 0) {
        lines.add("fetched", &fetched(&fetch));
    }
}

/// What runs, and what of the rest is something else.
fn paths(lines: &mut Listing, status: &Status) {
    let runs = status.current_path.as_ref();
    let mut add = |name: &str, path: Option<&StorePath>| {
        lines.add(name, path.map_or("", StorePath::as_str));
    };
    add("runs", runs);
    for (name, path) in [
        ("deployed", &status.path),
        ("before", &status.previous_path),
        ("profile", &status.profile_path),
        ("boots next", &status.boot_default_path),
        ("booted", &status.booted_path),
    ] {
        add(name, path.as_ref().filter(|path| Some(*path) != runs));
    }
}

fn closure(lines: &mut Listing, status: &Status) {
    if let Some(bytes) = status.closure_size {
        lines.add("size", &show_size(bytes));
    }
    let Some(changes) = &status.changes else {
        return;
    };
    lines.add("changes", &said::changes(changes));
    for package in &changes.packages {
        lines.add("", &said::package(package));
    }
    match said::unnamed_packages(changes) {
        0 => {}
        more => lines.add("", &format!("and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Changes, FetchProgress, PackageChange, Reason, RebootReason, State};

    use super::*;
    use crate::testing::{id, machine, order, status};

    fn path(name: &str) -> Option<StorePath> {
        let path = format!("/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-{name}");
        Some(StorePath::new(path).unwrap())
    }

    /// What is shown of `web-1` so many milliseconds after 1970.
    fn shown(report: Status, presence: Option<Presence>, now_ms: u64) -> String {
        let seen = Seen {
            status: Some(report),
            presence,
            ..Seen::default()
        };
        let now = Timestamp::from_ms(now_ms);
        details(&machine("web-1").agent, &seen, now, Page::plain(None))
    }

    #[test]
    fn all_that_a_machine_says_is_there() {
        let mut report = status(order(5), State::Fetching);
        report.ts = Timestamp::from_ms(95_000);
        report.kind = Some(Text::lossy("nixos"));
        report.action = Some(Action::Switch);
        report.current_path = path("old");
        report.profile_path = path("old");
        report.path = path("new");
        report.booted_path = path("older");
        report.fetch = Some(FetchProgress {
            fetched_bytes: 1 << 20,
            fetch_bytes: 1 << 30,
            fetched_paths: 1,
            fetch_paths: 20,
        });
        report.closure_size = Some(2 << 30);
        report.changes = Some(Changes {
            packages_changed: 2,
            size_difference: 12 << 20,
            packages: vec![PackageChange {
                name: Text::lossy("openssl"),
                from: Some(Text::lossy("3.0.1")),
                to: Some(Text::lossy("3.0.2")),
            }],
            ..Changes::default()
        });
        report.held = true;
        report.reboot_reasons = vec![RebootReason::Kernel];
        report.warnings = vec![Text::lossy("the certificate ends in 3 days")];
        report.broker = Some(Text::lossy("mqtts://broker-2.example.org:8883"));
        report.tags = vec![Tag::new("rack:7").unwrap(), Tag::new("web").unwrap()];
        let shown = shown(report, Some(Presence::Online), 100_000);
        let expected = format!(
            "\
web-1
  state         fetching, said 5s ago, online
  deployment    {}
  kind          nixos, switch
  fetched       1.0 MiB of 1.0 GiB, 1 of 20 paths
  runs          /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-old
  deployed      /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-new
  booted        /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-older
  size          2.0 GiB
  changes       2 packages changed, +12 MiB
                openssl 3.0.1 → 3.0.2
                and 1 more
  held          held by somebody at the machine; `hoist-agent release` there ends that
  reboot        needs a reboot (kernel)
  warning       the certificate ends in 3 days
  broker        mqtts://broker-2.example.org:8883
  tags          rack:7, web
  agent         0.1.0 on x86_64-linux
",
            id(5)
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_reason_comes_with_what_to_do() {
        let mut report = status(order(5), State::RolledBack);
        report.reason = Some(Reason::UnitsFailed);
        report.message = Text::lossy("these units\nfailed: a.service");
        let shown = shown(report, None, 5);
        assert!(
            shown.contains("\n  message       [units_failed] these units failed: a.service\n"),
            "{shown}"
        );
        assert!(
            shown.contains("\n  advice        the log names the units"),
            "{shown}"
        );
        assert!(shown.contains("never connected"), "{shown}");
    }

    #[test]
    fn what_a_machine_says_itself_is_not_said_twice() {
        let mut report = status(order(5), State::Rejected);
        report.reason = Some(Reason::NoAgent);
        report.message = Text::lossy("it has no agent; deploy with --allow-no-agent");
        let shown = shown(report, None, 5);
        assert_eq!(shown.matches("--allow-no-agent").count(), 1, "{shown}");
        assert!(!shown.contains("advice"), "{shown}");
    }
}
