//! Two people for a release: one prepares it, another one looks at it and signs, and only then machines take it.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use camino::Utf8PathBuf;
use hoist_protocol::StorePath;
use hoist_tests::authority::SigningKeyFile;
use hoist_tests::closure::System;
use hoist_tests::machine::Machine;
use hoist_tests::process::{self, Finished, Process};
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};
use rustix::process::Signal;

/// Machines that ask for the signatures of `ci` and `ops`, and what both of them have configured.
struct Stage<'a> {
    world: &'a World,
    ops: SigningKeyFile,
    machines: Vec<Machine>,
    config: Utf8PathBuf,
}

impl<'a> Stage<'a> {
    fn set(world: &'a World, names: &[&str]) -> Result<Self> {
        let ops = world.authority.signing_key("ops")?;
        let (one, two) = (world.signing_key.public.to_string(), ops.public.to_string());
        let keys = format!("trusted_keys = [{one:?}]");
        let both = format!("required_signatures = 2\ntrusted_keys = [{one:?}, {two:?}]");
        let mut machines = Vec::new();
        for name in names {
            let mut machine = world.machine(name)?;
            let text = fs::read_to_string(machine.config())?;
            ensure!(text.contains(&keys), "{text}");
            fs::write(machine.config(), text.replace(&keys, &both))?;
            machine.start_agent()?;
            machines.push(machine);
        }
        for machine in &machines {
            wait::until("it reports", || world.watch().status(machine.name()))?;
            world.watch().wait_presence(machine.name(), "online")?;
        }
        let config = world.site().dir().join("two.toml");
        let settings = world.publisher_settings(&world.publisher, true);
        fs::write(&config, format!("{both}\n{settings}"))?;
        Ok(Self {
            world,
            ops,
            machines,
            config,
        })
    }

    /// The only machine, where there is one.
    fn machine(&self) -> &Machine {
        &self.machines[0]
    }

    fn hoist(&self, args: &[&str]) -> Result<Finished> {
        process::run("hoist-two", self.command(args), self.world.site().logs())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = process::command(&self.world.site().programs().publisher);
        command.env("HOIST_CONFIG", &self.config).args(args);
        command
    }

    /// Has `ci` prepare in a file that each machine gets the path in its place.
    fn prepare(&self, paths: &[StorePath], name: &str) -> Result<String> {
        let agents: Vec<_> = (self.machines.iter().map(Machine::name))
            .zip(paths)
            .collect();
        let spec = self.world.spec(&agents, None)?;
        let file = self.world.site().dir().join(name).to_string();
        self.hoist(&["deploy", spec.as_str(), "--prepare", &file])?
            .expect_code(0)?;
        Ok(file)
    }

    /// Has `ops` sign what is in the file.
    fn sign(&self, file: &str) -> Result<()> {
        let key = self.ops.path.as_str();
        self.hoist(&["sign", file, "--yes", "--signing-key", key])?
            .expect_code(0)?;
        Ok(())
    }
}

const OPEN_BROKER: Options = Options {
    broker_without_keys: true,
    engine: None,
};

#[test]
fn a_release_takes_two_people_and_the_second_one_sees_what_it_is() {
    scenario(OPEN_BROKER, |world| {
        let stage = Stage::set(world, &["web-1"])?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let spec = world.spec(&[(stage.machine().name(), &v1)], None)?;
        let alone = stage.hoist(&["deploy", spec.as_str()])?.expect_code(2)?;
        ensure!(alone.stderr.contains("hoist sign"), "{}", alone.stderr);
        // Who does not know that two are needed is refused by the machine.
        world.hoist(&["deploy", spec.as_str()])?.expect_code(5)?;

        let file = stage.prepare(std::slice::from_ref(&v1), "release.json")?;
        let early = stage
            .hoist(&["deploy", "--signed", &file])?
            .expect_code(2)?;
        ensure!(early.stderr.contains("1 of the 2"), "{}", early.stderr);
        let unasked = stage.hoist(&["sign", &file])?.expect_code(2)?;
        ensure!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
        let shown = stage.hoist(&["sign", &file, "--show"])?.success()?;
        ensure!(
            shown.contains(v1.as_str()) && shown.contains("ci"),
            "{shown}"
        );
        ensure!(stage.machine().activations()?.is_empty());

        stage.sign(&file)?;
        let done = stage
            .hoist(&["deploy", "--signed", &file])?
            .expect_code(0)?;
        ensure!(done.stdout.contains("succeeded"), "{}", done.stdout);
        ensure!(stage.machine().current_system()? == Some(v1));
        // Once more is no work for anybody, and no harm.
        stage
            .hoist(&["deploy", "--signed", &file])?
            .expect_code(0)?;
        Ok(())
    });
}

#[test]
fn a_release_that_waited_for_too_long_is_not_published_over_a_newer_one() {
    scenario(OPEN_BROKER, |world| {
        let stage = Stage::set(world, &["web-1"])?;
        let v1 = world.system(&System::new("web-1", "1"))?;
        let v2 = world.system(&System::new("web-1", "2"))?;
        let old = stage.prepare(&[v1], "old.json")?;
        stage.sign(&old)?;
        let new = stage.prepare(std::slice::from_ref(&v2), "new.json")?;
        stage.sign(&new)?;
        stage.hoist(&["deploy", "--signed", &new])?.expect_code(0)?;
        let late = stage.hoist(&["deploy", "--signed", &old])?.expect_code(7)?;
        ensure!(late.stdout.contains("prepare it again"), "{}", late.stdout);
        ensure!(stage.machine().current_system()? == Some(v2));
        Ok(())
    });
}

#[test]
fn what_two_people_have_signed_comes_batch_by_batch_and_goes_on_where_it_was_interrupted() {
    scenario(OPEN_BROKER, |world| {
        let stage = Stage::set(world, &["web-1", "web-2"])?;
        let paths = [
            world.system(&System::new("web-1", "1"))?,
            world.system(&System::new("web-2", "1"))?,
        ];
        let file = stage.prepare(&paths, "release.json")?;
        stage.sign(&file)?;
        let rollout = ["deploy", "--signed", &file, "--batch", "1"];
        // Nobody could sign the way back in the middle of it.
        let back = [&rollout[..], &["--on-failure", "rollback"]].concat();
        let refused = stage.hoist(&back)?.expect_code(2)?;
        ensure!(
            refused.stderr.contains("as many signatures"),
            "{}",
            refused.stderr
        );
        let baking = stage.command(&[&rollout[..], &["--bake", "20m"]].concat());
        let mut hoist = Process::start("baking", baking, world.site().logs())?;
        wait::until_true("the first batch has to stay well", || {
            Ok(hoist.stderr()?.contains("has to stay well"))
        })?;
        ensure!(stage.machines[0].current_system()?.as_ref() == Some(&paths[0]));
        ensure!(stage.machines[1].activations()?.is_empty());
        hoist.signal(Signal::INT)?;
        Finished::wait(hoist)?.expect_code(130)?;
        stage.hoist(&rollout)?.expect_code(0)?;
        ensure!(stage.machines[1].current_system()?.as_ref() == Some(&paths[1]));
        Ok(())
    });
}
