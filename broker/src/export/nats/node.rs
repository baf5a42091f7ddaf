//! The computers of a cluster.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hoist_certs::authority::{Host, HostError};

/// MQTT over TLS.
const MQTT: u16 = 8883;

/// Between the nodes.
const CLUSTER: u16 = 6222;

/// A text that is no node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodeError {
    /// The host is none.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host is an address.
    #[error(
        "a node is named by its host name, not by an address: nodes know each other by the names in their certificates"
    )]
    Address,
    /// A port is none.
    #[error(
        "`{0}` is no port; a node is written HOST, HOST:MQTT-PORT or HOST:MQTT-PORT:CLUSTER-PORT"
    )]
    Port(String),
}

/// One computer: its host name, and its ports for MQTT and for the other nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    host: String,
    mqtt: u16,
    cluster: u16,
}

impl Node {
    /// Its host name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port for MQTT.
    #[must_use]
    pub const fn mqtt(&self) -> u16 {
        self.mqtt
    }

    /// Its port for the other nodes.
    #[must_use]
    pub const fn cluster(&self) -> u16 {
        self.cluster
    }

    /// What it is called among the others; its data belongs to that name.
    #[must_use]
    pub fn name(&self) -> String {
        match self.mqtt {
            MQTT => self.host.clone(),
            port => format!("{}-{port}", self.host),
        }
    }
}

impl FromStr for Node {
    type Err = NodeError;

    fn from_str(text: &str) -> Result<Self, NodeError> {
        if text.parse::<IpAddr>().is_ok() {
            return Err(NodeError::Address);
        }
        let mut parts = text.splitn(3, ':');
        let host = parts.next().unwrap_or_default();
        let mut port = |usual| match parts.next() {
            None => Ok(usual),
            Some(text) => match text.parse() {
                Ok(0) | Err(_) => Err(NodeError::Port(text.chars().take(60).collect())),
                Ok(port) => Ok(port),
            },
        };
        if host.parse::<IpAddr>().is_ok() {
            return Err(NodeError::Address);
        }
        Ok(Self {
            host: host.parse::<Host>()?.to_string(),
            mqtt: port(MQTT)?,
            cluster: port(CLUSTER)?,
        })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.host, self.mqtt, self.cluster)
    }
}

/// Nodes that make no cluster.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodesError {
    /// There is none.
    #[error("give a --node at least")]
    None,
    /// Two are no better than one.
    #[error("a cluster of two stops when either of them does; give one --node, or three")]
    Two,
    /// One is there twice.
    #[error("the node {0} is there twice")]
    Twice(String),
}

/// One node, or a cluster of three or more, no two alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Takes `nodes`.
    ///
    /// # Errors
    /// [`NodesError`]
    pub fn new(nodes: Vec<Node>) -> Result<Self, NodesError> {
        match nodes.len() {
            0 => return Err(NodesError::None),
            2 => return Err(NodesError::Two),
            _ => {}
        }
        for (index, node) in nodes.iter().enumerate() {
            if nodes[..index]
                .iter()
                .any(|other| other.name() == node.name())
            {
                return Err(NodesError::Twice(node.name()));
            }
        }
        Ok(Self(nodes))
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[Node] {
        &self.0
    }

    /// Whether there are several.
    #[must_use]
    pub const fn is_cluster(&self) -> bool {
        self.0.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Result<String, NodeError> {
        text.parse::<Node>().map(|node| node.to_string())
    }

    #[test]
    fn a_node_is_a_host_with_ports_that_have_defaults() {
        assert_eq!(node("a.example.org").unwrap(), "a.example.org:8883:6222");
        assert_eq!(node("a:1883").unwrap(), "a:1883:6222");
        assert_eq!(node("a:1883:7222").unwrap(), "a:1883:7222");
    }

    #[test]
    fn what_is_no_host_name_or_port_is_refused() {
        for address in ["10.0.0.1", "10.0.0.1:8883", "::1"] {
            assert_eq!(node(address), Err(NodeError::Address), "{address}");
        }
        for bad in ["a:", "a:0", "a:x", "a:1:70000", "a:1:2:3"] {
            assert!(matches!(node(bad), Err(NodeError::Port(_))), "{bad}");
        }
        for bad in ["", "a b", "a\"", "a\n"] {
            assert!(matches!(node(bad), Err(NodeError::Host(_))), "{bad:?}");
        }
    }

    #[test]
    fn two_nodes_are_no_cluster_and_none_is_there_twice() {
        let nodes = |texts: &[&str]| {
            let nodes = texts.iter().map(|text| text.parse().unwrap()).collect();
            Nodes::new(nodes).map(|nodes| nodes.is_cluster())
        };
        assert_eq!(nodes(&[]), Err(NodesError::None));
        assert_eq!(nodes(&["a"]), Ok(false));
        assert_eq!(nodes(&["a", "b"]), Err(NodesError::Two));
        assert_eq!(nodes(&["a", "b", "c"]), Ok(true));
        assert_eq!(nodes(&["a:1", "a:2", "a:3"]), Ok(true));
        assert!(matches!(nodes(&["a", "b", "a"]), Err(NodesError::Twice(_))));
    }
}
