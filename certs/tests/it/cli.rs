//! `hoist-certs` as it is run.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use camino::Utf8Path;
use hoist_certs::{Credentials, Role};
use hoist_protocol::{PublicKey, SigningKey};
use serde_json::Value;

use crate::Folder;

/// What a run printed and how it ended; the folder's name is `DIR`.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(dir: &Utf8Path, args: &[&str]) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_hoist-certs"))
        .args(args)
        .current_dir(dir)
        .env_remove("HOIST_LOG")
        .output()
        .unwrap();
    let text = |bytes| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(dir.as_str(), "DIR")
    };
    Ran {
        code: status.code(),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

pub(crate) fn done(dir: &Utf8Path, args: &[&str]) -> String {
    let ran = run(dir, args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
}

pub(crate) fn failed(dir: &Utf8Path, args: &[&str]) -> String {
    let ran = run(dir, args);
    assert_eq!(ran.code, Some(1), "{args:?}: {} {}", ran.stdout, ran.stderr);
    ran.stderr
}

fn files(dir: &Utf8Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = dir
        .read_dir_utf8()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name().to_owned(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn names(dir: &Utf8Path) -> Vec<String> {
    files(dir).into_iter().map(|(name, _)| name).collect()
}

fn initialised() -> Folder {
    let folder = Folder::new();
    done(&folder.path, &["init", "--fleet", "prod"]);
    folder
}

#[test]
fn a_fleet_is_made_from_nothing() {
    let folder = initialised();
    let dir = &folder.path;
    done(
        dir,
        &[
            "issue",
            "broker",
            "main",
            "--host",
            "localhost",
            "--host",
            "127.0.0.1",
        ],
    );
    done(dir, &["issue", "agent", "web-1"]);
    let certs = dir.join("certs");
    assert_eq!(
        names(&certs),
        [
            "agent-web-1.key",
            "agent-web-1.pem",
            "broker-main.key",
            "broker-main.pem",
            "ca.key",
            "ca.pem",
            "issued.jsonl"
        ]
    );
    for (file, _) in files(&certs) {
        let mode = certs.join(&file).metadata().unwrap().permissions().mode() & 0o777;
        let public = file.ends_with(".pem");
        assert_eq!(mode, if public { 0o644 } else { 0o600 }, "{file}");
    }
    let credentials = |stem: &str| Credentials {
        ca: certs.join("ca.pem").into(),
        certificate: certs.join(format!("{stem}.pem")).into(),
        key: certs.join(format!("{stem}.key")).into(),
    };
    assert_eq!(
        credentials("broker-main")
            .server()
            .unwrap()
            .identity()
            .role(),
        Role::Broker
    );
    assert_eq!(
        credentials("agent-web-1")
            .client()
            .unwrap()
            .identity()
            .role(),
        Role::Agent
    );
}

#[test]
fn nothing_is_overwritten_without_force() {
    let folder = initialised();
    let dir = &folder.path;
    done(dir, &["issue", "agent", "web-1"]);
    done(dir, &["signing-key", "ci"]);
    let before = files(&dir.join("certs"));
    for args in [
        &["init", "--fleet", "prod"][..],
        &["issue", "agent", "web-1"],
        &["signing-key", "ci"],
    ] {
        let error = failed(dir, args);
        assert!(error.contains("--force"), "{error}");
    }
    assert_eq!(files(&dir.join("certs")), before);
}

#[test]
fn a_file_in_the_way_stops_an_issue_before_anything_is_written() {
    let folder = initialised();
    let dir = &folder.path;
    std::fs::write(dir.join("certs/agent-web-1.pem"), "mine").unwrap();
    let before = files(&dir.join("certs"));
    let error = failed(dir, &["issue", "agent", "web-1"]);
    assert!(
        error.contains("`certs/agent-web-1.pem` exists already"),
        "{error}"
    );
    let index = ("issued.jsonl".to_owned(), Vec::new());
    let after: Vec<_> = files(&dir.join("certs"))
        .into_iter()
        .filter(|file| *file != index)
        .collect();
    assert_eq!(after, before);
}

#[test]
fn a_certificate_is_renewed_with_force() {
    let folder = initialised();
    let dir = &folder.path;
    done(dir, &["issue", "agent", "web-1"]);
    let serial = |dir: &Utf8Path| show(dir, &["certs/agent-web-1.pem"])[0]["serial"].clone();
    let first = serial(dir);
    done(dir, &["issue", "agent", "web-1", "--force", "--days", "20"]);
    assert_ne!(serial(dir), first);
    let text = done(dir, &["show", "certs/agent-web-1.pem"]);
    assert!(
        text.contains("WARNING") && text.contains("hoist-certs issue agent web-1 --force"),
        "{text}"
    );
}

#[test]
fn a_name_means_one_holder_over_roles_and_fleets() {
    let folder = initialised();
    let dir = &folder.path;
    done(dir, &["issue", "agent", "web-1"]);
    for args in [
        &["issue", "admin", "web-1", "--force"][..],
        &["issue", "agent", "web-1", "--force", "--fleet", "other"],
        &["issue", "broker", "web-1", "--host", "localhost", "--force"],
    ] {
        let error = failed(dir, args);
        assert!(
            error.contains("`web-1` was issued to agent web-1 of fleet prod before"),
            "{error}"
        );
    }
    done(dir, &["issue", "agent", "web-2", "--fleet", "other"]);
    // A new authority in the same folder starts anew.
    done(dir, &["init", "--fleet", "prod", "--force"]);
    done(dir, &["issue", "admin", "web-1"]);
}

#[test]
fn a_line_of_the_index_that_a_crash_cut_off_does_no_harm() {
    let folder = initialised();
    let dir = &folder.path;
    done(dir, &["issue", "agent", "web-1"]);
    let index = dir.join("certs/issued.jsonl");
    let mut text = std::fs::read_to_string(&index).unwrap();
    text.push_str("{\"authority\":\"4");
    std::fs::write(&index, &text).unwrap();
    done(dir, &["issue", "agent", "web-2"]);
    let error = failed(dir, &["issue", "admin", "web-1"]);
    assert!(error.contains("was issued to agent web-1"), "{error}");

    std::fs::write(&index, "what is this\n").unwrap();
    let error = failed(dir, &["issue", "agent", "web-3"]);
    assert!(error.contains("line 1 of `certs/issued.jsonl`"), "{error}");
}

#[test]
fn a_signing_key_prints_its_public_half_alone() {
    let folder = Folder::new();
    let dir = &folder.path;
    let public: PublicKey = done(dir, &["signing-key", "ci"]).trim().parse().unwrap();
    let secret = std::fs::read_to_string(dir.join("certs/ci.signing-key")).unwrap();
    assert_eq!(SigningKey::parse(&secret).unwrap().public(), public);
    let written = std::fs::read_to_string(dir.join("certs/ci.signing-key.pub")).unwrap();
    assert_eq!(written.trim(), public.to_string());
    assert_eq!(
        dir.join("certs/ci.signing-key")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
}

#[test]
fn wrong_usage_is_told_with_what_would_be_right() {
    let folder = initialised();
    let dir = &folder.path;
    for (args, code, said) in [
        (
            &["issue", "agent", "Web-1"][..],
            2,
            "a name is made of `a-z`",
        ),
        (&["issue", "agnet", "web-1"], 2, "agent"),
        (&["issue", "broker", "main"], 2, "--host"),
        (
            &["issue", "broker", "main", "--host", "*.example.org"],
            2,
            "is no host",
        ),
        (
            &["issue", "agent", "web-1", "--host", "localhost"],
            2,
            "--host",
        ),
        (&["issue", "agent", "web-1", "--days", "0"], 2, "1..=36525"),
        (
            &["issue", "agent", "web-1", "--days", "9999"],
            1,
            "before the certificate would",
        ),
        (
            &["issue", "agent", "web-1", "--dir", "nowhere"],
            1,
            "`hoist-certs init` makes one",
        ),
        (&["show", "nowhere.pem"], 1, "cannot read `nowhere.pem`"),
    ] {
        let ran = run(dir, args);
        assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{args:?}: {}", ran.stderr);
    }
    assert_eq!(
        names(&dir.join("certs")),
        ["ca.key", "ca.pem", "issued.jsonl"]
    );
}

#[test]
fn a_ca_whose_key_is_another_ones_issues_nothing() {
    let (one, two) = (initialised(), initialised());
    let key = std::fs::read(two.path.join("certs/ca.key")).unwrap();
    std::fs::write(one.path.join("certs/ca.key"), key).unwrap();
    let error = failed(&one.path, &["issue", "agent", "web-1"]);
    assert!(
        error.contains("`ca.key` does not belong to `ca.pem`"),
        "{error}"
    );
}

pub(crate) fn show(dir: &Utf8Path, files: &[&str]) -> Vec<Value> {
    let text = done(dir, &[&["show", "--json"], files].concat());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn show_tells_every_kind_of_file_apart_and_prints_no_secret() {
    let folder = initialised();
    let dir = &folder.path;
    done(
        dir,
        &[
            "issue",
            "broker",
            "main",
            "--host",
            "localhost",
            "--host",
            "::1",
        ],
    );
    done(dir, &["signing-key", "ci"]);
    let cache = "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    std::fs::write(dir.join("cache.pub"), cache).unwrap();
    let cache_secret = format!("cache-1:{}==", "A".repeat(86));
    std::fs::write(dir.join("cache.sec"), &cache_secret).unwrap();
    let all = [
        "certs/ca.pem",
        "certs/broker-main.pem",
        "certs/broker-main.key",
        "certs/ci.signing-key",
        "certs/ci.signing-key.pub",
        "cache.pub",
        "cache.sec",
    ];
    let shown = show(dir, &all);
    let kinds: Vec<&str> = shown
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "ca",
            "certificate",
            "private-key",
            "signing-key",
            "signing-key",
            "nix-cache-key",
            "nix-cache-key"
        ]
    );
    let broker = &shown[1];
    assert_eq!(
        (
            &broker["name"],
            &broker["role"],
            &broker["fleet"],
            &broker["status"]
        ),
        (
            &"main".into(),
            &"broker".into(),
            &"prod".into(),
            &"valid".into()
        )
    );
    assert_eq!(broker["hosts"], serde_json::json!(["localhost", "::1"]));
    assert_eq!(broker["days_left"], 364);
    // The key and the certificate that belong together can be found.
    assert_eq!(broker["public_key_sha256"], shown[2]["public_key_sha256"]);
    assert_eq!(shown[3]["public_half"], shown[4]["public_half"]);

    let text = done(dir, &[&["show"][..], &all].concat());
    for secret in ["certs/broker-main.key", "certs/ci.signing-key", "cache.sec"] {
        let content = std::fs::read_to_string(dir.join(secret)).unwrap();
        let body = content
            .lines()
            .find(|line| !line.contains("BEGIN"))
            .unwrap();
        let body = body.rsplit(':').next().unwrap();
        assert!(!text.contains(&body[..24]), "{secret} is printed");
        assert!(
            !format!("{shown:?}").contains(&body[..24]),
            "{secret} is printed as JSON"
        );
    }
    assert!(
        text.contains("Nix binary cache; it signs store paths, not deployments"),
        "{text}"
    );
}

#[test]
fn show_takes_everything_in_the_folder_that_init_and_issue_fill() {
    let folder = initialised();
    let dir = &folder.path;
    done(dir, &["issue", "agent", "web-1"]);
    done(dir, &["signing-key", "ci"]);
    let all: Vec<String> = names(&dir.join("certs"))
        .into_iter()
        .map(|name| format!("certs/{name}"))
        .collect();
    let arguments: Vec<&str> = ["show"]
        .into_iter()
        .chain(all.iter().map(String::as_str))
        .collect();
    let shown = done(dir, &arguments);
    assert!(shown.contains("certificate of agent web-1"), "{shown}");
}

#[test]
fn show_goes_on_after_a_file_that_is_nothing() {
    let folder = initialised();
    let dir = &folder.path;
    std::fs::write(dir.join("notes"), "nothing").unwrap();
    let ran = run(dir, &["show", "notes", "certs/ca.pem"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("cannot tell what `notes` is"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stdout.contains("certs/ca.pem: certificate authority"),
        "{}",
        ran.stdout
    );
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = Folder::new();
    done(&folder.path, &["man", "share/man1"]);
    let pages = names(&folder.path.join("share/man1"));
    for command in ["", "-init", "-issue", "-revoke", "-crl"] {
        let page = format!("hoist-certs{command}.1");
        assert!(pages.contains(&page), "{page}: {pages:?}");
    }
}
