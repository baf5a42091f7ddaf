//! The broker: Hoist's own, or mosquitto in its place.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};

use crate::authority::Identity;
use crate::process::{self, Process};
use crate::programs::{Programs, on_path};
use crate::wait;

/// Which program it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Hoist,
    Mosquitto,
}

/// A broker process on a port that it keeps over restarts.
pub struct Broker {
    kind: Kind,
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
        Ok(Self {
            kind: Kind::Hoist,
            program: programs.broker.clone(),
            config: path,
            logs: logs.to_owned(),
            process,
            port,
        })
    }

    /// Starts mosquitto in `dir` with the access rules of the design for `fleet`, where everybody in
    /// `publishers` publishes.
    ///
    /// # Errors
    /// When mosquitto is missing or does not start.
    pub fn start_mosquitto(
        dir: &Utf8Path,
        identity: &Identity,
        fleet: &str,
        publishers: &[&str],
        logs: &Utf8Path,
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let program = on_path("mosquitto", "mosquitto")?;
        // mosquitto cannot be asked which port it took: a free one now is most likely free in a moment.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut rules = format!(
            "pattern read hoist/v1/{fleet}/%u/deploy\n\
             pattern readwrite hoist/v1/{fleet}/%u/echo\n"
        );
        for channel in ["status", "presence", "history", "log"] {
            rules += &format!("pattern write hoist/v1/{fleet}/%u/{channel}\n");
        }
        for publisher in publishers {
            rules += &format!(
                "user {publisher}\n\
                 topic read hoist/v1/{fleet}/#\n\
                 topic write hoist/v1/{fleet}/+/deploy\n"
            );
        }
        let (config, acl) = (dir.join("mosquitto.conf"), dir.join("acl"));
        fs::write(&acl, rules)?;
        let Identity {
            ca,
            certificate,
            key,
        } = identity;
        let text = format!(
            "listener {port} 127.0.0.1\n\
             cafile {ca}\ncertfile {certificate}\nkeyfile {key}\n\
             require_certificate true\nuse_identity_as_username true\n\
             acl_file {acl}\nallow_anonymous false\n\
             persistence false\n"
        );
        // As root it would drop to a user that cannot read the test's folder.
        let user = if rustix::process::geteuid().is_root() {
            "user root\n"
        } else {
            ""
        };
        fs::write(&config, text + user)?;
        let process = start_mosquitto(&program, &config, logs)?;
        let broker = Self {
            kind: Kind::Mosquitto,
            program,
            config,
            logs: logs.to_owned(),
            process,
            port,
        };
        broker.wait_listening()?;
        Ok(broker)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Utf8Path {
        &self.config
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtts://127.0.0.1:{}", self.port)
    }

    /// The process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same port, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart(&mut self) -> Result<()> {
        match self.kind {
            Kind::Hoist => self.process = start_hoist(&self.program, &self.config, &self.logs)?.0,
            Kind::Mosquitto => {
                self.process = start_mosquitto(&self.program, &self.config, &self.logs)?;
                self.wait_listening()?;
            }
        }
        Ok(())
    }

    fn wait_listening(&self) -> Result<()> {
        wait::until_true("the broker listens", || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok())
        })
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

fn start_mosquitto(program: &Utf8Path, config: &Utf8Path, logs: &Utf8Path) -> Result<Process> {
    let mut command = process::command(program);
    command.args(["-c", config.as_str()]);
    Process::start("mosquitto", command, logs)
}
