//! The second process: activates, waits for the confirmation, and otherwise goes back.
//!
//! It knows nothing but its job directory, and depends on nobody: the agent may be stopped, replaced or
//! killed meanwhile. Killed itself, it is started again and finds in the journal how far it was: before the
//! confirmation it goes back, after it forward.
//!
//! A NixOS system is activated with `test`, which leaves nothing behind that survives a power cut; only
//! what was confirmed becomes the profile and the boot default.

mod back;
mod checks;
mod confirm;
mod failure;
mod forward;
mod inhibit;
mod kernel;
pub(crate) mod kinds;
mod prepare;
mod process;
mod program;
mod run;
mod signals;
mod successor;
mod system;

use camino::Utf8Path;
use hoist_agent_core::{Facts, How};
use hoist_protocol::{DeploymentId, Reason, State, Text};

use crate::job::{
    Before, BootId, Job, JobError, JobLock, JobResult, Journal, LogWriter, Phase, Record,
};
use failure::Failure;

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
        interrupted: false,
    };
    let awake = inhibit::Awake::hold();
    let result = activator.carry_out();
    drop(awake);
    if activator.interrupted {
        eprintln!("the machine shuts down; what is left to do is done after the boot");
        return Ok(());
    }
    activator.job.write_result(&result)
}

/// How a job ended that went well, and what people should know about it.
enum Ending {
    Succeeded(String),
    Staged(String),
    DryActivated,
}

struct Activator {
    job: Job,
    journal: Journal,
    log: LogWriter,
    boot_id: BootId,
    /// Whether the machine was booted since the activation began.
    rebooted: bool,
    /// Whether the machine shuts down while something did not hold: then the boot decides.
    interrupted: bool,
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
            (Some(Phase::Committed), Some(_)) => Ok(self.ending()),
            (Some(Phase::Committing), Some(before)) => self
                .commit(&before)
                .map(|()| self.ending())
                .map_err(|f| self.go_back(&before, f)),
            (Some(Phase::Staging), Some(before)) => self
                .stage(&before, "an activator before this one began it")
                .map_err(|f| self.go_back(&before, f)),
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
        let before = match self.prepare() {
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

    /// How a job ended for which all was done before this activator began.
    fn ending(&self) -> Ending {
        let history = self.journal.history();
        if history.has_been(Phase::Staging) {
            Ending::Staged("the next boot brings it".to_owned())
        } else {
            Ending::Succeeded(String::new())
        }
    }

    /// What runs and what the profile names, as far as the job is about it.
    fn facts(&self, before: &Before) -> Result<Facts, Failure> {
        kinds::of(&before.kind)?
            .facts(&before.profile)
            .map_err(|error| Failure::internal("cannot find out what runs", &error))
    }

    fn result(&mut self, before: Option<&Before>, outcome: Result<Ending, Failure>) -> JobResult {
        let facts = match before {
            Some(before) => self.facts(before),
            None => kinds::facts_here(
                &self.job.spec().profile,
                Some(&How::of(&self.job.spec().target)),
            )
            .map_err(|error| Failure::internal("cannot find out what runs", &error)),
        };
        let facts = facts.unwrap_or_else(|failure| {
            self.log.say(&failure.message);
            Facts::default()
        });
        let (state, reason, message) = match outcome {
            Ok(Ending::Succeeded(remark)) => (State::Succeeded, None, remark),
            Ok(Ending::Staged(why)) => (State::Staged, None, why),
            Ok(Ending::DryActivated) => (State::DryActivated, None, String::new()),
            Err(failure) => (failure.state, Some(failure.reason), failure.message),
        };
        self.log.say(&if message.is_empty() {
            format!("{state}: {}", self.job.spec().closure)
        } else {
            format!("{state}: {message}")
        });
        let boot_id = self.journal.history().boot_of_end();
        JobResult {
            state,
            reason,
            message: Text::lossy(&message),
            kind: before.map(|before| before.kind.clone()),
            boot_default: facts.boot_default,
            boot_id: Some(boot_id.unwrap_or(&self.boot_id).clone()),
            previous: before.and_then(|before| before.running.clone()),
            current: facts.current,
            profile: facts.profile,
            booted: facts.booted,
            log_lines: self.log.lines(),
            log_tail: self.log.tail(),
        }
    }
}
