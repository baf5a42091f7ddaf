//! What each fleet uses of the broker. It is counted when somebody asks, but for refusals.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoist_protocol::FleetName;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Reason;
use super::metrics::Label as _;
use crate::settings::Quota;

/// Most fleets whose refusals are counted apart; a broker that takes any fleet meets their names one by one.
const FLEETS: usize = 1000;

/// What one fleet uses, and what it may use.
#[derive(Clone, Debug)]
pub(crate) struct FleetFigures {
    pub(crate) connections: usize,
    /// Clients with a subscription that covers all its machines.
    pub(crate) watchers: usize,
    pub(crate) retained_messages: usize,
    /// Of topics and payloads.
    pub(crate) retained_bytes: u64,
    pub(crate) quota: Quota,
}

/// What is counted when somebody asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) fleets: BTreeMap<FleetName, FleetFigures>,
    /// Sessions that outlive their connections, or would.
    pub(crate) kept_sessions: usize,
    pub(crate) kept_sessions_limit: usize,
    /// Clients with a subscription that covers all machines.
    pub(crate) watchers: usize,
    /// Tasks of the sessions' runtime.
    pub(crate) tasks: usize,
}

/// Counts them.
pub(crate) type Count = Arc<dyn Fn() -> Figures + Send + Sync>;

/// What was refused to each fleet, by reason.
#[derive(Debug, Default)]
pub(super) struct FleetRefusals(Mutex<BTreeMap<FleetName, Reasons>>);

type Reasons = BTreeMap<&'static str, Counter>;

impl FleetRefusals {
    /// Notes that a fleet is served: only of those refusals are counted, since anybody can claim any.
    pub(super) fn serve(&self, fleet: &FleetName) {
        let mut fleets = self.lock();
        if fleets.len() < FLEETS && !fleets.contains_key(fleet) {
            fleets.insert(fleet.clone(), Reasons::new());
        }
    }

    pub(super) fn count(&self, fleet: &FleetName, reason: Reason) {
        if let Some(reasons) = self.lock().get_mut(fleet) {
            reasons.entry(reason.as_str()).or_default().inc();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FleetName, Reasons>> {
        // Nothing here panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type OfFleet = [(&'static str, String); 1];
type OfReason = [(&'static str, String); 2];

/// Appends all of it, without the end that OpenMetrics has.
pub(super) fn write(text: &mut String, figures: &Figures, refusals: &FleetRefusals) -> fmt::Result {
    let mut registry = Registry::with_prefix("hoist_broker");
    let mut one = |name: &str, help: &str, value: usize| {
        let gauge = Gauge::<i64>::default();
        gauge.set(number(value));
        registry.register(name, help, gauge);
    };
    let kept = "Sessions that outlive their connections, or would";
    one("kept_sessions", kept, figures.kept_sessions);
    let limit = "What max_kept_sessions allows";
    one("kept_sessions_limit", limit, figures.kept_sessions_limit);
    let watchers = "Clients that watch all machines of their fleets";
    one("watchers", watchers, figures.watchers);
    let tasks = "Tasks of the broker, a few for itself and one or more for each connection";
    one("tasks", tasks, figures.tasks);

    let mut each = |name: &str, help: &str, value: &dyn Fn(&FleetFigures) -> Option<i64>| {
        let family = Family::<OfFleet, Gauge>::default();
        for (fleet, figures) in &figures.fleets {
            if let Some(value) = value(figures) {
                let label = [("fleet", fleet.to_string())];
                family.get_or_create(&label).set(value);
            }
        }
        registry.register(name, help, family);
    };
    each("fleet_connections", "Connections of a fleet", &|fleet| {
        Some(number(fleet.connections))
    });
    each(
        "fleet_connections_limit",
        "What the fleet's max_connections allows, where it is set",
        &|fleet| fleet.quota.connections.map(number),
    );
    let watchers = "Clients that watch all machines of a fleet";
    each("fleet_watchers", watchers, &|fleet| {
        Some(number(fleet.watchers))
    });
    each(
        "fleet_watchers_limit",
        "What the fleet's max_watchers allows, where it is set",
        &|fleet| fleet.quota.watchers.map(number),
    );
    each(
        "fleet_retained_messages",
        "Retained messages of a fleet",
        &|fleet| Some(number(fleet.retained_messages)),
    );
    each(
        "fleet_retained_messages_limit",
        "What the fleet's max_retained_messages allows",
        &|fleet| Some(number(fleet.quota.retained_messages)),
    );
    each(
        "fleet_retained_bytes",
        "Bytes of a fleet's retained messages, topics and payloads",
        &|fleet| Some(number(fleet.retained_bytes)),
    );
    each(
        "fleet_retained_bytes_limit",
        "What the fleet's max_retained_bytes allows",
        &|fleet| Some(number(fleet.quota.retained_bytes)),
    );

    let family = Family::<OfReason, Counter>::default();
    for (fleet, reasons) in &*refusals.lock() {
        for (reason, counter) in reasons {
            let labels = [
                ("fleet", fleet.to_string()),
                ("reason", (*reason).to_owned()),
            ];
            family.get_or_create(&labels).inc_by(counter.get());
        }
    }
    let help = "What was refused to clients of a fleet, by reason";
    registry.register("fleet_refusals", help, family);
    encode_registry(text, &registry)
}

fn number<T: TryInto<i64>>(value: T) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_claims_fleets_that_are_not_served_adds_no_series() {
        let refusals = FleetRefusals::default();
        let fleet = |n: usize| FleetName::new(format!("fleet-{n}")).unwrap();
        for n in 0..FLEETS + 7 {
            refusals.count(&fleet(n), Reason::Certificate);
            refusals.serve(&fleet(n));
        }
        assert_eq!(refusals.lock().len(), FLEETS);
        refusals.count(&fleet(3), Reason::Quota);
        refusals.count(&fleet(FLEETS + 1), Reason::Quota);
        let mut text = String::new();
        write(&mut text, &Figures::default(), &refusals).unwrap();
        let series = text.lines().filter(|line| line.contains("reason="));
        assert_eq!(
            series.collect::<Vec<_>>(),
            ["hoist_broker_fleet_refusals_total{fleet=\"fleet-3\",reason=\"quota\"} 1"]
        );
    }
}
