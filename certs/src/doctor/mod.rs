//! What a program finds when it looks for what keeps it from its work: a line for each thing that was looked at, and
//! what to do where something is wrong.

mod credentials;

use hoist_protocol::Text;
use serde::Serialize;

pub use credentials::{UNIT_CREDENTIALS, Wanted, credentials, is_private};

/// What is to be made of a finding.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// To know; nothing is wrong.
    Note,
    /// Something has to be done.
    Wrong,
}

/// One line of the report.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at.
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            check,
            verdict,
            message: one_line(&message.into()),
            advice: None,
        }
    }

    /// All is well.
    #[must_use]
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, message)
    }

    /// To know.
    #[must_use]
    pub fn note(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Verdict::Note, message)
    }

    /// Something has to be done.
    #[must_use]
    pub fn wrong(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Verdict::Wrong, message)
    }

    /// What to do.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(one_line(&advice.into()));
        self
    }

    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.verdict != Verdict::Wrong
    }

    /// What is to be made of it.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What was found.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The report.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// One more.
    pub fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// Some more.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.0.extend(findings);
    }

    /// Whether nothing has to be done.
    #[must_use]
    pub fn are_good(&self) -> bool {
        self.0.iter().all(Finding::is_fine)
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data always has a JSON form")
    }

    /// For people: a line each, and below it what to do. `paint` colours the word of a verdict where that may be.
    #[must_use]
    pub fn to_text(&self, paint: impl Fn(Verdict, &str) -> String) -> String {
        let width = self.0.iter().map(|finding| finding.check.len()).max();
        let width = width.unwrap_or(0);
        let mut text = String::new();
        for finding in &self.0 {
            let word = match finding.verdict {
                Verdict::Ok => "ok   ",
                Verdict::Note => "note ",
                Verdict::Wrong => "WRONG",
            };
            let word = paint(finding.verdict, word);
            text += &format!("{word}  {:<width$}  {}\n", finding.check, finding.message);
            if let Some(advice) = &finding.advice {
                text += &format!("{:7}{:<width$}  → {advice}\n", "", "");
            }
        }
        text
    }
}

/// Text of others on one line.
fn one_line(text: &str) -> String {
    Text::<1024>::line(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings(vec![
            Finding::ok("nix", "2.8"),
            Finding::wrong("certificate", "it\nhas \u{1b}[2Jexpired").advice("renew it"),
        ])
    }

    #[test]
    fn each_check_is_a_line_and_what_is_wrong_says_what_to_do() {
        assert_eq!(
            findings().to_text(|_, word| word.to_owned()),
            "ok     nix          2.8\n\
             WRONG  certificate  it has \u{fffd}[2Jexpired\n\
             \x20                   → renew it\n"
        );
        assert!(!findings().are_good());
    }

    #[test]
    fn a_note_is_nothing_wrong() {
        assert!(Findings(vec![Finding::note("hold", "held")]).are_good());
    }

    #[test]
    fn a_program_reads_the_same() {
        let json: serde_json::Value = serde_json::from_str(&findings().to_json()).unwrap();
        assert_eq!(json[1]["verdict"], "wrong");
        assert_eq!(json[1]["advice"], "renew it");
        assert_eq!(json[0].get("advice"), None);
    }
}
