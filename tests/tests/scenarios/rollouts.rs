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
use hoist_tests::process::Finished;
use hoist_tests::server::Mode;
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};
use rustix::process::Signal;
use serde_json::Value;

/// Three machines that run version 1 of their systems.
fn fleet(world: &World) -> Result<(Vec<Machine>, Vec<StorePath>)> {
    let mut machines = Vec::new();
    let mut paths = Vec::new();
    for name in ["web-1", "web-2", "web-3"] {
        let machine = world.running(name)?;
        let status = world.carry_out(&machine, &world.system(&System::new(name, "1"))?)?;
        ensure!(status.state == State::Succeeded, "{status:?}");
        machines.push(machine);
        paths.push(world.system(&System::new(name, "2"))?);
    }
    Ok((machines, paths))
}

fn spec(world: &World, machines: &[Machine], paths: &[StorePath]) -> Result<String> {
    let agents: Vec<(&AgentName, &StorePath)> =
        (machines.iter().map(Machine::name)).zip(paths).collect();
    Ok(world.spec(&agents, None)?.to_string())
}

fn json(finished: &Finished) -> Result<Value> {
    serde_json::from_str(&finished.stdout).with_context(|| format!("no JSON: {}", finished.stdout))
}

/// The outcome of each machine, in their order.
fn outcomes(document: &Value) -> Vec<&str> {
    let machines = document["machines"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    (machines.iter())
        .map(|machine| machine["outcome"].as_str().unwrap_or("none"))
        .collect()
}

#[test]
fn a_rollout_comes_batch_by_batch() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let spec = spec(world, &machines, &paths)?;
        // The canary is held up in the middle of its activation.
        let gate = machines[0].gate("2", "test")?;
        let hoist = world.start_hoist(
            "rollout",
            &["deploy", &spec, "--canary", "1", "--batch", "1", "--json"],
        )?;
        gate.wait_reached()?;
        for machine in &machines[1..] {
            machine.never("it is deployed before the canary has ended", |machine| {
                Ok(machine
                    .activations()?
                    .iter()
                    .any(|line| line.contains("2 test")))
            })?;
        }
        gate.open()?;
        let done = Finished::wait(hoist)?.expect_code(0)?;
        let document = json(&done)?;
        ensure!(outcomes(&document) == ["succeeded"; 3], "{document}");
        let rollout = &document["rollout"];
        ensure!(
            rollout["batches"] == 3 && rollout["batch"] == 3 && rollout["stopped"] == false,
            "{rollout}"
        );
        for (machine, path) in machines.iter().zip(&paths) {
            ensure!(machine.current_system()?.as_ref() == Some(path));
        }
        // Once more is no work for anybody.
        let again = world
            .hoist(&["deploy", &spec, "--canary", "1", "--batch", "1", "--json"])?
            .expect_code(0)?;
        let document = json(&again)?;
        ensure!(outcomes(&document) == ["unchanged"; 3], "{document}");
        ensure!(
            document["rollout"].is_null() && again.stderr.contains("nothing was published"),
            "{document}"
        );
        // Those that have it, and are sent it all the same, come together.
        let again = world.hoist(&["deploy", &spec, "--batch", "1", "--no-skip", "--json"])?;
        let document = json(&again.expect_code(0)?)?;
        ensure!(outcomes(&document) == ["unchanged"; 3], "{document}");
        ensure!(document["rollout"]["batches"] == 1, "{document}");
        Ok(())
    });
}

#[test]
fn a_rollout_that_fails_stops_and_goes_on_with_the_same_command() {
    scenario(Options::default(), |world| {
        let (machines, mut paths) = fleet(world)?;
        let good = std::mem::replace(
            &mut paths[1],
            world.system(&System::new("web-2", "bad").failing())?,
        );
        let first = spec(world, &machines, &paths)?;
        let stopped = world
            .hoist(&["deploy", &first, "--batch", "1", "--json"])?
            .expect_code(3)?;
        let document = json(&stopped)?;
        ensure!(
            outcomes(&document) == ["succeeded", "failed", "not_begun"],
            "{document}"
        );
        ensure!(document["rollout"]["stopped"] == true, "{document}");
        ensure!(
            stopped.stderr.contains("stopped in batch 2 of 3"),
            "{}",
            stopped.stderr
        );
        // Nothing lies on the topic of the one whose batch never came.
        ensure!(machines[2].current_system()?.as_ref() != Some(&paths[2]));
        paths[1] = good;
        let second = spec(world, &machines, &paths)?;
        let done = world
            .hoist(&["deploy", &second, "--batch", "1", "--json"])?
            .expect_code(0)?;
        let document = json(&done)?;
        ensure!(
            outcomes(&document) == ["unchanged", "succeeded", "succeeded"],
            "{document}"
        );
        Ok(())
    });
}

#[test]
fn a_rollout_that_fails_can_send_back_what_it_has_moved() {
    scenario(Options::default(), |world| {
        let (machines, mut paths) = fleet(world)?;
        let before = machines[0].current_system()?;
        paths[1] = world.system(&System::new("web-2", "bad").failing())?;
        let spec = spec(world, &machines, &paths)?;
        let done = world
            .hoist(&[
                "deploy",
                &spec,
                "--batch",
                "1",
                "--on-failure",
                "rollback",
                "--json",
            ])?
            .expect_code(3)?;
        let document = json(&done)?;
        ensure!(
            outcomes(&document) == ["rolled_back", "failed", "not_begun"],
            "{document}"
        );
        ensure!(done.stderr.contains("1 of 1 machines"), "{}", done.stderr);
        let sent_back = document["machines"][0]["sent_back"].as_str();
        ensure!(sent_back.is_some(), "{document}");
        ensure!(
            machines[0].current_system()? == before,
            "web-1 runs what it ran before"
        );
        let status = world
            .watch()
            .status(machines[0].name())?
            .context("it has a status")?;
        ensure!(
            status.id.map(|id| id.to_string()).as_deref() == sent_back,
            "{status:?}"
        );
        Ok(())
    });
}

#[test]
fn a_machine_that_is_held_from_afar_is_no_canary_and_no_failure() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let spec = spec(world, &machines, &paths)?;
        world.hoist(&["hold", "web-1"])?.expect_code(0)?;
        let done = world.hoist(&["deploy", &spec, "--canary", "1", "--json"])?;
        let document = json(&done.expect_code(0)?)?;
        ensure!(
            outcomes(&document) == ["held", "succeeded", "succeeded"],
            "{document}"
        );
        ensure!(document["machines"][0]["batch"] == 3, "{document}");
        world.hoist(&["release", "web-1"])?.expect_code(0)?;
        ensure!(machines[0].current_system()?.as_ref() == Some(&paths[0]));
        Ok(())
    });
}

#[test]
fn a_rollout_whose_way_back_is_not_signed_says_so_in_its_report() {
    scenario(Options::default(), |world| {
        let (machines, mut paths) = fleet(world)?;
        paths[1] = world.system(&System::new("web-2", "bad").failing())?;
        let spec = spec(world, &machines, &paths)?;
        let signer = Signer::new(world)?;
        let (command, key) = (signer.command(), signer.key.public().to_string());
        let args = [
            "deploy",
            &spec,
            "--batch",
            "1",
            "--on-failure",
            "rollback",
            "--json",
        ];
        let signed = ["--signer", &command, "--signer-key", &key];
        let hoist = world.start_hoist("signer", &[&args[..], &signed].concat())?;
        signer.sign_for(3)?;
        let done = Finished::wait(hoist)?.expect_code(1)?;
        let document = json(&done)?;
        ensure!(
            outcomes(&document) == ["not_published", "failed", "not_begun"],
            "{document}"
        );
        let first = &document["machines"][0];
        ensure!(first["sent_back"].is_null(), "{first}");
        ensure!(
            first["message"]
                .to_string()
                .contains("not signed by the key"),
            "{first}"
        );
        for words in [
            "web-1: it was moved and is not sent back",
            "0 of 1 machines",
        ] {
            ensure!(done.stderr.contains(words), "{}", done.stderr);
        }
        ensure!(machines[0].current_system()?.as_ref() == Some(&paths[0]));
        Ok(())
    });
}

#[test]
fn a_rollout_that_somebody_cancels_begins_no_further_batch() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let spec = spec(world, &machines, &paths)?;
        // Its first batch has ended and has to stay well: nothing is left to cancel on any machine.
        let args = ["deploy", &spec, "--batch", "1", "--bake", "20m", "--json"];
        let hoist = world.start_hoist("baking", &args)?;
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
        let cancel = ["cancel", "--rollout", &id, "--actor", "alice"];
        world.hoist(&cancel)?.expect_code(0)?;
        let done = Finished::wait(hoist)?.expect_code(7)?;
        let document = json(&done)?;
        ensure!(
            outcomes(&document) == ["succeeded", "not_begun", "not_begun"],
            "{document}"
        );
        ensure!(
            document["rollout"]["cancelled_by"].is_string(),
            "{document}"
        );
        ensure!(
            done.stderr.contains("cancelled by alice"),
            "{}",
            done.stderr
        );
        ensure!(machines[0].current_system()?.as_ref() == Some(&paths[0]));
        // Once more is nothing to do, and the same command again goes on.
        let again = world.hoist(&["cancel", "--rollout", &id, "--json"])?;
        ensure!(outcomes(&json(&again.expect_code(0)?)?) == ["skipped"]);
        let done = world.hoist(&["deploy", &spec, "--json"])?.expect_code(0)?;
        ensure!(outcomes(&json(&done)?)[1..] == ["succeeded"; 2]);
        Ok(())
    });
}

#[test]
fn a_rollout_that_is_cancelled_while_a_machine_fetches_ends_with_that() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let spec = spec(world, &machines, &paths)?;
        world.cache.server.set(Mode::Holding);
        let hoist = world.start_hoist("fetching", &["deploy", &spec, "--batch", "1", "--json"])?;
        wait::until_true("it is being fetched", || Ok(world.cache.server.held() > 0))?;
        let id = rollout_of(&hoist.stderr()?)?;
        world.hoist(&["cancel", "--rollout", &id])?.expect_code(0)?;
        let done = Finished::wait(hoist)?.expect_code(7)?;
        world.cache.server.set(Mode::Serving);
        let document = json(&done)?;
        ensure!(outcomes(&document)[1..] == ["not_begun"; 2], "{document}");
        ensure!(
            document["rollout"]["cancelled_by"].is_string(),
            "{document}"
        );
        for machine in &machines {
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

#[test]
fn a_machine_that_somebody_else_deploys_to_is_let_go_by_a_rollout() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let spec = spec(world, &machines, &paths)?;
        let gate = machines[0].gate("2", "test")?;
        let hoist = world.start_hoist("rollout", &["deploy", &spec, "--batch", "1", "--json"])?;
        gate.wait_reached()?;
        let other = world.system(&System::new("web-3", "manual"))?;
        let theirs = world.carry_out(&machines[2], &other)?;
        ensure!(theirs.state == State::Succeeded, "{theirs:?}");
        gate.open()?;
        let done = Finished::wait(hoist)?.expect_code(7)?;
        let document = json(&done)?;
        ensure!(
            outcomes(&document) == ["succeeded", "succeeded", "superseded"],
            "{document}"
        );
        ensure!(
            machines[2].current_system()? == Some(other),
            "the manual deployment stands"
        );
        Ok(())
    });
}

#[test]
fn a_rollout_that_is_killed_or_interrupted_stops_where_it_is() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let spec = spec(world, &machines, &paths)?;
        let args = ["deploy", &spec, "--batch", "1", "--json"];
        let gate = machines[0].gate("2", "test")?;
        let mut hoist = world.start_hoist("killed", &args)?;
        gate.wait_reached()?;
        hoist.kill()?;
        gate.open()?;
        // The machine goes on by itself, and no other is begun.
        wait::until_true("web-1 runs it", || {
            Ok(machines[0].current_system()?.as_ref() == Some(&paths[0]))
        })?;
        ensure!(machines[1].current_system()?.as_ref() != Some(&paths[1]));

        let gate = machines[1].gate("2", "test")?;
        let mut hoist = world.start_hoist("interrupted", &args)?;
        gate.wait_reached()?;
        hoist.signal(Signal::INT)?;
        let document = json(&Finished::wait(hoist)?.expect_code(130)?)?;
        let seen = outcomes(&document);
        ensure!(
            seen[0] == "unchanged" && seen[2] == "not_begun",
            "{document}"
        );
        gate.open()?;
        wait::until_true("web-2 runs it", || {
            Ok(machines[1].current_system()?.as_ref() == Some(&paths[1]))
        })?;
        let document = json(&world.hoist(&args)?.expect_code(0)?)?;
        ensure!(
            outcomes(&document)[1..] == ["unchanged", "succeeded"],
            "{document}"
        );
        Ok(())
    });
}

#[test]
fn machines_are_chosen_by_name_and_by_what_they_say_and_a_dry_run_changes_nothing() {
    scenario(Options::default(), |world| {
        let (machines, paths) = fleet(world)?;
        let bad = world.system(&System::new("web-2", "bad").failing())?;
        let failed = world.carry_out(&machines[1], &bad)?;
        ensure!(failed.state == State::Failed, "{failed:?}");
        let spec = spec(world, &machines, &paths)?;

        let dry = world
            .hoist(&["deploy", &spec, "--dry-run", "--agent", "!web-3", "--json"])?
            .expect_code(0)?;
        let document = json(&dry)?;
        let rows = document["machines"].as_array().context("machines")?;
        ensure!(
            rows.len() == 2 && rows.iter().all(|row| row["would"] == "change"),
            "{document}"
        );
        ensure!(
            machines[0].current_system()?.as_ref() != Some(&paths[0]),
            "nothing was done"
        );

        let retry = ["deploy", &spec, "--where", "state=failed", "--json"];
        let document = json(&world.hoist(&retry)?.expect_code(0)?)?;
        let chosen = document["machines"].as_array().context("machines")?;
        ensure!(
            chosen.len() == 1 && chosen[0]["agent"] == "web-2",
            "{document}"
        );
        let document = json(&world.hoist(&retry)?.expect_code(0)?)?;
        ensure!(
            document["machines"] == serde_json::json!([]),
            "none is left: {document}"
        );

        let failed = world
            .hoist(&["status", "web-*", "--failed"])?
            .expect_code(0)?;
        ensure!(
            failed.stdout.contains("no machine is like that"),
            "{}",
            failed.stdout
        );
        let typo = world
            .hoist(&["deploy", &spec, "--agent", "wbe-*"])?
            .expect_code(2)?;
        ensure!(typo.stderr.contains("`wbe-*`"), "{}", typo.stderr);
        Ok(())
    });
}

#[test]
fn a_machine_that_is_away_comes_last_and_counts_for_nothing() {
    scenario(Options::default(), |world| {
        let (mut machines, paths) = fleet(world)?;
        machines[0].stop_agent()?;
        world.watch().wait_presence(machines[0].name(), "offline")?;
        let spec = spec(world, &machines, &paths)?;
        let done = world
            .hoist(&["deploy", &spec, "--canary", "1", "--json"])?
            .expect_code(0)?;
        let document = json(&done)?;
        ensure!(
            outcomes(&document) == ["offline", "succeeded", "succeeded"],
            "{document}"
        );
        ensure!(document["machines"][0]["batch"] == 3, "{document}");
        machines[0].start_agent()?;
        wait::until_true("it has it when it is back", || {
            Ok(machines[0].current_system()?.as_ref() == Some(&paths[0]))
        })
    });
}
