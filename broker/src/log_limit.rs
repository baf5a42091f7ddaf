//! Log lines at a bounded rate: a flood of refusals must not fill the disk of the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::Reason;

/// How many refusals for one reason are told in one window; further ones are counted.
const LINES: u32 = 20;

/// How long a window is.
const WINDOW_LEN: Duration = Duration::from_secs(10);

/// Decides which refusals the log tells in full.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Vec<Window>>);

#[derive(Debug)]
struct Window {
    reason: Reason,
    since: Instant,
    count: u32,
}

/// How many refusals for a reason the log has not told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Untold {
    pub(crate) reason: Reason,
    pub(crate) count: u32,
}

impl LogLimit {
    /// Whether a refusal for `reason` is to be told now.
    pub(crate) fn allows(&self, reason: Reason, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = match all.iter_mut().find(|window| window.reason == reason) {
            Some(window) => window,
            None => {
                let (since, count) = (now, 0);
                all.push(Window {
                    reason,
                    since,
                    count,
                });
                match all.last_mut() {
                    Some(window) => window,
                    None => return true,
                }
            }
        };
        window.count = window.count.saturating_add(1);
        window.count <= LINES
    }

    /// Ends the windows that are over, and says what was not told in them.
    pub(crate) fn close_windows(&self, now: Instant) -> Vec<Untold> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut untold = Vec::new();
        all.retain(|window| {
            let over = now.duration_since(window.since) >= WINDOW_LEN;
            if over && window.count > LINES {
                untold.push(Untold {
                    reason: window.reason,
                    count: window.count - LINES,
                });
            }
            !over
        });
        untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_as_a_number_and_what_is_rare_in_full() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        let told = (0..1000).filter(|_| limit.allows(Reason::Tls, start));
        assert_eq!(told.count(), 20);
        assert!(limit.allows(Reason::Rate, start));
        assert_eq!(limit.close_windows(start), []);
        let (reason, count) = (Reason::Tls, 980);
        let later = start + WINDOW_LEN;
        assert_eq!(limit.close_windows(later), [Untold { reason, count }]);
        assert!(limit.allows(Reason::Tls, later));
        assert_eq!(limit.close_windows(later), []);
    }
}
