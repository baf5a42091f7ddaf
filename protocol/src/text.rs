//! Text from others that is shown to people: bounded, and free of what a terminal would interpret.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TextError {
    /// The text is longer than allowed.
    #[error("the text has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The text holds a control character other than a newline or tab.
    #[error("the text holds the control character {0:?}")]
    Control(char),
}

/// At most `MAX` bytes of text without control characters, newline and tab excepted.
///
/// Such text can be printed to a terminal as it is. Bidirectional overrides, which can make a line read
/// as another, count as control characters.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const MAX: usize>(String);

fn is_hostile(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl<const MAX: usize> Text<MAX> {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`TextError`] when it is too long or holds a control character.
    pub fn new(text: impl Into<String>) -> Result<Self, TextError> {
        let text = text.into();
        if text.len() > MAX {
            return Err(TextError::TooLong {
                len: text.len(),
                max: MAX,
            });
        }
        match text.chars().find(|c| is_hostile(*c)) {
            Some(found) => Err(TextError::Control(found)),
            None => Ok(Self(text)),
        }
    }

    /// Makes text out of anything: control characters become `\u{fffd}`, and what is too long ends in `…`.
    ///
    /// For what programs and other machines say, where losing a character is better than losing the message.
    #[must_use]
    pub fn lossy(text: &str) -> Self {
        let mut kept = String::with_capacity(text.len().min(MAX));
        for c in text.chars() {
            let c = if is_hostile(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            };
            if kept.len() + c.len_utf8() > MAX {
                let ellipsis = '…';
                while kept.len() + ellipsis.len_utf8() > MAX && kept.pop().is_some() {}
                if MAX >= ellipsis.len_utf8() {
                    kept.push(ellipsis);
                }
                break;
            }
            kept.push(c);
        }
        Self(kept)
    }

    /// Makes one line of anything, as [`Self::lossy`] does: line feeds and tabs become spaces.
    #[must_use]
    pub fn line(text: &str) -> Self {
        Self::lossy(&text.replace(['\n', '\t'], " "))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        Self::new(text)
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_one() {
        assert_eq!(
            Text::<40>::line("web-1\n\tINFO\r\u{1b}").as_str(),
            "web-1  INFO\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn control_characters_are_refused() {
        assert!(Text::<20>::new("a line\n\tand more").is_ok());
        for bad in ["\u{1b}[31m", "a\rb", "\u{202e}evil", "\u{7f}"] {
            assert!(Text::<20>::new(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_made_lossy_is_valid(text in any::<String>()) {
            let made = Text::<16>::lossy(&text);
            prop_assert_eq!(Text::<16>::new(made.as_str()).unwrap(), made);
        }
    }
}
