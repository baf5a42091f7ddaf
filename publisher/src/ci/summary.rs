//! A run as Markdown, for the page of a CI job.
//!
//! What machines say of themselves is in it, and a machine may be hostile: it must not get a link, a picture or a
//! headline onto the page. So the table is one block of HTML without an empty line, in which Markdown means nothing,
//! and every foreign text is in a `code` element of it, its special characters written as entities.

use std::fmt::Write as _;

use hoist_protocol::DeploymentId;

use crate::duration;
use crate::outcome::Outcome;
use crate::report::{MachineReport, Report};

/// Most that GitHub shows for a step is 1 MiB; what the job itself writes has to have room beside it.
const LONGEST: usize = 768 * 1024;

/// Most lines of a machine's log.
const LINES: usize = 30;

/// The summary of `report`.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let took = std::time::Duration::from_secs_f64(report.seconds);
    let mark = if report.exit_code == 0 { "✅" } else { "❌" };
    let mut text = format!(
        "### {mark} hoist {}: fleet `{}`\n\n{} in {}; exit code {}.\n\n",
        report.command,
        report.fleet,
        match report.machines.is_empty() {
            true => "no machine was meant".to_owned(),
            false => report.summary(),
        },
        duration::show(took),
        report.exit_code
    );
    if !report.warnings.is_empty() {
        text += "<ul>\n";
        for warning in &report.warnings {
            let _infallible = writeln!(text, "<li>{}</li>", code(warning));
        }
        text += "</ul>\n\n";
    }
    if report.machines.is_empty() {
        return text;
    }
    // Who looks here looks for what went wrong, and then for what changed.
    let mut machines: Vec<&MachineReport> = report.machines.iter().collect();
    machines.sort_by_key(|machine| {
        (
            machine.outcome.is_good(),
            machine.outcome == Outcome::Unchanged,
        )
    });
    let rows: Vec<String> = machines.into_iter().map(row).collect();
    let header = ["Machine", "Outcome", "Closure", "Deployment", "Detail"];
    let used = text.len();
    text + &table(&header, &rows, used)
}

/// A table of these rows, of as many as there is room for behind `used` bytes.
fn table(header: &[&str], rows: &[String], used: usize) -> String {
    let mut text = "<table>\n<tr>".to_owned();
    for title in header {
        let _infallible = write!(text, "<th>{title}</th>");
    }
    text += "</tr>\n";
    let mut left = rows.len();
    for row in rows {
        if used + text.len() + row.len() > LONGEST {
            break;
        }
        text += row;
        left -= 1;
    }
    text += "</table>\n";
    if left > 0 {
        let _infallible = writeln!(text, "\n… and {left} more machines.");
    }
    text + "\n"
}

/// The summary of a dry run: its heading, and a table of texts.
#[must_use]
pub fn of_table(heading: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let text = format!("### {heading}\n\n");
    if rows.is_empty() {
        return text + "No machine is meant.\n\n";
    }
    let row = |cells: &Vec<String>| {
        let cells: String = (cells.iter())
            .map(|cell| format!("<td>{}</td>", code(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: Vec<String> = rows.iter().map(row).collect();
    let used = text.len();
    text + &table(header, &rows, used)
}

fn row(machine: &MachineReport) -> String {
    let path = machine.path.as_ref().or(machine.current_path.as_ref());
    let closure = path.map_or_else(|| "-".to_owned(), |path| code(path.name()));
    let id = machine
        .id
        .map_or_else(|| "-".to_owned(), DeploymentId::short);
    let mut detail = match machine.detail().as_str() {
        "" => String::new(),
        detail => code(detail),
    };
    if !machine.outcome.is_good() && !machine.log_tail.is_empty() {
        let from = machine.log_tail.len().saturating_sub(LINES);
        let lines: Vec<String> = machine.log_tail[from..]
            .iter()
            .map(|line| code(line.as_str()))
            .collect();
        detail += &format!(
            "<details><summary>the end of its log</summary>{}</details>",
            lines.join("<br>")
        );
    }
    format!(
        "<tr><td>{}</td><td>{}</td><td>{closure}</td><td>{id}</td><td>{detail}</td></tr>\n",
        machine.agent,
        // No break between its words.
        machine.outcome.to_string().replace(' ', "&nbsp;")
    )
}

/// A text of others, as nothing but text.
fn code(text: &str) -> String {
    let mut safe = String::from("<code>");
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => safe.push(' '),
            c if c.is_ascii_alphanumeric() || " .,;-_+=()".contains(c) || !c.is_ascii() => {
                safe.push(c);
            }
            c => {
                let _infallible = write!(safe, "&#{};", u32::from(c));
            }
        }
    }
    safe + "</code>"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hoist_protocol::Text;

    use super::*;
    use crate::report::Closure;
    use crate::testing::machine;

    fn failed(message: &str) -> MachineReport {
        let agent = machine("web-1").agent;
        let mut report = MachineReport::unsigned(agent, message, Closure::default());
        report.outcome = Outcome::Failed;
        report
    }

    fn shown(machines: Vec<MachineReport>, warnings: Vec<String>) -> String {
        let fleet = machine("web-1").fleet;
        markdown(&Report::new(
            "deploy",
            fleet,
            machines,
            warnings,
            Duration::ZERO,
        ))
    }

    #[test]
    fn what_went_wrong_comes_first_and_says_why() {
        let mut good = failed("");
        good.outcome = Outcome::Unchanged;
        good.agent = machine("a-1").agent;
        let text = shown(vec![good, failed("it broke")], vec!["look".to_owned()]);
        let expected = "### ✅ hoist deploy: fleet `prod`\n\n1 unchanged, 1 failed in 0ms; exit code 0.\n\n\
            <ul>\n<li><code>look</code></li>\n</ul>\n\n\
            <table>\n<tr><th>Machine</th><th>Outcome</th><th>Closure</th><th>Deployment</th><th>Detail</th></tr>\n\
            <tr><td>web-1</td><td>failed</td><td>-</td><td>-</td><td><code>it broke; see &#96;hoist logs web-1&#96;</code></td></tr>\n\
            <tr><td>a-1</td><td>unchanged</td><td>-</td><td>-</td><td></td></tr>\n</table>\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_that_a_machine_says_gets_out_of_its_cell() {
        let hostile = "</code></td></table>\n\n# Hi <img src=x> [a](https://evil) `b` ![c](d) | @me #1 &lt; www.evil.org";
        let mut machine = failed(hostile);
        machine.log_tail = vec![Text::lossy(hostile), Text::lossy("\n\n## Log")];
        let text = shown(vec![machine], vec![hostile.to_owned()]);
        for markup in [
            "<img", "](", "# Hi", "## Log", "@me", "#1 ", "https:", "`b`", "&lt;",
        ] {
            assert!(!text.contains(markup), "{markup} in {text}");
        }
        let table = &text[text.find("<table>").unwrap()..text.find("</table>").unwrap()];
        assert!(
            !table.contains("\n\n"),
            "an empty line ends the block: {table}"
        );
        assert_eq!(text.matches("</table>").count(), 1);
    }

    #[test]
    fn a_dry_run_is_a_table_of_texts_too() {
        let rows = [vec!["web-1".to_owned(), "</td>\n\n# Hi".to_owned()]];
        let text = of_table("Dry run", &["Machine", "Then"], &rows);
        let expected = "### Dry run\n\n<table>\n<tr><th>Machine</th><th>Then</th></tr>\n\
            <tr><td><code>web-1</code></td><td><code>&#60;&#47;td&#62;  &#35; Hi</code></td></tr>\n</table>\n\n";
        assert_eq!(text, expected);
        assert!(of_table("Dry run", &["Machine"], &[]).contains("No machine"));
        let many = vec![vec!["x".repeat(900)]; 5_000];
        assert!(of_table("Dry run", &["Machine"], &many).len() < 1024 * 1024);
    }

    #[test]
    fn a_large_fleet_fits_onto_the_page() {
        let long = "x".repeat(900);
        let text = shown((0..5_000).map(|_| failed(&long)).collect(), Vec::new());
        assert!(text.len() < 1024 * 1024, "{}", text.len());
        assert!(
            text.ends_with("more machines.\n\n"),
            "{}",
            &text[text.len() - 99..]
        );
    }
}
