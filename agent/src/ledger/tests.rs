//! The ledger's files: what survives what.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use hoist_agent_core::Floor;
use hoist_protocol::{DeploymentId, Order, State};

use super::*;

fn state() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let state = Utf8PathBuf::from_path_buf(dir.path().join("state")).unwrap();
    (dir, state)
}

fn ledger() -> Ledger {
    let order = Order {
        epoch: 1,
        sequence: 7,
        id: DeploymentId::new(uuid::Uuid::from_u128(9)),
    };
    let floor = Floor {
        order,
        content: None,
    };
    Ledger {
        floor: Some(floor),
        ..Ledger::default()
    }
}

/// Changes one bit in the middle of a file.
fn damage(path: &Utf8Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, &bytes).unwrap();
    bytes
}

fn without_damage(ledger: Ledger) -> Ledger {
    Ledger {
        damage: None,
        ..ledger
    }
}

#[test]
fn what_was_saved_is_there_after_a_restart() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    assert_eq!(file.load().unwrap(), Ledger::default());
    assert_eq!(read(&state).unwrap(), None);
    file.save(&ledger()).unwrap();
    drop(file);
    assert_eq!(LedgerFile::open(&state).unwrap().load().unwrap(), ledger());
    assert_eq!(read(&state).unwrap(), Some(ledger()));
}

#[test]
fn a_second_agent_on_the_same_folder_is_refused() {
    let (_dir, state) = state();
    assert!(!is_locked(&state).unwrap());
    let held = LedgerFile::open(&state).unwrap();
    assert!(is_locked(&state).unwrap());
    let error = LedgerFile::open(&state).unwrap_err();
    assert!(
        matches!(&error, LedgerError::Locked(path) if *path == state),
        "{error}"
    );
    drop(held);
    assert!(!is_locked(&state).unwrap());
}

#[test]
fn a_damaged_ledger_is_set_aside_and_its_copy_takes_its_place() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    for n in 1..=2 {
        file.save(&ledger()).unwrap();
        let bytes = damage(&file.path());
        assert_eq!(read(&state).unwrap(), Some(ledger()));
        let read = file.load().unwrap();
        assert!(
            read.damage
                .as_ref()
                .unwrap()
                .as_str()
                .contains("nothing lost")
        );
        assert_eq!(without_damage(read.clone()), ledger());
        let aside = state.join(format!("ledger.damaged-{n}"));
        assert_eq!(fs::read(aside).unwrap(), bytes);
        // The warning outlives a restart, and both files are whole again.
        assert_eq!(file.load().unwrap(), read);
        damage(&file.path());
        fs::remove_file(file.path()).unwrap();
        assert_eq!(without_damage(file.load().unwrap()), ledger());
    }
}

#[test]
fn with_both_damaged_the_machine_goes_on_and_says_what_that_means() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    file.save(&ledger()).unwrap();
    damage(&file.path());
    damage(&copy_of(&file.path()));
    assert!(matches!(read(&state), Err(LedgerError::Damaged { .. })));
    let read = file.load().unwrap();
    assert!(read.damage.as_ref().unwrap().as_str().contains("forgotten"));
    assert_eq!(without_damage(read), Ledger::default());
    for n in 1..=2 {
        assert!(state.join(format!("ledger.damaged-{n}")).exists(), "{n}");
    }
}

#[test]
fn a_disk_that_damages_it_again_and_again_is_not_filled() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    for _ in 0..3 * DAMAGED {
        file.save(&ledger()).unwrap();
        damage(&file.path());
        file.load().unwrap();
    }
    let names = fs::read_dir(&state).unwrap();
    // The lock, two ledgers, and the room for two more.
    assert_eq!(names.count(), usize::try_from(DAMAGED).unwrap() + 5);
}

#[test]
fn a_ledger_of_a_newer_version_is_left_alone() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    let newer = format::newer(b"of another form");
    file.save(&ledger()).unwrap();
    // Whether it had written both or died between the two.
    fs::write(file.path(), &newer).unwrap();
    assert!(matches!(file.load(), Err(LedgerError::Newer { .. })));
    fs::write(copy_of(&file.path()), &newer).unwrap();
    let error = file.load().unwrap_err();
    assert!(
        matches!(error, LedgerError::Newer { found: 3, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("start that one again"),
        "{error}"
    );
    assert_eq!(fs::read(file.path()).unwrap(), newer);
}

/// The format that a file is written in.
fn format_of(path: &Utf8Path) -> Format {
    decode(&fs::read(path).unwrap()).unwrap().format
}

fn ended(ledger: Ledger, state: State) -> Ledger {
    // The newest that ended, in a form that was written once.
    let golden = decode(include_bytes!("golden/format-1")).unwrap().ledger;
    let mut last = golden.last.unwrap();
    last.entry.state = state;
    Ledger {
        last: Some(last),
        ..ledger
    }
}

#[test]
fn the_format_moves_only_when_a_deployment_has_held_and_never_back() {
    let (_dir, state) = state();
    let golden = include_bytes!("golden/format-1");
    let under_way = decode(golden).unwrap().ledger;
    let idle = Ledger {
        current: None,
        next: None,
        staged: None,
        ..under_way.clone()
    };
    let file = LedgerFile::open(&state).unwrap();
    let paths = [file.path(), copy_of(&file.path())];
    for path in &paths {
        fs::write(path, golden).unwrap();
    }
    assert_eq!(file.load().unwrap(), under_way);
    let staged = Ledger {
        staged: under_way.staged.clone(),
        ..idle.clone()
    };
    let steps = [
        (under_way.clone(), Format::One),
        (ended(under_way.clone(), State::Succeeded), Format::One),
        (ended(staged, State::Staged), Format::One),
        (ended(idle.clone(), State::RolledBack), Format::One),
        (ended(idle.clone(), State::Succeeded), Format::Two),
        (ended(idle, State::RolledBack), Format::Two),
        (under_way, Format::Two),
    ];
    for (ledger, format) in steps {
        file.save(&ledger).unwrap();
        for path in &paths {
            assert_eq!(format_of(path), format);
        }
        assert_eq!(file.load().unwrap(), ledger);
    }
}

#[test]
fn a_ledger_that_begins_anew_is_one_that_every_version_reads() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    file.save(&ledger()).unwrap();
    assert_eq!(format_of(&file.path()), Format::OLDEST);
    file.save(&ended(ledger(), State::Succeeded)).unwrap();
    assert_eq!(format_of(&file.path()), Format::NEWEST);
}

#[test]
fn a_crash_between_the_two_files_leaves_the_newer_one() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    file.save(&Ledger::default()).unwrap();
    let path = file.path();
    sync(
        &path,
        &write_new(&path, &encode(&ledger(), Format::NEWEST)).unwrap(),
    )
    .unwrap();
    put_in_place(&path).unwrap();
    assert_eq!(file.load().unwrap(), ledger());
}

#[test]
fn room_for_the_next_ledger_is_taken_in_advance() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    for _ in 0..2 {
        file.save(&ledger()).unwrap();
        for path in [file.path(), copy_of(&file.path())] {
            let taken = fs::metadata(new_path(&path)).unwrap().blocks() * 512;
            assert!(taken >= RESERVED, "{taken}");
        }
        // What is left of the room does not end up in the ledger.
        assert_eq!(file.load().unwrap(), ledger());
    }
}

#[test]
fn the_folder_and_the_ledger_are_private() {
    let (_dir, state) = state();
    let file = LedgerFile::open(&state).unwrap();
    file.save(&ledger()).unwrap();
    let mode = |path: &Utf8Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let copy = copy_of(&file.path());
    assert_eq!(
        (mode(&state), mode(&file.path()), mode(&copy)),
        (0o700, 0o600, 0o600)
    );
}

#[test]
fn a_folder_that_cannot_be_written_says_what_to_do() {
    let (_dir, state) = state();
    for errno in [Errno::ACCESS, Errno::ROFS, Errno::PERM] {
        let error = io_error("open", &state)(errno.into());
        assert!(error.to_string().contains("has to belong to"), "{error}");
    }
    let error = io_error("open", &state)(Errno::NOSPC.into());
    assert!(!error.to_string().contains("has to belong to"), "{error}");
}
