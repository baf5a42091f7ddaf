//! The agent of the new system: only its word counts.
//!
//! A switch may leave the old agent running although its unit has changed, since the unit says so or since the
//! switch failed half-way. Then the activator restarts it; and a confirmation of another program than the one
//! that the new unit starts is not taken. Where the order allows a system without an agent, the old one stays.

use std::fs;
use std::time::Duration;

use camino::{Utf8DirEntry, Utf8Path, Utf8PathBuf};
use hoist_protocol::{Reason, StorePath, UnitName};

use super::Activator;
use super::failure::{Failure, shown};
use super::kinds::ClosureKind;
use super::process;
use super::program::{End, Program};
use super::system::{self, Manager};
use crate::job::{AgentIdentity, Before, Confirmation, MainProcess};
use crate::nix;

/// How long systemd may take to restart the agent. It is ready before it connects.
const RESTART_LIMIT: Duration = Duration::from_secs(60);

/// The settings that an agent which stands in needs as the one before had them (systemd.exec(5) and
/// systemd.service(5)): among them where its secrets lie, and not what they are.
const KEPT: &[&str] = &[
    "LoadCredential",
    "LoadCredentialEncrypted",
    "UMask",
    "OOMScoreAdjust",
    "WatchdogSec",
];

/// The agent's unit in closures of a kind.
#[derive(Clone, Debug)]
pub(super) struct AgentUnit {
    name: UnitName,
    folder: &'static str,
    pub(super) manager: Manager,
}

impl AgentUnit {
    /// The unit of the agent that made a job, when closures of this kind have it.
    pub(super) fn of(agent: &AgentIdentity, kind: &dyn ClosureKind) -> Option<Self> {
        let units = kind.units()?;
        let manager = if agent.user_unit {
            Manager::User
        } else {
            Manager::System
        };
        let name = agent.unit.clone()?;
        (units.manager == manager).then_some(Self {
            name,
            folder: units.folder,
            manager,
        })
    }

    /// What a closure says about it: its file and what is added to that, one after another; none when the
    /// closure does not have it, or has masked it.
    fn text(&self, closure: &StorePath) -> Option<String> {
        let folder = Utf8Path::new(closure.as_str()).join(self.folder);
        let mut text = fs::read_to_string(folder.join(self.name.as_str())).ok()?;
        if text.trim().is_empty() {
            return None;
        }
        let additions = folder.join(format!("{}.d", self.name));
        let mut files: Vec<Utf8PathBuf> = additions
            .read_dir_utf8()
            .map(|entries| entries.flatten().map(Utf8DirEntry::into_path).collect())
            .unwrap_or_default();
        files.sort();
        for file in files {
            text.push('\n');
            text.push_str(&fs::read_to_string(file).unwrap_or_default());
        }
        Some(text)
    }

    fn is_in(&self, closure: &StorePath) -> bool {
        self.text(closure).is_some()
    }

    /// The settings with which it has to be started again where a system does not bring it: [`KEPT`]. None where
    /// what runs and what comes both do.
    ///
    /// What systemd has loaded is asked first: an agent that stands in already has its unit from there alone.
    pub(super) fn settings_to_stand_in(&self, before: &Before) -> Vec<String> {
        let running = before.running.as_ref();
        if self.is_in(&before.brings) && running.is_some_and(|running| self.is_in(running)) {
            return Vec::new();
        }
        let loaded = self.manager.unit_files(self.name.as_str()).ok();
        let text = loaded.or_else(|| self.text(running?));
        kept(&text.unwrap_or_default())
    }

    /// Whether its unit is a transient one, which no system has brought. systemd's own property of that name is not
    /// asked: it outlives the transient unit's file where another unit refers to this one.
    fn stands_in(&self) -> bool {
        let file = self.manager.property(self.name.as_str(), "FragmentPath");
        file.is_ok_and(|file| file.contains("/systemd/transient/"))
    }

    /// How to read what it logs.
    pub(super) fn journal(&self) -> String {
        let flags = self.manager.flags().join(" ");
        let space = if flags.is_empty() { "" } else { " " };
        format!("journalctl {flags}{space}-u {}", self.name)
    }

    /// Its main process; none when it does not run.
    pub(super) fn main_process(&self) -> Option<MainProcess> {
        let pid = self.manager.property(self.name.as_str(), "MainPID").ok()?;
        let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
        let started = process::started(pid).ok()?;
        Some(MainProcess { pid, started })
    }
}

/// Refuses a closure that would leave the machine without an agent.
pub(super) fn refuse_without_agent(
    unit: &AgentUnit,
    brings: &StorePath,
    running: Option<&StorePath>,
) -> Result<(), Failure> {
    let had = match unit.manager {
        // All units of a NixOS system are those of its closure.
        Manager::System => true,
        Manager::User => running.is_some_and(|running| unit.text(running).is_some()),
    };
    if !had || unit.text(brings).is_some() {
        return Ok(());
    }
    Err(Failure::untouched(
        Reason::NoAgent,
        format!(
            "{brings} has no `{}`, so nothing could deploy this machine afterwards; nothing was activated. \
             Enable the agent in its configuration, or deploy with --allow-no-agent",
            unit.name
        ),
    ))
}

impl Activator {
    /// Makes sure that the agent which runs is the one of the new system; without one, that the one before
    /// stays until the next boot.
    pub(super) fn renew_agent(&mut self, unit: &AgentUnit, before: &Before) -> Result<(), Failure> {
        let then = before
            .running
            .as_ref()
            .and_then(|running| unit.text(running));
        let now = unit.text(&before.brings);
        if now.is_none() {
            return self.stand_in(unit, before);
        }
        if then == now {
            return Ok(());
        }
        let main = unit.main_process();
        // One that stands in is not the new system's agent, whenever it was started.
        if main.is_some() && main != before.agent && !unit.stands_in() {
            return Ok(());
        }
        self.log.say(&format!(
            "restarting {}, which the switch left as it was",
            unit.name
        ));
        // A transient unit goes before the new system's, and would be what is started again.
        self.dismiss_stand_in(unit, Some(&before.brings));
        let arguments = [
            &["systemctl"],
            unit.manager.flags(),
            &["restart", "--", unit.name.as_str()],
        ]
        .concat();
        let mut environment = system::environment(self.id());
        environment.extend(system::user_environment());
        let restart = Program::new(&arguments, environment, RESTART_LIMIT);
        // Whether it works is seen by whether the new agent confirms.
        match self.run(&restart, [])?.end {
            End::Exited(status) if status.success() => {}
            End::Exited(status) => self.log.say(&format!("systemctl {}", shown(status))),
            End::TimedOut => self
                .log
                .say("systemctl did not come to an end and was stopped"),
        }
        Ok(())
    }

    /// After the way back: where what ran before has no agent of its own either, one that stood in for it stays, or
    /// is started again.
    pub(super) fn keep_stand_in(
        &mut self,
        unit: &AgentUnit,
        before: &Before,
    ) -> Result<(), Failure> {
        let has_own = (before.running.as_ref()).is_none_or(|running| unit.is_in(running));
        if has_own || before.agent.is_none() {
            return Ok(());
        }
        self.stand_in(unit, before)
    }

    /// Starts the agent that made the job in a transient unit of the old name, unless it has been left running:
    /// the machine has to be in reach for this deployment to be confirmed and told.
    fn stand_in(&mut self, unit: &AgentUnit, before: &Before) -> Result<(), Failure> {
        if unit.main_process().is_some() {
            self.log.say(
                "the system has no agent; the one that runs stays until the machine is booted",
            );
            return Ok(());
        }
        self.log.say(
            "the system has no agent; starting the one before again, until the machine is booted",
        );
        let agent = self.job.spec().agent.clone();
        let name = format!("--unit={}", unit.name);
        let settings: Vec<String> = before
            .agent_settings
            .iter()
            .map(|setting| format!("--property={setting}"))
            .collect();
        let arguments: Vec<&str> = ["systemd-run"]
            .into_iter()
            .chain(unit.manager.flags().iter().copied())
            .chain([&*name, "--collect", "--quiet", "--no-ask-password"])
            .chain(["--service-type=notify", "--description=Hoist agent"])
            .chain(["--property=Restart=always", "--property=RestartSec=1"])
            .chain(settings.iter().map(String::as_str))
            .chain(["--setenv=PATH", "--", agent.executable.as_str()])
            .chain(agent.arguments.iter().map(String::as_str))
            .collect();
        let mut environment = system::environment(self.id());
        environment.extend(system::user_environment());
        let start = Program::new(&arguments, environment, RESTART_LIMIT);
        match self.run(&start, [])?.end {
            End::Exited(status) if status.success() => {}
            End::Exited(status) => self.log.say(&format!("systemd-run {}", shown(status))),
            End::TimedOut => self
                .log
                .say("systemd-run did not come to an end and was stopped"),
        }
        Ok(())
    }

    /// Stops an agent that stands in, so that the system `closure` can start its own; without one in there, it stays.
    pub(super) fn dismiss_stand_in(&mut self, unit: &AgentUnit, closure: Option<&StorePath>) {
        if !closure.is_some_and(|closure| unit.is_in(closure)) {
            return;
        }
        if !unit.stands_in() {
            return;
        }
        if let Err(error) = unit.manager.forget_transient(unit.name.as_str()) {
            self.log
                .say(&format!("cannot stop the agent that stands in: {error}"));
        }
    }

    /// Why a confirmation is not one of the new system's agent; none when it is, or when that cannot be told.
    pub(super) fn foreign(
        &self,
        unit: &AgentUnit,
        before: &Before,
        confirmation: &Confirmation,
    ) -> Option<String> {
        let wanted = executable(&unit.text(&before.brings)?)?;
        // A script of its package may stand before the program itself: then the package has to do.
        let home = |path: &Utf8Path| match nix::store_path_behind(path) {
            Ok(Some(package)) => package.to_string(),
            _ => path.to_string(),
        };
        (home(&wanted) != home(&confirmation.executable)).then(|| {
            format!(
                "it is of {}, and the new system's agent is {wanted}",
                confirmation.executable
            )
        })
    }
}

/// The settings of a unit that are [`KEPT`], as the last word in its files has them.
fn kept(unit: &str) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for line in unit.lines().map(str::trim) {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if !KEPT.contains(&key) {
            continue;
        }
        // Credentials add up until an empty one clears them; the others have one value.
        if value.is_empty() || !key.starts_with("LoadCredential") {
            kept.retain(|other| other.split_once('=').is_none_or(|(other, _)| other != key));
        }
        if !value.is_empty() {
            kept.push(line.to_owned());
        }
    }
    kept
}

/// The program that the last `ExecStart=` of a unit starts (systemd.service(5)).
fn executable(unit: &str) -> Option<Utf8PathBuf> {
    let line = unit
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ExecStart="))
        .rfind(|command| !command.trim().is_empty())?;
    let command = line
        .trim()
        .trim_start_matches(['@', '-', ':', '+', '!', '|']);
    let program = command.split_whitespace().next()?.trim_matches(['"', '\'']);
    let path = Utf8PathBuf::from(program);
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_a_unit_are_those_of_its_last_word() {
        let unit = "# /run/systemd/transient/agent.service\n[Service]\nLoadCredential=a:/a\nUMask=0022\n\
                    ExecStart=/bin/a\n  LoadCredential=b:/b\nUMask=0077\nEnvironment=X=1\n";
        let all = ["LoadCredential=a:/a", "LoadCredential=b:/b", "UMask=0077"];
        assert_eq!(kept(unit), all);
        let added = format!("{unit}[Service]\nLoadCredential=\nLoadCredential=c:/c\n");
        assert_eq!(kept(&added), ["UMask=0077", "LoadCredential=c:/c"]);
    }

    #[test]
    fn a_unit_names_its_program() {
        let unit = "[Service]\nExecStartPre=/bin/true\nExecStart=@/nix/store/x/bin/a a run\n";
        assert_eq!(executable(unit).unwrap(), "/nix/store/x/bin/a");
        // What is added replaces it: an empty one clears the list first.
        let added = format!("{unit}\n[Service]\nExecStart=\nExecStart=/nix/store/y/bin/a run\n");
        assert_eq!(executable(&added).unwrap(), "/nix/store/y/bin/a");
        assert_eq!(
            executable("ExecStart=hoist-agent run\n"),
            None,
            "found by PATH"
        );
        assert_eq!(executable("[Unit]\n"), None);
    }
}
