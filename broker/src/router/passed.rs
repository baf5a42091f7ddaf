//! The messages that went over the bus last: all who watch hold the same one, and none a copy of its own.
//!
//! A session that reads slowly holds what it has not read. With copies, what a fleet has published would be in memory
//! once for each of them.

use std::array;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::CHANNELS;
use crate::message::Message;

/// How many of a channel are remembered; a watcher that is further behind takes them off the bus by itself.
const REMEMBERED: usize = 4096;

/// For each channel, by number. Nothing is held here: what nobody holds any more is gone.
pub(super) struct Passed([Mutex<Vec<Slot>>; CHANNELS.len()]);

type Slot = (u64, Weak<Message>);

impl Default for Passed {
    fn default() -> Self {
        Self(array::from_fn(|_| Mutex::default()))
    }
}

impl Passed {
    /// Notes the message that has this number on its channel.
    pub(super) fn note(&self, position: usize, number: u64, message: &Arc<Message>) {
        let mut slots = self.lock(position);
        let at = slot(number);
        if slots.len() <= at {
            slots.resize_with(at + 1, Slot::default);
        }
        if slots[at].0 <= number {
            slots[at] = (number, Arc::downgrade(message));
        }
    }

    /// The message with this number, when somebody holds it.
    pub(super) fn get(&self, position: usize, number: u64) -> Option<Arc<Message>> {
        let slots = self.lock(position);
        let (noted, message) = slots.get(slot(number))?;
        (*noted == number).then(|| message.upgrade()).flatten()
    }

    fn lock(&self, position: usize) -> MutexGuard<'_, Vec<Slot>> {
        // Nothing here panics while the lock is held.
        self.0[position]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0) % REMEMBERED
}

#[cfg(test)]
mod tests {
    use hoist_protocol::Channel;

    use super::super::tests::message;
    use super::*;

    #[test]
    fn what_somebody_holds_is_found_by_its_number_until_another_takes_its_place() {
        let passed = Passed::default();
        let held = Arc::new(message(Channel::Status, 1, 1));
        passed.note(1, 7, &held);
        assert!(Arc::ptr_eq(&passed.get(1, 7).unwrap(), &held));
        assert!(passed.get(0, 7).is_none(), "another channel");
        assert!(passed.get(1, 8).is_none());
        let round = 7 + u64::try_from(REMEMBERED).unwrap();
        assert!(passed.get(1, round).is_none());
        passed.note(1, round, &held);
        passed.note(1, 7, &held);
        assert!(passed.get(1, 7).is_none(), "a late one");
        assert!(passed.get(1, round).is_some());
        drop(held);
        assert!(passed.get(1, round).is_none(), "nobody holds it");
    }
}
