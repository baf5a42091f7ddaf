//! Keeps the machine awake while an activator works.

use std::io;
use std::process::{Child, Command, Stdio};

use crate::job;

/// The machine does not go to sleep while this lives, if logind could be asked for it.
#[derive(Debug)]
pub(super) struct Awake {
    /// Holds the inhibitor until its input ends: with this value, or with the process, however that ends.
    holder: Option<Child>,
}

impl Awake {
    /// Asks logind. What fails is said on stderr, by whoever it fails for, and does not matter further.
    pub(super) fn hold() -> Self {
        if !job::systemd_runs() {
            return Self { holder: None };
        }
        let holder = Command::new("systemd-inhibit")
            .args([
                "--what=sleep",
                "--who=Hoist",
                "--why=A deployment is being activated",
                "--mode=block",
                "cat",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self {
            holder: holder.map_err(|error| complain(&error)).ok(),
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let Some(mut holder) = self.holder.take() else {
            return;
        };
        drop(holder.stdin.take());
        if let Err(error) = holder.wait() {
            complain(&error);
        }
    }
}

fn complain(error: &io::Error) {
    eprintln!("cannot keep the machine from going to sleep meanwhile: {error}");
}
