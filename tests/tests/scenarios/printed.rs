//! What every command of `hoist` prints, well and badly ended: without a terminal, on terminals of 80 and of 160
//! columns, and where colours are not wanted.
//!
//! It stands in `printed/COMMAND.txt`, to be read by people. After a change that is meant, `UPDATE_EXPECT=1` writes
//! these files anew: read what is different before you commit it.

mod fleet;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use expect_test::expect_file;
use hoist_tests::process;
use hoist_tests::programs::Programs;
use hoist_tests::terminal;
use hoist_tests::world::Site;
use regex::Regex;

use fleet::{Fleet, Papers, SYSTEMS};

/// What is run, in this order: what one changes the next ones see. Words are separated by blanks.
const RUNS: &[&str] = &[
    // Whoever only reads.
    "status",
    "status --failed",
    "status web-1",
    "status web-2",
    "status wbe-1",
    "logs web-2",
    "logs wbe-1",
    "history web-1",
    "history laptop",
    "history wbe-1",
    "diff BEFORE RUNS",
    "diff web-1",
    "diff web-1 ffffffff",
    "whoami",
    "whoami --fleet staging",
    "doctor",
    "doctor --ca missing.pem",
    "completions tcsh",
    "man pages",
    "man hoist.toml",
    "wait web-1",
    "wait web-2",
    "wait db-1 --timeout 1s",
    // From a flake to the cache.
    "build",
    "build .#staging",
    "push web-1.json --cache file:///srv/cache",
    "push web-1.json --cache ssh-ng://bad",
    "push web-1.json",
    // Two people.
    "deploy web-1.json --prepare release.json",
    "sign release.json --yes --signing-key ../certs/release.signing-key",
    "sign spec.json --yes",
    // Everything that publishes.
    "deploy spec.json --dry-run",
    "deploy bad.json",
    "deploy web-1.json",
    "deploy laptop.json --async",
    "deploy spec.json",
    "hold * --dry-run",
    "hold web-1 --for 2h",
    "hold laptop",
    "release web-1",
    "release laptop",
    "cancel db-1",
    "cancel wbe-1",
    "retry * --dry-run",
    "retry web-1",
    "retry web-2",
    "refresh web-1",
    "refresh nas",
    "rollback * --dry-run",
    "rollback web-1",
    "rollback web-1 --to ffffffff",
    "forget laptop --yes --config admin.toml",
    "forget web-1 --yes --config admin.toml",
];

/// Commands whose good end says nothing, or what another program reads: a shell's completions are tried by
/// themselves.
const SILENT: [&str; 1] = ["completions"];

/// Where something is run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Output and errors go to files.
    Pipe,
    /// On a terminal of so many columns.
    Terminal(u16),
    /// On one of 80 columns, with `NO_COLOR`.
    Colourless,
}

const PLACES: [Place; 4] = [
    Place::Pipe,
    Place::Terminal(80),
    Place::Terminal(160),
    Place::Colourless,
];

/// What is seen of one run.
#[derive(Debug)]
struct Seen {
    code: i32,
    text: String,
    has_colours: bool,
}

#[test]
fn what_every_command_prints() {
    let site = Site::create("printed").unwrap();
    let (programs, dir) = (site.programs(), site.dir());
    let papers = Papers::make(dir, programs, site.logs()).unwrap();
    let seen = thread::scope(|scope| {
        let places = PLACES.map(|place| {
            let dir = dir.join(format!("{place:?}").replace(['(', ')'], ""));
            let papers = &papers;
            scope.spawn(move || {
                let fleet = Fleet::start(&dir, papers, programs)?;
                RUNS.iter()
                    .map(|run| see(&fleet, programs, place, run).context(*run))
                    .collect::<Result<Vec<Seen>>>()
            })
        });
        places.map(|place| place.join().unwrap().unwrap())
    });
    let [pipe, narrow, wide, colourless] = &seen;

    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut ends: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (number, run) in RUNS.iter().enumerate() {
        let all = [pipe, narrow, wide, colourless].map(|seen| &seen[number]);
        let [pipe, narrow, wide, colourless] = all;
        assert!(
            all.iter().all(|seen| seen.code == pipe.code),
            "`hoist {run}` ends otherwise on a terminal: {all:#?}"
        );
        assert!(
            !pipe.has_colours,
            "`hoist {run}` colours what is no terminal"
        );
        assert!(
            !colourless.has_colours,
            "`hoist {run}` does not heed NO_COLOR"
        );
        assert_eq!(
            colourless.text, narrow.text,
            "`hoist {run}` says something else without colours"
        );
        let command = run.split(' ').next().unwrap();
        ends.entry(command).or_default().push(pipe.code);
        let file = files.entry(command).or_default();
        *file += &format!("$ hoist {run}\n(exit code {})\n\n", pipe.code);
        *file += &format!("--- no terminal\n{}\n", pipe.text);
        *file += &format!("--- 80 columns\n{}\n", narrow.text);
        *file += &match wide.text == narrow.text {
            true => "--- 160 columns: the same\n\n".to_owned(),
            false => format!("--- 160 columns\n{}\n", wide.text),
        };
    }
    for command in commands(programs).unwrap() {
        let ends = ends.get(command.as_str()).map_or(&[][..], Vec::as_slice);
        let is_silent = SILENT.contains(&command.as_str());
        assert!(
            (is_silent || ends.contains(&0)) && ends.iter().any(|code| *code != 0),
            "`hoist {command}` is not shown both well and badly ended here: {ends:?}"
        );
    }
    let coloured = narrow.iter().filter(|seen| seen.has_colours).count();
    assert!(
        coloured > 10,
        "only {coloured} runs have colours on a terminal"
    );
    for (command, text) in files {
        expect_file![format!("printed/{command}.txt")].assert_eq(&format!("{}\n", text.trim_end()));
    }
}

#[test]
fn what_goes_on_for_ever_ends_when_nobody_reads_it() {
    let site = Site::create("unread").unwrap();
    let (programs, dir) = (site.programs(), site.dir());
    let papers = Papers::make(dir, programs, site.logs()).unwrap();
    let fleet = Fleet::start(&dir.join("fleet"), &papers, programs).unwrap();
    for (command, first) in [
        ("status --watch", "db-1 | online, fetching 40 %"),
        ("status --watch --json", "{\"agent\":\"db-1\","),
        ("logs web-2 --follow", "web-2 |   restarting"),
    ] {
        let line = format!("{} {command} | head -n 1", programs.publisher);
        let mut shell = process::command("/bin/sh");
        shell.args(["-c", &line]).current_dir(fleet.dir());
        // The shell waits for both.
        let finished = process::run("unread", shell, site.logs()).unwrap();
        let finished = finished.expect_code(0).unwrap();
        assert!(
            finished.stdout.starts_with(first),
            "{command}: {}",
            finished.stdout
        );
    }
}

/// All commands, as the help lists them.
fn commands(programs: &Programs) -> Result<Vec<String>> {
    let output = Command::new(&programs.publisher).arg("--help").output()?;
    let help = String::from_utf8(output.stdout)?;
    let (_, list) = help.split_once("\nCommands:\n").context("it lists them")?;
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !name.is_empty() && *name != "help");
    let names: Vec<String> = names.map(str::to_owned).collect();
    ensure!(names.len() >= 20, "these are not all: {help}");
    Ok(names)
}

fn see(fleet: &Fleet, programs: &Programs, place: Place, run: &str) -> Result<Seen> {
    let mut command = Command::new(&programs.publisher);
    command
        .args(run.split(' ').map(|word| match word {
            "BEFORE" => SYSTEMS[0],
            "RUNS" => SYSTEMS[1],
            word => word,
        }))
        .current_dir(fleet.dir())
        .env_clear()
        .env("HOME", fleet.dir())
        .env("LANG", "C.UTF-8")
        .env("TERM", "xterm-256color")
        .env(
            "PATH",
            format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", fleet.dir()),
        );
    let columns = match place {
        Place::Pipe => {
            let output = command.output()?;
            let (out, err) = (
                String::from_utf8(output.stdout)?,
                String::from_utf8(output.stderr)?,
            );
            return Ok(Seen {
                code: output.status.code().context("it exits")?,
                has_colours: out.contains('\u{1b}') || err.contains('\u{1b}'),
                text: steady(fleet, &(without_progress(&err) + &out)),
            });
        }
        Place::Terminal(columns) => columns,
        Place::Colourless => {
            command.env("NO_COLOR", "1");
            80
        }
    };
    let screen = terminal::run(
        &command,
        NonZeroU16::new(columns).context("it has columns")?,
    )?;
    let lines = screen.lines.iter().map(|line| {
        // Broken into rows afterwards: what is replaced may have stood in two of them.
        let line: Vec<char> = steady(fleet, line.trim_end()).chars().collect();
        let rows = line
            .chunks(columns.into())
            .map(|row| row.iter().collect::<String>() + "\n");
        match line.is_empty() {
            true => "\n".to_owned(),
            false => rows.collect(),
        }
    });
    Ok(Seen {
        code: screen.code,
        text: lines.collect(),
        has_colours: !screen.styles.is_empty(),
    })
}

/// Without the lines that tell of what happens meanwhile: how many there are depends on how fast it is. They come
/// before the results.
fn without_progress(err: &str) -> String {
    let is_progress = |line: &&str| line.contains(" | ") || line.starts_with("published ");
    let lines = err.lines().filter(|line| !is_progress(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What is no two times the same is replaced by something as wide.
fn steady(fleet: &Fleet, text: &str) -> String {
    let (port, dir) = fleet.stands_for();
    let mut text = text
        .replace(&format!(":{port}"), ":PORT")
        .replace(&dir, "/fleet");
    for (pattern, stands) in [
        (
            r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{12}Z",
            "2026-01-31T12:00:00.000Z",
        ),
        (
            r"\b01[0-9a-f]{6}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b",
            "xxxxxxxx-xxxx-7xxx-xxxx-xxxxxxxxxxxx",
        ),
        (r"([ `])[0-9a-f]{8}\b", "${1}xxxxxxxx"),
        (r"\bin [0-9]+(ms|s|m)( [0-9]+s)?\b", "in TIME"),
        (r"\b(in|within) [0-9]+ ms\b", "$1 TIME"),
        (r"\b[0-9]+d( [0-9]+h)? left\b", "TIME left"),
    ] {
        let pattern = Regex::new(pattern).expect("the patterns are well formed");
        text = pattern
            .replace_all(&text, |found: &regex::Captures<'_>| {
                // The ids that the fleet is given stay as they are.
                let is_given = |start| found[0].starts_with(start);
                if stands.ends_with("xxxxxxxx") && [" 0000", "`0000", "`ffff"].iter().any(is_given)
                {
                    return found[0].to_owned();
                }
                let mut stands_here = String::new();
                found.expand(stands, &mut stands_here);
                stands_here
            })
            .into_owned();
    }
    text
}
