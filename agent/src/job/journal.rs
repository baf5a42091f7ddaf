//! The journal: what an activator has begun, on disk before it begins.
//!
//! One line a record: 16 hexadecimal digits of SHA-256 over the JSON that follows after a space. The last
//! line may be torn by a power cut, and counts for nothing then; any other damage is an error.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{Kind, Reason, State, StorePath};
use serde::{Deserialize, Serialize};

use super::spec::BootId;
use super::{JobError, files};
use crate::nix::Generation;

/// Disk taken in advance for a journal, in bytes: more than ten recoveries write.
pub(super) const RESERVED: u64 = 64 * 1024;

const CHECKSUM_LEN: usize = 16;

/// What an activator is doing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Looks at the closure and at what runs. Nothing has been changed.
    Preparing,
    /// Activates the closure.
    Activating,
    /// Makes the closure what the next boot brings, and activates nothing. Recovery goes forward.
    Staging,
    /// Runs the health checks.
    Checking,
    /// Waits for the agent's confirmation: the moment to try a fresh connection.
    Confirming,
    /// Makes the confirmed system the one that boots. From here on, recovery goes forward.
    Committing,
    /// All is done but the result.
    Committed,
    /// Goes back to what ran before.
    RollingBack,
}

impl Phase {
    /// The phase for people: what the activator was doing.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Activating => "activating",
            Self::Staging => "being made what boots next",
            Self::Checking => "checking its health",
            Self::Confirming => "waiting for its confirmation",
            Self::Committing => "being made permanent",
            Self::Committed => "done",
            Self::RollingBack => "going back",
        }
    }

    /// The state that a status report gives meanwhile.
    #[must_use]
    pub const fn state(self) -> State {
        match self {
            Self::Preparing | Self::Activating | Self::Staging => State::Activating,
            Self::Checking | Self::Confirming | Self::Committing | Self::Committed => {
                State::Confirming
            }
            Self::RollingBack => State::RollingBack,
        }
    }
}

/// What was found before anything was changed, and what is to come of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Before {
    /// How the closure is activated; never `auto`.
    pub(crate) kind: Kind,
    /// The profile that the job sets.
    pub(crate) profile: Utf8PathBuf,
    /// What it named.
    pub(crate) named: Option<Generation>,
    /// What ran.
    pub(crate) running: Option<StorePath>,
    /// What the next boot was to bring, where the boot loader can be read.
    pub(crate) boot_default: Option<StorePath>,
    /// What runs once the closure is activated: itself, or one of its specialisations.
    pub(crate) brings: StorePath,
    /// The systemd units that had failed.
    pub(crate) failed_units: Vec<String>,
    /// The health checks, by their number, that did not hold.
    pub(crate) failed_checks: Vec<usize>,
    /// The process of the agent's unit.
    pub(crate) agent: Option<MainProcess>,
    /// The settings of the agent's unit that one which stands in for it needs, `LoadCredential=` for one: where the
    /// secrets lie, never what they are. Only noted where what ran or what comes has no such unit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) agent_settings: Vec<String>,
}

/// The main process of a unit.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct MainProcess {
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot.
    pub(crate) started: u64,
}

/// A program that an activator has started, as it can be found again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ProcessRecord {
    /// The process, leader of a group of its own.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot: the pid of a dead process is given away again.
    pub(crate) started: u64,
    /// The systemd unit that it starts and waits for.
    pub(crate) unit: Option<String>,
}

/// One step. What is added later must be a new name: an older version refuses the journal then.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// An activator begins, or begins again.
    Started { boot_id: BootId },
    /// What there is to go back to.
    Prepared(Box<Before>),
    /// A program was started; it waits for this record before it does anything.
    Running(ProcessRecord),
    /// A program has ended, and nothing of it has to be stopped.
    Ended,
    /// What comes now. Committing stands for the confirmation.
    Phase(Phase),
    /// Why the activator goes back: written before the phase.
    GoingBack {
        /// The state that the result has when going back works.
        state: State,
        /// Why.
        reason: Reason,
        /// The same for people.
        message: String,
    },
}

/// What a journal says.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    records: Vec<Record>,
    /// The length of the part that is whole.
    len: u64,
}

impl History {
    /// Reads a journal; one that is not there is empty.
    ///
    /// # Errors
    /// [`JobError::Io`], or [`JobError::Malformed`] when more than the last line is damaged.
    pub(crate) fn read(path: &Utf8Path) -> Result<Self, JobError> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(|source| JobError::io("read", path, source))?,
        };
        Self::parse(&bytes).map_err(|source| JobError::Malformed {
            path: path.to_owned(),
            source,
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut history = Self::default();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            match intact(line) {
                // A record of a newer version is refused here, the last one too.
                Some(json) => history.records.push(serde_json::from_slice(json)?),
                None if after.is_empty() => break,
                None => {
                    use serde::de::Error as _;
                    return Err(serde_json::Error::custom("a checksum does not hold"));
                }
            }
            history.len += end as u64 + 1;
            rest = after;
        }
        Ok(history)
    }

    /// The newest phase.
    pub(crate) fn phase(&self) -> Option<Phase> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Phase(phase) => Some(*phase),
            _ => None,
        })
    }

    /// Whether this phase was ever begun. Committing stands for the confirmation.
    pub(crate) fn has_been(&self, phase: Phase) -> bool {
        self.records.contains(&Record::Phase(phase))
    }

    /// What was found before anything was changed.
    pub(crate) fn before(&self) -> Option<&Before> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Prepared(before) => Some(before.as_ref()),
            _ => None,
        })
    }

    /// Why it goes back, if it does.
    pub(crate) fn going_back(&self) -> Option<(State, Reason, &str)> {
        self.records.iter().rev().find_map(|record| match record {
            Record::GoingBack {
                state,
                reason,
                message,
            } => Some((*state, *reason, message.as_str())),
            _ => None,
        })
    }

    /// The program that may still run.
    pub(crate) fn running(&self) -> Option<&ProcessRecord> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Running(process) => Some(Some(process)),
            Record::Ended => Some(None),
            _ => None,
        })?
    }

    /// How many activators have begun.
    pub(crate) fn starts(&self) -> usize {
        self.records.iter().filter_map(boot).count()
    }

    /// The boot in which the first change began.
    pub(crate) fn boot_of_activation(&self) -> Option<&BootId> {
        self.boot_of(|record| matches!(record, Record::Phase(Phase::Activating | Phase::Staging)))
    }

    /// The boot in which all was done.
    pub(crate) fn boot_of_end(&self) -> Option<&BootId> {
        self.boot_of(|record| *record == Record::Phase(Phase::Committed))
    }

    /// The boot in which the program of [`History::running`] was started.
    pub(crate) fn boot_of_running(&self) -> Option<&BootId> {
        self.boot_of(|record| matches!(record, Record::Running(_)))
    }

    /// The boot in which the last such record was written.
    fn boot_of(&self, is: impl Fn(&Record) -> bool) -> Option<&BootId> {
        let last = self.records.iter().rposition(is)?;
        self.records[..last].iter().rev().find_map(boot)
    }
}

fn boot(record: &Record) -> Option<&BootId> {
    match record {
        Record::Started { boot_id } => Some(boot_id),
        _ => None,
    }
}

/// The JSON of a line whose checksum holds.
fn intact(line: &[u8]) -> Option<&[u8]> {
    match line.split_at_checked(CHECKSUM_LEN) {
        Some((sum, [b' ', json @ ..])) if sum == checksum(json).as_bytes() => Some(json),
        _ => None,
    }
}

fn checksum(json: &[u8]) -> String {
    hoist_protocol::digest(json).as_str()[..CHECKSUM_LEN].to_owned()
}

fn line(record: &Record) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("plain data always has a JSON form");
    let mut line = format!("{} ", checksum(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    line
}

/// The journal of the one activator that holds the lock.
#[derive(Debug)]
pub(crate) struct Journal {
    path: Utf8PathBuf,
    file: File,
    history: History,
}

impl Journal {
    /// Opens the journal at the end of what is whole in it.
    ///
    /// # Errors
    /// as [`History::read`]
    pub(crate) fn open(path: &Utf8Path) -> Result<Self, JobError> {
        let history = History::read(path)?;
        let open = || {
            let mut file = files::open_private(path)?;
            if file.metadata()?.len() != history.len {
                file.set_len(history.len)?;
                // Shortening gave the room away. Without it the journal is as good as any other file.
                if let Err(error) = files::reserve_file(&file, RESERVED) {
                    eprintln!("cannot reserve room for `{path}`: {error}");
                }
            }
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|source| JobError::io("open", path, source))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            history,
        })
    }

    /// What it says so far.
    pub(crate) const fn history(&self) -> &History {
        &self.history
    }

    /// Adds records, on disk when this returns.
    ///
    /// # Errors
    /// [`JobError::Io`]; nothing may be done then that the records announce.
    pub(crate) fn append(
        &mut self,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), JobError> {
        self.note(records)?;
        self.file
            .sync_data()
            .map_err(|source| JobError::io("sync", &self.path, source))
    }

    /// Adds records that only matter until the next boot, such as pids: they outlive this process, and need
    /// not outlive the machine.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub(crate) fn note(
        &mut self,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(), JobError> {
        let records: Vec<_> = records.into_iter().collect();
        let bytes = records.iter().flat_map(line).collect::<Vec<_>>();
        self.file
            .write_all(&bytes)
            .map_err(|source| JobError::io("write", &self.path, source))?;
        self.history.len += bytes.len() as u64;
        self.history.records.extend(records);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 1, every record and phase: an activator of another version reads it.
    #[test]
    fn a_journal_is_written_as_it_was() {
        let golden = include_str!("golden/journal");
        let history = History::parse(golden.as_bytes()).unwrap();
        let again = history.records.iter().flat_map(line).collect();
        assert_eq!(String::from_utf8(again).unwrap(), golden);
        assert_eq!(history.phase(), Some(Phase::RollingBack));
    }

    fn started() -> Record {
        Record::Started {
            boot_id: BootId::current().unwrap(),
        }
    }

    #[test]
    fn a_journal_reads_back_what_was_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("journal");
        files::reserve(&path, RESERVED).unwrap();
        assert_eq!(History::read(&path).unwrap().phase(), None);

        let mut journal = Journal::open(&path).unwrap();
        let process = ProcessRecord {
            pid: 7,
            started: 8,
            unit: None,
        };
        journal
            .append([started(), Record::Phase(Phase::Activating)])
            .unwrap();
        journal.note([Record::Running(process.clone())]).unwrap();
        drop(journal);

        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.history().phase(), Some(Phase::Activating));
        assert_eq!(journal.history().running(), Some(&process));
        journal.append([Record::Ended, started()]).unwrap();
        let history = History::read(&path).unwrap();
        assert_eq!(history.records, journal.history().records);
        assert_eq!(history.running(), None);
        assert_eq!(history.starts(), 2);
    }

    #[test]
    fn a_torn_last_record_counts_for_nothing_wherever_it_is_torn() {
        let whole = [
            line(&started()),
            line(&Record::Phase(Phase::Activating)),
            line(&Record::Phase(Phase::Committing)),
        ];
        let bytes = whole.concat();
        let keep = whole[0].len() + whole[1].len();
        for cut in keep..bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            let path = Utf8Path::from_path(dir.path()).unwrap().join("journal");
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            assert!(
                !journal.history().has_been(Phase::Committing),
                "cut at {cut}"
            );
            journal.append([Record::Phase(Phase::RollingBack)]).unwrap();
            let history = History::read(&path).unwrap();
            assert_eq!(history.phase(), Some(Phase::RollingBack), "cut at {cut}");
        }
    }

    #[test]
    fn damage_before_the_last_record_is_an_error_and_not_overlooked() {
        let mut bytes = [line(&Record::Phase(Phase::Committing)), line(&started())].concat();
        assert!(History::parse(&bytes).unwrap().has_been(Phase::Committing));
        bytes[CHECKSUM_LEN + 3] ^= 1;
        assert!(History::parse(&bytes).is_err());
    }
}
