//! Whether the broker can do its work now.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::metrics::{Certificate, Metrics};

/// From when on a batch that is being written is a disk that hangs.
const HANGS: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Health {
    serving: AtomicBool,
    writing: Mutex<Option<Instant>>,
}

impl Health {
    pub(super) fn serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    pub(super) fn writing(&self, writing: bool) {
        let since = writing.then(Instant::now);
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// What is wrong, a line each.
    pub(super) fn problems(&self, metrics: &Metrics) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.serving.load(Ordering::Relaxed) {
            problems.push("no connections are accepted: the broker starts or stops".to_owned());
        }
        if metrics.store_writable.get() == 0 {
            problems.push("the store cannot be written: publishes are refused".to_owned());
        }
        let writing = *self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if writing.is_some_and(|since| since.elapsed() > HANGS) {
            problems.push("the disk hangs: publishes wait for it".to_owned());
        }
        let end = metrics.certificate_ends.of(Certificate::Server).get();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        if end > 0 && end < now {
            problems.push("the broker's certificate has ended: nobody can connect".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_it_serves_and_can_store() {
        let (health, metrics) = (Health::default(), Metrics::new());
        assert_eq!(health.problems(&metrics).len(), 2, "it has not started");
        health.serving(true);
        metrics.store_writable.set(1);
        assert_eq!(health.problems(&metrics), Vec::<String>::new());
        metrics.certificate_ends.of(Certificate::Server).set(1);
        let problems = health.problems(&metrics);
        assert!(
            problems[0].contains("certificate has ended"),
            "{problems:?}"
        );
    }
}
