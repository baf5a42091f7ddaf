//! The counters, in the names that Prometheus reads them by.

use std::time::Duration;

use hoist_certs::Role;
use hoist_protocol::Channel;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// A closed set of values of one label.
pub(crate) trait Label: Copy + 'static {
    /// The label's name.
    const KEY: &'static str;
    /// All values, in the order of their series.
    const ALL: &'static [Self];

    /// The value's text.
    fn as_str(self) -> &'static str;

    /// Whether two values are one series.
    fn is(self, other: Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Label for Role {
    const KEY: &'static str = "role";
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}

impl Label for Channel {
    const KEY: &'static str = "channel";
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Handshake {
    /// The client is known.
    Done,
    /// It failed.
    Failed,
    /// It took too long.
    Slow,
}

impl Label for Handshake {
    const KEY: &'static str = "outcome";
    const ALL: &'static [Self] = &[Self::Done, Self::Failed, Self::Slow];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Slow => "slow",
        }
    }
}

/// What has an end that an operator must not miss.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Certificate {
    /// The broker's certificate.
    Server,
    /// The first of the certificate authorities to end.
    Authority,
    /// The first revocation list to need an update.
    RevocationList,
}

impl Label for Certificate {
    const KEY: &'static str = "certificate";
    const ALL: &'static [Self] = &[Self::Server, Self::Authority, Self::RevocationList];

    fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Authority => "authority",
            Self::RevocationList => "revocation_list",
        }
    }
}

/// One metric for each value of a label, all of them there from the start.
pub(crate) struct By<L, M>(Vec<(L, M)>);

impl<L: Label, M> By<L, M> {
    /// The one of a value.
    pub(crate) fn of(&self, label: L) -> &M {
        let found = self.0.iter().find(|(other, _)| other.is(label));
        &found.expect("Label::ALL holds all of them").1
    }
}

/// One that a gauge counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Gauge);

impl Held {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

type Labels = [(&'static str, &'static str); 1];

/// Everything that is counted; `docs` of each are its help texts below.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) connections: By<Role, Gauge>,
    pub(crate) sessions: By<Role, Gauge>,
    /// Kept sessions whose clients are away.
    pub(crate) away: By<Role, Gauge>,
    pub(crate) handshakes: By<Handshake, Counter>,
    pub(crate) handshake_seconds: Histogram,
    pub(crate) handshaking: Gauge,
    pub(crate) refusals: By<super::Reason, Counter>,
    pub(crate) takeovers: Counter,
    pub(crate) received: By<Channel, Counter>,
    pub(crate) sent: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) dropped: Counter,
    pub(crate) deploys: By<super::Decision, Counter>,
    pub(crate) retained: Gauge,
    pub(crate) commit_seconds: Histogram,
    pub(crate) batch: Histogram,
    pub(crate) store_failures: Counter,
    pub(crate) store_writable: Gauge,
    pub(crate) audit_failures: Counter,
    pub(crate) audit_suppressed: Counter,
    /// Seconds since 1970; 0 while it is not known.
    pub(crate) certificate_ends: By<Certificate, Gauge>,
    pub(crate) reload_failures: Counter,
    /// Clients whose certificates end soon, connected or with a session that is kept.
    pub(crate) ending_soon: By<Role, Gauge>,
}

/// Registers metrics one by one.
struct Maker(Registry);

impl Maker {
    fn one<M: EncodeMetric + TypedMetric + Clone + std::fmt::Debug + Send + Sync + 'static>(
        &mut self,
        name: &str,
        help: &str,
        metric: M,
    ) -> M {
        // The registry ends the text with a full stop.
        self.0.register(name, help, metric.clone());
        metric
    }

    fn by<L: Label, M>(&mut self, name: &str, help: &str) -> By<L, M>
    where
        M: EncodeMetric + TypedMetric + Clone + Default + std::fmt::Debug + Send + Sync + 'static,
        fn() -> M: MetricConstructor<M>,
    {
        let family = Family::<Labels, M>::default();
        self.0.register(name, help, family.clone());
        let series = L::ALL.iter().map(|label| {
            (
                *label,
                family.get_or_create(&[(L::KEY, label.as_str())]).clone(),
            )
        });
        By(series.collect())
    }

    fn seconds(&mut self, name: &str, help: &str, histogram: Histogram) -> Histogram {
        self.0
            .register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }
}

impl Metrics {
    #[allow(clippy::too_many_lines)] // A list, one entry a metric.
    pub(super) fn new() -> Self {
        let mut make = Maker(Registry::with_prefix("hoist_broker"));
        Self {
            connections: make.by("connections", "Connections whose TLS handshake is done"),
            sessions: make.by("sessions", "Clients whose CONNECT is accepted"),
            away: make.by(
                "sessions_away",
                "Sessions that are kept for clients that are not connected",
            ),
            handshakes: make.by("handshakes", "TLS handshakes that have ended"),
            handshake_seconds: make.seconds(
                "handshake",
                "Time that TLS handshakes took",
                Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            ),
            handshaking: make.one(
                "handshakes_under_way",
                "TLS handshakes under way",
                Gauge::default(),
            ),
            refusals: make.by("refusals", "What was refused, by reason"),
            takeovers: make.one(
                "takeovers",
                "Sessions that ended because the same client connected again",
                Counter::default(),
            ),
            received: make.by("messages_received", "Messages that clients published"),
            sent: make.one(
                "messages_sent",
                "Messages that clients were sent",
                Counter::default(),
            ),
            received_bytes: make.one(
                "received_bytes",
                "Bytes of MQTT that clients sent",
                Counter::default(),
            ),
            sent_bytes: make.one(
                "sent_bytes",
                "Bytes of MQTT that clients were sent",
                Counter::default(),
            ),
            dropped: make.one(
                "dropped_messages",
                "Log lines and echoes that were dropped for clients that read too slowly",
                Counter::default(),
            ),
            deploys: make.by(
                "deploys",
                "Deploy publishes that reached the store, by decision",
            ),
            retained: make.one("retained_messages", "Retained messages", Gauge::default()),
            commit_seconds: make.seconds(
                "store_commit",
                "Time in which a batch of publishes was made durable",
                Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            ),
            batch: make.one(
                "store_batch_messages",
                "Publishes that were made durable at once",
                Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            ),
            store_failures: make.one(
                "store_failures",
                "Batches that could not be made durable",
                Counter::default(),
            ),
            store_writable: make.one(
                "store_writable",
                "1 while the store takes publishes, 0 while it cannot",
                Gauge::default(),
            ),
            audit_failures: make.one(
                "audit_failures",
                "Writes to the audit log that failed",
                Counter::default(),
            ),
            audit_suppressed: make.one(
                "audit_suppressed",
                "Refusals that the audit log has as a number only, since there were too many",
                Counter::default(),
            ),
            certificate_ends: make.by(
                "certificate_end_timestamp_seconds",
                "When a certificate or revocation list ends, in seconds since 1970; 0 when unknown",
            ),
            reload_failures: make.one(
                "certificate_reload_failures",
                "Changes of certificate, key, CA, CRL or denylist files that could not be used",
                Counter::default(),
            ),
            ending_soon: make.by(
                "clients_ending_soon",
                "Clients whose certificates end soon, connected or with a kept session",
            ),
            registry: make.0,
        }
    }

    /// Appends all of them, without the end that OpenMetrics has.
    pub(super) fn write(&self, text: &mut String) -> std::fmt::Result {
        encode_registry(text, &self.registry)
    }

    /// Notes how long a batch took.
    pub(crate) fn committed(&self, messages: usize, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // A batch has at most some thousands.
        self.batch.observe(messages as f64);
    }
}
