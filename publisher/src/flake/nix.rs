//! Nix as a program: started with what it may know, heard, and stopped when somebody interrupts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hoist_protocol::{StorePath, Text};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::drive::Interrupts;
use crate::nix_command::nix_command;

/// Most arguments in one call: their names are on its command line, on which 2 MB have room.
pub(super) const BATCH: usize = 4_000;

/// How long Nix may take to end when it was interrupted: it stops its builders, and then it is killed.
const ENDING: Duration = Duration::from_secs(10);

/// How much of what Nix says is kept for an error, in bytes.
const KEPT: usize = 16 * 1024;

/// Most that Nix may answer to one question, in bytes.
const ANSWER: u64 = 64 * 1024 * 1024;

/// Why Nix did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// There is no Nix here.
    #[error("`nix` is not installed here")]
    NotInstalled,
    /// It cannot be started.
    #[error("cannot run `nix`")]
    Start(#[source] std::io::Error),
    /// It failed, and has said why as it went.
    #[error("`nix {0}` failed; what it said stands above")]
    Failed(&'static str),
    /// It failed.
    #[error("`nix {task}` failed: {said}")]
    Said {
        /// What it was to do.
        task: &'static str,
        /// What it said last.
        said: Text<2048>,
    },
    /// It was stopped, since somebody asked for it.
    #[error("interrupted")]
    Interrupted,
    /// What it wrote is not what it should be.
    #[error("`nix {0}` wrote what cannot be read")]
    Output(&'static str, #[source] serde_json::Error),
}

/// How what Nix says reaches people.
#[derive(Clone, Debug)]
pub(super) enum Says {
    /// As it is, with its own progress bar.
    Itself,
    /// Line by line, after this name.
    After(String),
    /// Not at all, but for the end of it when it fails.
    Nothing,
}

/// Nix on this computer.
#[derive(Debug)]
pub struct Nix {
    /// Options of its own that are passed on.
    args: Vec<String>,
    quiet: bool,
    interrupted: watch::Receiver<bool>,
}

/// What one answer is made of.
struct Answer {
    status: ExitStatus,
    stdout: Vec<u8>,
    said: String,
}

/// What a store path in an answer needs to be built.
#[derive(Debug, Deserialize)]
pub(super) struct Need {
    /// The outputs of the derivation.
    #[serde(default)]
    outputs: Vec<String>,
    /// It is there already, or comes from a binary cache.
    #[serde(default)]
    path: bool,
}

/// What `nix flake metadata` says of a flake, as far as it matters.
#[derive(Debug, Deserialize)]
struct Metadata {
    /// Where it is, with its revision when it has one.
    url: String,
    revision: Option<String>,
}

impl Metadata {
    /// The flake that was asked for as `flake`, to be asked for again.
    fn at_revision(self, flake: &str) -> String {
        match self.revision {
            Some(_) => self.url,
            None => flake.to_owned(),
        }
    }
}

impl Nix {
    /// Nix with these `args` of its own in addition, until somebody interrupts. A quiet one says nothing.
    #[must_use]
    pub fn new(args: Vec<String>, quiet: bool, mut interrupts: Interrupts) -> Self {
        let (sender, interrupted) = watch::channel(false);
        tokio::spawn(async move {
            interrupts.next().await;
            // Nobody works any more: there is nothing to interrupt.
            sender.send_replace(true);
        });
        Self {
            args,
            quiet,
            interrupted,
        }
    }

    /// Ready when somebody has interrupted.
    pub async fn interrupted(&self) {
        let mut interrupted = self.interrupted.clone();
        // The task that would say so lives as long as the program.
        if interrupted.wait_for(|is| *is).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The value at `attribute` of the flake `flake`, after the function `apply`; none when the flake has no such
    /// attribute.
    pub(super) async fn eval<T: for<'de> Deserialize<'de>>(
        &self,
        flake: &str,
        attribute: &str,
        apply: &str,
        says: Says,
    ) -> Result<Option<T>, NixError> {
        let installable = format!("{flake}#{attribute}");
        let mut command = self.command("eval");
        command.args(["--json", "--apply", apply, "--", &installable]);
        let answer = self.run(command, says).await?;
        if answer.status.success() {
            let value = serde_json::from_slice(&answer.stdout);
            return value
                .map(Some)
                .map_err(|error| NixError::Output("eval", error));
        }
        // Nix has no other way to ask, and says it so since it knows flakes.
        if answer.said.contains("does not provide attribute") {
            return Ok(None);
        }
        Err(failed("eval", &answer.said))
    }

    /// The flake `flake` at the revision that it has now, so that all that is asked of it is asked of the same one, and
    /// it is fetched once. One without a revision, such as a folder in which something is changed, is what it is.
    pub(super) async fn at_revision(&self, flake: &str) -> Result<String, NixError> {
        let mut command = self.command("flake");
        command.args(["metadata", "--json", "--", flake]);
        let answer = self.run(command, Says::Nothing).await?;
        if !answer.status.success() {
            // Whatever is wrong, the next question says it better: it is the one that the flake is needed for.
            tracing::debug!(
                flake,
                said = answer.said,
                "nix does not tell the flake's revision"
            );
            return Ok(flake.to_owned());
        }
        let metadata: Metadata = serde_json::from_slice(&answer.stdout)
            .map_err(|error| NixError::Output("flake metadata", error))?;
        Ok(metadata.at_revision(flake))
    }

    /// Builds all that is needed, or gets it from binary caches. Goes on after a failure, so that all of them show.
    /// Links in the folder `roots` keep it from the garbage collector.
    pub(super) async fn build(
        &self,
        needs: &BTreeMap<String, Need>,
        roots: &Path,
    ) -> Result<(), NixError> {
        let selects_outputs = self.version().await? >= (2, 13);
        let installables: Vec<String> = needs
            .iter()
            .map(|(path, need)| match need.outputs.as_slice() {
                // Before that a derivation stood for its outputs.
                outputs if selects_outputs && !need.path && !outputs.is_empty() => {
                    format!("{path}^{}", outputs.join(","))
                }
                _ => path.clone(),
            })
            .collect();
        let installables: Vec<&str> = installables.iter().map(String::as_str).collect();
        let mut result = Ok(());
        for (number, batch) in installables.chunks(BATCH).enumerate() {
            let link = roots.join(number.to_string());
            let link = link.to_string_lossy();
            let args = ["--keep-going", "--out-link", &link];
            match self.on_all("build", &args, batch).await {
                Ok(()) => {}
                Err(stopped @ (NixError::Interrupted | NixError::NotInstalled)) => {
                    return Err(stopped);
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Copies the closures of these paths to the store or cache at `to`.
    pub(super) async fn copy(&self, paths: &[&StorePath], to: &str) -> Result<(), NixError> {
        let paths: Vec<&str> = paths.iter().map(|path| path.as_str()).collect();
        self.on_all("copy", &["--to", to], &paths).await
    }

    /// Which of these are not in the store.
    pub(super) async fn missing(&self, paths: &[&StorePath]) -> Result<Vec<StorePath>, NixError> {
        let mut missing = Vec::new();
        for batch in paths.chunks(BATCH) {
            let mut command = nix_command("nix-store");
            command.args(["--check-validity", "--print-invalid"]);
            command.args(batch.iter().map(|path| path.as_str()));
            let answer = self.run(command, Says::Nothing).await?;
            if !answer.status.success() {
                return Err(failed("store", &answer.said));
            }
            let lines = String::from_utf8_lossy(&answer.stdout);
            let invalid: BTreeSet<&str> = lines.lines().map(str::trim).collect();
            let invalid = |path: &&&StorePath| invalid.contains(path.as_str());
            missing.extend(batch.iter().filter(invalid).map(|path| (*path).clone()));
        }
        Ok(missing)
    }

    /// Runs `task` with these `args` on all of `operands`, as many at a time as a command line has room for.
    async fn on_all(
        &self,
        task: &'static str,
        args: &[&str],
        operands: &[&str],
    ) -> Result<(), NixError> {
        let says = match self.quiet {
            true => Says::Nothing,
            false => Says::Itself,
        };
        let mut result = Ok(());
        for batch in operands.chunks(BATCH) {
            let mut command = self.command(task);
            command.args(args).arg("--");
            command.args(batch);
            let answer = self.run(command, says.clone()).await?;
            if !answer.status.success() {
                result = Err(failed(task, &answer.said));
            }
        }
        result
    }

    /// Nix's version, as far as it matters.
    async fn version(&self) -> Result<(u32, u32), NixError> {
        let mut command = nix_command("nix");
        command.arg("--version");
        let answer = self.run(command, Says::Nothing).await?;
        Ok(version(&String::from_utf8_lossy(&answer.stdout)))
    }

    fn command(&self, task: &'static str) -> Command {
        let mut command = nix_command("nix");
        command
            .arg(task)
            .args(["--extra-experimental-features", "nix-command flakes"]);
        // Copying takes no options of evaluation.
        if task != "copy" {
            command.args(&self.args);
        }
        command
    }

    async fn run(&self, mut command: Command, says: Says) -> Result<Answer, NixError> {
        let says = if self.quiet { Says::Nothing } else { says };
        command.stdout(Stdio::piped()).stderr(match says {
            Says::Itself => Stdio::inherit(),
            Says::After(_) | Says::Nothing => Stdio::piped(),
        });
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(NixError::NotInstalled);
            }
            Err(error) => return Err(NixError::Start(error)),
        };
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let work = async {
            let read = async {
                let mut answer = Vec::new();
                if let Some(stdout) = stdout {
                    stdout.take(ANSWER).read_to_end(&mut answer).await?;
                }
                Ok::<_, std::io::Error>(answer)
            };
            let hear = async {
                match stderr {
                    Some(stderr) => hear(stderr, &says).await,
                    None => Ok(String::new()),
                }
            };
            let (answer, said) = tokio::try_join!(read, hear)?;
            let status = child.wait().await?;
            Ok::<_, std::io::Error>(Answer {
                status,
                stdout: answer,
                said,
            })
        };
        let done = tokio::select! {
            biased;
            () = self.interrupted() => None,
            done = work => Some(done),
        };
        match done {
            Some(done) => done.map_err(NixError::Start),
            None => {
                stop(&mut child).await;
                Err(NixError::Interrupted)
            }
        }
    }
}

/// Asks it to end, waits, and ends it. On a terminal Ctrl-C has reached it already, and once more does nothing.
async fn stop(child: &mut Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw)
        && let Err(error) = kill_process(pid, Signal::INT)
    {
        tracing::debug!(%error, "nix has ended by itself");
    }
    if timeout(ENDING, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::warn!(%error, "nix cannot be stopped");
    }
}

/// Reads what Nix says to its end, passes it on, and keeps the last of it.
async fn hear(stderr: impl tokio::io::AsyncRead + Unpin, says: &Says) -> std::io::Result<String> {
    let mut lines = BufReader::new(stderr);
    let mut kept = String::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end does not fill the memory.
        let mut part = (&mut lines).take(KEPT as u64);
        if part.read_until(b'\n', &mut line).await? == 0 {
            return Ok(kept);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Says::After(name) = says {
            // When nobody reads stderr there is nobody left to tell.
            let shown = Text::<4096>::lossy(text);
            if let Err(error) = writeln!(std::io::stderr().lock(), "{name} | {shown}") {
                tracing::trace!(%error, "stderr is closed");
            }
        }
        kept.push_str(text);
        kept.push('\n');
        if kept.len() > 2 * KEPT {
            let mut from = kept.len() - KEPT;
            while !kept.is_char_boundary(from) {
                from += 1;
            }
            kept.drain(..from);
        }
    }
}

/// What to say of a failure: nothing but that, when Nix has said it itself.
fn failed(task: &'static str, said: &str) -> NixError {
    let said = said.trim();
    if said.is_empty() {
        return NixError::Failed(task);
    }
    // The last error is what it ended with; traces and progress come before.
    let from = said.rfind("error:").unwrap_or(0);
    NixError::Said {
        task,
        said: Text::lossy(&said[from..]),
    }
}

/// `nix (Nix) 2.8.0`, `nix (Lix, like Nix) 2.93.0`, `nix (Determinate Nix 3.6.1) 2.29.0`: the last word.
fn version(said: &str) -> (u32, u32) {
    let mut numbers = said
        .split_whitespace()
        .next_back()
        .unwrap_or_default()
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_last_word_whatever_stands_before() {
        for (said, expected) in [
            ("nix (Nix) 2.8.0\n", (2, 8)),
            ("nix (Lix, like Nix) 2.93.0", (2, 93)),
            ("nix (Determinate Nix 3.6.1) 2.29.0", (2, 29)),
            ("nix (Nix) 2.31pre20250712_b1245123", (2, 31)),
            ("", (0, 0)),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
    }

    #[test]
    fn a_flake_with_a_revision_is_asked_for_at_that() {
        let asked = |metadata: &str| {
            let metadata: Metadata = serde_json::from_str(metadata).unwrap();
            metadata.at_revision("github:me/fleet")
        };
        let clean =
            r#"{"locked":{"type":"github"},"revision":"f275","url":"github:me/fleet/f275"}"#;
        assert_eq!(asked(clean), "github:me/fleet/f275");
        let changed = r#"{"dirtyRevision":"f275-dirty","url":"git+file:///fleet"}"#;
        assert_eq!(asked(changed), "github:me/fleet");
    }

    #[test]
    fn an_error_is_what_nix_said_last() {
        let said = "trace: hello\nerror: first\nwarning: w\nerror: second\n       at flake.nix\n";
        let NixError::Said { said, .. } = failed("eval", said) else {
            panic!("it said something");
        };
        assert!(said.as_str().starts_with("error: second"), "{said}");
        assert!(matches!(failed("build", " \n"), NixError::Failed("build")));
    }

    #[tokio::test]
    async fn what_has_no_end_fills_no_memory() {
        let endless = vec![b'x'; 10 * KEPT];
        let kept = hear(endless.as_slice(), &Says::Nothing).await.unwrap();
        assert!(kept.len() <= 2 * KEPT + 1, "{}", kept.len());
    }
}
