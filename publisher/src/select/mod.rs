//! Which machines are meant: by their names, and by what they say of themselves.
//!
//! A machine is chosen by name from what the operator wrote. Its tags, its state and the rest are the machine's own
//! word, brought by the broker: they may narrow a spec down, and can never make a machine run anything that
//! the spec does not have for it.

mod condition;
mod parse;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hoist_protocol::{AgentName, Presence, Timestamp};
use wildmatch::WildMatch;

use crate::duration;
use crate::snapshot::Seen;
pub use condition::{Condition, ConditionError};
pub use parse::SelectorError;

/// Machines, as they are written on a command line: `web-*`, `@web&!@canary`, `kind:nixos,db-1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    text: String,
    expression: Expression,
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    Term(Term),
    Not(Box<Expression>),
    /// What all of them choose.
    And(Vec<Expression>),
    /// What one of them chooses.
    Or(Vec<Expression>),
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Name(AgentName),
    Names(WildMatch),
    Tag(WildMatch),
    Kind(WildMatch),
    System(WildMatch),
}

impl Selector {
    /// Whether it chooses this machine. One of which nothing is known has a name and nothing else.
    #[must_use]
    pub fn chooses(&self, agent: &AgentName, seen: Option<&Seen>) -> bool {
        self.expression.chooses(agent, seen)
    }

    /// The machine that it is the name of, when it is no more than a name.
    #[must_use]
    pub const fn name(&self) -> Option<&AgentName> {
        match &self.expression {
            Expression::Term(Term::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// The machines that it names, to choose them or to leave them out.
    #[must_use]
    pub fn names(&self) -> Vec<&AgentName> {
        let mut names = Vec::new();
        self.expression.visit(&mut |term| {
            if let Term::Name(name) = term {
                names.push(name);
            }
        });
        names
    }

    /// Whether it takes what machines say of themselves.
    #[must_use]
    pub fn asks_machines(&self) -> bool {
        let mut asks = false;
        self.expression
            .visit(&mut |term| asks |= !matches!(term, Term::Name(_) | Term::Names(_)));
        asks
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            expression: parse::parse(text)?,
            text: text.to_owned(),
        })
    }
}

impl Expression {
    fn chooses(&self, agent: &AgentName, seen: Option<&Seen>) -> bool {
        match self {
            Self::Term(term) => term.chooses(agent, seen),
            Self::Not(other) => !other.chooses(agent, seen),
            Self::And(all) => all.iter().all(|one| one.chooses(agent, seen)),
            Self::Or(any) => any.iter().any(|one| one.chooses(agent, seen)),
        }
    }

    fn visit<'a>(&'a self, to: &mut impl FnMut(&'a Term)) {
        match self {
            Self::Term(term) => to(term),
            Self::Not(other) => other.visit(to),
            Self::And(several) | Self::Or(several) => {
                for one in several {
                    one.visit(to);
                }
            }
        }
    }
}

impl Term {
    fn chooses(&self, agent: &AgentName, seen: Option<&Seen>) -> bool {
        let status = seen.and_then(|seen| seen.status.as_ref());
        match self {
            Self::Name(name) => name == agent,
            Self::Names(names) => names.matches(agent.as_str()),
            Self::Tag(tag) => {
                status.is_some_and(|status| status.tags.iter().any(|own| tag.matches(own.as_str())))
            }
            Self::Kind(kind) => status
                .and_then(|status| status.kind.as_ref())
                .is_some_and(|own| kind.matches(own.as_str())),
            Self::System(system) => {
                status.is_some_and(|status| system.matches(status.system.as_str()))
            }
        }
    }
}

/// What selections are, for the help of the commands that take one.
pub const SELECTION_HELP: &str = "\
Selections (in quotes, since the shell has its own use for these characters):
  web-1            the machine of this name
  web-*            those whose names are like that; `?` is one character
  @web             those that have this tag by their own word (`tags` in their agent.toml)
  kind:nixos       those whose closure is activated so
  system:x86_64-*  those of this system
  a,b  a&b  !a     either, both, not; `!` binds closest, then `&`; parentheses as usual

Fields of --where FIELD=VALUE or FIELD!=VALUE (`*` and `?` as in names):
  state            where it stands with its newest deployment, such as succeeded, failed, rolled_back
  reason           why that did not end well, such as health_check_failed
  presence         online, offline or unknown
  tag              one of its tags
  kind             how its closure is activated, such as nixos, home-manager, profile
  system           such as x86_64-linux
  version          of its agent
  closure          the name of what it runs, such as nixos-system-web-1-*
  held             true or false
  reboot           whether what it runs waits for a reboot, true or false";

/// All that a command line says about which machines are meant.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One of them has to choose a machine; all machines are meant when there is none.
    pub selectors: Vec<Selector>,
    /// All of them have to hold.
    pub conditions: Vec<Condition>,
    /// One that is not connected has to have been heard of within this time.
    pub heard_within: Option<Duration>,
}

impl Selection {
    /// Whether this machine is meant, of which so much was seen `now`.
    #[must_use]
    pub fn means(&self, agent: &AgentName, seen: Option<&Seen>, now: Timestamp) -> bool {
        let chosen = self.selectors.is_empty()
            || (self.selectors.iter()).any(|selector| selector.chooses(agent, seen));
        chosen
            && (self.conditions.iter()).all(|condition| condition.holds(seen))
            && self.heard_within.is_none_or(|limit| {
                let is_there = seen.is_some_and(|seen| seen.presence == Some(Presence::Online));
                let status = seen.and_then(|seen| seen.status.as_ref());
                is_there || status.is_some_and(|status| now.since(status.ts) <= limit)
            })
    }

    /// Whether it takes what machines say of themselves.
    #[must_use]
    pub fn asks_machines(&self) -> bool {
        !self.conditions.is_empty()
            || self.heard_within.is_some()
            || self.selectors.iter().any(Selector::asks_machines)
    }

    /// The machines, when they are all given by their names and nothing else is asked.
    #[must_use]
    pub fn only_names(&self) -> Option<Vec<AgentName>> {
        if !self.conditions.is_empty() || self.heard_within.is_some() || self.selectors.is_empty() {
            return None;
        }
        let names = self.selectors.iter().map(Selector::name);
        names.map(Option::<&AgentName>::cloned).collect()
    }

    /// It as it is written on a command line.
    #[must_use]
    pub fn shown(&self) -> String {
        let selectors = self.selectors.iter().map(ToString::to_string);
        let conditions = (self.conditions.iter()).map(|condition| format!("--where {condition}"));
        let stale = (self.heard_within).map(|limit| format!("--stale {}", duration::show(limit)));
        let all = selectors.chain(conditions).chain(stale);
        all.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{State, Tag, Text};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{machine, order, status};

    fn selector(text: &str) -> Selector {
        text.parse().unwrap()
    }

    /// `web-1` as it says of itself.
    fn seen(tags: &[&str], kind: &str) -> Seen {
        let mut status = status(order(1), State::Succeeded);
        status.tags = tags.iter().map(|tag| Tag::new(*tag).unwrap()).collect();
        status.kind = Some(Text::lossy(kind));
        Seen {
            status: Some(status),
            ..Seen::default()
        }
    }

    fn chooses(text: &str, name: &str, seen: &Seen) -> bool {
        selector(text).chooses(&machine(name).agent, Some(seen))
    }

    #[test]
    fn machines_are_chosen_by_what_they_are_called_and_what_they_say() {
        let seen = seen(&["web", "eu-1"], "nixos");
        for yes in [
            "web-1",
            "web-*",
            "w?b-1",
            "*",
            "@web",
            "@eu-*",
            "kind:nixos",
            "system:x86_64-*",
            "@web&!@canary",
            "db-1,web-1",
            "!db-*",
            "@web & (kind:home-manager , kind:nixos)",
            "!!web-1",
            // `&` binds closer than `,`.
            "web-1,@canary&@none",
        ] {
            assert!(chooses(yes, "web-1", &seen), "{yes}");
        }
        for no in [
            "web-2",
            "eb-*",
            "@canary",
            "@web&@canary",
            "kind:profile",
            "system:aarch64-*",
            "!web-1",
            "(web-1,@web)&!@eu-1",
        ] {
            assert!(!chooses(no, "web-1", &seen), "{no}");
        }
    }

    #[test]
    fn a_machine_that_never_reported_has_a_name_and_nothing_else() {
        let agent = machine("web-1").agent;
        let chooses = |text: &str| selector(text).chooses(&agent, None);
        assert!(chooses("web-1") && chooses("web-*") && chooses("!@web"));
        assert!(!chooses("@web") && !chooses("kind:*") && !chooses("system:*"));
    }

    #[test]
    fn what_is_not_written_well_says_where_and_what_would_be() {
        for (text, at, part) in [
            ("", 0, "name"),
            ("web-1,", 6, "name"),
            ("@web&", 5, "name"),
            ("(web-1", 6, "`)`"),
            ("web-1)", 5, "`)`"),
            ("Web-1", 0, "`a-z`"),
            ("@", 1, "tag"),
            ("kind:", 5, "kind"),
            ("colour:red", 0, "kind:"),
            ("web-1 web-2", 6, "`,`"),
            (&"!".repeat(200), 32, "32"),
        ] {
            let error = text.parse::<Selector>().unwrap_err();
            assert_eq!(error.at, at, "{text}: {error}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let long = "a".repeat(5_000);
        assert!(
            long.parse::<Selector>()
                .unwrap_err()
                .to_string()
                .contains("4096")
        );
    }

    #[test]
    fn names_alone_are_told_from_the_rest() {
        let names = |texts: &[&str]| {
            let selection = Selection {
                selectors: texts.iter().map(|text| selector(text)).collect(),
                ..Selection::default()
            };
            selection.only_names().map(|names| names.len())
        };
        assert_eq!(names(&["web-1", "web-2"]), Some(2));
        assert_eq!(names(&["web-1", "web-*"]), None);
        assert_eq!(names(&[]), None);
        assert_eq!(selector("a,!b&@c").names().len(), 2);
        assert!(selector("a&@c").asks_machines() && !selector("a*,b").asks_machines());
    }

    #[test]
    fn a_machine_that_is_gone_for_long_can_be_left_out() {
        let selection = Selection {
            heard_within: Some(Duration::from_secs(60)),
            ..Selection::default()
        };
        let agent = machine("web-1").agent;
        let mut seen = seen(&[], "nixos");
        let means = |seen: Option<&Seen>, ms| selection.means(&agent, seen, Timestamp::from_ms(ms));
        assert!(means(Some(&seen), 60_001) && !means(Some(&seen), 60_002));
        assert!(!means(None, 0), "it was never heard of");
        seen.presence = Some(Presence::Online);
        assert!(means(Some(&seen), 60_002));
    }

    proptest! {
        #[test]
        fn nothing_that_can_be_typed_is_a_panic(text in "[a-z@!&,()*?: 0-9-]{0,40}") {
            if let Ok(selector) = text.parse::<Selector>() {
                let seen = seen(&["web"], "nixos");
                let agent = machine("web-1").agent;
                let chosen = selector.chooses(&agent, Some(&seen));
                let not: Selector = format!("!({text})").parse().unwrap();
                prop_assert_eq!(not.chooses(&agent, Some(&seen)), !chosen);
                let or: Selector = format!("({text}),web-1").parse().unwrap();
                prop_assert!(or.chooses(&agent, Some(&seen)));
                let and: Selector = format!("({text})&!web-1").parse().unwrap();
                prop_assert!(!and.chooses(&agent, Some(&seen)));
            }
        }
    }
}
