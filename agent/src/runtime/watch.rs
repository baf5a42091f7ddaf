//! Watching the job that is under way.

use std::future::pending;
use std::time::Duration;

use hoist_agent_core::{FoundJob, Input, JobEnd, JobPhase, Origin};
use hoist_protocol::{DeploymentId, LogLine, Text};
use tokio::time::{Instant, sleep_until};

use crate::job::{AsyncNotice, ConfirmBy, Job, JobError, JobResult, JobView, LogCursor, Phase};

/// How often a job is looked at in its first seconds where the kernel does not tell that something has happened,
const OFTEN: Duration = Duration::from_millis(5);

/// and later, and where it does: for the log, and for the activator's life.
const SELDOM: Duration = Duration::from_millis(50);

/// How long the first seconds are.
const FRESH: Duration = Duration::from_secs(10);

/// The shortest time between two looks, whatever happens.
const GAP: Duration = Duration::from_millis(1);

/// How long an activator may take from its start until it holds the job's lock.
const GRACE: Duration = Duration::from_secs(3);

/// Log lines that may be published at once, and each second after that.
const BURST: u32 = 500;
const LINES_A_SECOND: u32 = 200;

pub(super) struct Watch {
    job: Job,
    /// None where the kernel does not tell.
    notice: Option<AsyncNotice>,
    activator: Activator,
    since: Instant,
    /// When it was looked at last.
    looked: Instant,
    next: Instant,
    phase: Option<Phase>,
    cursor: LogCursor,
    log_len: u64,
    allowance: Allowance,
    ended: bool,
    trouble: super::Changes,
}

/// What is known about the activator's life.
#[derive(Clone, Copy, PartialEq)]
enum Activator {
    /// It was started then, and was not seen so far.
    Started(Instant),
    Seen,
    /// It is gone, and the core knows.
    Lost,
}

/// What a job found at the start looks like to the core.
pub(super) fn found(job: &Job) -> Result<FoundJob, JobError> {
    let JobView {
        phase,
        alive,
        result,
        ..
    } = job.view()?;
    Ok(FoundJob {
        phase: phase.map(for_core),
        alive,
        end: result.map(end),
        ..unreadable(job)
    })
}

/// A job whose state cannot be read.
pub(super) fn unreadable(job: &Job) -> FoundJob {
    let spec = job.spec();
    FoundJob {
        order: spec.order(),
        origin: match spec.confirm {
            ConfirmBy::Broker => Origin::Publisher,
            ConfirmBy::HealthChecks => Origin::Local,
        },
        path: spec.closure.clone(),
        target: spec.target.clone(),
        phase: None,
        alive: false,
        end: None,
    }
}

impl Watch {
    pub(super) fn new(job: Job) -> Self {
        let now = Instant::now();
        Self {
            notice: AsyncNotice::of(&job),
            job,
            activator: Activator::Started(now),
            since: now,
            looked: now,
            next: now,
            phase: None,
            cursor: LogCursor::default(),
            log_len: 0,
            allowance: Allowance::new(now),
            ended: false,
            trouble: super::Changes::default(),
        }
    }

    pub(super) fn id(&self) -> DeploymentId {
        self.job.spec().id
    }

    pub(super) const fn job(&self) -> &Job {
        &self.job
    }

    /// Waits until it is time to look. Can be dropped and called again at any time.
    pub(super) async fn is_due(&self) {
        let happened = async {
            match &self.notice {
                Some(notice) => notice.happened().await,
                None => pending().await,
            }
            sleep_until(self.looked + GAP).await;
        };
        tokio::select! {
            () = happened => {}
            () = sleep_until(self.next) => {}
        }
    }

    /// The activator was started again.
    pub(super) fn restarted(&mut self) {
        self.activator = Activator::Started(Instant::now());
    }

    /// Looks at the job: the lines to publish, and what the core has to know.
    pub(super) fn look(&mut self, connected: bool) -> (Vec<LogLine>, Option<Input>) {
        let now = Instant::now();
        self.looked = now;
        self.next = now
            + match &self.notice {
                Some(notice) => {
                    notice.take();
                    SELDOM
                }
                None if now - self.since < FRESH => OFTEN,
                None => SELDOM,
            };
        let view = match self.job.view() {
            Ok(view) => view,
            Err(error) => {
                self.complain("cannot read the state of the job", &error);
                return (Vec::new(), None);
            }
        };
        let ended = view.result.is_some();
        // Without a connection the lines wait in the file, and are lost only when the job ends meanwhile.
        let lines = if connected && (view.log_len > self.log_len || ended) {
            self.log_len = view.log_len;
            self.lines(now, ended)
        } else {
            Vec::new()
        };
        (lines, self.news(view, now))
    }

    fn news(&mut self, view: JobView, now: Instant) -> Option<Input> {
        let id = self.id();
        if let Some(result) = view.result {
            return (!std::mem::replace(&mut self.ended, true)).then(|| Input::JobEnded {
                id,
                end: Box::new(end(result)),
            });
        }
        if view.alive {
            self.activator = Activator::Seen;
        } else {
            let lost = match self.activator {
                Activator::Seen => true,
                Activator::Started(at) => now - at >= GRACE,
                Activator::Lost => false,
            };
            if lost {
                self.activator = Activator::Lost;
                tracing::warn!(%id, "the activator has ended without a result");
                let message = Text::lossy("the activator died; it is started again");
                return Some(Input::ActivatorLost { id, message });
            }
        }
        let phase = view.phase.filter(|phase| self.phase != Some(*phase))?;
        self.phase = Some(phase);
        tracing::info!(%id, ?phase, "the activation goes on");
        Some(Input::JobPhase {
            id,
            phase: for_core(phase),
        })
    }

    /// New lines of the log; all that are left when the job has `ended`.
    fn lines(&mut self, now: Instant, ended: bool) -> Vec<LogLine> {
        let mut lines = Vec::new();
        loop {
            let entries = match self.job.lines(&mut self.cursor) {
                Ok(entries) => entries,
                Err(error) => {
                    self.complain("cannot read the log of the job", &error);
                    return lines;
                }
            };
            let read = entries.len();
            let allowed = self.allowance.take(now, read);
            let id = self.id();
            lines.extend(entries.into_iter().take(allowed).map(|entry| LogLine {
                id,
                line: entry.line,
                ts: entry.ts,
                stream: entry.stream,
                text: entry.text,
            }));
            if !ended || read == 0 {
                return lines;
            }
        }
    }

    fn complain(&mut self, what: &str, error: &JobError) {
        let error = crate::job::chain(error);
        if self.trouble.is_news(&error) {
            tracing::error!(id = %self.id(), %error, "{what}");
        }
    }
}

/// How many log lines may be published now.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    const fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    /// How many of `wanted` may go.
    fn take(&mut self, now: Instant, wanted: usize) -> usize {
        let earned = (now - self.since).as_millis() * u128::from(LINES_A_SECOND) / 1_000;
        if earned > 0 {
            self.since = now;
            let earned = u32::try_from(earned).unwrap_or(BURST);
            self.left = self.left.saturating_add(earned).min(BURST);
        }
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.left);
        self.left -= taken;
        usize::try_from(taken).unwrap_or(wanted)
    }
}

const fn for_core(phase: Phase) -> JobPhase {
    match phase {
        Phase::Preparing | Phase::Activating | Phase::Staging => JobPhase::Activating,
        Phase::Checking => JobPhase::Checking,
        Phase::Confirming => JobPhase::Confirming,
        Phase::Committing | Phase::Committed => JobPhase::Committing,
        Phase::RollingBack => JobPhase::RollingBack,
    }
}

fn end(result: JobResult) -> JobEnd {
    JobEnd {
        state: result.state,
        reason: result.reason,
        message: result.message,
        kind: result.kind,
        boot_id: result.boot_id.map(|boot| Text::lossy(&boot.to_string())),
        previous: result.previous,
        log_lines: result.log_lines,
        log_tail: result.log_tail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_log_lines_is_thinned_out() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!(allowance.take(start, 450), 450);
        assert_eq!(allowance.take(start, 450), 50);
        assert_eq!(allowance.take(start, 450), 0);
        assert_eq!(allowance.take(start + Duration::from_secs(1), 450), 200);
        assert_eq!(allowance.take(start + Duration::from_secs(60), 9_000), 500);
    }
}
