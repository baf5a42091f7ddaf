//! Log lines at a bounded rate: a flood of refusals must not fill the disk of the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::Reason;

/// How many refusals for one reason are told in one window; further ones are counted.
const SAID: u32 = 20;

/// How long a window is.
const WINDOW: Duration = Duration::from_secs(10);

/// Decides which refusals the log tells in full.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<Vec<Said>>);

#[derive(Debug)]
struct Said {
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

impl Quiet {
    /// Whether a refusal for `reason` is to be told now.
    pub(crate) fn says(&self, reason: Reason, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = match all.iter_mut().find(|said| said.reason == reason) {
            Some(said) => said,
            None => {
                let (since, count) = (now, 0);
                all.push(Said {
                    reason,
                    since,
                    count,
                });
                match all.last_mut() {
                    Some(said) => said,
                    None => return true,
                }
            }
        };
        said.count = said.count.saturating_add(1);
        said.count <= SAID
    }

    /// Ends the windows that are over, and says what was not told in them.
    pub(crate) fn close_windows(&self, now: Instant) -> Vec<Untold> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut untold = Vec::new();
        all.retain(|said| {
            let over = now.duration_since(said.since) >= WINDOW;
            if over && said.count > SAID {
                untold.push(Untold {
                    reason: said.reason,
                    count: said.count - SAID,
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
        let (quiet, start) = (Quiet::default(), Instant::now());
        let said = (0..1000).filter(|_| quiet.says(Reason::Tls, start));
        assert_eq!(said.count(), 20);
        assert!(quiet.says(Reason::Rate, start));
        assert_eq!(quiet.close_windows(start), []);
        let (reason, count) = (Reason::Tls, 980);
        let later = start + WINDOW;
        assert_eq!(quiet.close_windows(later), [Untold { reason, count }]);
        assert!(quiet.says(Reason::Tls, later));
        assert_eq!(quiet.close_windows(later), []);
    }
}
