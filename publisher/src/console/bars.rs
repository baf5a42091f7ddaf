//! Progress on a terminal: a line for each machine, as many as fit, and one for the rest.

use std::time::Duration;

use hoist_protocol::State;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::describe::describe;
use super::terminal_size;
use crate::duration;
use crate::follow::{Outlook, Phase, Published, Step};
use crate::outcome::Outcome;

/// Most machines that have a line of their own.
const ROWS: usize = 20;

/// How often a line moves while nothing is heard.
const TICK: Duration = Duration::from_millis(120);

/// Lines of the terminal that are left to what is printed above.
const ABOVE: usize = 4;

/// Width of a bar in characters, and on a terminal that is narrower than [`ROOMY`] columns.
const WIDTHS: (usize, usize) = (24, 10);

/// See [`WIDTHS`].
const ROOMY: u16 = 110;

/// The lines.
pub(super) struct Bars {
    all: MultiProgress,
    rows: Vec<Row>,
    rest: ProgressBar,
    colours: bool,
}

struct Row {
    bar: ProgressBar,
    /// How it looks, with the width of its bar.
    look: Option<(Look, usize)>,
}

/// How a line looks; its text changes more often.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Look {
    // In this order machines get one of the few lines.
    Measured,
    Working,
    Bad,
    Waiting,
    Good,
    Later,
}

impl Look {
    fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Reported(step) if step.percent.is_some() => Self::Measured,
            Phase::Reported(step) => match step.state {
                State::RollingBack => Self::Bad,
                State::Held => Self::Waiting,
                _ => Self::Working,
            },
            Phase::Queued => Self::Later,
            Phase::Publishing | Phase::Published | Phase::Away => Self::Waiting,
            Phase::Ended(outcome) if outcome.is_good() => Self::Good,
            Phase::Ended(Outcome::Offline | Outcome::Deferred | Outcome::NotBegun) => Self::Waiting,
            Phase::Ended(_) => Self::Bad,
        }
    }

    fn style(self, colours: bool, width: usize) -> ProgressStyle {
        let colour = match (colours, self) {
            (false, _) => "",
            (_, Self::Measured | Self::Working) => ".cyan",
            (_, Self::Waiting | Self::Later) => ".dim",
            (_, Self::Good) => ".green",
            (_, Self::Bad) => ".red",
        };
        let message = if colour.is_empty() {
            "{wide_msg}".to_owned()
        } else {
            format!("{{wide_msg:{colour}}}")
        };
        let template = match self {
            Self::Measured => {
                format!("{{spinner}} {{prefix}} [{{bar:{width}{colour}}}] {{wide_msg}}")
            }
            Self::Good => format!("✔ {{prefix}} {message}"),
            Self::Bad => format!("✘ {{prefix}} {message}"),
            Self::Working | Self::Waiting | Self::Later => {
                format!("{{spinner}} {{prefix}} {message}")
            }
        };
        ProgressStyle::with_template(&template)
            .expect("the templates above are well formed; a test makes all of them")
            .progress_chars("=> ")
    }
}

impl Bars {
    pub(super) fn new(colours: bool) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let rest = all.add(ProgressBar::new_spinner());
        rest.set_style(
            ProgressStyle::with_template("{wide_msg}").expect("the template is well formed"),
        );
        Self {
            all,
            rows: Vec::new(),
            rest,
            colours,
        }
    }

    /// Prints a line above the progress.
    pub(super) fn above(&self, text: &str) {
        if let Err(error) = self.all.println(text) {
            tracing::trace!(%error, "stderr is closed");
        }
    }

    pub(super) fn clear(&mut self) {
        for row in &self.rows {
            row.bar.finish_and_clear();
        }
        self.rest.finish_and_clear();
        self.rows.clear();
        if let Err(error) = self.all.clear() {
            tracing::trace!(%error, "stderr is closed");
        }
    }

    pub(super) fn show<'a>(
        &mut self,
        published: Published,
        machines: impl Iterator<Item = Outlook<'a>>,
        bakes_for: Option<Duration>,
    ) {
        let mut machines: Vec<(Look, Outlook<'a>)> = machines
            .map(|outlook| (Look::of(&outlook.phase), outlook))
            .collect();
        let (columns, lines) = terminal_size();
        let room = usize::from(lines).saturating_sub(ABOVE).clamp(1, ROWS);
        let summary = summary(published, &machines, room, bakes_for);
        self.rest.set_message(summary);
        choose(&mut machines, room);
        while self.rows.len() > machines.len().max(1) {
            if let Some(row) = self.rows.pop() {
                row.bar.finish_and_clear();
                self.all.remove(&row.bar);
            }
        }
        let bar = if columns < ROOMY { WIDTHS.1 } else { WIDTHS.0 };
        let width = machines
            .iter()
            .map(|(_, outlook)| outlook.agent.as_str().len())
            .max()
            .unwrap_or(0);
        for (number, (look, outlook)) in machines.iter().enumerate() {
            if number >= self.rows.len() {
                let bar = self.all.insert_before(&self.rest, ProgressBar::new(100));
                bar.enable_steady_tick(TICK);
                self.rows.push(Row { bar, look: None });
            }
            let row = &mut self.rows[number];
            if row.look != Some((*look, bar)) {
                row.bar.set_style(look.style(self.colours, bar));
                row.look = Some((*look, bar));
            }
            if let Phase::Reported(step) = outlook.phase {
                let (done, of) = measure(&step);
                row.bar.set_length(of);
                row.bar.set_position(done);
            }
            row.bar.set_prefix(format!("{:<width$}", outlook.agent));
            row.bar.set_message(describe(outlook));
        }
    }
}

/// Of more machines than there is room for, leaves those that somebody who looks wants to see: what happens, what is wrong,
/// what the batch has come to, and only then what was before it and what comes next.
fn choose(machines: &mut Vec<(Look, Outlook<'_>)>, room: usize) {
    if machines.len() <= room {
        return;
    }
    machines.sort_by(|(a, x), (b, y)| {
        let by_batch = match a {
            Look::Later => x.batch.cmp(&y.batch),
            _ => y.batch.cmp(&x.batch),
        };
        let by_name = || x.agent.cmp(y.agent);
        a.cmp(b).then(by_batch).then_with(by_name)
    });
    machines.truncate(room);
}

/// How far the bar is: by bytes where they are known, else in percent.
fn measure(step: &Step) -> (u64, u64) {
    match step.fetch {
        Some(fetch) if fetch.fetch_bytes > 0 => (fetch.fetched_bytes, fetch.fetch_bytes),
        _ => (step.percent.unwrap_or(0).into(), 100),
    }
}

/// Of `machines` so many as `room` have lines of their own.
fn summary(
    published: Published,
    machines: &[(Look, Outlook<'_>)],
    room: usize,
    bakes_for: Option<Duration>,
) -> String {
    let count = |wanted: &[Look]| {
        let of_these = machines.iter().filter(|(look, _)| wanted.contains(look));
        of_these.count()
    };
    let hidden = machines.len().saturating_sub(room);
    let hidden = if hidden > 0 {
        format!(" ({hidden} not shown)")
    } else {
        String::new()
    };
    let Published { there, of, .. } = published;
    if !published.is_over() {
        return format!("publishing {there}/{of}{hidden}");
    }
    let mut summary = format!("{} of {of} done", count(&[Look::Good]));
    for (looks, what) in [
        (&[Look::Measured, Look::Working][..], "under way"),
        (&[Look::Waiting], "waiting"),
        (&[Look::Bad], "not well"),
        (&[Look::Later], "in later batches"),
    ] {
        let number = count(looks);
        if number > 0 {
            summary.push_str(&format!(", {number} {what}"));
        }
    }
    if let Some(left) = bakes_for {
        let seconds = left.as_millis().div_ceil(1000);
        let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
        let left = duration::show(left);
        summary.push_str(&format!("; the next batch in {left}"));
    }
    summary + &hidden
}

#[cfg(test)]
mod tests {
    use hoist_protocol::AgentName;

    use super::*;

    #[test]
    fn every_look_has_a_style() {
        for look in [
            Look::Measured,
            Look::Working,
            Look::Bad,
            Look::Waiting,
            Look::Good,
            Look::Later,
        ] {
            for colours in [true, false] {
                // Fails by panic where a template is not well formed.
                let style = look.style(colours, WIDTHS.1);
                let bar = ProgressBar::hidden();
                bar.set_style(style);
                bar.set_message("x");
                assert_eq!(bar.message(), "x");
            }
        }
    }

    #[test]
    fn while_a_batch_bakes_its_machines_are_shown_and_those_to_come_are_counted() {
        let ended = || Phase::Ended(Outcome::Succeeded);
        let fleet = [
            ("a", 2, Phase::Queued),
            ("b", 1, ended()),
            ("c", 0, ended()),
            ("d", 1, Phase::Away),
            ("e", 3, Phase::Queued),
        ];
        let agents: Vec<AgentName> = (fleet.iter())
            .map(|(name, ..)| AgentName::new(*name).unwrap())
            .collect();
        let mut machines: Vec<_> = (fleet.into_iter().zip(&agents))
            .map(|((_, batch, phase), agent)| {
                let message = String::new();
                let look = Look::of(&phase);
                let outlook = Outlook {
                    agent,
                    batch,
                    phase,
                    message,
                };
                (look, outlook)
            })
            .collect();
        let published = Published {
            there: 3,
            refused: 0,
            of: 3,
            by_others: false,
        };
        let left = Some(Duration::from_millis(61_200));
        assert_eq!(
            summary(published, &machines, 3, left),
            "2 of 3 done, 1 waiting, 2 in later batches; the next batch in 1m 2s (2 not shown)"
        );
        choose(&mut machines, 3);
        let shown: Vec<&str> = (machines.iter())
            .map(|(_, outlook)| outlook.agent.as_str())
            .collect();
        assert_eq!(shown, ["d", "b", "c"]);
    }
}
