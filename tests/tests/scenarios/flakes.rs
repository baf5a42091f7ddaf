//! From a flake to a fleet: evaluated, built, pushed and deployed, or nothing published at all.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use camino::Utf8PathBuf;
use hoist_protocol::{StorePath, System as Platform};
use hoist_tests::closure::{Closure, System};
use hoist_tests::process::{self, Finished, Process};
use hoist_tests::wait;
use hoist_tests::world::{FLEET, Options, World, scenario};
use rustix::process::Signal;
use serde_json::Value;

/// A flake whose machines are all of the ways in which one can go right or wrong. `DIR` is its folder outside of the
/// store.
const FLAKE: &str = r#"{
  outputs = { self }:
    let
      closure = name: import ./closures.nix { spec = builtins.readFile (./. + "/${name}.json"); };
      broken = name: script: derivation {
        inherit name;
        system = "SYSTEM";
        builder = "/bin/sh";
        args = [ "-euc" script ];
        PATH = "/usr/bin:/bin";
        allowSubstitutes = false;
      };
      machine = toplevel: { config.system.build.toplevel = toplevel; };
    in
    {
      # That a package has the name of the output must not matter.
      packages.SYSTEM.hoist = broken "package" "exit 1";
      nixosConfigurations = {
        web-1 = machine (closure "web-1");
        web-2 = machine (broken "web-2" "echo no such compiler; exit 1");
        web-3 = machine (throw "web-3 has no host name");
        web-4 = machine (broken "web-4" "touch DIR/building; while :; do sleep 0.1; done");
      };
      staging.agents = {
        web-1 = { path = self.nixosConfigurations.web-1; confirm_timeout = "2m"; };
      };
      staging.rollbackScript.SYSTEM = closure "check";
      good.agents.web-1 = self.nixosConfigurations.web-1;
    };
}
"#;

/// Writes the flake.
pub(super) fn flake(world: &World) -> Result<Utf8PathBuf> {
    let dir = world.site().dir().join("fleet");
    fs::create_dir(&dir)?;
    let platform = Platform::current()?.to_string();
    let text = FLAKE.replace("SYSTEM", &platform);
    fs::write(dir.join("flake.nix"), text.replace("DIR", dir.as_str()))?;
    // What runs here is nothing that a flake may ask for.
    let closures = include_str!("../../src/closures.nix");
    let closures = closures.replace("builtins.currentSystem", &format!("\"{platform}\""));
    fs::write(dir.join("closures.nix"), closures)?;
    let web = System::new("web-1", "1").closure();
    for (name, closure) in [("web-1", web), ("check", Closure::health_check("exit 0"))] {
        let spec = serde_json::to_string(&closure)?;
        fs::write(dir.join(format!("{name}.json")), spec)?;
    }
    Ok(dir)
}

/// What lies on the machine's topic.
fn retained(world: &World, name: &str) -> Result<Option<Vec<u8>>> {
    let reader = world.client(
        world.authority.identity("publisher", "watcher"),
        "watcher.read",
    );
    reader.retained(&format!("hoist/v1/{FLEET}/{name}/deploy"))
}

fn refused(world: &World, args: &[&str], code: i32, words: &[&str]) -> Result<Finished> {
    let done = world.hoist_in_ci(args)?.expect_code(code)?;
    for word in words {
        ensure!(
            done.stderr.contains(word),
            "`{word}` is not in: {}",
            done.stderr
        );
    }
    for name in ["web-1", "web-2", "web-3", "web-4"] {
        ensure!(retained(world, name)?.is_none(), "{name} got a deployment");
    }
    Ok(done)
}

#[test]
fn a_flake_becomes_what_its_machines_run() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let machine = world.running("web-1")?;
        let (good, cache) = (format!("{dir}#good"), world.cache.push_url());
        let deploy = ["deploy", "--flake", &good, "--cache", &cache, "--json"];
        let done = world.hoist_in_ci(&deploy)?.expect_code(0)?;
        let report: Value = serde_json::from_str(&done.stdout)?;
        let path: StorePath = serde_json::from_value(report["machines"][0]["path"].clone())?;
        ensure!(machine.current_system()? == Some(path), "{report}");
        // What was built here is signed to the byte.
        ensure!(report["machines"][0]["digest"].is_string(), "{report}");
        ensure!(!done.stderr.contains(world.cache.secret_file().as_str()));

        // Of a flake without a spec, those that are meant are all that is evaluated and built.
        let args = [
            "deploy",
            "--flake",
            dir.as_str(),
            "--agent",
            "web-1",
            "--json",
        ];
        let done = world.hoist_in_ci(&args)?.expect_code(0)?;
        let report: Value = serde_json::from_str(&done.stdout)?;
        ensure!(report["machines"][0]["skipped"] == true, "{report}");
        ensure!(report["machines"][1].is_null(), "{report}");
        Ok(())
    });
}

#[test]
fn building_pushing_and_deploying_can_be_done_one_by_one() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let machine = world.running("web-1")?;
        let staging = format!("{dir}#staging");
        let planned = world
            .hoist_in_ci(&["deploy", "--flake", &staging, "--dry-run", "--json"])?
            .expect_code(0)?;
        let planned: Value = serde_json::from_str(&planned.stdout)?;

        let spec = dir.join("spec.json");
        world
            .hoist_in_ci(&["build", &staging, "--out", spec.as_str()])?
            .expect_code(0)?;
        let document: Value = serde_json::from_str(&fs::read_to_string(&spec)?)?;
        let built = &document["agents"]["web-1"];
        ensure!(built["confirm_timeout"] == "2m", "{document}");
        ensure!(built["path"] == planned["machines"][0]["path"], "{planned}");
        let platform = Platform::current()?.to_string();
        ensure!(
            document["rollbackScript"][&platform].is_string(),
            "{document}"
        );

        let unset = world
            .hoist_in_ci(&["push", spec.as_str()])?
            .expect_code(2)?;
        ensure!(unset.stderr.contains("HOIST_CACHE"), "{}", unset.stderr);
        let cache = world.cache.push_url();
        world
            .hoist_in_ci(&["push", spec.as_str(), "--cache", &cache])?
            .expect_code(0)?;
        world
            .hoist_in_ci(&["deploy", spec.as_str()])?
            .expect_code(0)?;
        let runs = machine.current_system()?;
        ensure!(runs.as_ref().map(StorePath::as_str) == built["path"].as_str());
        Ok(())
    });
}

#[test]
fn what_cannot_be_built_or_pushed_is_named_and_nothing_is_published() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let deploy = |agent| ["deploy", "--flake", dir.as_str(), "--agent", agent];
        refused(world, &deploy("web-2"), 1, &["`web-2`", "no such compiler"])?;
        refused(world, &deploy("web-3"), 1, &["`web-3`", "no host name"])?;
        refused(world, &deploy("web-9"), 2, &["`web-9`", "did you mean"])?;
        // What is wrong with the settings is said before anything is asked of Nix.
        for (wrong, word) in [
            (["--required-signatures", "2"], "2 signatures are required"),
            (["--substituter-key", "none"], "substituter"),
        ] {
            let args = [&deploy("web-2")[..], &wrong].concat();
            let done = refused(world, &args, 2, &[word])?;
            ensure!(!done.stderr.contains("looking for"), "{}", done.stderr);
        }
        let quiet = [&deploy("web-2")[..], &["--quiet"]].concat();
        refused(world, &quiet, 1, &["`web-2`", "web-2.drv"])?;
        let cache = ["--cache", "file:///proc/none?secret-key=/secret"];
        let no_cache = [&deploy("web-1")[..], &cache].concat();
        let done = refused(world, &no_cache, 1, &["copied to `file:///proc/none`"])?;
        ensure!(!done.stderr.contains("copied to `file:///proc/none?"));
        let nothing = format!("{dir}#nothing");
        refused(world, &["build", &nothing], 1, &["nothing.agents"])?;
        refused(world, &["build", "--agent", "@web"], 2, &["@web", "names"])?;
        Ok(())
    });
}

#[test]
fn what_was_built_is_safe_from_the_garbage_collector_until_it_is_copied() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let machine = world.running("web-1")?;
        // A `nix` that writes down what is rooted when it is to copy.
        let (programs, roots) = (dir.join("programs"), dir.join("temporary"));
        fs::create_dir(&programs)?;
        fs::create_dir(&roots)?;
        let script = format!(
            "#!/bin/sh\nPATH=${{PATH#*:}}\n\
             [ \"$1\" != copy ] || readlink {roots}/hoist-roots-*/* > {dir}/rooted\nexec nix \"$@\"\n"
        );
        fs::write(programs.join("nix"), script)?;
        fs::set_permissions(programs.join("nix"), fs::Permissions::from_mode(0o755))?;
        let (good, cache) = (format!("{dir}#good"), world.cache.push_url());
        let mut command = world.ci_command(&["deploy", "--flake", &good, "--cache", &cache]);
        let path = command
            .get_envs()
            .find(|(name, _)| *name == "PATH")
            .and_then(|(_, value)| Some(value?.to_string_lossy().into_owned()))
            .context("the builder has a PATH")?;
        command
            .env("PATH", format!("{programs}:{path}"))
            .env("TMPDIR", &roots);
        process::run("rooted", command, world.site().logs())?.expect_code(0)?;
        let runs = machine.current_system()?.context("it runs a system")?;
        let rooted = fs::read_to_string(dir.join("rooted"))?;
        ensure!(rooted.lines().any(|path| path == runs.as_str()), "{rooted}");
        ensure!(fs::read_dir(&roots)?.next().is_none(), "nothing is left");
        Ok(())
    });
}

#[test]
fn an_interrupted_build_ends_at_once_and_publishes_nothing() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let args = ["deploy", "--flake", dir.as_str(), "--agent", "web-4"];
        let mut hoist = Process::start("building", world.ci_command(&args), world.site().logs())?;
        wait::until_true("the build is under way", || {
            Ok(dir.join("building").exists())
        })?;
        hoist.signal(Signal::INT)?;
        let done = Finished::wait(hoist)?.expect_code(130)?;
        ensure!(
            done.stderr.contains("nothing was published"),
            "{}",
            done.stderr
        );
        ensure!(retained(world, "web-4")?.is_none());
        Ok(())
    });
}

#[test]
fn machines_are_chosen_by_what_they_say_before_anything_is_built() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let machine = world.running("web-1")?;
        // The others cannot be built, and have never said anything.
        let cache = world.cache.push_url();
        let args = ["deploy", "--flake", dir.as_str(), "--cache", &cache];
        let online = [&args[..], &["--where", "presence=online"]].concat();
        world.hoist_in_ci(&online)?.expect_code(0)?;
        ensure!(machine.current_system()?.is_some());
        let nobody = [&args[..], &["--where", "state=failed"]].concat();
        let done = world.hoist_in_ci(&nobody)?.expect_code(0)?;
        ensure!(done.stderr.contains("nothing was built"), "{}", done.stderr);
        Ok(())
    });
}
