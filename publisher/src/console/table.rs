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

/// Where a table is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Page {
    /// The width in columns to fit into; none where lines have no end, such as a file.
    width: Option<u16>,
    colours: bool,
}

impl Page {
    pub(crate) fn stdout() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self {
            // Where the terminal does not say, a terminal has 80 columns.
            width: is_terminal.then(|| Table::new().width().unwrap_or(80)),
            colours: stdout_has_colours(),
        }
    }

    /// Without colours, so wide.
    #[cfg(test)]
    pub(crate) const fn plain(width: Option<u16>) -> Self {
        Self {
            width,
            colours: false,
        }
    }
}

/// A table on `page` with this header; each row has a text and a tone for each column.
pub(crate) fn render(page: Page, header: &[&str], rows: Vec<Vec<(String, Tone)>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match page.width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width);
            // Where it is a terminal is known, and colours were decided on.
            table.enforce_styling();
        }
        None => {
            table.force_no_tty();
        }
    }
    table.set_header(header.iter().map(|text| {
        let cell = Cell::new(text);
        if page.colours {
            cell.add_attribute(Attribute::Bold)
        } else {
            cell
        }
    }));
    for row in rows {
        table.add_row(row.into_iter().map(|(text, tone)| {
            let cell = Cell::new(text);
            match tone {
                _ if !page.colours => cell,
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Bad => cell.fg(Color::Red),
                Tone::Mild => cell.fg(Color::Yellow),
            }
        }));
    }
    table.trim_fmt() + "\n"
}
