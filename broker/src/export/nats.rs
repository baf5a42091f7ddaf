//! NATS JetStream's configuration: a server alone, or a cluster.

mod node;

use std::fmt::Write as _;
use std::net::IpAddr;

use super::issued::Standing;
use super::rights::Rights;
use super::{ConfigFile, EnginePath, IssuedClients};
use crate::guard::{Peer, Rules};

pub use node::{Node, NodeError, Nodes, NodesError};

/// The file with accounts and users, the same on all nodes.
const USERS: &str = "hoist-users.conf";

/// Copies of what is retained, at most; JetStream allows 5, and 3 survive the loss of one node.
const REPLICAS: usize = 3;

/// NATS on one or more computers.
#[derive(Clone, Debug)]
pub struct Nats {
    /// The computers.
    pub nodes: Nodes,
    /// The address to listen on, the same on all of them.
    pub listen: IpAddr,
    /// The authority's certificate.
    pub ca: EnginePath,
    /// The node's own certificate, at the same place on all of them.
    pub certificate: EnginePath,
    /// Its private key.
    pub key: EnginePath,
    /// The folder of what is retained.
    pub state: EnginePath,
}

impl Nats {
    /// The files of a cluster that lets in `issued`: one for each node, and the users, which all of them include.
    #[must_use]
    pub fn configuration(&self, issued: &IssuedClients, rules: Rules) -> Vec<ConfigFile> {
        let nodes = self.nodes.as_slice().iter();
        let mut files: Vec<ConfigFile> = nodes
            .map(|node| ConfigFile {
                name: format!("{}.conf", node.name()),
                text: self.node(node),
            })
            .collect();
        files.push(ConfigFile {
            name: USERS.to_owned(),
            text: users(issued, rules),
        });
        files
    }

    fn node(&self, node: &Node) -> String {
        let Self {
            nodes,
            listen,
            ca,
            certificate,
            key,
            state,
        } = self;
        let name = node.name();
        let mqtt = on(*listen, node.mqtt());
        let replicas = nodes.as_slice().len().min(REPLICAS);
        let cluster = match nodes.is_cluster() {
            true => self.cluster(node),
            false => String::new(),
        };
        format!(
            "# Written by `hoist-broker export nats`; changes by hand are lost when it is written again.\n\
             # Run `nats-server -c {name}.conf`. SIGHUP takes over users that were added. Never take a user out of\n\
             # {USERS}: NATS would delete all that it has retained.\n\
             server_name: \"{name}\"\n\
             # NATS's own protocol, which nothing of Hoist speaks: any port, and on this computer only. No user of\n\
             # ours may come in by it.\n\
             listen: \"127.0.0.1:-1\"\n\
             jetstream {{ store_dir: \"{state}\" }}\n\
             mqtt {{\n\
             \x20 listen: \"{mqtt}\"\n\
             \x20 tls {{\n\
             \x20   cert_file: \"{certificate}\"\n\
             \x20   key_file: \"{key}\"\n\
             \x20   ca_file: \"{ca}\"\n\
             \x20   # Clients are who their certificate says: the user is its whole subject.\n\
             \x20   verify_and_map: true\n\
             \x20   timeout: 10\n\
             \x20 }}\n\
             \x20 stream_replicas: {replicas}\n\
             \x20 consumer_replicas: {replicas}\n\
             \x20 consumer_inactive_threshold: \"5m\"\n\
             \x20 # Has to stand here: a reload makes 0 of what does not, and subscribers at QoS 1 go deaf.\n\
             \x20 max_ack_pending: 1024\n\
             }}\n\
             {cluster}\
             include \"./{USERS}\"\n"
        )
    }

    fn cluster(&self, node: &Node) -> String {
        let Self {
            nodes,
            listen,
            ca,
            certificate,
            key,
            ..
        } = self;
        let routes = nodes.as_slice().iter();
        let routes: Vec<String> = routes
            .map(|node| format!("\"nats-route://{}:{}\"", node.host(), node.cluster()))
            .collect();
        format!(
            "cluster {{\n\
             \x20 name: \"hoist\"\n\
             \x20 listen: \"{listen}\"\n\
             \x20 advertise: \"{host}:{port}\"\n\
             \x20 routes: [{routes}]\n\
             \x20 tls {{\n\
             \x20   cert_file: \"{certificate}\"\n\
             \x20   key_file: \"{key}\"\n\
             \x20   ca_file: \"{ca}\"\n\
             \x20   # A certificate of the CA is not enough, or every machine could join the cluster: it has to have\n\
             \x20   # the host name of one of the routes, as only a broker's has.\n\
             \x20   verify_cert_and_check_known_urls: true\n\
             \x20   timeout: 10\n\
             \x20 }}\n\
             }}\n",
            listen = on(*listen, node.cluster()),
            host = node.host(),
            port = node.cluster(),
            routes = routes.join(", "),
        )
    }
}

fn on(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// Accounts and users: an account for each fleet, which no other reaches into.
fn users(issued: &IssuedClients, rules: Rules) -> String {
    let mut text = "# Written by `hoist-broker export nats`.\naccounts {\n".to_owned();
    let mut line = |line: &str| {
        writeln!(text, "{line}").expect("a String takes all that is written to it");
    };
    for (fleet, peers) in issued.fleets() {
        line(&format!("  \"{fleet}\": {{"));
        line("    jetstream: enabled");
        line("    users: [");
        for (peer, standing) in peers {
            line(&user(rules, peer, standing));
        }
        line("    ]");
        line("  }");
    }
    text + "}\n"
}

/// One user. The kind of connection is said for each: to NATS's own protocol a user without a password is one with
/// an empty password.
///
/// Who is out may connect in a way only that is not listened for, and keeps the rest: with a user, or the right to publish on a
/// topic, NATS takes away what the user has retained.
fn user(rules: Rules, peer: &Peer, standing: Standing) -> String {
    let Rights { read, write } = Rights::of(rules, peer);
    let way_in = match standing {
        Standing::In => "MQTT",
        Standing::Out => "WEBSOCKET",
    };
    format!(
        "      {{ user: \"{subject}\", allowed_connection_types: [\"{way_in}\"], permissions: {{ \
         publish: {publish}, subscribe: {subscribe} }} }}",
        subject = subject(peer),
        publish = permission(&write),
        subscribe = permission(&read),
    )
}

/// The subject of the certificate of `peer`, as NATS writes it.
fn subject(peer: &Peer) -> String {
    format!("CN={},OU={},O={}", peer.name, peer.role, peer.fleet)
}

/// All of `filters` and nothing else. Where there are none it says so: NATS takes an empty list for no limit.
fn permission(filters: &[String]) -> String {
    if filters.is_empty() {
        return "{ deny: [\">\"] }".to_owned();
    }
    let subjects: Vec<String> = filters
        .iter()
        .map(|filter| format!("\"{}\"", filter.replace('/', ".").replace('+', "*")))
        .collect();
    format!("{{ allow: [{}] }}", subjects.join(", "))
}

#[cfg(test)]
mod tests {
    use hoist_certs::Role;

    use super::super::super::guard::tests::peer;
    use super::*;

    #[test]
    fn a_user_comes_in_by_mqtt_alone_and_one_who_is_out_by_nothing() {
        let web = peer(Role::Agent, "prod", "web-1");
        let line = user(Rules::default(), &web, Standing::In);
        let way_in = "{ user: \"CN=web-1,OU=agent,O=prod\", allowed_connection_types: [\"MQTT\"],";
        assert!(line.trim().starts_with(way_in), "{line}");
        let rights = "{ allow: [\"hoist.v1.prod.web-1.deploy\", \"hoist.v1.prod.web-1.echo\"] }";
        assert!(line.contains(&format!("subscribe: {rights}")), "{line}");
        let out = user(Rules::default(), &web, Standing::Out);
        assert_eq!(out, line.replace("MQTT", "WEBSOCKET"));
    }

    #[test]
    fn no_right_at_all_is_said_and_never_an_empty_list() {
        let monitor = peer(Role::Monitor, "prod", "wall");
        let line = user(Rules::default(), &monitor, Standing::In);
        assert!(line.contains("publish: { deny: [\">\"] }"), "{line}");
        assert!(line.contains("\"hoist.v1.prod.*.status\""), "{line}");
    }
}
