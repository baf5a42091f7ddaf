//! Which lines of a machine's log were shown already.
//!
//! An agent that was restarted sends the log of its deployment again from the first line, since it cannot know
//! what had arrived: what was shown is not shown twice.

use std::collections::HashMap;

use hoist_protocol::{AgentName, DeploymentId, LogLine};

/// The lines shown, for each machine those of one deployment: the one it spoke of last.
#[derive(Clone, Debug, Default)]
pub struct LinesShown(HashMap<AgentName, Shown>);

#[derive(Clone, Copy, Debug)]
struct Shown {
    id: DeploymentId,
    /// The highest number among them.
    last: u64,
    count: u64,
}

impl LinesShown {
    /// Notes that all lines of `id` up to number `last` were shown.
    pub fn note(&mut self, agent: &AgentName, id: DeploymentId, last: u64) {
        let shown = Shown {
            id,
            last,
            count: last,
        };
        self.0.insert(agent.clone(), shown);
    }

    /// Whether `line` is to be shown; if so, it counts as shown.
    pub fn is_new(&mut self, agent: &AgentName, line: &LogLine) -> bool {
        match self.0.get_mut(agent) {
            Some(shown) if shown.id == line.id => {
                if line.line <= shown.last {
                    return false;
                }
                shown.last = line.line;
                shown.count += 1;
            }
            _ => {
                let shown = Shown {
                    id: line.id,
                    last: line.line,
                    count: 1,
                };
                self.0.insert(agent.clone(), shown);
            }
        }
        true
    }

    /// How many lines of the machine's last deployment were shown.
    #[must_use]
    pub fn count(&self, agent: &AgentName) -> u64 {
        self.0.get(agent).map_or(0, |shown| shown.count)
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{Stream, Text, Timestamp};

    use super::*;
    use crate::testing::{id, machine};

    fn line(deployment: u128, line: u64) -> LogLine {
        LogLine {
            id: id(deployment),
            line,
            ts: Timestamp::default(),
            stream: Stream::Stdout,
            text: Text::default(),
        }
    }

    #[test]
    fn a_log_that_is_sent_again_goes_on_where_it_was() {
        let (mut shown, web) = (LinesShown::default(), machine("web-1").agent);
        let numbers = [1, 2, 4, 1, 2, 3, 4, 5];
        let new: Vec<u64> = numbers
            .into_iter()
            .filter(|number| shown.is_new(&web, &line(7, *number)))
            .collect();
        assert_eq!(new, [1, 2, 4, 5]);
        assert_eq!(shown.count(&web), 4);
    }

    #[test]
    fn another_deployment_or_machine_starts_anew() {
        let mut shown = LinesShown::default();
        let (web, db) = (machine("web-1").agent, machine("db-1").agent);
        shown.note(&web, id(7), 3);
        assert!(!shown.is_new(&web, &line(7, 3)));
        assert!(shown.is_new(&web, &line(8, 1)));
        assert!(shown.is_new(&db, &line(7, 1)));
        assert_eq!(shown.count(&web), 1);
    }
}
