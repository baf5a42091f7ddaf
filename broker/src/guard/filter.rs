//! What a topic filter can match among the topics of one fleet.

use hoist_protocol::{AgentName, Channel, FleetName, Topic};

/// A text that MQTT 3.1.1 (section 4.7) does not allow as a filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum FilterError {
    /// It is empty.
    #[error("a filter must not be empty")]
    Empty,
    /// `+` shares its level with something else.
    #[error("`+` stands for a whole level")]
    Plus,
    /// `#` shares its level with something else, or is not the last.
    #[error("`#` stands for all last levels")]
    Hash,
    /// It holds a NUL character.
    #[error("a filter must not hold a NUL character")]
    Nul,
}

/// The agents that a filter matches.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Agents {
    /// All of the fleet.
    All,
    /// One.
    One(AgentName),
}

/// The channels that a filter matches.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Channels {
    /// All.
    All,
    /// One.
    One(Channel),
}

impl Channels {
    /// Whether `channel` is among them.
    #[must_use]
    pub(crate) fn hold(self, channel: Channel) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == channel,
        }
    }
}

/// What of one fleet a filter matches.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Pattern {
    /// Of which agents.
    pub agents: Agents,
    /// Which of their topics.
    pub channels: Channels,
}

impl Pattern {
    /// What `filter` matches of `fleet`; none when it can match nothing there, `$`-topics and shared
    /// subscriptions among it.
    ///
    /// # Errors
    /// [`FilterError`] when it is no filter at all.
    pub(crate) fn parse(filter: &str, fleet: &FleetName) -> Result<Option<Self>, FilterError> {
        check(filter)?;
        let mut pattern = Self {
            agents: Agents::All,
            channels: Channels::All,
        };
        let mut depth = 0;
        for level in filter.split('/') {
            if level == "#" {
                return Ok(Some(pattern));
            }
            let any = level == "+";
            match depth {
                0 if any || level == "hoist" => {}
                1 if any || level == "v1" => {}
                2 if any || level == fleet.as_str() => {}
                3 if any => {}
                3 => match AgentName::new(level) {
                    Ok(name) => pattern.agents = Agents::One(name),
                    Err(_) => return Ok(None),
                },
                4 if any => {}
                4 => match Channel::from_level(level) {
                    Some(channel) => pattern.channels = Channels::One(channel),
                    None => return Ok(None),
                },
                _ => return Ok(None),
            }
            depth += 1;
        }
        Ok((depth == 5).then_some(pattern))
    }

    /// Whether it matches `topic`, a topic of its fleet.
    #[must_use]
    pub(crate) fn matches(&self, topic: &Topic) -> bool {
        let agent = match &self.agents {
            Agents::All => true,
            Agents::One(name) => *name == topic.machine.agent,
        };
        agent && self.channels.hold(topic.channel)
    }
}

fn check(filter: &str) -> Result<(), FilterError> {
    if filter.is_empty() {
        return Err(FilterError::Empty);
    }
    if filter.contains('\0') {
        return Err(FilterError::Nul);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('+') && level != "+" {
            return Err(FilterError::Plus);
        }
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(FilterError::Hash);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hoist_protocol::Machine;
    use proptest::prelude::*;

    use super::*;

    fn prod() -> FleetName {
        FleetName::new("prod").unwrap()
    }

    fn parse(filter: &str) -> Option<Pattern> {
        Pattern::parse(filter, &prod()).unwrap()
    }

    #[test]
    fn a_filter_matches_what_it_says() {
        let web = Agents::One(AgentName::new("web-1").unwrap());
        let status = Channels::One(Channel::Status);
        for (filter, agents, channels) in [
            ("hoist/v1/prod/web-1/status", &web, status),
            ("hoist/v1/prod/web-1/status/#", &web, status),
            ("hoist/v1/prod/web-1/+", &web, Channels::All),
            ("hoist/v1/prod/web-1/#", &web, Channels::All),
            ("hoist/v1/prod/+/status", &Agents::All, status),
            ("+/+/+/+/status", &Agents::All, status),
            ("hoist/v1/prod/+/+", &Agents::All, Channels::All),
            ("hoist/v1/prod/#", &Agents::All, Channels::All),
            ("hoist/#", &Agents::All, Channels::All),
            ("#", &Agents::All, Channels::All),
        ] {
            let expected = Pattern {
                agents: agents.clone(),
                channels,
            };
            assert_eq!(parse(filter), Some(expected), "{filter}");
        }
    }

    #[test]
    fn a_filter_that_matches_no_topic_of_the_fleet_is_nothing() {
        for filter in [
            "hoist/v1/test/+/status",
            "hoist/v1/prod",
            "hoist/v1/prod/+",
            "hoist/v1/prod/web-1/status/+",
            "hoist/v1/prod/web-1/other",
            "hoist/v1/prod/Web/status",
            "hoist/v2/#",
            "$SYS/#",
            "$share/g/hoist/v1/prod/+/status",
            "/#",
            "/",
        ] {
            assert_eq!(parse(filter), None, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_named() {
        for (filter, error) in [
            ("", FilterError::Empty),
            ("a\0b", FilterError::Nul),
            ("hoist/v1/prod+/x", FilterError::Plus),
            ("hoist/#/x", FilterError::Hash),
            ("hoist/x#", FilterError::Hash),
            ("##", FilterError::Hash),
        ] {
            assert_eq!(Pattern::parse(filter, &prod()), Err(error), "{filter:?}");
        }
    }

    /// MQTT 3.1.1, section 4.7, over levels, as simply as it can be said.
    fn matches(filter: &[&str], topic: &[&str]) -> bool {
        match (filter.split_first(), topic.split_first()) {
            (Some((&"#", _)), _) => true,
            (Some((&"+", filter)), Some((_, topic))) => matches(filter, topic),
            (Some((f, filter)), Some((t, topic))) => f == t && matches(filter, topic),
            (None, None) => true,
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_exactly_what_the_standard_says(
            levels in prop::collection::vec("hoist|v1|prod|test|web-1|db-1|status|deploy|\\+|\\+", 1..7),
            hash in any::<bool>(),
            agent in "web-1|db-1",
            n in 0..6_usize,
        ) {
            let mut levels = levels;
            if hash {
                levels.push("#".to_owned());
            }
            let filter = levels.join("/");
            let topic = Machine::new(prod(), AgentName::new(agent).unwrap()).topic(Channel::ALL[n]);
            let text = topic.to_string();
            let levels: Vec<&str> = levels.iter().map(String::as_str).collect();
            let expected = matches(&levels, &text.split('/').collect::<Vec<_>>());
            let found = parse(&filter).is_some_and(|pattern| pattern.matches(&topic));
            prop_assert_eq!(found, expected, "{}", filter);
        }

        #[test]
        fn any_text_is_a_filter_of_ours_or_none(text in "\\PC{0,40}|hoist/\\PC{0,20}") {
            if let Ok(Some(_)) = Pattern::parse(&text, &prod()) {
                let first = text.split('/').next().unwrap();
                prop_assert!(matches!(first, "hoist" | "+" | "#"), "{}", text);
            }
        }
    }
}
