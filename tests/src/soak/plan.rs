//! What is deployed, and what dies meanwhile.

/// What a deployment is meant to come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// It succeeds: one of three systems that take turns.
    Good,
    /// What runs already.
    Same,
    /// Its activation fails.
    Failing,
    /// Its health check fails.
    Unhealthy,
}

/// What dies meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kill {
    Agent,
    /// The activator, when it has not ended by then.
    Activator,
    Both,
}

/// One deployment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Counted from 0.
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) kill: Option<Kill>,
    /// How many events of the deployment, such as a new state, are waited for before the kill.
    pub(super) after: u32,
}

/// All of them, the same for the same number.
pub(super) struct Plan {
    next: u32,
    deployments: u32,
}

impl Plan {
    pub(super) const fn new(deployments: u32) -> Self {
        Self {
            next: 0,
            deployments,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let number = self.next;
        if number == self.deployments {
            return None;
        }
        self.next += 1;
        // The numbers have no divisor in common, so that everything comes together with everything in the end.
        let kind = match number {
            0 => Kind::Good,
            n if n % 5 == 3 => Kind::Failing,
            n if n % 7 == 4 => Kind::Unhealthy,
            n if n % 9 == 8 => Kind::Same,
            _ => Kind::Good,
        };
        let kill = match number {
            n if n < self.deployments / 2 && n % 11 == 6 => Some(Kill::Agent),
            n if n < self.deployments / 2 && n % 17 == 9 => Some(Kill::Both),
            n if n % 13 == 5 => Some(Kill::Activator),
            _ => None,
        };
        Some(Step {
            number,
            kind,
            kill,
            after: number % 4,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_happens_in_a_short_soak_already() {
        let steps: Vec<Step> = Plan::new(30).collect();
        assert_eq!(steps.len(), 30);
        for kind in [Kind::Good, Kind::Same, Kind::Failing, Kind::Unhealthy] {
            assert!(steps.iter().any(|step| step.kind == kind), "{kind:?}");
        }
        for kill in [Kill::Agent, Kill::Activator, Kill::Both] {
            assert!(steps.iter().any(|step| step.kill == Some(kill)), "{kill:?}");
        }
    }

    #[test]
    fn the_agent_lives_on_in_the_second_half() {
        let killed = |step: &Step| matches!(step.kill, Some(Kill::Agent | Kill::Both));
        assert!(!Plan::new(1000).skip(500).any(|step| killed(&step)));
    }
}
