//! What somebody at a terminal sees of a command: it runs on a pseudo-terminal, and what it writes is carried out on a
//! screen.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Rows of the screen: nothing that a command writes scrolls out of it.
const ROWS: NonZeroU16 = NonZeroU16::new(1000).expect("it is not zero");

/// What is left when a command has ended.
#[derive(Debug)]
pub struct Screen {
    /// Its exit code.
    pub code: i32,
    /// The lines that stand there, without the empty ones at the end. One that was too long for a row is whole here.
    pub lines: Vec<String>,
    /// The colours and styles that text was given, as the parameters of the escape sequences that ask for them; what
    /// takes them back is not among them.
    pub styles: BTreeSet<String>,
}

/// Runs `command` on a terminal so wide, which is its standard input, output and error.
///
/// # Errors
/// When `script` is missing, or the command is ended by a signal.
pub fn run(command: &Command, columns: NonZeroU16) -> Result<Screen> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    let line = format!(
        "stty cols {columns} rows {ROWS} && exec {}",
        words.join(" ")
    );
    // What runs on the terminal ends with it.
    let mut script = process::command("/usr/bin/script");
    script
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(dir) = command.get_current_dir() {
        script.current_dir(dir);
    }
    let mut child = script.spawn().context("cannot start `script`")?;
    // Open until the end: what `script` types when its own input ends would show on the screen.
    let keyboard = child.stdin.take();
    let output = child.wait_with_output()?;
    drop(keyboard);
    let Some(code) = output.status.code() else {
        bail!("`script` was ended by a signal: {}", output.status);
    };
    let mut terminal = vt100::Parser::new(ROWS, columns, 0);
    terminal.process(&output.stdout);
    let screen = terminal.screen();
    let mut lines = vec![String::new()];
    for (number, row) in (0..).zip(screen.rows(0, columns.get())) {
        if let Some(line) = lines.last_mut() {
            line.push_str(&row);
        }
        // A row that is filled up with blanks is one that was drawn, and not one that was too short.
        let is_full = row.chars().last().is_some_and(|last| !last.is_whitespace());
        if !screen.row_wrapped(number) || !is_full {
            lines.push(String::new());
        }
    }
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    Ok(Screen {
        code,
        lines,
        styles: styles(&String::from_utf8_lossy(&output.stdout)),
    })
}

/// The parameters of every `ESC [ … m` that does not take something back.
fn styles(written: &str) -> BTreeSet<String> {
    let parts = written.split("\u{1b}[").skip(1);
    let parameters = parts.filter_map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit() && c != ';')?;
        part[end..].starts_with('m').then(|| part[..end].to_owned())
    });
    parameters
        .filter(|style| !["", "0", "22", "39", "49"].contains(&style.as_str()))
        .collect()
}
