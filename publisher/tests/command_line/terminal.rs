//! What a real terminal is shown, and what somebody who has none: pseudo-terminals made by `script`.

use std::process::{Command, Stdio};

use crate::folder::{Folder, text};

const BEFORE: &str =
    "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-24.11.20241126.before";
const AFTER: &str =
    "/nix/store/1c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-24.11.20241126.after";

/// A folder in whose Nix two closures are that differ.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.program("nix-store", "exit 0");
    let package = |hash: &str, name: &str, size: u64| {
        serde_json::json!({
            "path": format!("/nix/store/{}-{name}", hash.repeat(32)),
            "narHash": "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
            "narSize": size,
            "references": [],
        })
    };
    let top = |path: &str, references: &[&serde_json::Value]| {
        let references: Vec<_> = references.iter().map(|package| &package["path"]).collect();
        serde_json::json!({
            "path": path,
            "narHash": "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
            "narSize": 1,
            "references": references,
        })
    };
    let (old, new) = (
        package("0", "openssl-3.0.1", 10 << 20),
        package("1", "openssl-3.0.2", 12 << 20),
    );
    let told = serde_json::json!([top(BEFORE, &[&old]), top(AFTER, &[&new]), old, new]);
    folder.program("nix", &format!("echo '{told}'"));
    folder
}

/// What `hoist` writes on a terminal so wide.
fn on_terminal(folder: &Folder, columns: u16, variables: &[(&str, &str)], args: &str) -> String {
    let hoist = env!("CARGO_BIN_EXE_hoist");
    let line = format!("stty cols {columns} rows 24 && exec {hoist} {args}");
    let bin = folder.path().join("bin");
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(folder.path())
        .env_clear()
        .env("HOME", folder.path())
        .env("TERM", "xterm")
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    said.replace('\r', "")
}

#[test]
fn a_terminal_has_colours_unless_somebody_wants_none() {
    let folder = folder();
    let diff = format!("diff {BEFORE} {AFTER}");
    let coloured = on_terminal(&folder, 160, &[], &diff);
    assert!(coloured.contains('\u{1b}'), "{coloured:?}");
    for none in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_terminal(&folder, 160, &[none], &diff);
        assert!(!plain.contains('\u{1b}'), "{none:?}: {plain:?}");
        let is_there = plain.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words == ["openssl", "updated", "3.0.1", "3.0.2", "+2.0", "MiB"]
        });
        assert!(is_there, "{plain}");
    }
}

#[test]
fn without_a_terminal_there_are_neither_colours_nor_an_end_of_the_line() {
    let folder = folder();
    let output = folder
        .command(&["diff", BEFORE, AFTER])
        .env("PATH", folder.path().join("bin"))
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(!said.contains('\u{1b}'), "{said:?}");
    assert!(
        said.starts_with(&format!("from  {BEFORE}  10 MiB\n")),
        "{said}"
    );
}

#[test]
fn a_table_is_as_wide_as_the_terminal() {
    let folder = folder();
    let diff = format!("diff {BEFORE} {AFTER}");
    // One that does not say how wide it is has 80 columns.
    for (columns, width) in [(40, 40), (80, 80), (0, 80)] {
        let shown = on_terminal(&folder, columns, &[("NO_COLOR", "1")], &diff);
        let table = shown
            .lines()
            .skip_while(|line| !line.starts_with("PACKAGE"));
        let table: Vec<&str> = table.collect();
        assert!(table.len() >= 2, "{shown}");
        for line in table {
            assert!(line.chars().count() <= width, "{columns}: {line}");
        }
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let folder = Folder::new();
    let help = text(&folder.hoist(&["--help"]).stdout);
    let commands = help.split("\nCommands:\n").nth(1).unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(
        commands.contains(&"deploy") && commands.contains(&"wait"),
        "{help}"
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&folder.hoist(&["completions", shell]).stdout);
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let pages = folder.path().join("man/man1");
    assert!(folder.hoist(&["man", "man/man1"]).status.success());
    for command in &commands {
        let page = std::fs::read_to_string(pages.join(format!("hoist-{command}.1"))).unwrap();
        assert!(page.contains(".TH"), "{command}: {page}");
    }
    let deploy = std::fs::read_to_string(pages.join("hoist-deploy.1")).unwrap();
    assert!(deploy.contains("Exit codes:"), "{deploy}");
}
