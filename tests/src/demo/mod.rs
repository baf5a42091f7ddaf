//! The demo: everything that Hoist is for, on one computer, in under a minute.

mod play;
mod stage;

use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use camino::Utf8Path;
use tokio::signal::unix::{SignalKind, signal};

use crate::site::{Site, keeps};
use crate::wait;
use play::Play;

/// What the shell says of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Runs the demo.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if wait::is_interrupted() => {
            eprintln!("\ninterrupted; everything was stopped and removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("\nerror: the demo did not show what it should: {error:#}");
            eprintln!(
                "Please report it with the output of `KEEP=1 make demo`, which keeps all logs."
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let start = Instant::now();
    watch_signals()?;
    let site = Site::create("demo")?;
    let dir = site.dir().to_owned();
    let played = Play::open(site).and_then(|mut play| play.run());
    if keeps() {
        show_folder(&dir);
    }
    played?;
    println!(
        "\nThat took {} s. Now the real thing, from empty machines to the first deployment: README.md",
        start.elapsed().as_secs()
    );
    Ok(())
}

/// Lets the first Ctrl-C or SIGTERM end every wait, so that all is cleaned up on the way out.
fn watch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            wait::interrupt();
        })
        .context("cannot watch for Ctrl-C")?;
    Ok(())
}

fn show_folder(dir: &Utf8Path) {
    println!(
        "\nKept in {dir}:
  certs/                  certificates and keys: hoist-certs show {dir}/certs/*.pem
  broker/broker.toml      the broker's configuration
  machines/*/agent.toml   the agents' configurations; beside them the machines' own nix, run and state
  logs/                   what every program printed
Nothing of it runs any more. Remove it with: chmod -R u+w {dir}; rm -rf {dir}"
    );
}
