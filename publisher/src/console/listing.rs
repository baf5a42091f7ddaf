//! Things with names, a line for each: what is too long for a table.

use super::one_line;
use super::table::{Page, Tone};

/// Width of the column with the names, in characters.
const NAMES: usize = 14;

/// How far the names are indented.
const INDENT: usize = 2;

/// What is said of one thing, below a line that names it.
pub(crate) struct Listing {
    page: Page,
    text: String,
}

impl Listing {
    pub(crate) fn of(page: Page, title: &str) -> Self {
        Self {
            page,
            text: format!("{title}\n"),
        }
    }

    /// Adds a name and a text of anybody's; nothing when there is no text.
    pub(crate) fn add(&mut self, name: &str, text: &str) {
        self.add_as(name, text, Tone::Plain);
    }

    /// The same in the colour of a tone.
    pub(crate) fn add_as(&mut self, name: &str, text: &str, tone: Tone) {
        let text = one_line(text);
        if text.is_empty() {
            return;
        }
        let text = self.page.wrapped(INDENT + NAMES, &text);
        let text = self.page.paint(tone, &text);
        self.text
            .push_str(&format!("{:INDENT$}{name:<NAMES$}{text}\n", ""));
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_goes_on_below_itself() {
        let mut listing = Listing::of(Page::plain(Some(40)), "web-1");
        listing.add("state", "succeeded");
        listing.add("held", "");
        listing.add("message", "the health check failed: nothing listens");
        assert_eq!(
            listing.into_text(),
            "web-1\n  state         succeeded\n  message       the health check failed:\n                nothing listens\n"
        );
    }
}
