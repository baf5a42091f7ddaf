//! Progress where there is no terminal: a line for each change, with the machine's name in front.

use std::collections::HashMap;

use hoist_protocol::AgentName;

use super::describe::describe;
use crate::follow::{Outlook, Phase, Published, Step};
use crate::outcome::Outcome;

/// A machine's percentage is shown again when it has risen by so much.
const STEP: u8 = 10;

/// When the same happens to more machines at once, it is said in one line.
const ALIKE: usize = 20;

/// Remembers what was shown.
#[derive(Debug, Default)]
pub(super) struct Lines {
    shown: HashMap<AgentName, Shown>,
    published: usize,
}

#[derive(Debug, Eq, PartialEq)]
struct Shown {
    phase: Phase,
    message: String,
}

impl Lines {
    /// The lines that are new since the last call.
    pub(super) fn changes<'a>(
        &mut self,
        published: Published,
        machines: impl Iterator<Item = Outlook<'a>>,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        let mut changed: Vec<(String, Vec<&AgentName>)> = Vec::new();
        let Published {
            there: done, of, ..
        } = published;
        // About ten lines, however many machines there are.
        let step = of.div_ceil(10).max(1);
        let is_news = done > self.published && !published.by_others;
        if is_news && (published.is_over() || done >= self.published + step) {
            self.published = done;
            lines.push(format!("published {done}/{of}"));
        }
        for outlook in machines {
            // That all are being published, and have been, is said once for all.
            if matches!(
                outlook.phase,
                Phase::Queued | Phase::Publishing | Phase::Ended(Outcome::Published)
            ) {
                continue;
            }
            let now = Shown {
                phase: stepped(&outlook.phase),
                message: outlook.message.clone(),
            };
            if self.shown.get(outlook.agent) == Some(&now) {
                continue;
            }
            let said = describe(&outlook);
            match changed.iter_mut().find(|(known, _)| *known == said) {
                Some((_, agents)) => agents.push(outlook.agent),
                None => changed.push((said, vec![outlook.agent])),
            }
            self.shown.insert(outlook.agent.clone(), now);
        }
        for (said, agents) in changed {
            if agents.len() > ALIKE {
                lines.push(format!("{} machines | {said}", agents.len()));
                continue;
            }
            lines.extend(agents.iter().map(|agent| format!("{agent} | {said}")));
        }
        lines
    }
}

fn stepped(phase: &Phase) -> Phase {
    match phase {
        Phase::Reported(step) => Phase::Reported(Step {
            percent: step.percent.map(|percent| percent / STEP * STEP),
            // Every report has other numbers than the one before.
            fetch: None,
            rate: None,
            ..*step
        }),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::State;

    use super::*;

    fn published(there: usize, of: usize) -> Published {
        Published {
            there,
            refused: 0,
            of,
            by_others: false,
        }
    }

    fn lines(lines: &mut Lines, phase: Phase, message: &str) -> Vec<String> {
        let agent = AgentName::new("web-1").unwrap();
        let outlook = Outlook {
            agent: &agent,
            batch: 0,
            phase,
            message: message.to_owned(),
        };
        lines.changes(published(0, 1), std::iter::once(outlook))
    }

    #[test]
    fn a_change_is_said_once() {
        let mut shown = Lines::default();
        let fetching = |percent| {
            Phase::Reported(Step {
                state: State::Fetching,
                percent: Some(percent),
                fetch: None,
                rate: Some(percent.into()),
            })
        };
        assert_eq!(
            lines(&mut shown, fetching(40), ""),
            ["web-1 | fetching 40 %"]
        );
        assert_eq!(lines(&mut shown, fetching(44), ""), [""; 0]);
        assert_eq!(
            lines(&mut shown, fetching(51), ""),
            ["web-1 | fetching 51 %"]
        );
        let failed = Phase::Ended(Outcome::RolledBack);
        assert_eq!(
            lines(&mut shown, failed, "the check\nfailed"),
            ["web-1 | rolled back: the check failed"]
        );
    }

    #[test]
    fn what_happens_to_many_at_once_is_one_line() {
        let agents: Vec<AgentName> = (0..100)
            .map(|n| AgentName::new(format!("web-{n}")).unwrap())
            .collect();
        let outlooks = agents.iter().map(|agent| Outlook {
            agent,
            batch: 0,
            phase: Phase::Away,
            message: String::new(),
        });
        let said = Lines::default().changes(published(0, 100), outlooks);
        assert_eq!(
            said,
            ["100 machines | offline; it gets the deployment when it returns"]
        );
    }

    #[test]
    fn publishing_to_many_takes_about_ten_lines() {
        let mut shown = Lines::default();
        let said: usize = (0..=1_000)
            .map(|done| {
                shown
                    .changes(published(done, 1_000), std::iter::empty())
                    .len()
            })
            .sum();
        assert_eq!(said, 10);
    }
}
