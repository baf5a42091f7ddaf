//! A difference, for people and for programs.

use hoist_certs::program::{show_size, show_size_difference};
use hoist_protocol::{Changes, ClosureDifference, PackageDifference, PackageFate, limits};

use super::{Compared, Found, Side};
use crate::console::one_line;
use crate::console::table::{Page, Tone, render};
use crate::report::{SCHEMA, document};
use crate::said;

/// The two sides, then what is different.
pub(super) fn text(compared: &Compared, page: Page) -> String {
    let mut text = format!(
        "from  {}\nto    {}\n",
        side(&compared.from),
        side(&compared.to)
    );
    match &compared.found {
        Found::All(difference) => {
            if !difference.packages.is_empty() {
                text += "\n";
                text += &table(difference, page);
            }
            text += &format!("\n{}\n", summary(difference));
        }
        Found::Said(changes) => text += &said_text(changes),
        Found::Sizes => text += &sizes(&compared.from, &compared.to),
        Found::Same => text += "\nthe same closure\n",
    }
    text
}

/// What somebody should know of where this is from; nothing where all is known.
pub(super) fn remark(compared: &Compared) -> Option<String> {
    let agent = compared.agent.as_ref()?;
    match compared.found {
        Found::Said(_) => Some(format!(
            "by the word of {agent}: both closures would have to be in the store of this computer to say more; \
             `nix copy --from CACHE PATH` brings one"
        )),
        Found::Sizes => Some(format!(
            "what is in the closures is not known: {agent} reports it of its newest deployments alone, and they are \
             not both in the store of this computer; `nix copy --from CACHE PATH` brings one"
        )),
        Found::All(_) | Found::Same => None,
    }
}

fn side(side: &Side) -> String {
    let path = side.path.as_ref().map_or("not known", |path| path.as_str());
    let id = (side.id).map_or_else(String::new, |id| format!("  deployment {}", id.short()));
    let size = side
        .size
        .map_or_else(String::new, |size| format!("  {}", show_size(size)));
    format!("{path}{id}{size}")
}

fn table(difference: &ClosureDifference, page: Page) -> String {
    let rows = difference.packages.iter().map(row).collect();
    render(page, &["PACKAGE", "CHANGE", "FROM", "TO", "SIZE"], rows)
}

fn row(package: &PackageDifference) -> Vec<(String, Tone)> {
    let tone = match package.change {
        PackageFate::Added => Tone::Good,
        PackageFate::Removed => Tone::Bad,
        PackageFate::Updated => Tone::Mild,
        PackageFate::Rebuilt => Tone::Plain,
    };
    let versions = |versions: &[String]| match versions {
        [] => "-".to_owned(),
        versions => one_line(&versions.join(", ")),
    };
    let size = match package.size_difference {
        0 => "-".to_owned(),
        bytes => show_size_difference(bytes),
    };
    vec![
        (one_line(&package.name), Tone::Plain),
        (package.change.as_str().to_owned(), tone),
        (versions(&package.from), Tone::Plain),
        (versions(&package.to), Tone::Plain),
        (size, Tone::Plain),
    ]
}

fn summary(difference: &ClosureDifference) -> String {
    let counts = [
        PackageFate::Updated,
        PackageFate::Added,
        PackageFate::Removed,
        PackageFate::Rebuilt,
    ];
    let counts = counts.map(|fate| (difference.count(fate), fate));
    let mut parts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, fate)| format!("{count} {}", fate.as_str()))
        .collect();
    if parts.is_empty() {
        parts.push("no package is different".to_owned());
    }
    parts.push(show_size_difference(difference.size_difference()));
    parts.join(", ")
}

fn said_text(changes: &Changes) -> String {
    let summary = match said::changes(changes) {
        same if same.is_empty() => "no package is different".to_owned(),
        summary => summary,
    };
    let mut text = format!("\n{summary}\n");
    for package in &changes.packages {
        text += &format!("  {}\n", said::package(package));
    }
    match said::unnamed_packages(changes) {
        0 => {}
        all if changes.packages.is_empty() => text += &format!("  {all} that it does not name\n"),
        more => {
            text += &format!(
                "  and {more} more: a machine names {} at most\n",
                limits::CHANGED_PACKAGES
            );
        }
    }
    text
}

fn sizes(from: &Side, to: &Side) -> String {
    let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    match (from.size, to.size) {
        (Some(from), Some(to)) => {
            let difference = signed(to).saturating_sub(signed(from));
            format!("\n{} in all\n", show_size_difference(difference))
        }
        _ => "\nnothing is known of what is different\n".to_owned(),
    }
}

/// The JSON document.
pub(super) fn json(compared: &Compared) -> String {
    let side = |side: &Side| {
        serde_json::json!({
            "path": side.path,
            "id": side.id,
            "closure_size": side.size,
        })
    };
    let (known_from, changes, packages) = match &compared.found {
        Found::All(all) => (
            "store",
            Some(counts(all)),
            Some(serde_json::json!(all.packages)),
        ),
        Found::Said(changes) => (
            "machine",
            Some(serde_json::json!({
                "added": changes.packages_added,
                "removed": changes.packages_removed,
                "updated": changes.packages_changed,
                "rebuilt": null,
                "size_difference": changes.size_difference,
            })),
            Some(changes.packages.iter().map(said_package).collect()),
        ),
        Found::Same => (
            "store",
            Some(counts(&ClosureDifference::default())),
            Some(serde_json::json!([])),
        ),
        Found::Sizes => {
            let known = compared.from.size.is_some() && compared.to.size.is_some();
            (if known { "sizes" } else { "nothing" }, None, None)
        }
    };
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "diff",
        "agent": compared.agent,
        "known_from": known_from,
        "from": side(&compared.from),
        "to": side(&compared.to),
        "changes": changes,
        "packages": packages,
    }))
}

fn counts(difference: &ClosureDifference) -> serde_json::Value {
    serde_json::json!({
        "added": difference.count(PackageFate::Added),
        "removed": difference.count(PackageFate::Removed),
        "updated": difference.count(PackageFate::Updated),
        "rebuilt": difference.count(PackageFate::Rebuilt),
        "size_difference": difference.size_difference(),
    })
}

/// In the form of [`PackageDifference`]; a machine says no sizes.
fn said_package(package: &hoist_protocol::PackageChange) -> serde_json::Value {
    let change = match (&package.from, &package.to) {
        (None, _) => PackageFate::Added,
        (_, None) => PackageFate::Removed,
        (Some(_), Some(_)) => PackageFate::Updated,
    };
    let versions = |text: &Option<hoist_protocol::Text<64>>| -> Vec<String> {
        let text = text.iter().flat_map(|text| text.as_str().split(", "));
        text.map(str::to_owned).collect()
    };
    serde_json::json!({
        "name": package.name,
        "change": change,
        "from": versions(&package.from),
        "to": versions(&package.to),
        "size_difference": null,
    })
}
