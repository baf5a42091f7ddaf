//! Reads a selector.
//!
//! ```text
//! either = both { "," both }
//! both   = one { "&" one }
//! one    = "!" one | "(" either ")" | term
//! term   = NAME | "@" TAG | "kind:" KIND | "system:" SYSTEM
//! ```
//!
//! In what a term names, `*` stands for anything and `?` for one character.

use hoist_protocol::AgentName;
use wildmatch::WildMatch;

use super::{Expression, Term};

/// Longest selector, in bytes.
const LONGEST: usize = 4096;

/// Deepest nesting of `!` and parentheses.
const DEEPEST: usize = 32;

/// A text that chooses no machines.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("at character {}: {what}", .at + 1)]
pub struct SelectorError {
    /// After so many characters.
    pub at: usize,
    what: String,
}

pub(super) fn parse(text: &str) -> Result<Expression, SelectorError> {
    if text.len() > LONGEST {
        return Err(SelectorError {
            at: LONGEST,
            what: format!("it is longer than {LONGEST} bytes"),
        });
    }
    let mut parser = Parser {
        text: text.chars().collect(),
        at: 0,
        depth: 0,
    };
    let expression = parser.either()?;
    match parser.peek() {
        None => Ok(expression),
        Some(')') => Err(parser.wrong("`)` has no `(` before it")),
        Some(_) => Err(parser.wrong("there is no `,` (or) or `&` (and) between two machines")),
    }
}

struct Parser {
    text: Vec<char>,
    at: usize,
    depth: usize,
}

impl Parser {
    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        while self.text.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_there = self.peek() == Some(wanted);
        if is_there {
            self.at += 1;
        }
        is_there
    }

    fn wrong(&self, what: impl Into<String>) -> SelectorError {
        SelectorError {
            at: self.at,
            what: what.into(),
        }
    }

    fn either(&mut self) -> Result<Expression, SelectorError> {
        self.several(',', Self::both, Expression::Or)
    }

    fn both(&mut self) -> Result<Expression, SelectorError> {
        self.several('&', Self::one, Expression::And)
    }

    fn several(
        &mut self,
        between: char,
        next: fn(&mut Self) -> Result<Expression, SelectorError>,
        join: fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression, SelectorError> {
        let first = next(self)?;
        let mut several = vec![first];
        while self.take(between) {
            several.push(next(self)?);
        }
        Ok(match (several.pop(), several.is_empty()) {
            (Some(only), true) => only,
            (last, _) => join(several.into_iter().chain(last).collect()),
        })
    }

    fn one(&mut self) -> Result<Expression, SelectorError> {
        if self.depth == DEEPEST {
            return Err(self.wrong(format!(
                "`!` and `(` are nested deeper than {DEEPEST} times"
            )));
        }
        if self.take('!') {
            self.depth += 1;
            let not = self.one()?;
            self.depth -= 1;
            return Ok(Expression::Not(Box::new(not)));
        }
        if self.take('(') {
            self.depth += 1;
            let inner = self.either()?;
            self.depth -= 1;
            if !self.take(')') {
                return Err(self.wrong("a `)` is missing here"));
            }
            return Ok(inner);
        }
        self.term().map(Expression::Term)
    }

    fn term(&mut self) -> Result<Term, SelectorError> {
        if self.take('@') {
            return self.pattern("a tag").map(Term::Tag);
        }
        self.peek();
        let start = self.at;
        let word = self.word();
        if self.text.get(self.at) == Some(&':') {
            let of: fn(WildMatch) -> Term = match word.as_str() {
                "kind" => Term::Kind,
                "system" => Term::System,
                _ => {
                    self.at = start;
                    return Err(self.wrong(format!(
                        "`{word}:` is not known; there are `kind:`, `system:` and, for tags, `@`"
                    )));
                }
            };
            self.at += 1;
            return self.pattern(&format!("a {word}")).map(of);
        }
        if word.is_empty() {
            return Err(self.wrong(
                "the name of a machine is missing here, or @TAG, kind:KIND, system:SYSTEM",
            ));
        }
        if is_pattern(&word) {
            return Ok(Term::Names(WildMatch::new(&word)));
        }
        AgentName::new(&word).map(Term::Name).map_err(|error| {
            self.at = start;
            self.wrong(error.to_string())
        })
    }

    fn pattern(&mut self, what: &str) -> Result<WildMatch, SelectorError> {
        let word = self.word();
        if word.is_empty() {
            return Err(self.wrong(format!("{what} is missing here")));
        }
        Ok(WildMatch::new(&word))
    }

    fn word(&mut self) -> String {
        let rest = self.text[self.at..].iter();
        let word: String = rest
            .take_while(|c| {
                !matches!(c, ',' | '&' | '!' | '(' | ')' | '@' | ':') && !c.is_whitespace()
            })
            .collect();
        self.at += word.chars().count();
        word
    }
}

fn is_pattern(word: &str) -> bool {
    word.contains(['*', '?'])
}
