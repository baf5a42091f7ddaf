//! Tests that docs/hoist.md, the manual, says what is printed.
//!
//! The JSON of a command stands there in a section `` ### JSON of `hoist NAME` `` with a table whose first column
//! names each field, in the form `` `machines[].id` ``. `.*` at the end of one stands for all that is below.

use std::collections::BTreeSet;

use serde_json::Value;

const MANUAL: &str = include_str!("../../docs/hoist.md");

/// Checks that the manual names all fields of `document`, and no others. What is null or an empty list may have
/// more below.
pub(crate) fn assert_names(command: &str, document: &Value) {
    let named = named(command);
    let mut printed = Printed::default();
    printed.walk("", document);
    let covers = |name: &str, field: &str| match name.strip_suffix(".*") {
        Some(above) => field == above || field.starts_with(&format!("{above}.")),
        None => name == field,
    };
    for field in &printed.fields {
        assert!(
            named.iter().any(|name| covers(name, field)),
            "docs/hoist.md does not name `{field}` of `hoist {command} --json`"
        );
    }
    let below = |name: &str, open: &String| {
        name.strip_prefix(open.as_str())
            .is_some_and(|rest| rest.starts_with('.') || rest.starts_with("[]"))
    };
    for name in &named {
        let is_printed = printed.fields.iter().any(|field| covers(name, field));
        let may_be = printed.open.iter().any(|open| below(name, open));
        assert!(
            is_printed || may_be,
            "docs/hoist.md names `{name}`, which `hoist {command} --json` does not print"
        );
    }
}

fn named(command: &str) -> BTreeSet<String> {
    let heading = format!("\n### JSON of `hoist {command}`\n");
    let at = MANUAL
        .find(&heading)
        .unwrap_or_else(|| panic!("docs/hoist.md has no section on the JSON of `hoist {command}`"));
    let section = &MANUAL[at + heading.len()..];
    let end = section.find("\n#").unwrap_or(section.len());
    let rows = section[..end]
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split_once(" |"));
    cells
        .flat_map(|(cell, _)| cell.split(", "))
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    assert!(MANUAL.contains(&format!("```text\n{}\n```\n", crate::outcome::EXIT_CODES)));
}

/// Checks that the manual names a command or a setting.
pub(crate) fn assert_mentions(what: &str) {
    assert!(
        MANUAL.contains(what),
        "docs/hoist.md does not name `{what}`"
    );
}

#[derive(Default)]
struct Printed {
    fields: BTreeSet<String>,
    /// What is null or empty here, and may have something below elsewhere.
    open: BTreeSet<String>,
}

impl Printed {
    fn walk(&mut self, at: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let field = match at {
                        "" => name.clone(),
                        at => format!("{at}.{name}"),
                    };
                    self.fields.insert(field.clone());
                    self.walk(&field, value);
                }
            }
            Value::Array(values) if values.is_empty() => {
                self.open.insert(at.to_owned());
            }
            Value::Array(values) => {
                for value in values {
                    self.walk(&format!("{at}[]"), value);
                }
            }
            Value::Null => {
                self.open.insert(at.to_owned());
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
