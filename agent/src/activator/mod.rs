//! The second process: activates, waits for the confirmation, and otherwise goes back.
//!
//! It knows nothing but its job directory, and depends on nobody: the agent may be stopped, replaced or
//! killed meanwhile. Killed itself, it is started again and finds in the journal how far it was: before the
//! confirmation it goes back, after it forward.
//!
//! A NixOS system is activated with `test`, which leaves nothing behind that survives a power cut; only
//! what was confirmed becomes the profile and the boot default.

mod back;
mod failure;
mod forward;
mod prepare;
mod process;
mod program;
mod signals;
mod system;

use std::time::{Duration, Instant};

use camino::Utf8Path;
use hoist_agent_core::Facts;
use hoist_protocol::{DeploymentId, Reason, State, StorePath, Text};

use crate::job::{
    Before, BootId, Job, JobError, JobLock, JobResult, Journal, LogWriter, Phase, Record,
};
use crate::nix;
use failure::Failure;
use program::{End, Gated, Program};
use system::Switch;

/// How often a job is begun before it has changed anything: what kills the activator at once every time
/// would do so for ever.
const MOST_STARTS: usize = 3;

/// Carries out the job in the directory `dir`, or recovers it; returns when its result is written, or at
/// once when another activator is at work on it or it has its result.
///
/// This is the whole of `hoist-agent activator --job DIR`: a synchronous program that makes itself a
/// session of its own and needs nothing of the agent.
///
/// # Errors
/// [`JobError`] when the job cannot be read or its result cannot be written. What goes wrong with the
/// deployment is no error here: it is in the result.
pub fn run(dir: &Utf8Path) -> Result<(), JobError> {
    signals::leave_terminal();
    let job = Job::open(dir)?;
    let Some(_lock) = JobLock::take(&job.lock_path())? else {
        eprintln!("another activator works on `{dir}`");
        return Ok(());
    };
    if job.has_result() {
        return Ok(());
    }
    signals::outlive();
    let boot_id = BootId::current()
        .map_err(|source| JobError::io("read", "/proc/sys/kernel/random/boot_id".into(), source))?;
    let journal = Journal::open(&job.journal_path())?;
    let rebooted = journal
        .history()
        .boot_of_activation()
        .is_some_and(|boot| *boot != boot_id);
    let log = LogWriter::open(&job.log_path());
    let mut activator = Activator {
        job,
        journal,
        log,
        boot_id,
        rebooted,
    };
    let result = activator.carry_out();
    activator.job.write_result(&result)
}

struct Activator {
    job: Job,
    journal: Journal,
    log: LogWriter,
    boot_id: BootId,
    /// Whether the machine was booted since the activation began.
    rebooted: bool,
}

impl Activator {
    fn id(&self) -> DeploymentId {
        self.job.spec().id
    }

    /// All there is to do, from wherever the journal ends.
    fn carry_out(&mut self) -> JobResult {
        let history = self.journal.history().clone();
        let phase = history.phase();
        let started = Record::Started {
            boot_id: self.boot_id.clone(),
        };
        if let Err(error) = self.journal.note([started]) {
            self.log.say(&format!("cannot write the journal: {error}"));
        }
        if phase.is_some() {
            self.log.say(&self.recovery_note(phase));
            self.stop_leftovers();
        }
        let before = history.before().cloned();
        let outcome = match (phase, before.clone()) {
            (None | Some(Phase::Preparing), _) => {
                return self.begin(history.starts());
            }
            (Some(_), None) => Err(Failure::failed(
                Reason::Internal,
                "the journal does not say what ran before, so nothing can be restored",
            )
            .worse("somebody has to look at the machine")),
            (Some(Phase::Committed), Some(_)) => Ok(()),
            (Some(Phase::Committing), Some(before)) => {
                self.commit(&before).map_err(|f| self.go_back(&before, f))
            }
            (Some(Phase::RollingBack), Some(before)) => {
                let failure = match history.going_back() {
                    Some((state, reason, message)) => Failure {
                        state,
                        ..Failure::failed(reason, message)
                    },
                    None => Failure::failed(Reason::Interrupted, "the activation was interrupted"),
                };
                Err(self.go_back(&before, failure))
            }
            (Some(phase), Some(before)) => {
                let message = self.interruption(phase);
                let failure = if phase == Phase::Activating {
                    Failure::failed(Reason::Interrupted, message)
                } else {
                    Failure::rolled_back(Reason::Interrupted, message)
                };
                Err(self.go_back(&before, failure))
            }
        };
        self.result(before.as_ref(), outcome)
    }

    /// A job that has changed nothing yet.
    fn begin(&mut self, starts: usize) -> JobResult {
        if starts >= MOST_STARTS {
            let message = format!(
                "the activator was stopped {starts} times before it could change anything; nothing was activated"
            );
            return self.result(None, Err(Failure::failed(Reason::Interrupted, message)));
        }
        if let Err(error) = self.journal.note([Record::Phase(Phase::Preparing)]) {
            return self.result(None, Err(error.into()));
        }
        let before = match prepare::prepare(&self.job) {
            Ok(before) => before,
            Err(failure) => return self.result(None, Err(failure)),
        };
        let outcome = self
            .forward(&before)
            .map_err(|failure| self.go_back(&before, failure));
        self.result(Some(&before), outcome)
    }

    fn recovery_note(&self, phase: Option<Phase>) -> String {
        let phase = phase.map_or("start", Phase::as_str);
        let how = if self.rebooted {
            "the machine was booted"
        } else {
            "it was stopped"
        };
        format!("an activator was at work before ({phase}) until {how}; recovering")
    }

    fn interruption(&self, phase: Phase) -> String {
        let who = if self.rebooted {
            "the machine"
        } else {
            "the activator"
        };
        format!(
            "{who} was stopped while the deployment was {}",
            phase.as_str()
        )
    }

    /// Ends what an activator that was killed has left running. After a boot nothing of it runs.
    fn stop_leftovers(&mut self) {
        let Some(process) = self.journal.history().running().cloned() else {
            return;
        };
        if self.journal.history().boot_of_running() != Some(&self.boot_id) {
            return;
        }
        if let Some(unit) = &process.unit
            && let Err(error) = system::stop_unit(unit)
        {
            self.log.say(&format!("cannot stop {unit}: {error}"));
        }
        match process::stop_leftovers(&process, &self.id().to_string()) {
            Ok(true) => self.log.say("stopped what the last activator had started"),
            Ok(false) => {}
            Err(error) => self.log.say(&error.to_string()),
        }
    }

    /// Runs a program, with `records` and the program itself in the journal before it does anything.
    fn run(
        &mut self,
        program: &Program,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<End, Failure> {
        let cannot = |error: &std::io::Error| {
            let name = program.arguments.first().map(|name| name.to_string_lossy());
            Failure::internal(&format!("cannot run {}", name.unwrap_or_default()), error)
        };
        let gated = Gated::start(program).map_err(|error| cannot(&error))?;
        let mut records: Vec<_> = records.into_iter().collect();
        let durable = !records.is_empty();
        records.push(Record::Running(gated.record().clone()));
        let noted = if durable {
            self.journal.append(records)
        } else {
            self.journal.note(records)
        };
        match noted {
            // On the way back nothing may stop at a journal that cannot be written any more.
            Err(error) if durable => return Err(error.into()),
            Err(error) => self.log.say(&format!("cannot write the journal: {error}")),
            Ok(()) => {}
        }
        let log = &mut self.log;
        let end = gated
            .run(|stream, text| log.line(stream, text), system::stop_unit)
            .map_err(|error| cannot(&error))?;
        if let Err(error) = self.journal.note([Record::Ended]) {
            self.log.say(&format!("cannot write the journal: {error}"));
        }
        Ok(end)
    }

    /// Runs `switch-to-configuration`; in a unit, its exit code is what it wrote down itself.
    fn run_switch(
        &mut self,
        system: &StorePath,
        action: Switch,
        limit: Duration,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<End, Failure> {
        let code_path = self.job.dir().join("switch-exit");
        if let Err(error) = std::fs::remove_file(&code_path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Failure::internal("cannot remove an old exit code", &error));
        }
        let begun = Instant::now();
        let program = system::switch(self.id(), system, action, &code_path, limit);
        let end = self.run(&program, records)?;
        if matches!(end, End::TimedOut)
            && let Err(error) = system::clear_switch_lists()
        {
            self.log.say(&format!(
                "cannot clear the lists of a stopped switch: {error}"
            ));
        }
        let (Some(unit), End::Exited(status)) = (&program.unit, end) else {
            return Ok(end);
        };
        if status.success() {
            return Ok(end);
        }
        system::outcome_of_unit(unit, &code_path, limit.saturating_sub(begun.elapsed()))
            .map(|code| code.map_or(end, End::Exited))
            .map_err(|error| Failure::internal("cannot find out how the switch ended", &error))
    }

    fn result(&mut self, before: Option<&Before>, outcome: Result<(), Failure>) -> JobResult {
        let facts = match before {
            Some(before) => self.facts(before),
            None => nix::facts(&self.job.spec().profile)
                .map_err(|error| Failure::internal("cannot find out what runs", &error)),
        };
        let facts = facts.unwrap_or_else(|failure| {
            self.log.say(&failure.message);
            Facts::default()
        });
        let (state, reason, message) = match outcome {
            Ok(()) => (State::Succeeded, None, String::new()),
            Err(failure) => (failure.state, Some(failure.reason), failure.message),
        };
        self.log.say(&match reason {
            None => format!("done: {} runs", self.job.spec().closure),
            Some(_) => format!("{state}: {message}"),
        });
        JobResult {
            state,
            reason,
            message: Text::lossy(&message),
            kind: None,
            boot_default: None,
            boot_id: Some(self.boot_id.clone()),
            previous: before.and_then(|before| before.running.clone()),
            current: facts.current,
            profile: facts.profile,
            booted: facts.booted,
            log_lines: self.log.lines(),
            log_tail: self.log.tail(),
        }
    }
}
