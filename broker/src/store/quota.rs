//! What each fleet retains, and what it may.

use std::collections::HashMap;

use hoist_protocol::FleetName;

use super::Publication;
use super::index::Index;
use crate::message::{Extras, Message};
use crate::settings::Quota;

/// What a fleet retains.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Usage {
    pub(crate) messages: usize,
    /// Topics, payloads and properties.
    pub(crate) bytes: u64,
}

impl Usage {
    /// Notes that a message has taken the place of another, or of none.
    pub(super) fn change(&mut self, before: Option<&Message>, after: &Message) {
        if let Some(before) = before.filter(|before| !before.is_clear()) {
            self.messages = self.messages.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(size(before));
        }
        if !after.is_clear() {
            self.messages += 1;
            self.bytes += size(after);
        }
    }
}

fn size(message: &Message) -> u64 {
    let extras = message.extras.as_deref();
    len(message.topic.to_string().len() + message.payload.len() + properties_len(extras))
}

fn properties_len(extras: Option<&Extras>) -> usize {
    extras.map_or(0, |extras| extras.properties.len())
}

fn len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Holds the publications of one batch against the quotas.
pub(super) struct Quotas<'a> {
    index: &'a Index,
    usage: HashMap<&'a FleetName, Usage>,
}

impl<'a> Quotas<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        let usage = HashMap::new();
        Self { index, usage }
    }

    /// Whether the fleet may retain this as well. What takes no more room than what it replaces always may.
    ///
    /// Two publications on one new topic count as two within a batch: near the quota the second may have to be
    /// published again.
    pub(super) fn admit(&mut self, publication: &'a Publication, quota: Quota) -> bool {
        let fleet = &publication.topic.machine.fleet;
        let usage = self
            .usage
            .entry(fleet)
            .or_insert_with(|| self.index.usage(fleet));
        let before = self.index.get(&publication.topic);
        let (old, old_len) = before.map_or((0, 0), |message| (1, size(message)));
        let topic = publication.topic.to_string();
        let (new, new_len) = if publication.payload.is_empty() {
            (0, 0)
        } else {
            let extras = publication.extras.as_deref();
            let payload = publication.payload.len() + properties_len(extras);
            (1, len(topic.len() + payload))
        };
        let after = Usage {
            messages: (usage.messages + new).saturating_sub(old),
            bytes: (usage.bytes + new_len).saturating_sub(old_len),
        };
        let too_many = new > old && after.messages > quota.retained_messages;
        let too_large = new_len > old_len && after.bytes > quota.retained_bytes;
        if too_many || too_large {
            return false;
        }
        *usage = after;
        true
    }
}
