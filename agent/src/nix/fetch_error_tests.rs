use super::*;

const TOP: &str = "/nix/store/k0kizn9bb97d95lxgf2z7vks1x6rnzrn-top-1.0";
const DEPENDENCY: &str = "/nix/store/d23zxcv4cqdjvif9z0d0m3a0n1srj2mx-dep-a-2.1";

struct Heard(Complaints);

impl Heard {
    fn of(messages: &[(u64, &str)]) -> Self {
        let mut complaints = Complaints::default();
        complaints.asks("http://127.0.0.1:1");
        for (level, text) in messages {
            complaints.hear(*level, text);
        }
        Self(complaints)
    }

    fn verdict(&self, caches: &[&str]) -> FetchError {
        let caches: Vec<_> = caches
            .iter()
            .map(|url| SubstituterUrl::new(*url).unwrap())
            .collect();
        self.0.verdict(TOP, &caches)
    }

    /// The reason, and that the message holds all of these.
    #[track_caller]
    fn is(&self, reason: Reason, told: &[&str]) {
        let error = self.verdict(&[]);
        assert_eq!(error.reason, reason, "{error}");
        for told in told {
            assert!(error.message.as_str().contains(told), "{told}: {error}");
        }
    }
}

const FAILED: (u64, &str) = (
    0,
    "error: build of '/nix/store/k0kizn9bb97d95lxgf2z7vks1x6rnzrn-top-1.0' failed",
);

#[test]
fn an_untrusted_signature_is_told_with_path_and_cache() {
    // Nix 2.8, then 2.26, then what checks again while it is copied.
    for said in [
        (
            1,
            "warning: the substitute for '/nix/store/k0kizn9bb97d95lxgf2z7vks1x6rnzrn-top-1.0' from 'http://127.0.0.1:39763' is not signed by any of the keys in 'trusted-public-keys'",
        ),
        (
            1,
            "warning: ignoring substitute for '/nix/store/k0kizn9bb97d95lxgf2z7vks1x6rnzrn-top-1.0' from 'http://127.0.0.1:39763', as it's not signed by any of the keys in 'trusted-public-keys'",
        ),
    ] {
        Heard::of(&[said, FAILED]).is(
            Reason::UntrustedPath,
            &[
                TOP,
                "the cache http://127.0.0.1:39763 has",
                "nix store sign",
            ],
        );
    }
    for said in [
        "error: cannot add path '/nix/store/k0kizn9bb97d95lxgf2z7vks1x6rnzrn-top-1.0' because it lacks a valid signature",
        "error: cannot add path '/nix/store/k0kizn9bb97d95lxgf2z7vks1x6rnzrn-top-1.0' because it lacks a signature by a trusted key",
    ] {
        Heard::of(&[(0, said), FAILED]).is(Reason::UntrustedPath, &["a cache has /nix/store/k0k"]);
    }
}

#[test]
fn a_missing_path_is_told_with_the_caches_that_were_asked() {
    let top = format!("  {TOP}");
    Heard::of(&[
        (3, "don't know how to build these paths:"),
        (3, &top),
        FAILED,
    ])
    .is(
        Reason::MissingPath,
        &["no binary cache has it (asked: http://127.0.0.1:1)", "push"],
    );
    // The closure is there, and not all that it needs.
    let dependency = format!("  {DEPENDENCY}");
    Heard::of(&[
        (3, "don't know how to build these paths:"),
        (3, &dependency),
        (
            3,
            "this path will be fetched (3.15 MiB download, 3.15 MiB unpacked):",
        ),
        (3, &top),
        FAILED,
    ])
    .is(
        Reason::MissingPath,
        &["d23zxcv4cqdjvif9z0d0m3a0n1srj2mx-dep-a-2.1, which it needs,"],
    );
    // Nix 2.30 and later.
    let said =
        format!("error: path '{TOP}' is required, but there is no substituter that can build it");
    Heard::of(&[(0, &said)]).is(Reason::MissingPath, &["no binary cache has it"]);
    Heard::of(&[
        (0, "error: file 'nar/0ghr9y7.nar.xz' does not exist in binary cache 'http://127.0.0.1:43989'"),
        FAILED,
    ])
    .is(
        Reason::MissingPath,
        &["lost what it says it has", "http://127.0.0.1:43989"],
    );
    let mut nobody = Complaints::default();
    nobody.hear(3, "don't know how to build these paths:");
    nobody.hear(3, &top);
    let error = nobody.verdict(TOP, &[]);
    assert!(
        error.message.as_str().contains("no binary cache was asked"),
        "{error}"
    );
}

/// As Nix 2.8 and 2.26 say it.
const UNREACHABLE: [&str; 2] = [
    "unable to download 'http://down.example/nix-cache-info': Couldn't connect to server (7)",
    "unable to download 'http://down.example/nix-cache-info': Could not connect to server (7) Failed to connect to down.example port 80 after 0 ms: Could not connect to server",
];

#[test]
fn a_cache_out_of_reach_may_have_the_path_and_is_worth_another_try() {
    for said in UNREACHABLE {
        let retried = format!("warning: error: {said}; retrying in 300 ms");
        let retried_again = format!("warning: error: {said}; retrying in 600 ms");
        let given_up = format!("warning: {said}");
        let top = format!("  {TOP}");
        let heard = Heard::of(&[
            (1, &retried),
            (1, &retried_again),
            (1, &given_up),
            (3, "don't know how to build these paths:"),
            (3, &top),
            FAILED,
        ]);
        heard.is(
            Reason::FetchFailed,
            &["http://down.example does not answer", "check the network"],
        );
        let error = heard.verdict(&["http://down.example/?priority=5"]);
        assert_eq!(error.reason, Reason::FetchFailed);
        // The deployment names another cache, which has answered: one of the machine's own is down.
        let error = heard.verdict(&["http://127.0.0.1:1"]);
        assert_eq!(error.reason, Reason::MissingPath);
        let message = error.message.as_str();
        assert!(
            message.contains("http://down.example does not answer"),
            "{message}"
        );
    }
}

#[test]
fn network_faults_are_worth_another_try() {
    for said in [
        "error: unable to download 'http://c/nar/0gh.nar.xz': HTTP error 200 ('OK') (curl error: Transferred a partial file)",
        "error: unable to download 'http://c/nar/0gh.nar.xz': HTTP error 200 (curl error: Timeout was reached)",
        "error: unable to download 'http://c/k0k.narinfo': HTTP error 500",
        "error: unable to download 'http://c/nix-cache-info': Couldn't resolve host name (6)",
    ] {
        Heard::of(&[(0, said), FAILED]).is(Reason::FetchFailed, &["http://c does not answer"]);
    }
}

#[test]
fn a_cache_that_refuses_this_machine_is_told_apart_from_one_that_is_down() {
    let top = format!("  {TOP}");
    for said in [
        "warning: 'http://c' does not appear to be a binary cache",
        "warning: unable to download 'http://c/nix-cache-info': HTTP error 401\n\n       response body:\n\n       <!DOCTYPE HTML>",
    ] {
        Heard::of(&[
            (1, said),
            (3, "don't know how to build these paths:"),
            (3, &top),
            FAILED,
        ])
        .is(
            Reason::FetchFailed,
            &["http://c does not let this machine read", "netrc-file"],
        );
    }
}

#[test]
fn content_that_is_not_what_was_signed_is_told() {
    for said in [
        "error: hash mismatch importing path '/nix/store/d23zxcv4cqdjvif9z0d0m3a0n1srj2mx-dep-a-2.1';\n         specified: sha256:1xm\n         got:       sha256:1xx",
        "error: input compression not recognized",
    ] {
        Heard::of(&[(0, said), FAILED]).is(Reason::FetchFailed, &["not what it signed"]);
    }
}

#[test]
fn a_full_disk_and_a_daemon_that_is_gone_are_told() {
    for said in [
        "error: writing to file: No space left on device",
        "error: committing transaction: database or disk is full",
        "error: writing to file: Disk quota exceeded",
    ] {
        Heard::of(&[(0, said), FAILED]).is(Reason::DiskFull, &["nix-collect-garbage"]);
    }
    for said in [
        "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused",
        "error: Nix daemon disconnected unexpectedly (maybe it crashed?)",
    ] {
        Heard::of(&[(0, said)]).is(Reason::FetchFailed, &["daemon does not answer"]);
    }
}

#[test]
fn a_user_whom_the_daemon_does_not_trust_is_told_so() {
    let top = format!("  {TOP}");
    let missing = [
        (3, "don't know how to build these paths:"),
        (3, top.as_str()),
        FAILED,
    ];
    // Nix 2.8, then 2.26.
    for said in [
        "warning: ignoring untrusted substituter 'http://127.0.0.1:39763'",
        "warning: ignoring untrusted substituter 'http://127.0.0.1:39763', you are not a trusted user.\nRun `man nix.conf` for more information on the `substituters` configuration option.",
    ] {
        let mut heard = vec![(0, said)];
        heard.extend(missing);
        Heard::of(&heard).is(
            Reason::MissingPath,
            &["trusted-users", "trusted-substituters"],
        );
    }
    let key = "warning: ignoring the client-specified setting 'trusted-public-keys', because it is a restricted setting and you are not a trusted user";
    let unsigned = format!(
        "warning: ignoring substitute for '{TOP}' from 'http://c', as it's not signed by any of the keys in 'trusted-public-keys'"
    );
    Heard::of(&[(0, key), (1, &unsigned), FAILED])
        .is(Reason::UntrustedPath, &["this agent's user is not trusted"]);
    // That other settings are ignored does not matter.
    let other = "warning: ignoring the client-specified setting 'download-attempts', because it is a restricted setting and you are not a trusted user";
    let heard = Heard::of(&[(0, other), (1, &unsigned), FAILED]);
    let error = heard.verdict(&[]);
    assert!(!error.message.as_str().contains("not trusted:"), "{error}");
    assert!(
        !error.message.as_str().contains("download-attempts"),
        "{error}"
    );
}

#[test]
fn an_answer_of_any_length_is_quoted_within_limits() {
    let long = format!("error: {}", "x".repeat(100_000));
    let error = Heard::of(&[(0, &long), (0, "error: second"), (0, "error: third")]).verdict(&[]);
    let message = error.message.as_str();
    assert!(
        message.ends_with("error: second; error: third"),
        "{message}"
    );
}
