//! The files of a job in version 1 of their formats, every field filled: an agent reads the jobs that the version
//! before it has left, and goes back to that version in the middle of one. The journal has its own test.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};

use super::{Confirmation, JobResult, JobSpec, Outage, Trouble};

fn folder() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("src/job/golden")
}

/// What `again` makes of what is in a file is what is in it: no field is renamed, dropped or added unnoticed.
fn keeps<T>(name: &str, again: impl Fn(&Utf8Path) -> T, bytes: impl Fn(&T) -> Vec<u8>) -> T {
    let path = folder().join(name);
    let value = again(&path);
    let (expected, found) = (fs::read_to_string(&path).unwrap(), bytes(&value));
    assert_eq!(String::from_utf8(found).unwrap(), expected, "{name}");
    value
}

#[test]
fn what_a_job_is_told_is_written_as_it_was() {
    let read = |path: &Utf8Path| JobSpec::from_json(path, &fs::read(path).unwrap()).unwrap();
    let spec = keeps("spec", read, JobSpec::to_json);
    assert_eq!(spec.target.health_checks.len(), 4);
    let read = |path: &Utf8Path| Confirmation::read(path).unwrap().unwrap();
    let word = keeps("confirmation", read, Confirmation::to_json);
    assert_eq!(
        (word.nonce, word.boot_id),
        (spec.nonce, spec.boot_id),
        "which belong together"
    );
    let read = |path: &Utf8Path| Outage::read(path).unwrap().unwrap();
    keeps("outage", read, Outage::to_json);
    let read = |path: &Utf8Path| Trouble::read(path).unwrap().unwrap();
    keeps("trouble", read, Trouble::to_json);
}

#[test]
fn a_result_is_written_as_it_was() {
    let read = |path: &Utf8Path| JobResult::read(path).unwrap().unwrap();
    keeps("result", read, JobResult::to_json);
}
