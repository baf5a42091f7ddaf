//! What is signed of what closures hold, as far as it shows without a broker.

use std::fs;

use crate::folder::{Folder, PATH, text};

impl Folder {
    /// What `hoist deploy` says on stderr when it exits with 1, with only these programs to be found.
    fn deploy(&self, args: &[&str]) -> String {
        let output = self
            .command(&[&["deploy", "spec.json"], args].concat())
            .env("PATH", self.path().join("bin"))
            .env("HOIST_SIGNING_KEY", self.path().join("ci.signing-key"))
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }
}

/// A Nix whose store has every path, with nothing that it refers to.
const KNOWS_ALL: &str = r#"export -p > "$HOME/environment"
for path; do case $path in /nix/store/*)
  echo "$path" >> "$HOME/asked"
  hash=sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=
  echo "[{\"path\":\"$path\",\"narHash\":\"$hash\",\"narSize\":1,\"references\":[]}]" ;;
esac; done"#;

#[test]
fn without_nix_a_digest_that_is_asked_for_is_an_error() {
    let folder = Folder::new();
    assert_eq!(
        folder.deploy(&["--require-digest"]),
        "error: what the closures hold is not known here, and --require-digest asks for it: `nix-store` is not \
         installed here\n"
    );
}

#[test]
fn a_closure_that_is_not_in_the_store_has_no_digest() {
    let folder = Folder::new();
    folder.program("nix-store", &format!("echo {PATH}"));
    folder.program("nix", "exit 1");
    assert_eq!(
        folder.deploy(&["--require-digest"]),
        format!(
            "error: agent `web-1`: `{PATH}` is not in the store of this computer, so what it holds is not known, \
             and --require-digest asks for it; fetch it first, or give its `digest` in the spec\n"
        )
    );
    let said = folder.deploy(&[]);
    assert!(
        said.starts_with(
            "1 of 1 closures are not in the store of this computer: what they hold is not signed"
        ),
        "{said}"
    );
    assert!(!folder.deploy(&["--no-digest"]).contains("not signed"));
}

#[test]
fn a_digest_in_the_spec_needs_no_nix() {
    let folder = Folder::new();
    let digest = "a1ff93f34ef22b33bf1eeae124c576dafd88ee885f49649bee8f1dcfcffa218b";
    folder.write(
        "spec.json",
        &format!(r#"{{"agents": {{"web-1": {{"path": "{PATH}", "digest": "{digest}"}}}}}}"#),
    );
    let said = folder.deploy(&["--require-digest"]);
    assert!(said.contains("cannot connect to the broker"), "{said}");
}

#[test]
fn nix_is_asked_once_for_each_closure_and_gets_no_key() {
    let folder = Folder::new();
    folder.write(
        "spec.json",
        &format!(r#"{{"agents": {{"web-1": "{PATH}", "web-2": "{PATH}"}}}}"#),
    );
    folder.program("nix-store", "exit 0");
    folder.program("nix", KNOWS_ALL);
    let said = folder.deploy(&["--require-digest"]);
    assert!(said.contains("cannot connect to the broker"), "{said}");
    let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
    assert_eq!(asked, format!("{PATH}\n"));
    let environment = fs::read_to_string(folder.path().join("environment")).unwrap();
    assert!(environment.contains("HOME="), "{environment}");
    assert!(!environment.contains("HOIST_"), "{environment}");
}

#[test]
fn what_nix_says_when_it_fails_is_passed_on() {
    let folder = Folder::new();
    folder.program("nix-store", "exit 0");
    folder.program("nix", "echo 'error: the daemon is gone' >&2; exit 1");
    let said = folder.deploy(&["--require-digest"]);
    assert!(
        said.ends_with(": `nix` failed: error: the daemon is gone\n"),
        "{said}"
    );
    folder.program("nix", "echo '{'");
    let said = folder.deploy(&["--require-digest"]);
    assert!(
        said.contains(": `nix` wrote what cannot be read: "),
        "{said}"
    );
}

#[test]
fn whoever_requires_digests_cannot_do_without() {
    let folder = Folder::new();
    let args = ["deploy", "spec.json", "--no-digest", "--require-digest"];
    let said = folder.refused(&args, 2);
    assert!(
        said.contains("'--no-digest' cannot be used with '--require-digest'"),
        "{said}"
    );
}
