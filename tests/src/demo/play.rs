//! The steps. Each checks that it shows what it says.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use hoist_protocol::{State, StorePath};
use serde_json::json;

use super::stage::Stage;
use crate::closure::{Closure, System};
use crate::machine::Machine;
use crate::site::Site;
use crate::wait;
use crate::world::{Options, World};

/// The machines of the fleet. The last one is a laptop, and closed now and then.
const NAMES: [&str; 3] = ["web-1", "web-2", "laptop"];

/// The fleet on its stage.
pub(super) struct Play {
    stage: Stage,
    // Switched off before the world that they depend on ends.
    web_1: Machine,
    web_2: Machine,
    laptop: Machine,
    world: World,
}

impl Play {
    /// Sets the stage: authority, broker, cache, three machines.
    pub(super) fn open(site: Site) -> Result<Self> {
        let stage = Stage::new(site.dir().to_owned(), site.programs().clone());
        stage.step("A fleet on this computer");
        let mut world = World::create(site, Options::default())?;
        stage.say("hoist-certs made a certificate authority, an identity for everyone, and CI's signing key.");
        let printed = world.broker.process().stdout()?;
        stage.say(&format!("hoist-broker says: {}", printed.trim()));
        stage.say(&format!(
            "A binary cache signed with a key of its own serves at {}",
            world.cache.server.url()?
        ));
        let mut machines = NAMES
            .iter()
            .map(|name| world.machine(name))
            .collect::<Result<Vec<_>>>()?
            .into_iter();
        let mut next = || machines.next().context("there are three");
        let (mut web_1, mut web_2, mut laptop) = (next()?, next()?, next()?);
        for machine in [&mut web_1, &mut web_2, &mut laptop] {
            machine.start_agent()?;
        }
        for machine in [&web_1, &web_2, &laptop] {
            world.watch().wait_presence(machine.name(), "online")?;
        }
        stage.say("Three machines, each with a Nix store of its own and hoist-agent in it, have called the broker.");
        Ok(Self {
            stage,
            web_1,
            web_2,
            laptop,
            world,
        })
    }

    /// All of it.
    pub(super) fn run(&mut self) -> Result<()> {
        self.version_1_to_all()?;
        self.asleep()?;
        self.unhealthy()?;
        self.broker_killed()?;
        self.agent_killed()?;
        self.wrong_key()?;
        self.epilogue()?;
        self.world.check_logs()
    }

    fn machines(&self) -> [&Machine; 3] {
        [&self.web_1, &self.web_2, &self.laptop]
    }

    /// Builds version `version` for `machines`, pushes it, and writes `<version>.json`.
    fn build(
        &self,
        version: &str,
        machines: &[&Machine],
        check: Option<&StorePath>,
    ) -> Result<Vec<StorePath>> {
        let mut agents = serde_json::Map::new();
        let mut paths = Vec::new();
        for machine in machines {
            let name = machine.name().as_str();
            let path = self.world.system(&System::new(name, version))?;
            ensure!(
                !machine.has(&path),
                "{name} had {path} before it was deployed"
            );
            agents.insert(name.to_owned(), json!(path));
            paths.push(path);
        }
        let mut spec = json!({ "agents": agents });
        if let Some(check) = check {
            let system = hoist_protocol::System::current()?.to_string();
            spec["rollbackScript"] = json!({ system: check });
        }
        let file = self.world.site().dir().join(format!("{version}.json"));
        fs::write(&file, serde_json::to_string_pretty(&spec)?)?;
        Ok(paths)
    }

    fn runs(&self, machine: &Machine, path: &StorePath) -> Result<()> {
        let current = machine.current_system()?;
        ensure!(
            current.as_ref() == Some(path),
            "{} runs {current:?}, not {path}",
            machine.name()
        );
        Ok(())
    }

    fn version_1_to_all(&self) -> Result<()> {
        self.stage.step("1. Version 1 to all");
        let paths = self.build("v1", &self.machines(), None)?;
        let count = self.world.builder.closure_len(&paths[0])?;
        self.stage.say(&format!(
            "nix-build made a closure of {count} paths for each machine, nix copy signed and pushed them; v1.json names them."
        ));
        self.stage.hoist(&["deploy", "v1.json"], 0)?;
        for (machine, path) in self.machines().into_iter().zip(&paths) {
            self.runs(machine, path)?;
        }
        let fetched = self.world.cache.server.archives();
        self.stage.shown(&format!(
            "all three run it, fetched from the cache ({fetched} archives)"
        ));
        Ok(())
    }

    fn asleep(&self) -> Result<()> {
        self.stage
            .step("2. The laptop sleeps through version 2 and wakes up to version 3");
        self.laptop.sleep()?;
        self.world
            .watch()
            .wait_presence(self.laptop.name(), "offline")?;
        let v2 = self.build("v2", &self.machines(), None)?;
        self.stage.hoist(&["deploy", "v2.json", "--quiet"], 0)?;
        let v3 = self.build("v3", &self.machines(), None)?;
        self.stage.hoist(&["deploy", "v3.json", "--quiet"], 0)?;
        self.runs(&self.web_1, &v3[0])?;
        self.runs(&self.web_2, &v3[1])?;
        self.stage.say("The laptop wakes up.");
        self.laptop.wake()?;
        self.wait_running(&self.laptop, &v3[2])?;
        self.stage.hoist(&["status", "laptop"], 0)?;
        ensure!(!self.laptop.has(&v2[2]), "the laptop fetched version 2");
        let activations = self.laptop.activations()?;
        ensure!(
            !activations.iter().any(|done| done.starts_with("v2")),
            "the laptop activated version 2"
        );
        self.stage
            .shown("the laptop went from version 1 to 3; it never fetched version 2");
        Ok(())
    }

    fn unhealthy(&self) -> Result<()> {
        self.stage.step("3. Version 4 fails its health check");
        let before = self.web_1.current_system()?.context("it runs version 3")?;
        let check = self.world.push(&Closure::health_check(
            "echo 'nothing listens on port 80'; exit 1",
        ))?;
        self.build("v4", &[&self.web_1], Some(&check))?;
        self.stage.hoist(&["deploy", "v4.json"], 4)?;
        self.runs(&self.web_1, &before)?;
        self.stage
            .shown("web-1 went back to version 3 by itself, and hoist exits with 4");
        Ok(())
    }

    fn broker_killed(&mut self) -> Result<()> {
        self.stage
            .step("4. kill -9 of the broker, while a machine is away");
        self.laptop.sleep()?;
        self.world
            .watch()
            .wait_presence(self.laptop.name(), "offline")?;
        let paths = self.build("v5", &[&self.laptop], None)?;
        self.stage.hoist(&["deploy", "v5.json", "--async"], 0)?;
        self.world.broker.kill()?;
        self.stage
            .say("The broker is dead. It starts again, and the laptop wakes up.");
        self.world.broker.restart()?;
        self.laptop.wake()?;
        self.wait_running(&self.laptop, &paths[0])?;
        self.stage.hoist(&["status", "laptop"], 0)?;
        self.stage
            .shown("what the broker had acknowledged was there: the laptop runs version 5");
        Ok(())
    }

    fn agent_killed(&mut self) -> Result<()> {
        self.stage
            .step("5. kill -9 of an agent in the middle of an activation");
        let paths = self.build("v6", &[&self.web_2], None)?;
        let gate = self.web_2.gate("v6", "test")?;
        let deploy = self.stage.start(&["deploy", "v6.json"])?;
        gate.wait_reached()?;
        self.web_2.kill_agent()?;
        self.stage.say("The activation has begun, and the agent of web-2 is dead. The activator goes on alone.");
        gate.open()?;
        self.web_2.start_agent()?;
        deploy.finish(0)?;
        self.runs(&self.web_2, &paths[0])?;
        let activations = self.web_2.activations()?;
        let count = activations.iter().filter(|done| *done == "v6 test").count();
        ensure!(count == 1, "version 6 was activated {count} times");
        self.stage
            .shown("web-2 runs version 6, activated once, confirmed by the agent that came back");
        Ok(())
    }

    fn wrong_key(&self) -> Result<()> {
        self.stage
            .step("6. Somebody with a publisher's certificate, and a signing key of their own");
        let before = self.web_1.current_system()?.context("it runs version 3")?;
        self.world.authority.signing_key("stranger")?;
        let paths = self.build("v7", &[&self.web_1], None)?;
        let deploy = [
            "deploy",
            "v7.json",
            "--signing-key",
            "certs/stranger.signing-key",
        ];
        self.stage.hoist(&deploy, 1)?;
        self.runs(&self.web_1, &before)?;
        ensure!(
            !self.web_1.has(&paths[0]),
            "web-1 fetched what a stranger signed"
        );
        self.stage.shown(
            "nothing came of it: the broker keeps it off the topic, and web-1 would refuse it too",
        );
        Ok(())
    }

    fn epilogue(&self) -> Result<()> {
        self.stage.step("The fleet now");
        let status = self.stage.hoist(&["status"], 0)?;
        for name in NAMES {
            ensure!(status.contains(name), "hoist status does not name {name}");
        }
        Ok(())
    }

    fn wait_running(&self, machine: &Machine, path: &StorePath) -> Result<()> {
        wait::until_true(&format!("{} runs {path}", machine.name()), || {
            let status = self.world.watch().status(machine.name())?;
            Ok(status.is_some_and(|status| {
                status.state == State::Succeeded && status.current_path.as_ref() == Some(path)
            }))
        })?;
        self.runs(machine, path)
    }
}
