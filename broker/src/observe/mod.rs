//! What the broker shows of itself: counters, health, an audit log of deployments and refusals.
//!
//! The rest of the broker has one handle, [`Observer`]. Nothing of it waits: counters are atomic numbers, and a
//! refusal goes into a bounded queue whose overflow is counted. Only a deployment's line is written by the
//! store's own thread, before the deployment is retained, so that none is acknowledged without its line.

mod audit;
mod event;
mod fleets;
mod health;
mod http;
mod metrics;
mod reason;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use audit::{AuditError, AuditFailure, AuditSettings};
pub(crate) use event::{Decision, Deploy, Origin};
pub(crate) use fleets::{Count, Figures, FleetFigures};
pub(crate) use http::serve;
pub(crate) use metrics::{Certificate, Handshake, Held, Metrics};
pub(crate) use reason::Reason;

use audit::Audit;
use event::Refusal;
use fleets::FleetRefusals;
use health::Health;
use hoist_protocol::FleetName;
use tracing::warn;

use crate::thread::Thread;

/// How long the audit log may take to write the last refusals.
const FLUSH: Duration = Duration::from_secs(5);

/// The handle that everything observable goes through; cheap to clone.
#[derive(Clone)]
pub(crate) struct Observer(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    refusals: FleetRefusals,
    health: Health,
    audit: Option<Audit>,
}

impl Observer {
    /// Opens the audit log, when there is one, and starts its thread.
    ///
    /// # Errors
    /// [`AuditError`]
    pub(crate) fn start(
        audit: Option<AuditSettings>,
    ) -> Result<(Self, Option<Thread>), AuditError> {
        let metrics = Metrics::new();
        let opened = match audit {
            Some(settings) => Some(Audit::open(settings, &metrics)?),
            None => None,
        };
        let (audit, thread) = opened.unzip();
        let observer = Self(Arc::new(Inner {
            metrics,
            refusals: FleetRefusals::default(),
            health: Health::default(),
            audit,
        }));
        Ok((observer, thread))
    }

    /// One that counts, and keeps no audit log.
    #[cfg(test)]
    pub(crate) fn silent() -> Self {
        Self::start(None).unwrap().0
    }

    /// What keeps the broker from doing its work, now.
    pub(crate) fn problems(&self) -> Vec<String> {
        let audit = self.0.audit.as_ref().and_then(Audit::problem);
        let mut problems = self.0.health.problems(&self.0.metrics);
        problems.extend(audit);
        problems
    }

    /// Notes that clients can connect, or no longer can.
    pub(crate) fn serving(&self, serving: bool) {
        self.0.health.serving(serving);
    }

    /// Notes when the store's thread begins and ends a batch.
    pub(crate) fn writing(&self, writing: bool) {
        self.0.health.writing(writing);
    }

    /// The counters.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Everything in the OpenMetrics text format.
    fn metrics_text(&self, figures: &Figures) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.0.metrics.write(&mut text)?;
        fleets::write(&mut text, figures, &self.0.refusals)?;
        prometheus_client::encoding::text::encode_eof(&mut text)?;
        Ok(text)
    }

    /// Notes that a fleet is served: what is refused to it is counted apart.
    pub(crate) fn serve(&self, fleet: &FleetName) {
        self.0.refusals.serve(fleet);
    }

    /// Counts a refusal and puts it into the audit log: that `origin` was refused `what` for `reason`.
    ///
    /// `what` is what was asked for, such as a topic or a filter, and empty where there is no such thing;
    /// `why` is the error's text. Both may hold anything that a client has sent. Never waits.
    pub(crate) fn refused(&self, origin: &Origin, reason: Reason, what: &str, why: &str) {
        self.0.metrics.refusals.of(reason).inc();
        if let Some(peer) = &origin.peer {
            self.0.refusals.count(&peer.fleet, reason);
        }
        if let Some(audit) = &self.0.audit {
            audit.refused(Refusal::new(origin, reason, what, why));
        }
    }

    /// Waits until the audit log has the refusals so far. Blocks, but not for long.
    pub(crate) fn flush(&self) {
        if let Some(audit) = &self.0.audit
            && !audit.flush(FLUSH)
        {
            warn!("the audit log does not have all refusals of the end");
        }
    }

    /// Counts deployments and puts them into the audit log. Waits for the disk: for the store's thread only.
    ///
    /// # Errors
    /// When the log cannot be written and deployments must not go on without it.
    pub(crate) fn deploys(&self, deploys: &[Deploy]) -> Result<(), AuditError> {
        match &self.0.audit {
            Some(audit) if !deploys.is_empty() => audit.deploys(deploys)?,
            _ => {}
        }
        for deploy in deploys {
            self.0.metrics.deploys.of(deploy.decision).inc();
        }
        Ok(())
    }

    /// Opens the audit log's file anew, for a log rotation that has moved the old one away.
    pub(crate) fn reopen(&self) {
        if let Some(audit) = &self.0.audit {
            audit.reopen();
        }
    }
}
