//! The places of those who watch: so many in all, and so many of a fleet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoist_protocol::FleetName;

use super::WatchError;
use crate::settings::{Fleets, WATCHERS};

/// Who has which place.
pub(super) struct Places {
    fleets: Arc<Fleets>,
    taken: Arc<Taken>,
}

#[derive(Default)]
struct Taken(Mutex<HashMap<usize, FleetName>>);

impl Taken {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, FleetName>> {
        // Nothing here panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place; it is free again when this is dropped.
pub(super) struct Place {
    number: usize,
    taken: Arc<Taken>,
}

impl Places {
    pub(super) fn new(fleets: Arc<Fleets>) -> Self {
        let taken = Arc::default();
        Self { fleets, taken }
    }

    /// Takes one for a session of `fleet`.
    ///
    /// # Errors
    /// [`WatchError::FleetHasEnough`] and [`WatchError::TooMany`]
    pub(super) fn take(&self, fleet: &FleetName) -> Result<Place, WatchError> {
        let quota = self.fleets.get(fleet).map(|fleet| fleet.quota);
        let mut taken = self.taken.lock();
        let of_fleet = || taken.values().filter(|of| *of == fleet).count();
        let limit = quota.and_then(|quota| quota.watchers);
        if limit.is_some_and(|limit| of_fleet() >= limit) {
            return Err(WatchError::FleetHasEnough);
        }
        let number = (0..WATCHERS).find(|number| !taken.contains_key(number));
        let number = number.ok_or(WatchError::TooMany)?;
        taken.insert(number, fleet.clone());
        let taken = Arc::clone(&self.taken);
        Ok(Place { number, taken })
    }

    /// How many each fleet has.
    pub(super) fn of_fleets(&self) -> HashMap<FleetName, usize> {
        let mut counts = HashMap::new();
        for fleet in self.taken.lock().values() {
            *counts.entry(fleet.clone()).or_default() += 1;
        }
        counts
    }
}

impl Place {
    /// What its link is called. The router remembers every name for ever, so a place has always the same.
    pub(super) fn link_name(&self) -> String {
        format!("watch-{}", self.number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.lock().remove(&self.number);
    }
}
