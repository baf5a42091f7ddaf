//! What the log says of messages that are refused: whoever can send them must not fill the disk with it.

use std::time::Duration;

use tokio::time::Instant;

/// So many are told of,
const MOST: u32 = 20;

/// in so much time.
const TIME: Duration = Duration::from_secs(10 * 60);

/// How many were told of, and how many were not.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    begun: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Refusals {
    /// One was refused. Returns whether to tell of it, and then of how many before it was not told.
    pub(super) fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.begun.is_none_or(|begun| now - begun >= TIME) {
            self.begun = Some(now);
            self.told = 0;
        }
        if self.told == MOST {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_by_its_first_ones_and_by_how_many_they_were() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        let told = (0..1_000).filter(|_| refusals.tell(now) == Some(0));
        assert_eq!(told.count(), 20);
        assert_eq!(refusals.tell(now + TIME), Some(980));
        assert_eq!(refusals.tell(now + TIME), Some(0));
    }
}
