//! What the loop has to know of the machine: all settings but those of the connection.

use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_protocol::{Machine, Tag, TrustedKeys};

use crate::config::{Place, STATUS_INTERVAL, Settings};

pub(super) struct Own {
    pub(super) machine: Machine,
    pub(super) trusted: TrustedKeys,
    pub(super) state: Utf8PathBuf,
    pub(super) profile: Utf8PathBuf,
    pub(super) tags: Vec<Tag>,
    pub(super) keep_generations: usize,
    pub(super) status_interval: Duration,
}

impl Own {
    /// Those of an agent that has them all.
    pub(super) fn of_settings(settings: &Settings) -> Self {
        Self {
            machine: settings.machine.clone(),
            trusted: settings.trusted.clone(),
            state: settings.state.clone(),
            profile: settings.profile.clone(),
            tags: settings.tags.clone(),
            keep_generations: settings.keep_generations,
            status_interval: settings.status_interval,
        }
    }

    /// Those of one that talks to nobody.
    pub(super) fn of_place(place: &Place, machine: Machine, trusted: TrustedKeys) -> Self {
        Self {
            machine,
            trusted,
            state: place.state.clone(),
            profile: place.profile.clone(),
            tags: place.tags.clone(),
            keep_generations: place.keep_generations,
            status_interval: STATUS_INTERVAL,
        }
    }
}
