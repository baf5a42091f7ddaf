//! Why something is refused, as a word for counters and the audit log.

use super::metrics::Label;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a connection, a publish or a subscription is refused, or a session ended against its client's
        /// will. A closed list: each is a series of `hoist_broker_refusals_total`.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub(crate) enum Reason { $($(#[$doc])* $name,)* }

        impl Label for Reason {
            const KEY: &'static str = "reason";
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// The TLS handshake failed.
    Tls = "tls",
    /// The TLS handshake took too long.
    HandshakeTimeout = "handshake_timeout",
    /// The certificate is nobody's who may connect.
    Certificate = "certificate",
    /// The certificate is revoked or on the denylist.
    Revoked = "revoked",
    /// The certificate has ended.
    Expired = "expired",
    /// There are too many connections, in all.
    Connections = "connections",
    /// There are too many connections or handshakes from one address.
    Address = "address",
    /// There are too many connections of one identity.
    Identity = "identity",
    /// Clients take each other over in a loop.
    TakeoverLoop = "takeover_loop",
    /// A fleet is above its quota.
    Quota = "quota",
    /// No CONNECT came in time.
    ConnectTimeout = "connect_timeout",
    /// The client id is not the certificate's.
    ClientId = "client_id",
    /// The will is not allowed.
    Will = "will",
    /// A publish is not allowed.
    Publish = "publish",
    /// A subscription is not allowed.
    Subscribe = "subscribe",
    /// A client has too many subscriptions.
    Subscriptions = "subscriptions",
    /// A packet is too large.
    PacketSize = "packet_size",
    /// A client sends too fast.
    Rate = "rate",
    /// A client breaks the protocol.
    Protocol = "protocol",
    /// A client stopped reading.
    Stalled = "stalled",
    /// No trusted key has signed a deployment for its machine.
    DeployUnverified = "deploy_unverified",
    /// A deployment's order is not above that of the retained one.
    DeployOrder = "deploy_order",
    /// A deployment raises the epoch without a key that may.
    DeployEpoch = "deploy_epoch",
    /// The store cannot be written.
    Store = "store",
    /// The audit log cannot be written.
    Audit = "audit",
}
