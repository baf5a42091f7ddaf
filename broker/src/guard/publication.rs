//! What may be published: by whom, where, how, and of what size.

use hoist_protocol::{Channel, Presence, Text, Topic};

use super::{Access, Peer, Rules};

/// Why a publish or a will is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum PublishRefusal {
    /// The topic is none of Hoist's.
    #[error("`{0}` is no topic of the form hoist/v1/<fleet>/<agent>/<channel>")]
    Topic(Text<128>),
    /// The role has no right to.
    #[error("{peer} may not publish on `{topic}`")]
    Forbidden {
        /// Who tried.
        peer: String,
        /// Where.
        topic: String,
    },
    /// Only an admin clears.
    #[error("{peer} may not clear `{topic}`; an admin may")]
    Clear {
        /// Who tried.
        peer: String,
        /// What.
        topic: String,
    },
    /// The channel is retained and the message is not.
    #[error("messages on `{0}` must be published with the retain flag")]
    NotRetained(String),
    /// The channel is not retained and the message is.
    #[error("messages on `{0}` must be published without the retain flag")]
    Retained(String),
    /// It is too large.
    #[error("a payload of {found} bytes on `{topic}` is above the limit of {max}")]
    TooLarge {
        /// Where.
        topic: String,
        /// Its size.
        found: usize,
        /// The largest size there.
        max: usize,
    },
    /// A presence says something else than the two words.
    #[error("a presence says `online` or `offline` and nothing else")]
    Presence(String),
}

impl PublishRefusal {
    /// Where it was to be published, when that is known.
    pub(crate) fn topic(&self) -> &str {
        match self {
            Self::Topic(topic) => topic.as_str(),
            Self::Forbidden { topic, .. }
            | Self::Clear { topic, .. }
            | Self::NotRetained(topic)
            | Self::Retained(topic)
            | Self::TooLarge { topic, .. }
            | Self::Presence(topic) => topic,
        }
    }
}

/// Checks a publish or a will of `peer`.
///
/// # Errors
/// [`PublishRefusal`]
pub(crate) fn admit_publication(
    rules: Rules,
    peer: &Peer,
    topic: &str,
    payload: &[u8],
    retain: bool,
) -> Result<Topic, PublishRefusal> {
    let topic = Topic::parse(topic).map_err(|_| PublishRefusal::Topic(Text::lossy(topic)))?;
    let clears = payload.is_empty() && topic.channel.is_retained();
    let access = if clears { Access::Clear } else { Access::Write };
    if !rules.allow(peer, access, &topic) {
        let (peer, topic) = (peer.to_string(), topic.to_string());
        return Err(if clears {
            PublishRefusal::Clear { peer, topic }
        } else {
            PublishRefusal::Forbidden { peer, topic }
        });
    }
    if topic.channel.is_retained() && !retain {
        return Err(PublishRefusal::NotRetained(topic.to_string()));
    }
    if !topic.channel.is_retained() && retain {
        return Err(PublishRefusal::Retained(topic.to_string()));
    }
    let max = topic.channel.max_len();
    if payload.len() > max {
        return Err(PublishRefusal::TooLarge {
            topic: topic.to_string(),
            found: payload.len(),
            max,
        });
    }
    if topic.channel == Channel::Presence && !clears && Presence::from_payload(payload).is_none() {
        return Err(PublishRefusal::Presence(topic.to_string()));
    }
    Ok(topic)
}

#[cfg(test)]
mod tests {
    use hoist_certs::Role;
    use hoist_protocol::limits;

    use super::super::tests::peer;
    use super::*;

    fn by(role: Role, topic: &str, payload: &[u8], retain: bool) -> Result<(), PublishRefusal> {
        let me = peer(role, "prod", "web-1");
        admit_publication(Rules::default(), &me, topic, payload, retain).map(|_| ())
    }

    const STATUS: &str = "hoist/v1/prod/web-1/status";
    const LOG: &str = "hoist/v1/prod/web-1/log";
    const PRESENCE: &str = "hoist/v1/prod/web-1/presence";

    #[test]
    fn an_agent_reports_with_retain_and_logs_without() {
        assert_eq!(by(Role::Agent, STATUS, b"{}", true), Ok(()));
        assert_eq!(by(Role::Agent, LOG, b"{}", false), Ok(()));
        assert_eq!(by(Role::Agent, PRESENCE, b"online", true), Ok(()));
        assert_eq!(
            by(Role::Agent, STATUS, b"{}", false),
            Err(PublishRefusal::NotRetained(STATUS.to_owned()))
        );
        assert_eq!(
            by(Role::Agent, LOG, b"{}", true),
            Err(PublishRefusal::Retained(LOG.to_owned()))
        );
        assert_eq!(
            by(Role::Agent, PRESENCE, b"here", true),
            Err(PublishRefusal::Presence(PRESENCE.to_owned()))
        );
    }

    #[test]
    fn only_an_admin_clears() {
        for role in [Role::Agent, Role::Publisher, Role::Monitor] {
            for topic in [STATUS, PRESENCE, "hoist/v1/prod/web-1/deploy"] {
                let refused = by(role, topic, b"", true);
                assert!(
                    matches!(refused, Err(PublishRefusal::Clear { .. })),
                    "{role} {topic}"
                );
            }
        }
        assert_eq!(by(Role::Admin, STATUS, b"", true), Ok(()));
        assert!(by(Role::Admin, STATUS, b"x", true).is_err());
        assert!(
            by(Role::Admin, STATUS, b"", false).is_err(),
            "a clear has the retain flag"
        );
    }

    #[test]
    fn a_payload_has_its_channels_limit() {
        assert_eq!(
            by(Role::Agent, STATUS, &vec![b'x'; limits::STATUS_LEN], true),
            Ok(())
        );
        assert!(matches!(
            by(
                Role::Agent,
                STATUS,
                &vec![b'x'; limits::STATUS_LEN + 1],
                true
            ),
            Err(PublishRefusal::TooLarge {
                max: limits::STATUS_LEN,
                ..
            })
        ));
    }

    #[test]
    fn other_topics_are_none() {
        for topic in [
            "",
            "$SYS/x",
            "hoist/v1/prod/+/status",
            "a/b",
            "hoist/v1/prod/web-1/\u{1b}",
        ] {
            let refused = by(Role::Agent, topic, b"x", true).unwrap_err();
            assert!(matches!(refused, PublishRefusal::Topic(_)), "{topic:?}");
            assert!(
                !refused.to_string().chars().any(char::is_control),
                "{topic:?}"
            );
        }
    }
}
