//! mosquitto's configuration.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::num::{NonZeroU32, ParseIntError};
use std::str::FromStr;

use hoist_protocol::limits;

use super::issued::Standing;
use super::rights::Rights;
use super::{ConfigFile, EnginePath, IssuedClients};
use crate::guard::{Peer, Rules};

/// The file that mosquitto is started with.
const CONFIG: &str = "mosquitto.conf";

/// The file with the access rules.
const ACCESS: &str = "hoist.acl";

/// Bytes of a packet beside its payload, generously.
const PACKET_OVERHEAD: usize = 1024;

/// Messages that may wait for one client: what is retained of a large fleet has to fit, since mosquitto drops the
/// rest without a word.
const QUEUED: u32 = 250_000;

/// Bytes that may wait for one client.
const QUEUED_BYTES: u32 = 256 * 1024 * 1024;

/// A number of seconds above zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seconds(NonZeroU32);

impl FromStr for Seconds {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// mosquitto on one computer.
#[derive(Clone, Debug)]
pub struct Mosquitto {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The folder that [`ConfigFile`]s are read from, on the computer where mosquitto runs.
    pub folder: EnginePath,
    /// The authority's certificate.
    pub ca: EnginePath,
    /// The broker's certificate.
    pub certificate: EnginePath,
    /// Its private key.
    pub key: EnginePath,
    /// The authority's list of revoked certificates.
    pub crl: Option<EnginePath>,
    /// The folder of what is retained.
    pub state: EnginePath,
    /// How often what is retained is written down; none for after every change.
    pub save_every: Option<Seconds>,
    /// Programs choose their client ids, so that two may use one certificate at the same time; then whoever has any
    /// certificate can disconnect anybody.
    pub free_client_ids: bool,
}

impl Mosquitto {
    /// The files of a broker that lets in `issued`.
    #[must_use]
    pub fn configuration(&self, issued: &IssuedClients, rules: Rules) -> Vec<ConfigFile> {
        vec![
            ConfigFile {
                name: CONFIG.to_owned(),
                text: self.config(),
            },
            ConfigFile {
                name: ACCESS.to_owned(),
                text: access(issued, rules),
            },
        ]
    }

    fn config(&self) -> String {
        let Self {
            listen,
            folder,
            ca,
            certificate,
            key,
            crl,
            state,
            save_every,
            free_client_ids,
        } = self;
        let saving = match save_every {
            Some(Seconds(seconds)) => format!(
                "# What is retained is written down every {seconds} s: whatever ends mosquitto can cost as much.\n\
                 autosave_on_changes false\n\
                 autosave_interval {seconds}\n"
            ),
            None => "# All that is retained is written down after every change. mosquitto acknowledges before that: a \
                     power\n\
                     # cut can cost the last change.\n\
                     autosave_on_changes true\n\
                     autosave_interval 1\n"
                .to_owned(),
        };
        let crl = match crl {
            Some(crl) => format!(
                "# An expired list refuses everybody: renew it in time, and SIGHUP.\ncrlfile {crl}\n"
            ),
            None => String::new(),
        };
        let client_ids = if *free_client_ids {
            "# Client ids are free: whoever has any certificate can disconnect anybody.\n\
             use_username_as_clientid false"
        } else {
            "# The client id is the certificate's name too, whatever a client says. So none can disconnect another,\n\
             # and two programs with one certificate at the same time disconnect each other.\n\
             use_username_as_clientid true"
        };
        format!(
            "# Written by `hoist-broker export mosquitto`; changes by hand are lost when it is written again.\n\
             # A complete configuration: run `mosquitto -c {CONFIG}`, and after another export SIGHUP it.\n\
             per_listener_settings false\n\
             listener {port} {address}\n\
             cafile {ca}\n\
             certfile {certificate}\n\
             keyfile {key}\n\
             {crl}\
             # Clients are who their certificate says: the user name is its CN.\n\
             require_certificate true\n\
             use_identity_as_username true\n\
             {client_ids}\n\
             allow_anonymous false\n\
             acl_file {folder}/{ACCESS}\n\
             {saving}\
             persistence true\n\
             persistence_location {state}/\n\
             # Hoist's own sessions are clean; those of others do not stay for ever.\n\
             persistent_client_expiration 7d\n\
             max_packet_size {packet}\n\
             # What one client may make wait. Beyond it mosquitto drops messages, and whoever watches a large fleet\n\
             # would miss machines.\n\
             max_queued_messages {QUEUED}\n\
             max_queued_bytes {QUEUED_BYTES}\n\
             set_tcp_nodelay true\n",
            port = listen.port(),
            address = listen.ip(),
            packet = limits::PAYLOAD_LEN + PACKET_OVERHEAD,
        )
    }
}

/// The access rules: what is not in them is not allowed.
fn access(issued: &IssuedClients, rules: Rules) -> String {
    let mut text = "# Written by `hoist-broker export mosquitto`.\n".to_owned();
    let mut line = |line: &str| {
        writeln!(text, "{line}").expect("a String takes all that is written to it");
    };
    for (fleet, peers) in issued.fleets() {
        line(&format!("\n# The fleet {fleet}"));
        for (peer, standing) in peers {
            // Who is not named may do nothing.
            if standing == Standing::In {
                line("");
                for rule in user(rules, peer) {
                    line(&rule);
                }
            }
        }
    }
    text
}

fn user(rules: Rules, peer: &Peer) -> Vec<String> {
    let Rights { read, write } = Rights::of(rules, peer);
    let mut lines = vec![format!("# {}", peer.role), format!("user {}", peer.name)];
    lines.extend(read.iter().map(|filter| format!("topic read {filter}")));
    lines.extend(write.iter().map(|filter| format!("topic write {filter}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut Mosquitto)) -> String {
        let place = |path: &str| path.parse().unwrap();
        let mut mosquitto = Mosquitto {
            listen: "[::1]:8883".parse().unwrap(),
            folder: place("/etc/hoist"),
            ca: place("/ca.pem"),
            certificate: place("/broker.pem"),
            key: place("/broker.key"),
            crl: None,
            state: place("/state"),
            save_every: None,
            free_client_ids: false,
        };
        change(&mut mosquitto);
        mosquitto.config()
    }

    fn has(config: &str, line: &str) -> bool {
        config.lines().any(|found| found == line)
    }

    #[test]
    fn nobody_comes_in_without_a_certificate_or_beside_the_rules() {
        let config = config(|_| {});
        for line in [
            "listener 8883 ::1",
            "require_certificate true",
            "use_identity_as_username true",
            "use_username_as_clientid true",
            "allow_anonymous false",
            "acl_file /etc/hoist/hoist.acl",
            "autosave_on_changes true",
        ] {
            assert!(has(&config, line), "{line}: {config}");
        }
        assert!(!config.contains("crlfile"), "{config}");
    }

    #[test]
    fn what_is_asked_for_is_in_it() {
        let config = config(|mosquitto| {
            mosquitto.crl = Some("/crl.pem".parse().unwrap());
            mosquitto.save_every = Some("30".parse().unwrap());
            mosquitto.free_client_ids = true;
        });
        for line in [
            "crlfile /crl.pem",
            "autosave_on_changes false",
            "autosave_interval 30",
            "use_username_as_clientid false",
        ] {
            assert!(has(&config, line), "{line}: {config}");
        }
        assert!("0".parse::<Seconds>().is_err());
    }
}
