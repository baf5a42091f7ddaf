//! What fails, and how it comes right again.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoist_protocol::{DeploymentId, State};
use hoist_tests::server::Mode;
use hoist_tests::wait;

use super::phase::{Hold, Phase};
use super::subject::Subject;

/// How far the clock is off, as libfaketime reads it.
pub(super) const REAL_TIME: &str = "+0";
const A_DAY_AHEAD: &str = "+1d";
const A_DAY_BEHIND: &str = "-1d";

/// What fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// `kill -9` of the agent.
    Agent,
    /// `kill -9` of the activator.
    Activator,
    /// `kill -9` of the activator, and of the agent right after it.
    Both,
    /// Every process at once, what is in memory, and another boot id.
    Power,
    /// `kill -9` of the broker, which comes back later.
    Broker,
    /// A black hole between machine and broker, until the deployment has ended.
    Network,
    /// No room for another byte on store, state and `/run`, until the deployment has ended.
    Disk,
    /// The binary cache answers every request with an error: while fetching until the agent tries again, otherwise
    /// until the deployment has ended.
    Cache,
    /// `kill -9` of Nix's daemon, which comes back when the cache does.
    NixDaemon,
    /// `kill -9` of the agent, whose ledger has lost its second half when it is back.
    LedgerCut,
    /// The same with one bit of it flipped.
    LedgerBit,
    /// The same, with the ledger's copy having lost its second half.
    CopyCut,
    /// The same with one bit of the copy flipped.
    CopyBit,
    /// The same with a bit flipped in each of the two.
    BothBits,
    /// The agent's clock is a day ahead until the deployment has ended.
    ClockAhead,
    /// The agent's clock is a day behind until the deployment has ended.
    ClockBehind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Agent => "agent",
            Self::Activator => "activator",
            Self::Both => "both",
            Self::Power => "power",
            Self::Broker => "broker",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Cache => "cache",
            Self::NixDaemon => "nix-daemon",
            Self::LedgerCut => "ledger-cut",
            Self::LedgerBit => "ledger-bit",
            Self::CopyCut => "copy-cut",
            Self::CopyBit => "copy-bit",
            Self::BothBits => "both-bits",
            Self::ClockAhead => "clock-fast",
            Self::ClockBehind => "clock-slow",
        })
    }
}

impl Fault {
    pub(super) const ALL: [Self; 16] = [
        Self::Agent,
        Self::Activator,
        Self::Both,
        Self::Power,
        Self::Broker,
        Self::Network,
        Self::Disk,
        Self::Cache,
        Self::NixDaemon,
        Self::LedgerCut,
        Self::LedgerBit,
        Self::CopyCut,
        Self::CopyBit,
        Self::BothBits,
        Self::ClockAhead,
        Self::ClockBehind,
    ];

    pub(super) const fn moves_clock(self) -> bool {
        matches!(self, Self::ClockAhead | Self::ClockBehind)
    }

    pub(super) const fn damages_ledger(self) -> bool {
        !self.damaged_files().is_empty()
    }

    /// Which of the ledger's two files it damages.
    const fn damaged_files(self) -> &'static [&'static str] {
        match self {
            Self::LedgerCut | Self::LedgerBit => &["ledger"],
            Self::CopyCut | Self::CopyBit => &["ledger.copy"],
            Self::BothBits => &["ledger", "ledger.copy"],
            _ => &[],
        }
    }

    /// How long the new system may take to be confirmed, where it is not meant to be.
    pub(super) const fn confirm_timeout(self) -> Option<Duration> {
        match self {
            Self::Network | Self::Disk | Self::ClockBehind => Some(Duration::from_secs(3)),
            _ => None,
        }
    }

    /// Lets it happen to a machine that is held in `phase`, lets the machine go on, and puts things right again.
    pub(super) fn strike(
        self,
        subject: &mut Subject<'_>,
        phase: Phase,
        id: DeploymentId,
        hold: Hold,
    ) -> Result<()> {
        match self {
            Self::Agent => {
                subject.machine.kill_agent()?;
                subject.machine.start_agent()?;
                hold.release(subject)
            }
            Self::Activator => {
                subject.machine.kill_activator()?;
                hold.release(subject)
            }
            Self::Both => {
                subject.machine.kill_activator()?;
                subject.machine.kill_agent()?;
                subject.machine.start_agent()?;
                hold.release(subject)
            }
            Self::Power => {
                subject.machine.cut_power()?;
                hold.release(subject)?;
                subject.machine.boot()
            }
            Self::Broker => {
                // While it waits for the broker, that is gone already.
                if !matches!(hold, Hold::Severed) {
                    subject.kill_broker()?;
                }
                hold.release(subject)?;
                wait::until_true("it needs the broker", || {
                    Ok(subject.machine.journal(id)?.contains("\"confirming\"")
                        || subject.machine.has_ended(id)?)
                })?;
                subject.restart_broker()
            }
            Self::Network => {
                subject.machine.proxy().set_black_hole(true);
                hold.release(subject)?;
                subject.wait_ended(id)?;
                subject.machine.proxy().set_black_hole(false);
                Ok(())
            }
            Self::Disk => {
                disk(subject)?.fill()?;
                hold.release(subject)?;
                subject.wait_ended(id)?;
                disk(subject)?.free()
            }
            Self::Cache => {
                subject.cache.server.set(Mode::Broken);
                hold.release(subject)?;
                wait_no_use(subject, phase, id)?;
                subject.cache.server.set(Mode::Serving);
                Ok(())
            }
            Self::NixDaemon => {
                subject.kill_daemon()?;
                hold.release(subject)?;
                wait_no_use(subject, phase, id)?;
                subject.start_daemon()
            }
            Self::LedgerCut | Self::LedgerBit | Self::CopyCut | Self::CopyBit | Self::BothBits => {
                subject.machine.kill_agent()?;
                self.damage_ledger(subject)?;
                subject.machine.start_agent()?;
                hold.release(subject)
            }
            Self::ClockAhead | Self::ClockBehind => {
                let day = match self {
                    Self::ClockAhead => A_DAY_AHEAD,
                    _ => A_DAY_BEHIND,
                };
                set_clock(subject, day)?;
                hold.release(subject)?;
                subject.wait_ended(id)?;
                set_clock(subject, REAL_TIME)
            }
        }
    }

    fn damage_ledger(self, subject: &Subject<'_>) -> Result<()> {
        for file in self.damaged_files() {
            let path = subject.machine.state().join(file);
            let mut bytes = fs::read(&path)?;
            let half = bytes.len() / 2;
            if matches!(self, Self::LedgerCut | Self::CopyCut) {
                bytes.truncate(half);
            } else {
                bytes[half] ^= 1;
            }
            fs::write(path, bytes)?;
        }
        Ok(())
    }
}

fn disk<'a>(subject: &'a Subject<'_>) -> Result<&'a hoist_tests::isolation::SmallDisk> {
    subject
        .disk
        .as_ref()
        .context("the machine has a small disk")
}

/// While fetching: until it is tried again. Otherwise until the deployment has ended without it.
fn wait_no_use(subject: &mut Subject<'_>, phase: Phase, id: DeploymentId) -> Result<()> {
    if phase != Phase::Fetching {
        return subject.wait_ended(id);
    }
    let retries = |status: &hoist_protocol::Status| {
        status.id == Some(id) && status.state == State::Fetching && !status.message.is_empty()
    };
    subject
        .watch()
        .wait_status(subject.machine.name(), "it is tried again", retries)
        .map(drop)
}

fn set_clock(subject: &Subject<'_>, to: &str) -> Result<()> {
    // At once: a program that reads it meanwhile must not find it empty.
    let clock = subject.notes().join("clock");
    let new = subject.notes().join("clock.new");
    fs::write(&new, to)?;
    Ok(fs::rename(new, clock)?)
}
