//! Fetching with real Nix, on machines in mount namespaces, from binary caches.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hoist_agent::nix::{
    FetchError, FetchEvent, RealiseRequest, Realised, realise, release_roots, roots_dir,
};
use hoist_protocol::{ClosureInfo, FetchProgress, Reason, StorePath, SubstituterUrl};
use tokio::sync::mpsc;

use crate::cache::{Cache, Fault, Server, nobody};
use crate::machine::{Machine, inside, new_id, run, until};

const GONE: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-gone";

fn request(machine: &Machine, path: &StorePath, cache: &Cache) -> RealiseRequest {
    RealiseRequest {
        id: new_id(),
        path: path.clone(),
        programs: Vec::new(),
        digest: None,
        substituters: vec![cache.url.clone()],
        keys: vec![cache.key.clone()],
        roots: roots_dir(&machine.state()),
        timeout: None,
    }
}

fn from(
    machine: &Machine,
    path: &StorePath,
    cache: &Cache,
    url: &SubstituterUrl,
) -> RealiseRequest {
    RealiseRequest {
        substituters: vec![url.clone()],
        ..request(machine, path, cache)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Fetches where nothing runs.
fn fetch(request: &RealiseRequest) -> (Result<Realised, FetchError>, Vec<FetchEvent>) {
    fetch_over(request, None)
}

/// Fetches where `running` runs.
fn fetch_over(
    request: &RealiseRequest,
    running: Option<&StorePath>,
) -> (Result<Realised, FetchError>, Vec<FetchEvent>) {
    let (sender, mut events) = mpsc::channel(1000);
    let result = runtime().block_on(realise(request, || running.cloned(), &sender));
    drop(sender);
    let mut seen = Vec::new();
    while let Some(event) = events.blocking_recv() {
        seen.push(event);
    }
    (result, seen)
}

#[track_caller]
fn fails(request: &RealiseRequest, reason: Reason, told: &[&str]) {
    let error = fetch(request).0.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    for told in told {
        assert!(error.message.as_str().contains(told), "{told}: {error}");
    }
}

/// What Nix tells about a closure in the store.
fn info(path: &StorePath) -> ClosureInfo {
    let json = run("nix", &["path-info", "--json", "-r", path.as_str()]);
    ClosureInfo::from_path_info(json.as_bytes()).unwrap()
}

/// A path of so many bytes and a few more.
fn big(machine: &Machine, bytes: u64) -> StorePath {
    machine.derive("big", "", &format!("head -c {bytes} /dev/zero > $out"))
}

fn exists(path: &StorePath) -> bool {
    fs::exists(path.as_str()).unwrap()
}

#[test]
fn a_closure_is_fetched_with_progress_and_kept_until_it_is_let_go() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let tool = machine.tool("tool");
        cache.take(&tool);
        let request = request(machine, &tool, &cache);
        let (result, events) = fetch(&request);
        let realised = result.unwrap();
        let size = realised.closure_size.unwrap();
        assert!((200..5000).contains(&size), "{size}");
        assert!(exists(&tool));
        let last = events.iter().rev().find_map(|event| match event {
            FetchEvent::Progress(progress) => Some(*progress),
            FetchEvent::Line(_) => None,
        });
        let all = FetchProgress {
            fetched_bytes: size,
            fetch_bytes: size,
            fetched_paths: 1,
            fetch_paths: 1,
        };
        assert_eq!((last, realised.fetched), (Some(all), all));
        assert!(events.iter().any(
            |event| matches!(event, FetchEvent::Line(line) if line.as_str().starts_with("copying path"))
        ));

        run("nix-store", &["--gc"]);
        assert!(exists(&tool), "it has a root");
        // What is there is not fetched again.
        let (again, events) = fetch(&request);
        let expected = Realised {
            closure_size: Some(size),
            ..Realised::default()
        };
        assert_eq!(again.unwrap(), expected);
        assert!(
            !events
                .iter()
                .any(|event| matches!(event, FetchEvent::Progress(_)))
        );

        release_roots(&request.roots, &[], &[]).unwrap();
        run("nix-store", &["--gc"]);
        assert!(!exists(&tool), "nothing keeps it");
    });
}

#[test]
fn what_travels_over_the_network_is_what_counts() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let big = big(machine, 500_000);
        let size = info(&big).size();
        cache.take(&big);
        let server = Server::of(&cache);
        let realised = fetch(&from(machine, &big, &cache, &server.url)).0.unwrap();
        let fetched = realised.fetched;
        assert_eq!(fetched.fetched_bytes, fetched.fetch_bytes);
        // It is compressed.
        assert!((1..size / 10).contains(&fetched.fetch_bytes), "{fetched:?}");
        assert_eq!(realised.closure_size, Some(size));
    });
}

#[test]
fn what_a_closure_changes_is_told_whether_it_was_there_or_came() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let (old, new) = (machine.tool("tool-1.0"), machine.tool("tool-2.0"));
        let difference =
            i64::try_from(info(&new).size()).unwrap() - i64::try_from(info(&old).size()).unwrap();
        let request = request(machine, &new, &cache);
        let there = fetch_over(&request, Some(&old)).0.unwrap();
        let changes = there.changes.clone().unwrap();
        let counts = (
            changes.packages_added,
            changes.packages_removed,
            changes.packages_changed,
        );
        assert_eq!(counts, (0, 0, 1), "{changes:?}");
        assert_eq!(changes.size_difference, difference);
        let package = &changes.packages[0];
        assert_eq!(package.name.as_str(), "tool");
        assert_eq!(package.to.as_ref().unwrap().as_str(), "2.0");

        release_roots(&request.roots, &[], &[]).unwrap();
        cache.push(&new);
        run("nix-store", &["--delete", new.as_str()]);
        let came = fetch_over(&request, Some(&old)).0.unwrap();
        assert_eq!(came.changes, there.changes);
        assert_eq!(came.fetched.fetched_paths, 1);
        // What runs is not in this store: the size is told all the same.
        let gone = StorePath::new(GONE).unwrap();
        let other = fetch_over(&request, Some(&gone)).0.unwrap();
        assert_eq!(
            (other.closure_size, other.changes),
            (came.closure_size, None)
        );
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
        fails(
            &untrusted,
            Reason::UntrustedPath,
            &[tool.as_str(), cache.url.as_str(), "nix store sign"],
        );
        assert!(!exists(&tool));

        let gone = StorePath::new(GONE).unwrap();
        fails(
            &request(machine, &gone, &cache),
            Reason::MissingPath,
            &[GONE, cache.url.as_str(), "push"],
        );

        for file in cache.contents() {
            fs::write(file, "junk").unwrap();
        }
        fails(
            &request(machine, &tool, &cache),
            Reason::FetchFailed,
            &["not what it signed"],
        );
        for file in cache.contents() {
            fs::remove_file(file).unwrap();
        }
        fails(
            &request(machine, &tool, &cache),
            Reason::MissingPath,
            &["lost what it says it has", "push it again"],
        );
    });
}

#[test]
fn a_cache_that_is_down_holds_up_neither_what_is_missing_nor_what_another_one_has() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let tool = machine.tool("tool");
        cache.take(&tool);
        let server = Server::of(&cache);
        let down = nobody();
        let conf = machine.dir().join("conf/nix.conf");
        let settings = fs::read_to_string(&conf).unwrap();
        let settings = settings.replace(
            "substituters =",
            &format!("substituters = {}", down.as_str()),
        );
        fs::write(&conf, settings).unwrap();

        let gone = StorePath::new(GONE).unwrap();
        fails(
            &from(machine, &gone, &cache, &server.url),
            Reason::MissingPath,
            &[&format!("{} does not answer", down.as_str())],
        );
        // The one that the deployment names is down: it may have the path when it is back.
        fails(
            &from(machine, &gone, &cache, &down),
            Reason::FetchFailed,
            &[
                &format!("{} does not answer", down.as_str()),
                "check the network",
            ],
        );
        fetch(&from(machine, &tool, &cache, &server.url)).0.unwrap();
        assert!(exists(&tool));
    });
}

#[test]
fn a_cache_that_was_seen_before_and_is_down_now_is_no_reason_to_fail() {
    inside(|machine| {
        let (one, two) = (Cache::new(machine, "one-1"), Cache::new(machine, "two-1"));
        let tools = [machine.tool("tool-1"), machine.tool("tool-2")];
        one.push(&tools[0]);
        two.push(&tools[0]);
        two.push(&tools[1]);
        run("nix-store", &["--gc"]);
        let (first, second) = (Server::of(&one), Server::of(&two));
        let both = |path: &StorePath| RealiseRequest {
            substituters: vec![first.url.clone(), second.url.clone()],
            keys: vec![one.key.clone(), two.key.clone()],
            ..request(machine, path, &one)
        };
        fetch(&both(&tools[0])).0.unwrap();
        // What Nix remembers about a cache does not outlive the fetch.
        assert!(!fs::exists(machine.dir().join("home/.cache")).unwrap());
        first.set(Fault::Down);
        fetch(&both(&tools[1])).0.unwrap();
        assert!(exists(&tools[1]));
    });
}

#[test]
fn faults_of_the_network_are_told_apart_from_faults_of_the_closure() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let big = big(machine, 500_000);
        cache.take(&big);
        let server = Server::of(&cache);
        for fault in [Fault::Dies, Fault::Fails] {
            server.set(fault);
            fails(
                &from(machine, &big, &cache, &server.url),
                Reason::FetchFailed,
                &[&format!("{} does not answer", server.url.as_str())],
            );
        }
        server.set(Fault::Stalls);
        let mut stalled = from(machine, &big, &cache, &server.url);
        stalled.timeout = Some(Duration::from_secs(2));
        fails(&stalled, Reason::FetchFailed, &["longer than 2 s"]);
        server.set(Fault::None);
        fetch(&from(machine, &big, &cache, &server.url)).0.unwrap();
        assert!(exists(&big));
    });
}

/// Puts other content under the path of `tool`, and tells Nix that this is what belongs there.
fn forge(tool: &StorePath) {
    let registered = run("nix-store", &["--dump-db", tool.as_str()]);
    let file = format!("{tool}/bin/tool");
    for path in [tool.as_str(), &format!("{tool}/bin"), &file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(&file, "something else\n").unwrap();
    let script = format!(
        "nix-store --dump {tool} > /nix/var/forged.nar
         hash=$(nix-hash --flat --type sha256 /nix/var/forged.nar)
         size=$(stat -c %s /nix/var/forged.nar)
         nix-store --delete --ignore-liveness {tool} --option keep-outputs false > /dev/null
         mkdir -p {tool}/bin
         cp /nix/var/forged.tool {file}
         nix-store --load-db"
    );
    fs::copy(&file, "/nix/var/forged.tool").unwrap();
    let mut lines: Vec<_> = registered.lines().collect();
    // Path, hash, size, deriver, references.
    lines[1] = "HASH";
    lines[2] = "SIZE";
    let lines = lines.join("\n");
    let script = format!("{script} <<END\n{lines}\nEND\n");
    let script = script.replace("HASH", "$hash").replace("SIZE", "$size");
    run("/bin/sh", &["-euc", &script]);
}

#[test]
fn a_cache_that_serves_other_content_under_the_same_path_is_caught_by_the_digest() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let tool = machine.tool("tool");
        let signed = info(&tool).digest();
        let mut honest = request(machine, &tool, &cache);
        honest.digest = Some(signed);
        // It is there.
        fetch(&honest).0.unwrap();
        cache.push(&tool);
        release_roots(&honest.roots, &[], &[]).unwrap();
        run("nix-store", &["--delete", tool.as_str()]);
        // It comes.
        fetch(&honest).0.unwrap();
        release_roots(&honest.roots, &[], &[]).unwrap();

        forge(&tool);
        let forged = info(&tool).digest();
        assert_ne!(forged, signed);
        // With a key that the machine trusts.
        fs::remove_dir_all(&cache.dir).unwrap();
        cache.take(&tool);
        let told = [
            tool.as_str(),
            &signed.to_string(),
            &forged.to_string(),
            "nothing was activated",
        ];
        fails(&honest, Reason::DigestMismatch, &told);
        let content = fs::read_to_string(format!("{tool}/bin/tool")).unwrap();
        assert_eq!(
            content, "something else\n",
            "Nix itself was content with it"
        );
        // It stays refused now that it is in the store.
        fails(&honest, Reason::DigestMismatch, &told);
        // Without a digest the cache's keys are all there is.
        let mut trusting = honest.clone();
        trusting.digest = None;
        fetch(&trusting).0.unwrap();
    });
}

#[test]
fn a_closure_for_which_the_store_has_no_room_is_refused_with_numbers() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let big = big(machine, 3_000_000);
        cache.take(&big);
        let server = Server::of(&cache);
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=2m", "none", "/nix/store"],
        );
        // Nobody would send more than half of it.
        server.set(Fault::Stalls);
        for url in [&server.url, &cache.url] {
            fails(
                &from(machine, &big, &cache, url),
                Reason::DiskFull,
                &["it needs 3 MiB", "2 MiB are free", "nix-collect-garbage"],
            );
        }
        // From a folder Nix may have begun to copy when it was killed: what it left is nothing to it.
        run(
            "/bin/sh",
            &["-euc", &format!("! nix-store --check-validity {big}")],
        );
    });
}

#[test]
fn a_store_that_fills_up_meanwhile_is_said_to_be_full() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        // Many small files take more room than they have bytes.
        let many = machine.derive(
            "many",
            "",
            "mkdir $out; n=0; while [ $n -lt 400 ]; do echo $n > $out/$n; n=$((n + 1)); done",
        );
        cache.take(&many);
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=1m", "none", "/nix/store"],
        );
        fails(
            &request(machine, &many, &cache),
            Reason::DiskFull,
            &["the disk is full", "nix-collect-garbage"],
        );
    });
}

#[test]
fn a_store_whose_nix_makes_room_itself_is_not_taken_for_full() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let piece = |name: &str, mib: u32| {
            let text = format!("head -c {mib}M /dev/zero > $out");
            machine.derive(name, "", &text)
        };
        let pieces = ["1", "2", "3", "4"].map(|name| piece(name, 1));
        for piece in &pieces {
            cache.push(piece);
        }
        run("nix-store", &["--gc"]);
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=40m", "none", "/nix/store"],
        );
        // All fits, but for what is to stay free.
        let garbage = piece("garbage", 35);
        let server = Server::of(&cache);
        let [path, programs @ ..] = &pieces;
        let request = RealiseRequest {
            programs: programs.to_vec(),
            ..from(machine, path, &cache, &server.url)
        };
        // Nothing comes before it is refused.
        server.set(Fault::Stalls);
        fails(
            &request,
            Reason::DiskFull,
            &["it needs 4 MiB", "5 MiB are free"],
        );
        assert!(exists(&garbage));

        let conf = machine.dir().join("conf/nix.conf");
        let frees = "min-free = 5200000\nmax-free = 99000000\nmin-free-check-interval = 0\n";
        let settings = fs::read_to_string(&conf).unwrap();
        fs::write(&conf, settings + frees).unwrap();
        server.set(Fault::None);
        let (fetched, events) = fetch(&request);
        fetched.unwrap();
        assert!(!exists(&garbage), "Nix made room");
        let said = |event: &FetchEvent| matches!(event, FetchEvent::Line(line) if line.as_str().contains("`min-free`"));
        assert_eq!(events.iter().filter(|event| said(event)).count(), 1);
    });
}

#[test]
fn a_missing_nix_and_a_missing_daemon_are_said_so() {
    inside(|machine| {
        let request = RealiseRequest {
            id: new_id(),
            path: StorePath::new(GONE).unwrap(),
            programs: Vec::new(),
            digest: None,
            substituters: Vec::new(),
            keys: Vec::new(),
            roots: roots_dir(&machine.state()),
            timeout: None,
        };
        let name = std::thread::current().name().unwrap().to_owned();
        // These are settings of a process, and a process of its own sets them.
        match std::env::var("HOIST_TEST_NIX").as_deref() {
            Ok("daemon") => {
                return fails(&request, Reason::FetchFailed, &["daemon does not answer"]);
            }
            Ok(_) => return fails(&request, Reason::Internal, &["nix-store", "install Nix"]),
            Err(_) => {}
        }
        let test = std::env::current_exe().unwrap();
        let test = test.to_str().unwrap();
        let again = |set: &str| {
            let script = format!("{set} exec {test} --exact {name} --nocapture");
            run("/bin/sh", &["-euc", &script]);
        };
        again("export HOIST_TEST_NIX=daemon NIX_REMOTE=daemon;");
        let empty = machine.dir().join("empty");
        fs::create_dir(&empty).unwrap();
        again(&format!("export HOIST_TEST_NIX=missing; PATH={empty};"));
    });
}

#[test]
fn deployments_leave_no_roots_behind_and_keep_what_is_needed() {
    inside(|machine| {
        let cache = Cache::new(machine, "cache-1");
        let roots = roots_dir(&machine.state());
        let auto = || {
            let links = fs::read_dir("/nix/var/nix/gcroots/auto").unwrap();
            let names = links.map(|link| link.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with("hoist-")).count()
        };
        let mut tools = Vec::new();
        for number in 0..50 {
            let tool = machine.tool(&format!("tool-{number}"));
            let program = machine.program(&format!("check-{number}"), "true");
            let request = RealiseRequest {
                programs: vec![program.clone()],
                ..request(machine, &tool, &cache)
            };
            fetch(&request).0.unwrap();
            let id = request.id;
            tools.push((id, tool, program));
            let newest: Vec<_> = tools.iter().rev().take(3).map(|(id, ..)| *id).collect();
            // As it is while this one is under way, and as it is when it has ended.
            release_roots(&roots, &[id], &newest).unwrap();
            // Closure and program of this one, and the closures of two more.
            assert!(auto() <= 4);
            if number % 10 == 0 {
                run("nix-store", &["--gc"]);
                assert!(exists(&tools[number].1) && exists(&tools[number].2));
            }
            release_roots(&roots, &[], &newest).unwrap();
        }
        run("nix-store", &["--gc"]);
        for (number, (_, tool, program)) in tools.iter().enumerate() {
            assert_eq!(exists(tool), number >= 47, "{number}");
            assert!(!exists(program), "{number}");
        }
        assert_eq!(auto(), 3);
        assert_eq!(fs::read_dir(&roots).unwrap().count(), 3);
        // Whoever removes the state has removed all of it.
        fs::remove_dir_all(machine.state()).unwrap();
        run("nix-store", &["--gc"]);
        assert_eq!(auto(), 0);
        assert!(!tools.iter().any(|(_, tool, _)| exists(tool)));
    });
}

/// Whether a process of this group runs.
fn is_anybody_of(group: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    // One may end while it is looked at.
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // Behind the name in parentheses: state, parent, group.
    stats.into_iter().any(|stat| {
        let mut fields = stat.rsplit(") ").next().unwrap().split(' ');
        fields.next() != Some("Z") && fields.nth(1) == Some(group)
    })
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

        let mut request = RealiseRequest {
            id: new_id(),
            path: StorePath::new(GONE).unwrap(),
            programs: Vec::new(),
            digest: None,
            substituters: Vec::new(),
            keys: Vec::new(),
            roots: roots_dir(&machine.state()),
            timeout: Some(Duration::from_millis(300)),
        };
        let error = fetch(&request).0.unwrap_err();
        assert!(error.message.as_str().contains("longer than"), "{error}");
        let nobody = || {
            let leader = fs::read_to_string(&pid).unwrap();
            until("nobody of its group is left", || {
                !is_anybody_of(leader.trim())
            });
            fs::remove_file(&pid).unwrap();
        };
        nobody();

        request.timeout = None;
        runtime().block_on(async {
            let (sender, _events) = mpsc::channel(1);
            tokio::select! {
                result = realise(&request, || None, &sender) => panic!("it ended: {result:?}"),
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
