//! Fetching with real Nix, on machines in mount namespaces, from caches in folders.

use std::fs;
use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_agent::nix::{FetchError, FetchEvent, RealiseRequest, Realised, realise, release_roots};
use hoist_protocol::{CacheKey, Reason, StorePath, SubstituterUrl};
use tokio::sync::mpsc;

use crate::machine::{Machine, inside, new_id, run, until};

/// A binary cache in a folder, signed with a key of its own.
struct Cache {
    url: SubstituterUrl,
    key: CacheKey,
    secret: Utf8PathBuf,
}

impl Cache {
    fn new(machine: &Machine, name: &str) -> Self {
        let secret = machine.dir().join(format!("{name}.secret"));
        let public = machine.dir().join(format!("{name}.public"));
        run(
            "nix-store",
            &[
                "--generate-binary-cache-key",
                name,
                secret.as_str(),
                public.as_str(),
            ],
        );
        let key = fs::read_to_string(&public).unwrap();
        Self {
            url: SubstituterUrl::new(format!("file://{}", machine.dir().join(name))).unwrap(),
            key: CacheKey::new(key.trim()).unwrap(),
            secret,
        }
    }

    /// Pushes a path and takes it out of the machine's own store.
    fn take(&self, path: &StorePath) {
        run(
            "nix",
            &[
                "store",
                "sign",
                "-r",
                "-k",
                self.secret.as_str(),
                path.as_str(),
            ],
        );
        run("nix", &["copy", "--to", self.url.as_str(), path.as_str()]);
        run("nix-store", &["--delete", path.as_str()]);
        assert!(!fs::exists(path.as_str()).unwrap());
    }
}

fn request(machine: &Machine, path: &StorePath, cache: &Cache) -> RealiseRequest {
    RealiseRequest {
        id: new_id(),
        paths: vec![path.clone()],
        substituters: vec![cache.url.clone()],
        keys: vec![cache.key.clone()],
        roots: hoist_agent::nix::roots_dir(&machine.state()),
        timeout: None,
    }
}

fn fetch(request: &RealiseRequest) -> (Result<Realised, FetchError>, Vec<FetchEvent>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (sender, mut events) = mpsc::channel(1000);
    let result = runtime.block_on(realise(request, &sender));
    drop(sender);
    let mut seen = Vec::new();
    while let Some(event) = events.blocking_recv() {
        seen.push(event);
    }
    (result, seen)
}

#[test]
fn a_closure_is_fetched_with_progress_and_kept_until_it_is_let_go() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let tool = machine.tool("tool");
        cache.take(&tool);
        let request = request(machine, &tool, &cache);
        let (result, events) = fetch(&request);
        let size = result.unwrap().closure_size.unwrap();
        assert!((200..5000).contains(&size), "{size}");
        assert!(fs::exists(tool.as_str()).unwrap());
        let last = events.iter().rev().find_map(|event| match event {
            FetchEvent::Progress(progress) => Some(*progress),
            FetchEvent::Line(_) => None,
        });
        let last = last.expect("there was progress");
        assert_eq!((last.paths_done, last.paths_expected), (1, 1));
        assert!(events.iter().any(
            |event| matches!(event, FetchEvent::Line(line) if line.as_str().starts_with("copying path"))
        ));

        run("nix-store", &["--gc"]);
        assert!(fs::exists(tool.as_str()).unwrap(), "it has a root");
        // What is there is not fetched again.
        let (again, events) = fetch(&request);
        assert_eq!(again.unwrap().closure_size, Some(size));
        assert!(
            !events
                .iter()
                .any(|event| matches!(event, FetchEvent::Progress(_)))
        );

        release_roots(&request.roots, &[]).unwrap();
        run("nix-store", &["--gc"]);
        assert!(!fs::exists(tool.as_str()).unwrap(), "nothing keeps it");
    });
}

#[test]
fn a_fetch_that_fails_tells_its_reason() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let tool = machine.tool("tool");
        cache.take(&tool);

        let stranger = Cache::new(machine, "stranger-1");
        let mut untrusted = request(machine, &tool, &cache);
        untrusted.keys = vec![stranger.key.clone()];
        let error = fetch(&untrusted).0.unwrap_err();
        assert_eq!(error.reason, Reason::UntrustedPath, "{error}");
        assert!(
            error.message.as_str().contains("not signed by any"),
            "{error}"
        );
        assert!(!fs::exists(tool.as_str()).unwrap());

        let gone = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-gone").unwrap();
        let error = fetch(&request(machine, &gone, &cache)).0.unwrap_err();
        assert_eq!(error.reason, Reason::MissingPath, "{error}");

        let nar = machine.dir().join("cache-1/nar");
        for file in nar.read_dir_utf8().unwrap() {
            fs::write(file.unwrap().path(), "junk").unwrap();
        }
        let error = fetch(&request(machine, &tool, &cache)).0.unwrap_err();
        assert_eq!(error.reason, Reason::FetchFailed, "{error}");
    });
}

#[test]
fn a_store_without_room_is_said_to_be_full() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let big = machine.program("big", &"#".repeat(100_000));
        cache.take(&big);
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=16k", "none", "/nix/store"],
        );
        let error = fetch(&request(machine, &big, &cache)).0.unwrap_err();
        assert_eq!(error.reason, Reason::DiskFull, "{error}");
    });
}

#[test]
fn a_fetch_that_is_dropped_or_takes_too_long_leaves_no_nix_behind() {
    inside(|machine| {
        // Stands for a Nix that waits for a cache for ever, with a child of its own.
        let bin = machine.dir().join("bin");
        let pid = machine.dir().join("pid");
        let script = format!("#!/bin/sh\necho $$ > {pid}\nsleep 10000 & wait\n");
        fs::write(bin.join("nix-store"), script).unwrap();
        run("chmod", &["755", bin.join("nix-store").as_str()]);

        let gone = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-gone").unwrap();
        let mut request = RealiseRequest {
            id: new_id(),
            paths: vec![gone],
            substituters: Vec::new(),
            keys: Vec::new(),
            roots: hoist_agent::nix::roots_dir(&machine.state()),
            timeout: Some(Duration::from_millis(300)),
        };
        let error = fetch(&request).0.unwrap_err();
        assert!(error.message.as_str().contains("longer than"), "{error}");
        let nobody = || {
            let leader = fs::read_to_string(&pid).unwrap();
            let group = format!(" {} ", leader.trim());
            until("nobody of its group is left", || {
                !run("ps", &["-e", "-o", "pgid=,stat="])
                    .lines()
                    .any(|line| format!(" {line}").contains(&group) && !line.contains('Z'))
            });
            fs::remove_file(&pid).unwrap();
        };
        nobody();

        request.timeout = None;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (sender, _events) = mpsc::channel(1);
            tokio::select! {
                result = realise(&request, &sender) => panic!("it ended: {result:?}"),
                () = async {
                    while !fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                } => {}
            }
        });
        nobody();
    });
}
