//! The harness itself: that a made-up machine is a machine as far as Nix can tell.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};
use hoist_tests::builder::{Builder, Cache};
use hoist_tests::closure::System;
use hoist_tests::namespace::Namespace;
use hoist_tests::process;
use hoist_tests::server::Mode;
use hoist_tests::site::Site;
use hoist_tests::world::{Options, scenario};

struct Workshop {
    builder: Builder,
    dir: Utf8PathBuf,
    site: Site,
}

impl Workshop {
    fn new() -> Result<Self> {
        let site = Site::create("workshop")?;
        let dir = site.dir().to_owned();
        let builder = Builder::create(&dir.join("builder"), site.programs(), site.logs())?;
        Ok(Self { builder, dir, site })
    }

    fn cache(&self, name: &str) -> Result<Cache> {
        Cache::create(&self.dir.join(name), &format!("{name}-1"), &self.builder)
    }

    fn machine(&self, nix_conf: &str) -> Result<Namespace> {
        Namespace::create(&self.dir.join("machine"), self.site.programs(), nix_conf)
    }
}

fn realise(machine: &Namespace, path: &str, logs: &Utf8Path) -> Result<process::Finished> {
    let mut command = machine.command("nix-store");
    command.args(["--realise", path]);
    process::run("realise", command, logs)
}

#[test]
fn a_machine_fetches_from_the_signed_cache_what_its_store_does_not_have() -> Result<()> {
    let shop = Workshop::new()?;
    let cache = shop.cache("cache")?;
    let system = shop.builder.build(&System::new("web-1", "1").closure())?;
    shop.builder.push(&system, &cache)?;
    assert_eq!(
        shop.builder.closure_len(&system)?,
        4,
        "a system is made of four paths"
    );

    let machine = shop.machine(&cache.nix_conf()?)?;
    let here = machine.host_path(system.as_str());
    assert!(!here.exists());
    realise(&machine, system.as_str(), &shop.dir)?.success()?;
    assert!(here.exists());
    assert_eq!(
        cache.server.archives(),
        4,
        "all four came from the cache: {:?}",
        cache.server.requests()
    );
    Ok(())
}

#[test]
fn a_machine_takes_nothing_from_a_cache_whose_key_it_does_not_trust() -> Result<()> {
    let shop = Workshop::new()?;
    let (trusted, other) = (shop.cache("trusted")?, shop.cache("other")?);
    let system = shop.builder.build(&System::new("web-1", "1").closure())?;
    shop.builder.push(&system, &other)?;

    let conf = trusted
        .nix_conf()?
        .replace(&trusted.server.url()?, &other.server.url()?);
    let machine = shop.machine(&conf)?;
    let finished = realise(&machine, system.as_str(), &shop.dir)?;
    assert_ne!(finished.code, 0, "{}", finished.stdout);
    assert!(!machine.host_path(system.as_str()).exists());
    Ok(())
}

#[test]
fn a_cache_that_lost_everything_has_nothing() -> Result<()> {
    let shop = Workshop::new()?;
    let cache = shop.cache("cache")?;
    let system = shop.builder.build(&System::new("web-1", "1").closure())?;
    shop.builder.push(&system, &cache)?;
    cache.server.set(Mode::Empty);

    let machine = shop.machine(&cache.nix_conf()?)?;
    assert_ne!(realise(&machine, system.as_str(), &shop.dir)?.code, 0);
    assert!(!machine.host_path(system.as_str()).exists());
    Ok(())
}

#[test]
fn nothing_of_a_machine_survives_when_its_power_is_cut() -> Result<()> {
    let shop = Workshop::new()?;
    let machine = shop.machine("")?;
    let mut command = machine.command("sh");
    // One of the two has left the session and the process group of the other.
    command.args(["-c", "setsid sleep 1000 & echo ready; wait"]);
    let mut process = process::Process::start("sleeper", command, &shop.dir)?;
    process.wait_for_line("ready")?;
    assert!(machine.processes()?.len() >= 2);
    machine.kill_all()?;
    assert_eq!(process.wait()?.signal(), Some(9));
    assert_eq!(machine.processes()?, []);
    Ok(())
}

#[test]
fn a_secret_in_a_log_does_not_go_unnoticed() {
    scenario(Options::default(), |world| {
        world.check_logs()?;
        let log = world.site().logs().join("careless.err");
        let key = std::fs::read_to_string(&world.signing_key.path)?;
        std::fs::write(&log, format!("publishing with {key}"))?;
        let found = world
            .check_logs()
            .expect_err("the log holds the signing key")
            .to_string();
        assert!(found.contains("careless.err"), "{found}");
        Ok(std::fs::remove_file(&log)?)
    });
}
