//! GRUB 2: `default` is a number, a title, or what was saved in the environment block.

use camino::Utf8Path;
use hoist_protocol::StorePath;

use super::{Loader, below, init, read};

/// Written by NixOS's `install-grub.pl`.
const CONFIGURATION: &str = "/boot/grub/grub.cfg";

/// GRUB's own variables, in lines of `name=value`, 1024 bytes.
const ENVIRONMENT: &str = "/boot/grub/grubenv";

/// Menus are not nested deeper than this.
const DEPTH_MAX: usize = 8;

pub(super) fn find(root: &Utf8Path) -> Loader {
    let path = below(root, CONFIGURATION);
    if path.symlink_metadata().is_err() {
        return Loader::Absent;
    }
    let environment = read(&below(root, ENVIRONMENT)).unwrap_or_default();
    let configuration = read(&path);
    Loader::Present(configuration.and_then(|text| default(&text, &environment)))
}

/// What `configuration` boots by default, with GRUB's `environment`.
pub(super) fn default(configuration: &str, environment: &str) -> Option<StorePath> {
    let wanted = wanted(configuration, environment)?;
    let menu = Item::menu(configuration)?;
    let mut items = &menu;
    let mut found: Option<&Item> = None;
    for step in wanted.split('>') {
        let item = match step.trim().parse::<usize>() {
            Ok(number) => items.get(number)?,
            Err(_) => items.iter().find(|item| item.is_named(step.trim()))?,
        };
        items = &item.items;
        found = Some(item);
    }
    let mut item = found?;
    // Of a menu within the menu GRUB takes the first entry.
    while item.is_menu {
        item = item.items.first()?;
    }
    init(&item.command_line)
}

/// The entry that the configuration takes when nobody has chosen one for the next boot alone.
fn wanted(configuration: &str, environment: &str) -> Option<String> {
    let assignments = configuration.lines().filter_map(|line| {
        let line = line.trim();
        let value = line
            .strip_prefix("set ")
            .unwrap_or(line)
            .trim_start()
            .strip_prefix("default=")?;
        Some(value.trim().trim_matches('"'))
    });
    // `next_entry` holds for one boot; the assignment that follows it in an `else` is what holds otherwise.
    let lasting = |value: &&str| *value != "${next_entry}";
    let wanted = assignments.rev().find(lasting).unwrap_or("0");
    if !wanted.contains('$') {
        return Some(wanted.to_owned());
    }
    if wanted != "${saved_entry}" {
        return None;
    }
    let saved = environment
        .lines()
        .find_map(|line| line.strip_prefix("saved_entry="))
        .filter(|saved| !saved.is_empty());
    Some(saved.unwrap_or("0").to_owned())
}

/// An entry, or a menu within the menu.
#[derive(Debug, Default)]
struct Item {
    is_menu: bool,
    title: String,
    id: Option<String>,
    command_line: String,
    items: Vec<Self>,
}

impl Item {
    fn is_named(&self, name: &str) -> bool {
        self.title == name || self.id.as_deref() == Some(name)
    }

    /// The items of a configuration; none when its braces do not pair.
    fn menu(configuration: &str) -> Option<Vec<Self>> {
        let mut open: Vec<Self> = vec![Self::default()];
        // Braces of other things, such as functions, within the item that is open.
        let mut others = vec![0_usize];
        for line in configuration.lines() {
            let line = line.trim();
            if line.starts_with('#') {
                continue;
            }
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let mut opens = matches!(word, "menuentry" | "submenu");
            if opens && open.len() <= DEPTH_MAX {
                open.push(Self {
                    is_menu: word == "submenu",
                    title: words(rest).next().unwrap_or_default(),
                    id: words(rest).skip_while(|word| word != "--id").nth(1),
                    ..Self::default()
                });
                others.push(0);
            } else if matches!(word, "linux" | "linuxefi" | "linux16" | "module" | "kernel")
                && init(rest).is_some()
            {
                rest.clone_into(&mut open.last_mut()?.command_line);
            }
            for brace in braces(line) {
                let depth = others.last_mut()?;
                match brace {
                    // The brace of the item itself.
                    '{' if opens => opens = false,
                    '{' => *depth += 1,
                    _ if *depth > 0 => *depth -= 1,
                    _ => {
                        others.pop();
                        let item = open.pop()?;
                        open.last_mut()?.items.push(item);
                    }
                }
            }
        }
        match open.as_mut_slice() {
            [root] => Some(std::mem::take(&mut root.items)),
            _ => None,
        }
    }
}

/// The braces of a line that are not quoted and belong to no variable.
fn braces(line: &str) -> impl Iterator<Item = char> {
    let mut quote = None;
    let mut variable = false;
    let mut before = ' ';
    line.chars().filter(move |c| {
        let after = std::mem::replace(&mut before, *c);
        match (quote, *c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(*c),
            (None, '{') if after == '$' => variable = true,
            (None, '}') if variable => variable = false,
            (None, '{' | '}') => return true,
            _ => {}
        }
        false
    })
}

/// The words of a line, without their quotes.
fn words(line: &str) -> impl Iterator<Item = String> {
    let mut chars = line.chars().peekable();
    std::iter::from_fn(move || {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        chars.peek()?;
        let mut word = String::new();
        let mut quote = None;
        while let Some(c) = chars.next_if(|c| quote.is_some() || !c.is_whitespace()) {
            match quote {
                Some(open) if c == open => quote = None,
                None if matches!(c, '"' | '\'') => quote = Some(c),
                _ => word.push(c),
            }
        }
        Some(word)
    })
}
