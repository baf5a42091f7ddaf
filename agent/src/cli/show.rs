//! How things are shown: aligned and coloured on a terminal, plain elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
pub(super) use hoist_certs::program::{show_duration as duration, show_size as bytes};
use hoist_protocol::{State, StorePath, Text, Timestamp};

/// How something stands out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tone {
    /// Not at all.
    Plain,
    /// As something good.
    Good,
    /// As something that is not well.
    Bad,
    /// As something to know.
    Mild,
}

impl Tone {
    /// How a state stands out.
    pub(super) const fn of(state: State) -> Self {
        match state {
            State::Idle => Self::Plain,
            State::Staged | State::Superseded | State::Cancelled | State::Expired => Self::Mild,
            _ if state.is_good() => Self::Good,
            _ if state.is_final() => Self::Bad,
            _ => Self::Mild,
        }
    }

    /// The colour as a number of ECMA-48's "select graphic rendition".
    const fn code(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Good => Some(32),
            Self::Bad => Some(31),
            Self::Mild => Some(33),
        }
    }
}

/// Where something is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    is_terminal: bool,
    has_colours: bool,
}

impl Screen {
    /// That of results.
    pub(super) fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// That of remarks.
    pub(super) fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    /// A terminal has colours, unless it cannot or `NO_COLOR` (<https://no-color.org>) is set.
    fn of(is_terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let can = set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb");
        Self {
            is_terminal,
            has_colours: is_terminal && can,
        }
    }

    /// Nothing but text.
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self {
        is_terminal: false,
        has_colours: false,
    };

    /// `text` in its colour.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        match tone.code() {
            Some(code) if self.has_colours => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }

    /// Lines of a name and what belongs to it, in two columns; a name that is empty goes on with the one above.
    pub(super) fn pairs(self, pairs: &[(&str, String, Tone)]) -> String {
        let width = pairs.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let line = |(name, text, tone): &(&str, String, Tone)| {
            format!("  {name:<width$}  {}\n", self.paint(*tone, text))
        };
        pairs.iter().map(line).collect()
    }

    /// A table with this header; each row has a text and a tone for each column.
    pub(super) fn table(self, header: &[&str], rows: Vec<Vec<(String, Tone)>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.is_terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|text| match self.has_colours {
            true => Cell::new(text).add_attribute(Attribute::Bold),
            false => Cell::new(text),
        }));
        for row in rows {
            table.add_row(row.into_iter().map(|(text, tone)| {
                let cell = Cell::new(text);
                match tone {
                    _ if !self.has_colours => cell,
                    Tone::Plain => cell,
                    Tone::Good => cell.fg(Color::Green),
                    Tone::Bad => cell.fg(Color::Red),
                    Tone::Mild => cell.fg(Color::Yellow),
                }
            }));
        }
        table.trim_fmt() + "\n"
    }
}

/// Writes results to stdout. A reader that has seen enough, such as `head`, is no error.
///
/// # Errors
/// Every other failure to write.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Writes a remark to stderr. When nobody reads it there is nobody left to tell.
pub(super) fn remark(text: &str) {
    if let Err(error) = writeln!(io::stderr().lock(), "{text}") {
        tracing::trace!(%error, "stderr is closed");
    }
}

/// Text of others on one line.
pub(super) fn one_line(text: &str) -> String {
    Text::<1024>::line(text).to_string()
}

/// A state in words.
pub(super) fn words(state: State) -> String {
    state.as_str().replace('_', " ")
}

/// A store path by the first digits of its hash and its name.
pub(super) fn short_path(path: &StorePath) -> String {
    format!("{}-{}", &path.hash()[..7], path.name())
}

/// How long ago something was.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.since(at) {
        age if age < Duration::from_secs(1) => "now".to_owned(),
        age => format!("{} ago", duration(age)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_nothing_but_text_is_shown() {
        let pairs = [
            ("state", "failed".to_owned(), Tone::Bad),
            ("", "more".to_owned(), Tone::Plain),
        ];
        assert_eq!(
            Screen::PLAIN.pairs(&pairs),
            "  state  failed\n         more\n"
        );
        let table = Screen::PLAIN.table(
            &["A", "B"],
            vec![vec![
                ("1".to_owned(), Tone::Good),
                ("2".to_owned(), Tone::Bad),
            ]],
        );
        assert!(!table.contains('\u{1b}'), "{table}");
    }

    #[test]
    fn a_colour_ends_where_its_text_does() {
        let screen = Screen {
            is_terminal: true,
            has_colours: true,
        };
        assert_eq!(screen.paint(Tone::Bad, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(screen.paint(Tone::Plain, "x"), "x");
    }
}
