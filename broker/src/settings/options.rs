//! What the configuration file and the flags can say.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use camino::Utf8PathBuf;
use hoist_certs::Pem;
use hoist_certs::trust::Lapse;
use hoist_protocol::{FleetName, PublicKey};
use serde::Deserialize;

use super::{FleetOptions, Rate};
use crate::observe::AuditFailure;

/// Makes the options and the way two sets of them are put together from one list.
macro_rules! options {
    ($($(#[$meta:meta])* $name:ident: $type:ty,)*) => {
        /// What a configuration file or the flags say; what is missing there has a default or is asked for.
        #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
        #[serde(default, deny_unknown_fields)]
        pub struct Options {
            $($(#[$meta])* pub $name: Option<$type>,)*
        }

        impl Options {
            /// These options, and what is missing in them from `others`.
            #[must_use]
            pub fn or(self, others: Self) -> Self {
                Self { $($name: self.$name.or(others.$name),)* }
            }
        }
    };
}

options! {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8883]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Address and port to listen on for MQTT over WebSocket, inside TLS with the same certificates; without it
    /// there is none
    #[arg(long, value_name = "ADDRESS:PORT")]
    websocket_listen: SocketAddr,
    /// The origin of a web page that may connect over WebSocket, such as https://fleet.example.org; repeat it for
    /// several. A browser shows its client certificate for every page, so none may unless it is named here
    #[arg(long, value_name = "ORIGIN")]
    websocket_origins: Vec<String>,
    /// The certificate authority that clients' certificates are of (a path, or the PEM text)
    #[arg(long, value_name = "PEM")]
    ca: Pem,
    /// The broker's certificate (a path, or the PEM text)
    #[arg(long, value_name = "PEM")]
    certificate: Pem,
    /// The certificate's private key (a path)
    #[arg(long, value_name = "PATH")]
    key: Pem,
    /// The folder of the retained messages; made when it is missing
    #[arg(long, value_name = "DIR")]
    state: Utf8PathBuf,

    /// A key that deployments must be signed with; repeat it for several. Without any, the broker takes what
    /// publishers send, and the agents alone verify it
    #[arg(long, value_name = "hoist-NAME:BASE64")]
    trusted_keys: Vec<PublicKey>,
    /// How many of them must have signed [default: 1]
    #[arg(long, value_name = "N")]
    required_signatures: usize,
    /// A trusted key that may raise the epoch; repeat it for several
    #[arg(long, value_name = "hoist-NAME:BASE64")]
    epoch_keys: Vec<PublicKey>,
    /// Whether monitors may read the log [default: false]
    #[arg(long, value_name = "BOOL")]
    monitors_read_log: bool,
    /// In the file, one table `[fleets.NAME]` for each fleet that is served, with what is its own: ca,
    /// trusted_keys, required_signatures, epoch_keys, monitors_read_log, max_connections,
    /// max_watchers, max_retained_messages, max_retained_bytes, publish_rate. Without any table, every fleet of the
    /// CA is
    #[arg(skip)]
    fleets: BTreeMap<FleetName, FleetOptions>,

    /// A file of revocation lists, PEM or DER, as `hoist-certs crl` writes it; repeat it for several. All files of
    /// certificates, keys and revocation are read again when they change, and on SIGHUP
    #[arg(long, value_name = "PATH")]
    crl: Vec<Utf8PathBuf>,
    /// A file of names, FLEET/NAMEs and serial numbers that are let in no more, one a line
    #[arg(long, value_name = "PATH")]
    denylist: Utf8PathBuf,
    /// What to do with the certificates of a CA whose CRL has expired: accept or refuse [default: accept]
    #[arg(long, value_name = "WHAT", value_parser = lapse)]
    expired_crl: Lapse,
    /// What to do with the certificates of a CA of which there is no CRL although `crl` is set [default: refuse]
    #[arg(long, value_name = "WHAT", value_parser = lapse)]
    missing_crl: Lapse,

    /// Most connections at once [default: 20000]
    #[arg(long, value_name = "N")]
    max_connections: usize,
    /// Most connections at once with one certificate's name; an agent has at most 4 [default: 64]
    #[arg(long, value_name = "N")]
    max_connections_per_identity: usize,
    /// Most connections at once from one address, or one /64 of IPv6; many machines may share one [default: 20000]
    #[arg(long, value_name = "N")]
    max_connections_per_address: usize,
    /// Most TLS handshakes at once; they take nothing of the connections above [default: 8192]
    #[arg(long, value_name = "N")]
    max_handshakes: usize,
    /// Most TLS handshakes at once from one address [default: 4096]
    #[arg(long, value_name = "N")]
    max_handshakes_per_address: usize,
    /// Most bytes from a client before its handshake is done [default: 16384]
    #[arg(long, value_name = "BYTES")]
    max_handshake_bytes: usize,
    /// How often one address may connect [default: 500/s burst 20000]
    #[arg(long, value_name = "RATE")]
    connect_rate: Rate,
    /// How often a client may take over its own session; two machines with one certificate do it for ever
    /// [default: 30/min burst 60]
    #[arg(long, value_name = "RATE")]
    takeover_rate: Rate,
    /// How often an agent may publish or subscribe; it is read more slowly above it [default: 100/s burst 2000]
    #[arg(long, value_name = "RATE")]
    agent_publish_rate: Rate,
    /// How many bytes an agent may send, with those of TLS; it is read more slowly above it [default: 1048576/s burst 8388608]
    #[arg(long, value_name = "RATE")]
    agent_byte_rate: Rate,
    /// How often a publisher, monitor or admin may publish or subscribe; 64 retained messages that a subscription
    /// brings count as one more [default: 5000/s burst 50000]
    #[arg(long, value_name = "RATE")]
    publish_rate: Rate,
    /// How many bytes a publisher, monitor or admin may send, with those of TLS [default: 33554432/s burst 536870912]
    #[arg(long, value_name = "RATE")]
    byte_rate: Rate,
    /// Most publishes of a client that wait for the disk; it is read no further [default: 64]
    #[arg(long, value_name = "N")]
    max_unsettled: usize,
    /// Most messages that a client has not acknowledged; it is sent no further [default: 256]
    #[arg(long, value_name = "N")]
    max_inflight: usize,
    /// Most subscriptions of a client [default: 4096]
    #[arg(long, value_name = "N")]
    max_subscriptions: usize,
    /// Most subscriptions of a client with a wildcard for the machine [default: 32]
    #[arg(long, value_name = "N")]
    max_wildcard_subscriptions: usize,
    /// Longest life of a session whose client is away, whatever the client asks for [default: 24h]
    #[arg(long, value_name = "DURATION")]
    session_expiry: String,
    /// Most messages that wait for a client that is away; a session that misses more ends [default: 10000]
    #[arg(long, value_name = "N")]
    max_queued: usize,
    /// Most sessions that outlive their connections [default: 10000]
    #[arg(long, value_name = "N")]
    max_kept_sessions: usize,
    /// Most sessions of one certificate's name that outlive their connections [default: 64]
    #[arg(long, value_name = "N")]
    max_kept_sessions_per_identity: usize,
    /// Longest keep-alive of a client of MQTT 5, and the one of a client that asks for none [default: 20m]
    #[arg(long, value_name = "DURATION")]
    keep_alive: String,

    /// Most retained messages of a fleet [default: 1000000]
    #[arg(long, value_name = "N")]
    max_retained_messages: usize,
    /// Most bytes of retained messages of a fleet: topics, payloads and properties [default: 4294967296]
    #[arg(long, value_name = "BYTES")]
    max_retained_bytes: u64,

    /// How long a TLS handshake may take [default: 10s]
    #[arg(long, value_name = "DURATION")]
    handshake_timeout: String,
    /// How long after it a CONNECT may take [default: 10s]
    #[arg(long, value_name = "DURATION")]
    connect_timeout: String,
    /// How long it may take from a packet's first byte to its last [default: 30s]
    #[arg(long, value_name = "DURATION")]
    packet_timeout: String,
    /// How long a client may take nothing of what waits for it [default: 30s]
    #[arg(long, value_name = "DURATION")]
    stalled_timeout: String,
    /// How long connections may take to end when the broker stops [default: 5s]
    #[arg(long, value_name = "DURATION")]
    stop_timeout: String,

    /// A file to append what becomes of every deployment, and every refusal, a JSON object a line; SIGHUP opens
    /// it anew
    #[arg(long, value_name = "PATH")]
    audit_log: Utf8PathBuf,
    /// What happens to deployments while the audit log cannot be written [default: refuse]
    #[arg(long, value_enum, value_name = "WHAT")]
    audit_failure: AuditFailure,
    /// Where to tell metrics (/metrics) and health (/healthz, /readyz) over plain HTTP, to whoever asks; a port
    /// alone is one of 127.0.0.1
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    metrics_listen: String,
}

fn lapse(text: &str) -> Result<Lapse, String> {
    match text {
        "accept" => Ok(Lapse::Accept),
        "refuse" => Ok(Lapse::Refuse),
        _ => Err("it is `accept` or `refuse`".to_owned()),
    }
}
