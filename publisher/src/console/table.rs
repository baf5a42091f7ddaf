//! Tables on stdout: fitted to the terminal and coloured there, bare columns elsewhere.

use std::io::IsTerminal as _;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};

use super::stdout_has_colours;

/// How a cell stands out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tone {
    /// Not at all.
    Plain,
    /// As something good.
    Good,
    /// As something that is not well.
    Bad,
    /// As something to know.
    Mild,
}

/// A table with this header; each row has a text and a tone for each column.
#[must_use]
pub fn render(header: &[&str], rows: Vec<Vec<(String, Tone)>>) -> String {
    let is_terminal = std::io::stdout().is_terminal();
    let colours = stdout_has_colours();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if is_terminal {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    table.set_header(header.iter().map(|text| {
        let cell = Cell::new(text);
        if colours {
            cell.add_attribute(Attribute::Bold)
        } else {
            cell
        }
    }));
    for row in rows {
        table.add_row(row.into_iter().map(|(text, tone)| {
            let cell = Cell::new(text);
            match tone {
                _ if !colours => cell,
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Bad => cell.fg(Color::Red),
                Tone::Mild => cell.fg(Color::Yellow),
            }
        }));
    }
    table.trim_fmt() + "\n"
}
