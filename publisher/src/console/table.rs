//! Tables on stdout: fitted to the terminal and coloured there, bare columns elsewhere.

use std::io::IsTerminal as _;

use comfy_table::{
    Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Row, Table, Width, presets,
};
use hoist_protocol::State;
use textwrap::{Options, WordSeparator, WordSplitter};
use unicode_width::UnicodeWidthStr as _;

use super::{stdout_has_colours, terminal_size};

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

impl Tone {
    /// How a state stands out.
    #[must_use]
    pub const fn of(state: State) -> Self {
        match state {
            State::Idle => Self::Plain,
            state if state.is_good() => Self::Good,
            State::Superseded | State::Expired | State::Cancelled => Self::Mild,
            state if state.is_final() => Self::Bad,
            _ => Self::Mild,
        }
    }
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
            width: is_terminal.then(|| terminal_size().0),
            colours: stdout_has_colours(),
        }
    }

    /// A terminal so wide.
    pub(crate) const fn terminal(width: u16, colours: bool) -> Self {
        Self {
            width: Some(width),
            colours,
        }
    }

    /// `text` in the colour of its tone, where there are colours.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.colours => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Mild => 33,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// `text`, broken between words so that it fits behind `indent` columns, which stand before all lines but the first.
    /// A word that is longer than a line stays whole: it may be a path that somebody copies.
    pub(crate) fn wrapped(self, indent: usize, text: &str) -> String {
        let Some(width) = self.width else {
            return text.to_owned();
        };
        let room = usize::from(width).saturating_sub(indent).max(NARROWEST);
        let options = Options::new(room)
            .break_words(false)
            .word_separator(WordSeparator::AsciiSpace)
            .word_splitter(WordSplitter::NoHyphenation);
        textwrap::wrap(text, options).join(&format!("\n{:indent$}", ""))
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

/// The least room that the text in the last column is given beside the others, in columns of the terminal, before it
/// goes below them.
const BESIDE: usize = 30;

/// No column gets narrower than this, however narrow the terminal.
const NARROWEST: usize = 8;

/// A column that is wider holds the names of closures, as a rule: of these the beginning tells most, so they are cut
/// before anything else is.
const LONG: usize = 24;

/// The width to which a long column is cut before others are.
const CUT: usize = 12;

/// How far a text that stands below its row is indented.
const INDENT: usize = 4;

/// A table on `page` with this header; each row has a text and a tone for each column.
///
/// The last column may hold text of any length. On a terminal it is broken into lines; on one that has no room for
/// it, it stands below its row, and what is too long in another column ends in `…`.
pub(crate) fn render(page: Page, header: &[&str], rows: Vec<Vec<(String, Tone)>>) -> String {
    let Some(width) = page.width.map(usize::from) else {
        let mut table = table(page, header, rows);
        table.force_no_tty();
        unpad(&mut table);
        return table.trim_fmt() + "\n";
    };
    let mut widths = natural(header, &rows);
    let Some(last) = widths.pop() else {
        return String::new();
    };
    let left = width.saturating_sub(total(&widths) + PADDING);
    if left >= last.min(BESIDE) {
        widths.push(left.min(last));
        return fixed(table(page, header, rows), &widths).trim_fmt() + "\n";
    }
    // A number or a few words have room beside what can be cut.
    if last <= CUT {
        let mut cut = widths.clone();
        shrink(&mut cut, width.saturating_sub(last + PADDING));
        if total(&cut) + last + PADDING <= width {
            cut.push(last);
            return one_line_each(table(page, header, rows), &cut).trim_fmt() + "\n";
        }
    }
    below(page, width, header, rows, widths)
}

/// A table whose rows are one line each, however narrow the terminal: what has no room is cut. The header comes first.
pub(crate) fn lines(page: Page, header: &[&str], rows: Vec<Vec<(String, Tone)>>) -> Vec<String> {
    let width = page.width.map_or(usize::MAX, usize::from);
    let mut widths = natural(header, &rows);
    let Some(last) = widths.pop() else {
        return Vec::new();
    };
    // The last column has what the others leave, but has to tell something.
    let least = last.min(BESIDE / 2) + PADDING;
    shrink(&mut widths, width.saturating_sub(least));
    let left = width.saturating_sub(total(&widths) + PADDING);
    widths.push(left.min(last).max(1));
    let shown = one_line_each(table(page, header, rows), &widths).trim_fmt();
    shown.lines().map(str::to_owned).collect()
}

/// As much of `text` as has room in `width` columns; one that is cut ends in `…`.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if kept.width() + 1 > width {
            kept.pop();
            break;
        }
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// Makes the widest columns narrower until all fit into `width`, or none may get narrower.
fn shrink(widths: &mut [usize], width: usize) {
    let natural = widths.to_vec();
    for (longer_than, least) in [(LONG, CUT), (0, NARROWEST)] {
        while total(widths) > width {
            let columns = widths.iter_mut().zip(&natural);
            let cut = columns.filter(|(width, natural)| **natural > longer_than && **width > least);
            let Some((widest, _)) = cut.max_by_key(|(width, _)| **width) else {
                break;
            };
            *widest -= 1;
        }
    }
}

/// The columns that so wide columns take, with what is between them.
fn total(widths: &[usize]) -> usize {
    widths.iter().map(|width| width + PADDING).sum()
}

/// A table whose rows are one line each; what is cut ends in `…`.
fn one_line_each(table: Table, widths: &[usize]) -> Table {
    let mut table = fixed(table, widths);
    table.set_truncation_indicator("…");
    for row in table.row_iter_mut() {
        row.max_height(1);
    }
    table
}

/// The table without its last column, whose texts stand below the rows.
fn below(
    page: Page,
    width: usize,
    header: &[&str],
    mut rows: Vec<Vec<(String, Tone)>>,
    mut widths: Vec<usize>,
) -> String {
    shrink(&mut widths, width);
    let texts: Vec<(String, Tone)> = rows.iter_mut().filter_map(Vec::pop).collect();
    let table = one_line_each(table(page, &header[..widths.len()], rows), &widths);
    let mut shown = String::new();
    let lines = table.trim_fmt();
    let mut lines = lines.lines();
    for line in lines.by_ref().take(1) {
        shown += &format!("{line}\n");
    }
    for (line, (text, tone)) in lines.zip(texts) {
        shown += &format!("{line}\n");
        if text.is_empty() {
            continue;
        }
        let room = width.saturating_sub(INDENT + PADDING).max(NARROWEST);
        let cell = Table::new();
        let mut cell = styled(cell);
        cell.add_row([paint(page, &text, tone)]);
        for line in fixed(cell, &[room]).trim_fmt().lines() {
            shown += &format!("{:INDENT$}{line}\n", "");
        }
    }
    shown
}

/// What a cell's text has on its two sides, in columns.
const PADDING: usize = 2;

/// The width of each column that holds its longest text.
fn natural(header: &[&str], rows: &[Vec<(String, Tone)>]) -> Vec<usize> {
    let mut widths: Vec<usize> = header.iter().map(|text| text.width()).collect();
    for row in rows {
        for (width, (text, _)) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.width());
        }
    }
    widths
}

fn styled(mut table: Table) -> Table {
    table.load_style(presets::NOTHING);
    // Where it is a terminal is known, and colours were decided on.
    table.enforce_styling();
    table
}

fn fixed(mut table: Table, widths: &[usize]) -> Table {
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_constraints(widths.iter().enumerate().map(|(number, width)| {
        let padding = if number == 0 { PADDING - 1 } else { PADDING };
        let all = u16::try_from(width + padding).unwrap_or(u16::MAX);
        ColumnConstraint::Absolute(Width::Fixed(all))
    }));
    unpad(&mut table);
    table
}

/// Lines begin with their text.
fn unpad(table: &mut Table) {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
}

fn table(page: Page, header: &[&str], rows: Vec<Vec<(String, Tone)>>) -> Table {
    let mut table = styled(Table::new());
    let mut first = Row::from(header.iter().map(|text| {
        let cell = Cell::new(text);
        if page.colours {
            cell.add_attribute(Attribute::Bold)
        } else {
            cell
        }
    }));
    first.max_height(1);
    table.set_header(first);
    for row in rows {
        table.add_row(row.iter().map(|(text, tone)| paint(page, text, *tone)));
    }
    table
}

fn paint(page: Page, text: &str, tone: Tone) -> Cell {
    let cell = Cell::new(text);
    match tone {
        _ if !page.colours => cell,
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Mild => cell.fg(Color::Yellow),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn rows() -> Vec<Vec<(String, Tone)>> {
        let row = |cells: [&str; 3], tone| {
            let cells = cells.map(|text| (text.to_owned(), Tone::Plain));
            let mut row = cells.to_vec();
            row[0].1 = tone;
            row
        };
        vec![
            row(["web-1", "0c5b8w3-nixos-system-web-1-v4", ""], Tone::Good),
            row(
                [
                    "web-2",
                    "short",
                    "the health check failed: nothing listens on port 80",
                ],
                Tone::Bad,
            ),
        ]
    }

    fn shown(width: u16, colours: bool) -> String {
        let page = Page {
            width: Some(width),
            colours,
        };
        render(page, &["MACHINE", "RUNS", "MESSAGE"], rows())
    }

    #[test]
    fn a_long_text_is_broken_beside_the_rest_where_there_is_room() {
        expect![[r#"
            MACHINE  RUNS                           MESSAGE
            web-1    0c5b8w3-nixos-system-web-1-v4
            web-2    short                          the health check failed: nothing
                                                    listens on port 80
        "#]]
        .assert_eq(&shown(80, false));
    }

    #[test]
    fn without_room_it_stands_below_and_what_is_too_long_is_cut() {
        let narrow = shown(32, false);
        assert!(narrow.lines().all(|line| line.width() <= 32), "{narrow}");
        expect![[r#"
            MACHINE  RUNS
            web-1    0c5b8w3-nixos-system…
            web-2    short
                the health check failed:
                nothing listens on port 80
        "#]]
        .assert_eq(&narrow);
    }

    #[test]
    fn what_is_long_is_cut_before_what_is_short() {
        let row = [
            "0c5b8w3-nixos-system-web-1-24.11.20241126.5083ec8",
            "2d 3h ago (stale)",
            "12 MiB",
        ];
        let row = row.map(|text| (text.to_owned(), Tone::Plain)).to_vec();
        let header = ["RUNS", "UPDATED", "SIZE"];
        let shown = |width| render(Page::plain(Some(width)), &header, vec![row.clone()]);
        expect![[r#"
            RUNS               UPDATED            SIZE
            0c5b8w3-nixos-sy…  2d 3h ago (stale)  12 MiB
        "#]]
        .assert_eq(&shown(46));
        expect![[r#"
            RUNS         UPDATED      SIZE
            0c5b8w3-ni…  2d 3h ago…   12 MiB
        "#]]
        .assert_eq(&shown(34));
    }

    #[test]
    fn a_text_is_broken_between_words_and_a_path_never() {
        let text = "boots /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-x and then well-known things";
        assert_eq!(
            Page::plain(Some(30)).wrapped(4, text),
            "boots\n    /nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-x\n    and then well-known things"
        );
        assert_eq!(Page::plain(None).wrapped(4, text), text);
    }

    #[test]
    fn colours_end_where_their_text_does() {
        for width in [32, 80] {
            let shown = shown(width, true);
            let plain = strip(&shown);
            assert_ne!(plain, shown);
            // A bold header is padded to its column.
            let trimmed = |text: &str| -> Vec<String> {
                text.lines()
                    .map(|line| line.trim_end().to_owned())
                    .collect()
            };
            assert_eq!(trimmed(&plain), trimmed(&self::shown(width, false)));
            for line in shown.lines().filter(|line| line.contains('\u{1b}')) {
                let last = line.rfind("\u{1b}[").map(|at| &line[at..]);
                let ends = last.is_some_and(|last| {
                    last.starts_with("\u{1b}[0m") || last.starts_with("\u{1b}[39m")
                });
                assert!(ends, "{line:?}");
            }
        }
    }

    /// Without what colours text.
    fn strip(text: &str) -> String {
        let mut parts = text.split("\u{1b}[");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |all, part| {
            all + part.split_once('m').map_or("", |(_, rest)| rest)
        })
    }
}
