//! The brokers that are measured, each with certificates and access rules that say the same.

use std::fmt;
use std::fs;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal};

use crate::bench::load::Load;
use crate::process::{self, Process};
use crate::programs::on_path;
use crate::wait;
use crate::world::{FLEET, Site};

/// One broker with one configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Contestant {
    /// Acknowledges what is on disk, and checks every deployment's signature.
    Hoist,
    /// The same without trusted keys: what mosquitto does, and the disk.
    HoistUnchecked,
    /// mosquitto, writing all that it retains to disk at every change: as near to durable as it gets.
    MosquittoSaving,
    /// mosquitto with persistence as it is by default: saved every 30 minutes.
    MosquittoDefault,
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hoist => "hoist-broker",
            Self::HoistUnchecked => "no trusted_keys",
            Self::MosquittoSaving => "mosquitto, saving",
            Self::MosquittoDefault => "mosquitto",
        })
    }
}

/// A broker that runs, with nothing retained yet.
pub(super) struct Running {
    process: Process,
    port: u16,
    dir: Utf8PathBuf,
}

impl Running {
    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Sends it a signal and waits for its end.
    pub(super) fn end(&mut self, signal: Signal) -> Result<()> {
        if signal == Signal::KILL {
            self.process.kill()
        } else {
            self.process.terminate().map(drop)
        }
    }

    /// Starts Hoist's broker again with what it kept.
    pub(super) fn start_again(&mut self, site: &Site) -> Result<()> {
        (self.process, self.port) = run_hoist(&self.dir, site)?;
        Ok(())
    }

    /// Ends it and removes what it kept.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.process.terminate()?;
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

impl Contestant {
    /// Ours first.
    pub(super) const ALL: [Self; 4] = [
        Self::Hoist,
        Self::HoistUnchecked,
        Self::MosquittoSaving,
        Self::MosquittoDefault,
    ];

    /// Whether it is a broker of Hoist's.
    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Hoist | Self::HoistUnchecked)
    }

    /// Starts it with an empty store.
    pub(super) fn start(self, site: &Site, load: &Load, round: u32) -> Result<Running> {
        let dir = site.dir().join(format!("{self:?}-{round}").to_lowercase());
        fs::create_dir_all(&dir)?;
        match self {
            Self::Hoist => start_hoist(dir, site, load, true),
            Self::HoistUnchecked => start_hoist(dir, site, load, false),
            Self::MosquittoSaving => start_mosquitto(
                dir,
                site,
                load,
                "autosave_on_changes true\nautosave_interval 1\n",
            ),
            Self::MosquittoDefault => start_mosquitto(dir, site, load, ""),
        }
    }
}

/// Everybody comes from one address, and more than once a minute.
const NO_LIMITS: &str = "max_connections = 100000\nmax_connections_per_address = 100000\n\
     max_handshakes_per_address = 100000\nmax_handshakes = 100000\n\
     connect_rate = \"100000/s burst 1000000\"\npublish_rate = \"1000000/s burst 1000000\"\n\
     byte_rate = \"1000000000/s burst 1000000000\"\n";

fn start_hoist(dir: Utf8PathBuf, site: &Site, load: &Load, checks: bool) -> Result<Running> {
    let config = dir.join("broker.toml");
    let identity = load.broker_files().config();
    let trusted = match checks {
        true => format!("trusted_keys = [{:?}]\n", load.public_key().to_string()),
        false => String::new(),
    };
    fs::write(
        &config,
        format!(
            "listen = \"127.0.0.1:0\"\nstate = {:?}\n{trusted}{NO_LIMITS}{identity}",
            dir.join("state").as_str()
        ),
    )?;
    let (process, port) = run_hoist(&dir, site)?;
    Ok(Running { process, port, dir })
}

fn run_hoist(dir: &Utf8Path, site: &Site) -> Result<(Process, u16)> {
    let mut command = process::command(&site.programs().broker);
    command.args(["run", "--config", dir.join("broker.toml").as_str()]);
    let mut process = Process::start("hoist-broker", command, site.logs())?;
    let port = process.wait_for_line("ready: listening on 127.0.0.1:")?;
    let port = port.trim().parse().context("hoist-broker says no port")?;
    Ok((process, port))
}

fn start_mosquitto(dir: Utf8PathBuf, site: &Site, load: &Load, saving: &str) -> Result<Running> {
    let (config, acl) = (dir.join("mosquitto.conf"), dir.join("acl"));
    fs::write(&acl, access_rules())?;
    // mosquitto cannot be asked which port it took.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    fs::write(&config, mosquitto_config(&dir, &acl, port, load, saving))?;
    let mut command = process::command(on_path("mosquitto", "mosquitto")?);
    command.args(["-c", config.as_str()]);
    let mut process = Process::start("mosquitto", command, site.logs())?;
    wait::until_true("mosquitto listens", || {
        anyhow::ensure!(
            process.is_alive()?,
            "mosquitto ended: {}",
            process.stderr()?
        );
        Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
    })?;
    Ok(Running { process, port, dir })
}

fn mosquitto_config(
    dir: &Utf8Path,
    acl: &Utf8Path,
    port: u16,
    load: &Load,
    saving: &str,
) -> String {
    let files = load.broker_files();
    // As root it would drop to a user that cannot read the folder.
    let user = if rustix::process::geteuid().is_root() {
        "user root\n"
    } else {
        ""
    };
    format!(
        "per_listener_settings true\n\
         listener {port} 127.0.0.1\n\
         cafile {}\ncertfile {}\nkeyfile {}\n\
         require_certificate true\nuse_identity_as_username true\n\
         acl_file {acl}\n\
         max_queued_messages 0\n\
         persistence true\npersistence_location {dir}/\n\
         log_type error\n{saving}{user}",
        files.ca, files.certificate, files.key,
    )
}

/// What Hoist's broker makes of the roles, as far as this measurement goes.
fn access_rules() -> String {
    format!(
        "pattern read hoist/v1/{FLEET}/%u/deploy\n\
         pattern write hoist/v1/{FLEET}/%u/presence\n\
         pattern write hoist/v1/{FLEET}/%u/status\n\
         user mon\n\
         topic read hoist/v1/{FLEET}/+/status\n\
         user ci\n\
         topic write hoist/v1/{FLEET}/+/deploy\n"
    )
}
