//! Deployments that reach their machines batch by batch, and which machines are meant.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::Utf8PathBuf;
use ed25519_dalek::Signer as _;
use hoist_protocol::{AgentName, KeyName, SigningKey, State, StorePath};
use hoist_tests::closure::System;
use hoist_tests::machine::Machine;
use hoist_tests::process::{Finished, Process};
use hoist_tests::server::Mode;
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};
use rustix::process::Signal;
use serde_json::Value;

/// Three machines that run version 1 of their systems.
struct Fleet<'a> {
    world: &'a World,
    machines: Vec<Machine>,
    /// What each is to run next.
    paths: Vec<StorePath>,
}

/// How a `hoist deploy` ended.
struct Done {
    document: Value,
    stderr: String,
}

impl<'a> Fleet<'a> {
    fn set(world: &'a World) -> Result<Self> {
        let mut machines = Vec::new();
        let mut paths = Vec::new();
        for name in ["web-1", "web-2", "web-3"] {
            let machine = world.running(name)?;
            let status = world.carry_out(&machine, &world.system(&System::new(name, "1"))?)?;
            ensure!(status.state == State::Succeeded, "{status:?}");
            machines.push(machine);
            paths.push(world.system(&System::new(name, "2"))?);
        }
        Ok(Self {
            world,
            machines,
            paths,
        })
    }

    /// What `web-2` is to run fails; what was good comes back.
    fn break_the_second(&mut self) -> Result<StorePath> {
        let bad = self.world.system(&System::new("web-2", "bad").failing())?;
        Ok(std::mem::replace(&mut self.paths[1], bad))
    }

    fn spec(&self) -> Result<String> {
        let agents: Vec<(&AgentName, &StorePath)> = (self.machines.iter().map(Machine::name))
            .zip(&self.paths)
            .collect();
        Ok(self.world.spec(&agents, None)?.to_string())
    }

    /// Begins to deploy all of it.
    fn start(&self, name: &str, args: &[&str]) -> Result<Process> {
        let spec = self.spec()?;
        let args = [&["deploy", &spec, "--json"], args].concat();
        self.world.start_hoist(name, &args)
    }

    /// Deploys all of it, which ends with `code`.
    fn deploy(&self, args: &[&str], code: i32) -> Result<Done> {
        let spec = self.spec()?;
        let args = [&["deploy", &spec, "--json"], args].concat();
        Done::of(&self.world.hoist(&args)?.expect_code(code)?)
    }

    /// Whether the machine with this number runs what it is to run.
    fn runs_it(&self, number: usize) -> Result<bool> {
        Ok(self.machines[number].current_system()?.as_ref() == Some(&self.paths[number]))
    }
}

impl Done {
    fn of(finished: &Finished) -> Result<Self> {
        let stdout = &finished.stdout;
        let document =
            serde_json::from_str(stdout).with_context(|| format!("no JSON: {stdout}"))?;
        Ok(Self {
            document,
            stderr: finished.stderr.clone(),
        })
    }

    /// Of a process, which ends with `code`.
    fn wait(hoist: Process, code: i32) -> Result<Self> {
        Self::of(&Finished::wait(hoist)?.expect_code(code)?)
    }

    fn machines(&self) -> &[Value] {
        (self.document["machines"].as_array()).map_or(&[][..], Vec::as_slice)
    }

    /// The outcome of each machine, in their order.
    fn outcomes(&self) -> Vec<&str> {
        (self.machines().iter())
            .map(|machine| machine["outcome"].as_str().unwrap_or("none"))
            .collect()
    }

    /// Checks them.
    fn expect(&self, outcomes: &[&str]) -> Result<()> {
        ensure!(self.outcomes() == outcomes, "{}", self.document);
        Ok(())
    }

    fn expect_said(&self, words: &str) -> Result<()> {
        ensure!(self.stderr.contains(words), "`{words}`: {}", self.stderr);
        Ok(())
    }

    fn rollout(&self) -> &Value {
        &self.document["rollout"]
    }
}

/// A scenario with such a fleet.
fn with_fleet(play: impl FnOnce(Fleet<'_>) -> Result<()>) {
    scenario(Options::default(), |world| play(Fleet::set(world)?));
}

#[test]
fn a_rollout_comes_batch_by_batch() {
    with_fleet(|fleet| {
        // The canary is held up in the middle of its activation.
        let gate = fleet.machines[0].gate("2", "test")?;
        let one_by_one = ["--canary", "1", "--batch", "1"];
        let hoist = fleet.start("rollout", &one_by_one)?;
        gate.wait_reached()?;
        for machine in &fleet.machines[1..] {
            machine.never("it is deployed before the canary has ended", |machine| {
                Ok(machine
                    .activations()?
                    .iter()
                    .any(|line| line.contains("2 test")))
            })?;
        }
        gate.open()?;
        let done = Done::wait(hoist, 0)?;
        done.expect(&["succeeded"; 3])?;
        let rollout = done.rollout();
        ensure!(
            rollout["batches"] == 3 && rollout["batch"] == 3 && rollout["stopped"] == false,
            "{rollout}"
        );
        for number in 0..3 {
            ensure!(fleet.runs_it(number)?);
        }
        // Once more is no work for anybody.
        let again = fleet.deploy(&one_by_one, 0)?;
        again.expect(&["unchanged"; 3])?;
        again.expect_said("nothing was published")?;
        ensure!(again.rollout().is_null(), "{}", again.document);
        // Those that have it, and are sent it all the same, come together.
        let again = fleet.deploy(&["--batch", "1", "--no-skip"], 0)?;
        again.expect(&["unchanged"; 3])?;
        again.expect_said("3 machines in one batch")?;
        ensure!(again.rollout()["batches"] == 1, "{}", again.document);
        Ok(())
    });
}

#[test]
fn a_rollout_that_fails_stops_and_goes_on_with_the_same_command() {
    with_fleet(|mut fleet| {
        let good = fleet.break_the_second()?;
        let stopped = fleet.deploy(&["--batch", "1"], 3)?;
        stopped.expect(&["succeeded", "failed", "not_begun"])?;
        stopped.expect_said("stopped in batch 2 of 3")?;
        ensure!(stopped.rollout()["stopped"] == true, "{}", stopped.document);
        // Nothing lies on the topic of the one whose batch never came.
        ensure!(!fleet.runs_it(2)?);
        fleet.paths[1] = good;
        let done = fleet.deploy(&["--batch", "1"], 0)?;
        done.expect(&["unchanged", "succeeded", "succeeded"])
    });
}

#[test]
fn a_rollout_that_fails_can_send_back_what_it_has_moved() {
    with_fleet(|mut fleet| {
        fleet.break_the_second()?;
        let first = &fleet.machines[0];
        let before = first.current_system()?;
        let done = fleet.deploy(&["--batch", "1", "--on-failure", "rollback"], 3)?;
        done.expect(&["rolled_back", "failed", "not_begun"])?;
        done.expect_said("1 of 1 machines")?;
        let sent_back = done.machines()[0]["sent_back"].as_str();
        ensure!(sent_back.is_some(), "{}", done.document);
        ensure!(
            first.current_system()? == before,
            "web-1 runs what it ran before"
        );
        let status = fleet.world.watch().status(first.name())?;
        let status = status.context("it has a status")?;
        ensure!(
            status.id.map(|id| id.to_string()).as_deref() == sent_back,
            "{status:?}"
        );
        Ok(())
    });
}

#[test]
fn a_machine_that_is_held_from_afar_is_no_canary_and_no_failure() {
    with_fleet(|fleet| {
        fleet.world.hoist(&["hold", "web-1"])?.expect_code(0)?;
        let done = fleet.deploy(&["--canary", "1"], 0)?;
        done.expect(&["deferred", "succeeded", "succeeded"])?;
        ensure!(done.machines()[0]["batch"] == 3, "{}", done.document);
        fleet.world.hoist(&["release", "web-1"])?.expect_code(0)?;
        ensure!(fleet.runs_it(0)?);
        Ok(())
    });
}

#[test]
fn a_rollout_whose_way_back_is_not_signed_says_so_in_its_report() {
    with_fleet(|mut fleet| {
        fleet.break_the_second()?;
        let signer = Signer::new(fleet.world)?;
        let (command, key) = (signer.command(), signer.key.public().to_string());
        let args = ["--batch", "1", "--on-failure", "rollback"];
        let signed = ["--signer", &command, "--signer-key", &key];
        let hoist = fleet.start("signer", &[&args[..], &signed].concat())?;
        signer.sign_for(3)?;
        let done = Done::wait(hoist, 1)?;
        done.expect(&["not_published", "failed", "not_begun"])?;
        let first = &done.machines()[0];
        ensure!(first["sent_back"].is_null(), "{first}");
        ensure!(
            first["message"]
                .to_string()
                .contains("not signed by the key"),
            "{first}"
        );
        done.expect_said("web-1: it was moved and is not sent back")?;
        done.expect_said("0 of 1 machines")?;
        ensure!(fleet.runs_it(0)?);
        Ok(())
    });
}

#[test]
fn a_rollout_that_somebody_cancels_begins_no_further_batch() {
    with_fleet(|fleet| {
        let world = fleet.world;
        // Its first batch has ended and has to stay well: nothing is left to cancel on any machine.
        let hoist = fleet.start("baking", &["--batch", "1", "--bake", "20m"])?;
        wait::until_true("the first batch has to stay well", || {
            Ok(hoist.stderr()?.contains("has to stay well"))
        })?;
        let wrong = world.hoist(&["cancel", "--rollout", "00000000"])?;
        let wrong = wrong.expect_code(1)?;
        ensure!(
            wrong.stderr.contains("rollouts that machines have"),
            "{}",
            wrong.stderr
        );
        let id = rollout_of(&hoist.stderr()?)?;
        // The machines that are named are meant alone.
        world
            .hoist(&["cancel", "web-1", "--rollout", &id])?
            .expect_code(0)?;
        ensure!(
            !hoist.stderr()?.contains("was cancelled"),
            "{}",
            hoist.stderr()?
        );
        // It is seen too when nobody waits for the machines.
        let cancel = ["cancel", "--rollout", &id, "--actor", "alice", "--async"];
        let cancelled = world.hoist(&cancel)?.expect_code(0)?;
        ensure!(
            cancelled.stderr.contains(&format!("--rollout {id}")),
            "{}",
            cancelled.stderr
        );
        let done = Done::wait(hoist, 7)?;
        done.expect(&["succeeded", "not_begun", "not_begun"])?;
        done.expect_said("cancelled by alice")?;
        ensure!(
            done.rollout()["cancelled_by"].is_string(),
            "{}",
            done.document
        );
        ensure!(fleet.runs_it(0)?);
        // Once more is nothing to do, and the same command again goes on.
        let ended = world.hoist(&["wait", "--rollout", &id])?;
        ended.expect_code(0)?;
        let again = world.hoist(&["cancel", "--rollout", &id, "--json"])?;
        Done::of(&again.expect_code(0)?)?.expect(&["skipped"])?;
        let done = fleet.deploy(&[], 0)?;
        ensure!(
            done.outcomes()[1..] == ["succeeded"; 2],
            "{}",
            done.document
        );
        Ok(())
    });
}

#[test]
fn a_rollout_that_is_cancelled_while_a_machine_fetches_ends_with_that() {
    with_fleet(|fleet| {
        let server = &fleet.world.cache.server;
        server.set(Mode::Holding);
        let hoist = fleet.start("fetching", &["--batch", "1"])?;
        wait::until_true("it is being fetched", || Ok(server.held() > 0))?;
        let id = rollout_of(&hoist.stderr()?)?;
        let cancel = ["cancel", "--rollout", &id];
        fleet.world.hoist(&cancel)?.expect_code(0)?;
        let done = Done::wait(hoist, 7)?;
        server.set(Mode::Serving);
        ensure!(
            done.outcomes()[1..] == ["not_begun"; 2],
            "{}",
            done.document
        );
        ensure!(
            done.rollout()["cancelled_by"].is_string(),
            "{}",
            done.document
        );
        for machine in &fleet.machines {
            ensure!(
                machine
                    .activations()?
                    .iter()
                    .all(|line| !line.contains("2 "))
            );
        }
        Ok(())
    });
}

#[test]
fn a_machine_that_somebody_else_deploys_to_is_let_go_by_a_rollout() {
    with_fleet(|fleet| {
        let gate = fleet.machines[0].gate("2", "test")?;
        let hoist = fleet.start("rollout", &["--batch", "1"])?;
        gate.wait_reached()?;
        let other = fleet.world.system(&System::new("web-3", "manual"))?;
        let theirs = fleet.world.carry_out(&fleet.machines[2], &other)?;
        ensure!(theirs.state == State::Succeeded, "{theirs:?}");
        gate.open()?;
        Done::wait(hoist, 7)?.expect(&["succeeded", "succeeded", "superseded"])?;
        ensure!(
            fleet.machines[2].current_system()? == Some(other),
            "the manual deployment stands"
        );
        Ok(())
    });
}

#[test]
fn a_rollout_that_is_killed_or_interrupted_stops_where_it_is() {
    with_fleet(|fleet| {
        let args = ["--batch", "1"];
        let gate = fleet.machines[0].gate("2", "test")?;
        let mut hoist = fleet.start("killed", &args)?;
        gate.wait_reached()?;
        hoist.kill()?;
        gate.open()?;
        // The machine goes on by itself, and no other is begun.
        wait::until_true("web-1 runs it", || fleet.runs_it(0))?;
        ensure!(!fleet.runs_it(1)?);

        let gate = fleet.machines[1].gate("2", "test")?;
        let mut hoist = fleet.start("interrupted", &args)?;
        gate.wait_reached()?;
        hoist.signal(Signal::INT)?;
        let done = Done::wait(hoist, 130)?;
        let seen = done.outcomes();
        ensure!(
            seen[0] == "unchanged" && seen[2] == "not_begun",
            "{}",
            done.document
        );
        gate.open()?;
        wait::until_true("web-2 runs it", || fleet.runs_it(1))?;
        let done = fleet.deploy(&args, 0)?;
        ensure!(
            done.outcomes()[1..] == ["unchanged", "succeeded"],
            "{}",
            done.document
        );
        Ok(())
    });
}

#[test]
fn machines_are_chosen_by_name_and_by_what_they_say_and_a_dry_run_changes_nothing() {
    with_fleet(|mut fleet| {
        let good = fleet.break_the_second()?;
        let failed = (fleet.world).carry_out(&fleet.machines[1], &fleet.paths[1])?;
        ensure!(failed.state == State::Failed, "{failed:?}");
        fleet.paths[1] = good;

        let dry = fleet.deploy(&["--dry-run", "--agent", "!web-3"], 0)?;
        let rows = dry.machines();
        ensure!(
            rows.len() == 2 && rows.iter().all(|row| row["would"] == "change"),
            "{}",
            dry.document
        );
        ensure!(!fleet.runs_it(0)?, "nothing was done");

        let retry = ["--where", "state=failed"];
        let chosen = fleet.deploy(&retry, 0)?;
        ensure!(
            chosen.machines().len() == 1 && chosen.machines()[0]["agent"] == "web-2",
            "{}",
            chosen.document
        );
        let none = fleet.deploy(&retry, 0)?;
        ensure!(
            none.document["machines"] == serde_json::json!([]),
            "none is left: {}",
            none.document
        );

        let failed = fleet.world.hoist(&["status", "web-*", "--failed"])?;
        let failed = failed.expect_code(0)?;
        ensure!(
            failed.stdout.contains("no machine is like that"),
            "{}",
            failed.stdout
        );
        let typo = fleet.deploy(&["--agent", "wbe-*"], 2)?;
        typo.expect_said("`wbe-*`")
    });
}

#[test]
fn a_machine_that_is_away_comes_last_and_counts_for_nothing() {
    with_fleet(|mut fleet| {
        fleet.machines[0].stop_agent()?;
        let name = fleet.machines[0].name();
        fleet.world.watch().wait_presence(name, "offline")?;
        let done = fleet.deploy(&["--canary", "1"], 0)?;
        done.expect(&["offline", "succeeded", "succeeded"])?;
        ensure!(done.machines()[0]["batch"] == 3, "{}", done.document);
        fleet.machines[0].start_agent()?;
        wait::until_true("it has it when it is back", || fleet.runs_it(0))
    });
}

/// Somebody with a key of their own, who is asked by a command and answers by way of files.
struct Signer {
    folder: Utf8PathBuf,
    seed: [u8; 32],
    key: SigningKey,
}

impl Signer {
    fn new(world: &World) -> Result<Self> {
        let folder = world.site().dir().join("signer");
        fs::create_dir(&folder)?;
        let seed = [9; 32];
        let key = SigningKey::from_seed(KeyName::new("second")?, &seed.into());
        Ok(Self { folder, seed, key })
    }

    /// What `hoist` runs for each signature.
    fn command(&self) -> String {
        format!(
            "cd '{}' && [ ! -e enough ] && cat > part && mv part message && \
             while [ ! -e answer ] && kill -0 $PPID; do sleep 0.02; done && cat answer && rm answer",
            self.folder
        )
    }

    /// Signs so many times, and then says no.
    fn sign_for(&self, times: usize) -> Result<()> {
        let message = self.folder.join("message");
        for time in 1..=times {
            wait::until_true("a signature is asked for", || Ok(message.exists()))?;
            let key = ed25519_dalek::SigningKey::from_bytes(&self.seed);
            let signature = key.sign(&fs::read(&message)?).to_bytes();
            fs::remove_file(&message)?;
            if time == times {
                fs::write(self.folder.join("enough"), "")?;
            }
            let answer = self.folder.join("answer.part");
            fs::write(&answer, STANDARD.encode(signature))?;
            fs::rename(answer, self.folder.join("answer"))?;
        }
        Ok(())
    }
}

/// The rollout that `hoist` says it begins.
fn rollout_of(stderr: &str) -> Result<String> {
    let said = stderr
        .split("rollout ")
        .nth(1)
        .context("it says no rollout")?;
    Ok(said.chars().take(8).collect())
}
