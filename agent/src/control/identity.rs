//! Which machine this is, for commands that cannot read its certificate: that may be the unit's own credential.

use std::fs;
use std::io;

use camino::Utf8Path;
use hoist_protocol::{AgentName, FleetName, Machine};

/// Writes the machine's names into the state folder, when they do not stand there already.
///
/// # Errors
/// The file cannot be written.
pub fn remember(state: &Utf8Path, machine: &Machine) -> io::Result<()> {
    if recall(state)?.as_ref() == Some(machine) {
        return Ok(());
    }
    let path = state.join(FILE);
    let new = state.join(format!("{FILE}.new"));
    fs::write(&new, format!("{machine}\n"))?;
    fs::rename(&new, &path)
}

/// The names that the agent wrote when it last started; none when it never has, or when they are damaged.
///
/// # Errors
/// The file cannot be read.
pub fn recall(state: &Utf8Path) -> io::Result<Option<Machine>> {
    match fs::read_to_string(state.join(FILE)) {
        Ok(text) => Ok(parse(&text)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidData
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

const FILE: &str = "machine";

fn parse(text: &str) -> Option<Machine> {
    let (fleet, agent) = text.strip_suffix('\n')?.split_once('/')?;
    let fleet = FleetName::new(fleet).ok()?;
    Some(Machine::new(fleet, AgentName::new(agent).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(dir.path()).unwrap();
        assert_eq!(recall(state).unwrap(), None);
        for text in ["prod/web-1\n", "lab/web-2\n"] {
            let machine = parse(text).unwrap();
            remember(state, &machine).unwrap();
            assert_eq!(recall(state).unwrap(), Some(machine));
        }
        for damaged in ["", "prod/web-1", "prod", "prod/we b\n"] {
            assert_eq!(parse(damaged), None, "{damaged:?}");
        }
    }
}
