//! The broker: Hoist's own, or another engine in its place.

use std::fs;

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};

use crate::authority::Identity;
use crate::engines::Engine;
use crate::process::{self, Process};
use crate::programs::Programs;

/// A broker on a port that it keeps over restarts.
pub struct Broker(Runs);

enum Runs {
    Hoist(Box<Hoist>),
    Engine(Engine),
}

/// Hoist's own.
struct Hoist {
    program: Utf8PathBuf,
    config: Utf8PathBuf,
    logs: Utf8PathBuf,
    process: Process,
    port: u16,
}

impl Broker {
    /// Starts `hoist-broker` in `dir`; `config` is what its configuration holds besides its own identity.
    ///
    /// # Errors
    /// When it does not say that it is ready.
    pub fn start(
        dir: &Utf8Path,
        identity: &Identity,
        config: &str,
        programs: &Programs,
        logs: &Utf8Path,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join("broker.toml");
        let write = |port: u16| {
            let own = identity.config();
            let state = dir.join("state");
            let text = format!(
                "listen = \"127.0.0.1:{port}\"\nstate = {:?}\n{own}{config}",
                state.as_str()
            );
            fs::write(&path, text).with_context(|| format!("cannot write {path}"))
        };
        write(0)?;
        let (process, port) = start_hoist(&programs.broker, &path, logs)?;
        write(port)?;
        Ok(Self(Runs::Hoist(Box::new(Hoist {
            program: programs.broker.clone(),
            config: path,
            logs: logs.to_owned(),
            process,
            port,
        }))))
    }

    /// Its port on 127.0.0.1; of several servers the first one's.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.0 {
            Runs::Hoist(hoist) => hoist.port,
            Runs::Engine(engine) => engine.ports()[0],
        }
    }

    /// The configuration of Hoist's broker; the folder of an engine's.
    #[must_use]
    pub fn config(&self) -> &Utf8Path {
        match &self.0 {
            Runs::Hoist(hoist) => &hoist.config,
            Runs::Engine(engine) => engine.folder(),
        }
    }

    /// Its URL; of several servers the first one's.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtts://127.0.0.1:{}", self.port())
    }

    /// The process; of several servers the first one's.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.0 {
            Runs::Hoist(hoist) => &mut hoist.process,
            Runs::Engine(engine) => engine.process(0),
        }
    }

    /// `kill -9`; of several servers the first one.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process().kill()
    }

    /// Starts it again on the same port, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart(&mut self) -> Result<()> {
        match &mut self.0 {
            Runs::Hoist(hoist) => {
                hoist.process = start_hoist(&hoist.program, &hoist.config, &hoist.logs)?.0;
                Ok(())
            }
            Runs::Engine(engine) => engine.restart(0),
        }
    }

    /// The other engine.
    ///
    /// # Errors
    /// When it is Hoist's own broker.
    pub fn engine(&mut self) -> Result<&mut Engine> {
        match &mut self.0 {
            Runs::Hoist(_) => anyhow::bail!("this is Hoist's own broker"),
            Runs::Engine(engine) => Ok(engine),
        }
    }

    /// Lets in who has got a certificate since it was started.
    ///
    /// # Errors
    /// When an engine does not take its new configuration.
    pub fn admit(&self) -> Result<()> {
        match &self.0 {
            // It knows whom the authority has signed for.
            Runs::Hoist(_) => Ok(()),
            Runs::Engine(engine) => engine.reload(),
        }
    }
}

impl From<Engine> for Broker {
    fn from(engine: Engine) -> Self {
        Self(Runs::Engine(engine))
    }
}

fn start_hoist(program: &Utf8Path, config: &Utf8Path, logs: &Utf8Path) -> Result<(Process, u16)> {
    let mut command = process::command(program);
    command.args(["run", "--config", config.as_str()]);
    let mut process = Process::start("broker", command, logs)?;
    let address = process.wait_for_line("ready: listening on 127.0.0.1:")?;
    let port = address
        .trim()
        .parse()
        .with_context(|| format!("no port: {address}"))?;
    Ok((process, port))
}
