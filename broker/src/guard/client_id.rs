//! Which client ids a certificate may use.

use hoist_certs::Role;
use hoist_protocol::{Text, is_client_id_of};

use super::Peer;

/// Longest suffix of a monitor's client id, in bytes.
const SUFFIX_LEN: usize = 64;

/// Why a client id is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ClientIdError {
    /// An agent's id is not its name.
    #[error("an agent's client id is exactly its certificate's name `{name}`, not `{given}`")]
    Agent {
        /// The certificate's name.
        name: String,
        /// The id that was sent.
        given: Text<128>,
    },
    /// The id of somebody else is not name, dot, suffix.
    #[error(
        "the client id of a {role} is its certificate's name, a dot and 1 to 32 of a-z, 0-9 \
         (`{name}.…`, or none at all), not `{given}`"
    )]
    Suffix {
        /// The certificate's role.
        role: Role,
        /// The certificate's name.
        name: String,
        /// The id that was sent.
        given: Text<128>,
    },
    /// A broker's certificate is for servers.
    #[error("a broker's certificate is no client's")]
    Broker,
}

/// The client id that `peer` gets for the one it asks for.
///
/// An agent's is exactly its name. Others append a dot and a suffix, so that several may run with one
/// certificate and none can spell an agent's name; foreign tools of a monitor may choose any printable suffix.
/// An empty id gets one made from `fresh`, a number that no other connection has.
///
/// # Errors
/// [`ClientIdError`]
pub(crate) fn admit_client_id(
    peer: &Peer,
    given: &str,
    fresh: u64,
) -> Result<String, ClientIdError> {
    let name = peer.name.as_str();
    let shown = || Text::lossy(given);
    match peer.role {
        Role::Broker => Err(ClientIdError::Broker),
        Role::Agent if given == name => Ok(given.to_owned()),
        Role::Agent => Err(ClientIdError::Agent {
            name: name.to_owned(),
            given: shown(),
        }),
        // The underscore keeps made ids apart from chosen ones.
        Role::Publisher | Role::Monitor | Role::Admin if given.is_empty() => {
            Ok(format!("{name}._{fresh:x}"))
        }
        Role::Publisher | Role::Monitor | Role::Admin if is_client_id_of(given, name) => {
            Ok(given.to_owned())
        }
        Role::Monitor if has_printable_suffix(given, name) => Ok(given.to_owned()),
        role @ (Role::Publisher | Role::Monitor | Role::Admin) => Err(ClientIdError::Suffix {
            role,
            name: name.to_owned(),
            given: shown(),
        }),
    }
}

fn has_printable_suffix(id: &str, name: &str) -> bool {
    id.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|suffix| {
            (1..=SUFFIX_LEN).contains(&suffix.len())
                && !suffix.starts_with('_')
                && suffix.chars().all(|c| c.is_ascii_graphic())
        })
}

#[cfg(test)]
mod tests {
    use super::super::tests::peer;
    use super::*;

    fn admitted(role: Role, given: &str) -> Option<String> {
        admit_client_id(&peer(role, "prod", "ci"), given, 255).ok()
    }

    #[test]
    fn an_agent_is_its_name_and_nothing_else() {
        assert_eq!(admitted(Role::Agent, "ci").as_deref(), Some("ci"));
        for bad in ["", "ci.1", "web-1", "CI", "ci "] {
            assert_eq!(admitted(Role::Agent, bad), None, "{bad:?}");
        }
    }

    #[test]
    fn others_append_a_suffix_and_never_spell_an_agent() {
        for role in [Role::Publisher, Role::Monitor, Role::Admin] {
            assert_eq!(admitted(role, "ci.0a").as_deref(), Some("ci.0a"));
            assert_eq!(admitted(role, "").as_deref(), Some("ci._ff"));
            for bad in [
                "ci",
                "web-1",
                "ci.",
                "ci._ff",
                "ci2.a",
                "ci.\u{1b}",
                "ci.a b",
            ] {
                assert_eq!(admitted(role, bad), None, "{role} {bad:?}");
            }
        }
        assert_eq!(admitted(Role::Publisher, "ci.Telegraf-1"), None);
        assert!(admitted(Role::Monitor, "ci.Telegraf-1").is_some());
        assert_eq!(
            admitted(Role::Monitor, &format!("ci.{}", "x".repeat(65))),
            None
        );
    }

    #[test]
    fn a_broker_certificate_is_no_client() {
        assert_eq!(admitted(Role::Broker, "ci"), None);
        assert_eq!(admitted(Role::Broker, ""), None);
    }
}
