//! The job directory, `<state>/jobs/<id>`: all that the agent and the activator share.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `spec` | agent, before the directory appears under its name | what is to be done: [`JobSpec`] |
//! | `journal` | activator | a record before each step, each with a checksum: [`Phase`] |
//! | `log` | activator | what programs printed, at most [`LOG_MAX`] bytes: [`LogEntry`] |
//! | `lock` | activator | held by the kernel's `flock` for as long as the activator lives |
//! | `confirmation` | agent, at once or not at all | [`Confirmation`] |
//! | `outage` | agent, at once or not at all | [`Outage`] |
//! | `trouble` | agent, at once or not at all | [`Trouble`] |
//! | `result` | activator, last of all | [`JobResult`] |
//! | `activator.log` | activator | what goes wrong with the activator itself |
//!
//! Room for the journal, the confirmation and the result is taken when the directory is made: a disk that
//! an activation fills does not keep the machine from going back.

mod agent;
mod error;
mod files;
#[cfg(test)]
mod golden_tests;
mod journal;
mod launch;
mod lock;
mod log;
mod notice;
mod result;
mod spec;

use std::fs;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::DeploymentId;

pub use agent::AgentIdentity;
pub use error::JobError;
pub use journal::Phase;
pub(crate) use journal::{Before, History, Journal, MainProcess, ProcessRecord, Record};
pub(crate) use launch::{USER_VARIABLES, systemd_runs};
pub(crate) use lock::JobLock;
pub(crate) use log::LogWriter;
pub use log::{LOG_MAX, LogCursor, LogEntry};
pub(crate) use notice::{AsyncNotice, Notice};
pub use result::JobResult;
pub use spec::{BootId, ConfirmBy, Confirmation, JobSpec, Nonce, Outage, Trouble};

/// All jobs of an agent.
#[derive(Clone, Debug)]
pub struct Jobs {
    root: Utf8PathBuf,
}

impl Jobs {
    /// Opens `<state>/jobs`, and makes it when it is not there.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub fn open(state: &Utf8Path) -> Result<Self, JobError> {
        let root = state.join("jobs");
        files::make_private_dir(&root)?;
        Ok(Self { root })
    }

    /// Makes the job's directory, durable and complete when it appears under its name.
    ///
    /// A job that is there with this very spec is opened: a crash after this call does no harm.
    ///
    /// # Errors
    /// [`JobError::Exists`] when the id has another spec, or [`JobError::Io`]
    pub fn create(&self, spec: &JobSpec) -> Result<Job, JobError> {
        let dir = self.root.join(spec.id.to_string());
        if dir.exists() {
            let job = Job::open(&dir)?;
            return if job.spec == *spec {
                Ok(job)
            } else {
                Err(JobError::Exists { dir })
            };
        }
        let new = self.root.join(format!("{HALF_MADE}{}", spec.id));
        remove_dir(&new)?;
        files::make_private_dir(&new)?;
        files::reserve(&new.join(JOURNAL), journal::RESERVED)?;
        files::reserve(&files::staging(&new.join(RESULT)), result::RESERVED)?;
        files::reserve(&files::staging(&new.join(CONFIRMATION)), spec::RESERVED)?;
        files::reserve(&new.join(launch::ENVIRONMENT), launch::RESERVED)?;
        // Last of all: file systems with a journal bring the directory to disk with it, and the next line is cheap.
        files::write_durably(&new.join(SPEC), &spec.to_json())?;
        files::sync_dir(&new)?;
        fs::rename(&new, &dir).map_err(|source| JobError::io("make", &dir, source))?;
        files::sync_dir(&self.root)?;
        Ok(Job {
            dir,
            spec: spec.clone(),
        })
    }

    /// The jobs below `state` as they are at this moment, whoever works on them. Nothing is changed, and what
    /// cannot be read is left out.
    #[must_use]
    pub fn look(state: &Utf8Path) -> Vec<Job> {
        let Ok(entries) = state.join("jobs").read_dir_utf8() else {
            return Vec::new();
        };
        let entries = entries.filter_map(Result::ok);
        entries
            .filter(|entry| entry.file_name().parse::<DeploymentId>().is_ok())
            .filter_map(|entry| Job::open(entry.path()).ok())
            .collect()
    }

    /// All jobs that are there, oldest id first; what was left half made is removed.
    ///
    /// A job that cannot be read is set aside as `.broken-<id>`, so that it does not keep the agent from
    /// starting, and logged as an error.
    ///
    /// # Errors
    /// [`JobError::Io`] when the directory of all jobs cannot be read.
    pub fn existing(&self) -> Result<Vec<Job>, JobError> {
        let mut jobs = Vec::new();
        let entries = self
            .root
            .read_dir_utf8()
            .map_err(|source| JobError::io("read", &self.root, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| JobError::io("read", &self.root, source))?;
            let name = entry.file_name();
            if name.starts_with(HALF_MADE) {
                remove_dir(entry.path())?;
            } else if name.parse::<DeploymentId>().is_ok() {
                match Job::open(entry.path()) {
                    Ok(job) => jobs.push(job),
                    Err(error) => {
                        let aside = self.root.join(format!(".broken-{name}"));
                        tracing::error!(job = name, %aside, error = %chain(&error), "cannot read a job; it is set aside");
                        remove_dir(&aside)?;
                        fs::rename(entry.path(), &aside)
                            .map_err(|source| JobError::io("set aside", entry.path(), source))?;
                    }
                }
            }
        }
        jobs.sort_by_key(|job| job.spec.id);
        Ok(jobs)
    }
}

/// One deployment's activation on this machine.
#[derive(Clone, Debug)]
pub struct Job {
    dir: Utf8PathBuf,
    spec: JobSpec,
}

/// How far a job is.
#[derive(Clone, Debug)]
pub struct JobView {
    /// The newest phase in the journal; none before the activator has written the first.
    pub phase: Option<Phase>,
    /// Whether an activator works on it. Without one and without a result, it has to be started.
    pub alive: bool,
    /// How it ended; the activator writes this last.
    pub result: Option<JobResult>,
    /// The length of the log in bytes: compare it to know whether there is something new.
    pub log_len: u64,
}

impl Job {
    /// Opens the job in `dir`.
    ///
    /// # Errors
    /// [`JobError::Io`], [`JobError::Malformed`] or [`JobError::Format`]
    pub fn open(dir: &Utf8Path) -> Result<Self, JobError> {
        let path = dir.join(SPEC);
        let json = fs::read(&path).map_err(|source| JobError::io("read", &path, source))?;
        Ok(Self {
            dir: dir.to_owned(),
            spec: JobSpec::from_json(&path, &json)?,
        })
    }

    /// What is to be done.
    #[must_use]
    pub const fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// Where the job is.
    #[must_use]
    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// Starts the activator beside the agent, in a session of its own, and where systemd runs the machine or the user's services,
    /// in a transient unit of its own, so that it outlives the agent and the agent's unit.
    ///
    /// The same call recovers a job whose activator died: the activator reads the journal and goes back or
    /// forward. When one is at work already, the new one ends at once, so calling it once too often does
    /// no harm. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`JobError::Start`]
    pub fn start_activator(&self) -> Result<(), JobError> {
        launch::start(self)
    }

    /// How far the job is. Cheap: a few small files, and nothing blocks.
    ///
    /// # Errors
    /// [`JobError::Io`], or [`JobError::Malformed`] for a journal or result that is damaged.
    pub fn view(&self) -> Result<JobView, JobError> {
        // The lock first: an activator writes its result before it lets go of the lock, so a job seen
        // without an activator and without a result really needs one.
        let alive = JobLock::is_held(&self.lock_path())?;
        let result = JobResult::read(&self.dir.join(RESULT))?;
        let phase = History::read(&self.dir.join(JOURNAL))?.phase();
        let log_len = fs::metadata(self.dir.join(LOG)).map_or(0, |log| log.len());
        Ok(JobView {
            phase,
            alive,
            result,
            log_len,
        })
    }

    /// Tells the activator that the machine works and reaches its broker.
    ///
    /// It is not synced to disk: one of another boot does not count.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub fn confirm(&self, confirmation: &Confirmation) -> Result<(), JobError> {
        files::put(&self.dir.join(CONFIRMATION), &confirmation.to_json())
    }

    /// Tells the activator that the broker itself is away, so that it waits longer for the confirmation: once,
    /// and up to [`OUTAGE_CAP_MS`](hoist_protocol::limits::OUTAGE_CAP_MS) after the activation.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub fn report_outage(&self, outage: &Outage) -> Result<(), JobError> {
        files::put(&self.dir.join(OUTAGE), &outage.to_json())
    }

    /// Tells the activator why no broker was reached so far: what the outcome says when none is at all.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub fn report_trouble(&self, trouble: &Trouble) -> Result<(), JobError> {
        files::put(&self.dir.join(TROUBLE), &trouble.to_json())
    }

    /// The complete lines that were logged since `cursor`, at most 64 KiB of the file; call again until
    /// there are none.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub fn lines(&self, cursor: &mut LogCursor) -> Result<Vec<LogEntry>, JobError> {
        log::read_lines(&self.dir.join(LOG), cursor)
    }

    /// Removes the job, once its result is known where it has to be.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub fn remove(self) -> Result<(), JobError> {
        // Under a name that `existing` clears away: a crash in the middle leaves no job without its spec.
        let name = self.dir.file_name().unwrap_or_default();
        let half = self.dir.with_file_name(format!("{HALF_MADE}{name}"));
        remove_dir(&half)?;
        fs::rename(&self.dir, &half).map_err(|source| JobError::io("remove", &self.dir, source))?;
        remove_dir(&half)
    }

    pub(crate) fn lock_path(&self) -> Utf8PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn journal_path(&self) -> Utf8PathBuf {
        self.dir.join(JOURNAL)
    }

    pub(crate) fn log_path(&self) -> Utf8PathBuf {
        self.dir.join(LOG)
    }

    /// Where what this job needs is kept from the garbage collector: `<state>/roots/<id>`.
    pub(crate) fn roots(&self) -> Utf8PathBuf {
        let state = self.dir.parent().and_then(Utf8Path::parent);
        let roots = crate::nix::roots_dir(state.unwrap_or(Utf8Path::new("/")));
        crate::nix::roots_of(&roots, self.spec.id)
    }

    /// The agent's confirmation, once there is one that can be read.
    pub(crate) fn confirmation(&self) -> Result<Option<Confirmation>, JobError> {
        Confirmation::read(&self.dir.join(CONFIRMATION))
    }

    /// The agent's word that the broker is away, once there is one that can be read.
    pub(crate) fn outage(&self) -> Result<Option<Outage>, JobError> {
        Outage::read(&self.dir.join(OUTAGE))
    }

    /// The agent's word on why it has not reached the broker, once there is one that can be read.
    pub(crate) fn trouble(&self) -> Result<Option<Trouble>, JobError> {
        Trouble::read(&self.dir.join(TROUBLE))
    }

    pub(crate) fn has_result(&self) -> bool {
        self.dir.join(RESULT).exists()
    }

    pub(crate) fn write_result(&self, result: &JobResult) -> Result<(), JobError> {
        files::replace(&self.dir.join(RESULT), &result.to_json())
    }
}

const SPEC: &str = "spec";
const JOURNAL: &str = "journal";
const LOG: &str = "log";
const CONFIRMATION: &str = "confirmation";
const OUTAGE: &str = "outage";
const TROUBLE: &str = "trouble";
const RESULT: &str = "result";

/// What is being made or removed starts with this; [`Jobs::existing`] clears it away.
const HALF_MADE: &str = ".half-";

fn remove_dir(dir: &Utf8Path) -> Result<(), JobError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(JobError::io("remove", dir, error))
        }
        _ => Ok(()),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
