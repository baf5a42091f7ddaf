//! What has to hold of a machine, by its own word: `state=failed`, `version!=0.2.*`.

use std::fmt;
use std::str::FromStr;

use hoist_protocol::{Presence, State, Status, nearest};
use wildmatch::WildMatch;

use crate::snapshot::Seen;

/// What can be asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Field {
    State,
    Reason,
    Presence,
    Tag,
    Kind,
    System,
    Version,
    Closure,
    Held,
    Reboot,
}

/// How each is written. What it means stands in [`SELECTION_HELP`](super::SELECTION_HELP).
const FIELDS: [(&str, Field); 10] = [
    ("state", Field::State),
    ("reason", Field::Reason),
    ("presence", Field::Presence),
    ("tag", Field::Tag),
    ("kind", Field::Kind),
    ("system", Field::System),
    ("version", Field::Version),
    ("closure", Field::Closure),
    ("held", Field::Held),
    ("reboot", Field::Reboot),
];

/// A condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    field: Field,
    value: WildMatch,
    negated: bool,
}

/// Why a text is no condition.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConditionError {
    /// There is nothing that compares.
    #[error("a condition is FIELD=VALUE or FIELD!=VALUE, such as state=failed")]
    Form,
    /// There is no such field.
    #[error("there is no field `{field}`{}; the fields are {}", did_you_mean(.field), fields())]
    Field {
        /// What was given.
        field: String,
    },
    /// A state that is none would choose nothing, ever.
    #[error("no machine is ever in the state `{0}`; the states are {states}", states = states())]
    State(String),
    /// A value that it never has would choose nothing, ever.
    #[error("`{field}` is {values}, not `{value}`")]
    Value {
        /// Of what.
        field: &'static str,
        /// What it can be.
        values: &'static str,
        /// What was given.
        value: String,
    },
}

fn did_you_mean(field: &str) -> String {
    nearest(field, FIELDS.map(|(name, _)| name))
        .map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

fn fields() -> String {
    FIELDS.map(|(name, _)| name).join(", ")
}

fn states() -> String {
    let all: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
    all.join(", ")
}

impl Condition {
    /// Machines that did not end well with their newest deployment: what `--failed` asks for.
    #[must_use]
    pub fn is_failure(status: &Status) -> bool {
        status.state.is_final()
            && !status.state.is_good()
            && !matches!(status.state, State::Superseded | State::Cancelled)
    }

    /// Whether it holds of a machine that was seen so. Of one that has said nothing only `!=` holds.
    #[must_use]
    pub fn holds(&self, seen: Option<&Seen>) -> bool {
        self.is(seen) != self.negated
    }

    fn is(&self, seen: Option<&Seen>) -> bool {
        let status = seen.and_then(|seen| seen.status.as_ref());
        let value = |text: &str| self.value.matches(text);
        let truth = |is: bool| value(if is { "true" } else { "false" });
        if self.field == Field::Presence {
            let presence = seen.and_then(|seen| seen.presence);
            return value(presence.map_or("unknown", Presence::as_str));
        }
        status.is_some_and(|status| match self.field {
            Field::State => value(status.state.as_str()),
            Field::Reason => status.reason.is_some_and(|reason| value(reason.as_str())),
            Field::Tag => status.tags.iter().any(|tag| value(tag.as_str())),
            Field::Kind => status
                .kind
                .as_ref()
                .is_some_and(|kind| value(kind.as_str())),
            Field::System => value(status.system.as_str()),
            Field::Version => value(status.agent_version.as_str()),
            Field::Closure => (status.current_path.as_ref()).is_some_and(|path| value(path.name())),
            Field::Held => truth(status.held || status.state == State::Held),
            Field::Reboot => truth(!status.reboot_reasons.is_empty()),
            Field::Presence => false,
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let (field, value) = text.split_once('=').ok_or(ConditionError::Form)?;
        let (field, negated) = match field.strip_suffix('!') {
            Some(field) => (field, true),
            None => (field, false),
        };
        let (field, value) = (field.trim(), value.trim());
        if field.is_empty() || value.is_empty() {
            return Err(ConditionError::Form);
        }
        let known = FIELDS.iter().find(|(name, _)| *name == field);
        let &(name, field) = known.ok_or_else(|| ConditionError::Field {
            field: field.to_owned(),
        })?;
        let pattern = WildMatch::new(value);
        let one_of = |values: &[&str]| values.iter().any(|value| pattern.matches(value));
        let wrong = |values| ConditionError::Value {
            field: name,
            values,
            value: value.to_owned(),
        };
        match field {
            Field::State
                if !State::ALL
                    .iter()
                    .any(|state| pattern.matches(state.as_str())) =>
            {
                return Err(ConditionError::State(value.to_owned()));
            }
            Field::Presence if !one_of(&["online", "offline", "unknown"]) => {
                return Err(wrong("online, offline or unknown"));
            }
            Field::Held | Field::Reboot if !one_of(&["true", "false"]) => {
                return Err(wrong("true or false"));
            }
            _ => {}
        }
        Ok(Self {
            text: text.to_owned(),
            field,
            value: pattern,
            negated,
        })
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Reason, RebootReason, StorePath};

    use super::*;
    use crate::testing::{order, status};

    fn holds(text: &str, seen: Option<&Seen>) -> bool {
        text.parse::<Condition>().unwrap().holds(seen)
    }

    #[test]
    fn a_condition_is_about_what_the_machine_said() {
        let mut status = status(order(1), State::RolledBack);
        status.reason = Some(Reason::HealthCheckFailed);
        status.reboot_reasons = vec![RebootReason::Kernel];
        status.current_path = Some(
            StorePath::new("/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-v3").unwrap(),
        );
        let seen = Seen {
            status: Some(status),
            presence: Some(Presence::Online),
            ..Seen::default()
        };
        for yes in [
            "state=rolled_back",
            "state=rolled*",
            "state!=failed",
            "reason=health_check_failed",
            "presence=online",
            "reboot=true",
            "held=false",
            "closure=*-v3",
            "version=0.1.*",
            "tag!=web",
            "kind!=nixos",
        ] {
            assert!(holds(yes, Some(&seen)), "{yes}");
        }
        for no in [
            "state=succeeded",
            "presence!=online",
            "kind=*",
            "closure=v3",
        ] {
            assert!(!holds(no, Some(&seen)), "{no}");
        }
    }

    #[test]
    fn of_a_machine_that_said_nothing_nothing_holds() {
        assert!(holds("presence=unknown", None) && holds("state!=failed", None));
        assert!(!holds("state=*", None) && !holds("held=false", None));
    }

    #[test]
    fn what_could_never_hold_is_an_error_that_says_what_could() {
        for (text, part) in [
            ("state", "state=failed"),
            ("=failed", "state=failed"),
            ("state=", "state=failed"),
            ("stat=failed", "did you mean `state`"),
            ("state=broken", "rolled_back"),
            ("presence=up", "online"),
            ("held=yes", "true or false"),
        ] {
            let error = text.parse::<Condition>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
