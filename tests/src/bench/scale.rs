//! A fleet of thousands, as `hoist` meets it: deployed to, deployed to again, and looked at.
//!
//! Its agents are connections of this program: they verify what they get, and say at once that it went well. They share the
//! cores with the broker and with `hoist`.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hoist_certs::Role;
use hoist_certs::authority::{Authority, days};
use hoist_protocol::{
    AgentName, Channel, Deployment, FleetName, Goal, Machine, Presence, State, Status, StorePath,
    System, Text, TrustedKeys,
};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use rustix::process::Pid;
use rustls::ClientConfig;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::bench::load::CONNECTING;
use crate::bench::mqtt::Connection;
use crate::bench::report::{Sample, table};
use crate::process::Process;
use crate::usage::mebibytes;
use crate::world::{FLEET, Options, Site, World};

/// How many machines there are.
const FLEETS: [usize; 2] = [1_000, 10_000];

/// How often each command is run with each fleet.
const ROUNDS: usize = 3;

/// How often `hoist --help` is.
const HELPS: usize = 40;

/// Everybody comes from one address, and more than once a minute.
const NO_LIMITS: &str = "max_connections = 100000\nmax_connections_per_address = 100000\n\
     max_handshakes_per_address = 100000\nmax_handshakes = 100000\n\
     connect_rate = \"100000/s burst 1000000\"\npublish_rate = \"1000000/s burst 1000000\"\n\
     byte_rate = \"1000000000/s burst 1000000000\"\n";

/// How many open files the largest fleet needs.
pub(super) const FILES: usize = FLEETS[1];

/// What one run of `hoist` took.
struct Took {
    time: Duration,
    /// The most memory that was resident, in bytes.
    peak: u64,
}

/// Measures and prints.
pub(super) fn measure(runtime: &Runtime) -> Result<()> {
    let mut rows = vec![
        [
            "machines",
            "`hoist`",
            "s (least to most)",
            "resident at most, MiB",
            "goal",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut helps = Vec::new();
    for count in FLEETS {
        eprintln!("a fleet of {count}: {ROUNDS} rounds");
        let mut world = World::create(Site::create("bench-scale")?, Options::default())?;
        lift_limits(&mut world)?;
        let deploy = |version: usize, more: &[&str]| {
            let spec = spec(&world, count, version)?;
            let args = [&["deploy", &spec, "--no-digest", "--quiet"], more].concat();
            hoist(&world, &args)
        };
        let mut of: [Vec<Took>; 4] = Default::default();
        // Nobody is there yet: what is measured is the publisher and the broker alone.
        for version in 0..ROUNDS {
            of[0].push(deploy(version, &["--async"])?);
        }
        let fleet = runtime.block_on(connect(&world, count))?;
        for version in ROUNDS..2 * ROUNDS {
            of[1].push(deploy(version, &[])?);
            // Nothing is left to do.
            of[2].push(deploy(version, &[])?);
            of[3].push(hoist(&world, &["status"])?);
        }
        if helps.is_empty() {
            for _ in 0..HELPS {
                helps.push(hoist(&world, &["--help"])?.time);
            }
        }
        let large = count == FLEETS[1];
        let said = [
            (
                "deploy --async, nobody there: signed, published, durable, read back",
                "below 3",
            ),
            ("deploy: followed until all have succeeded", ""),
            ("deploy again: all have it", ""),
            ("status", "below 1"),
        ];
        for (took, (what, goal)) in of.iter().zip(said) {
            let peak = took.iter().map(|took| took.peak).max().unwrap_or_default();
            rows.push(vec![
                count.to_string(),
                what.to_owned(),
                Sample::of_seconds(took.iter().map(|took| took.time)).shown(2),
                format!("{:.1}", mebibytes(peak)),
                if large {
                    goal.to_owned()
                } else {
                    String::new()
                },
            ]);
        }
        runtime.block_on(fleet.end())?;
    }
    println!("## Publisher\n\n{}", table(&rows));
    println!(
        "`hoist --help` takes {} ms from its start to its end (goal: below 10).\n",
        Sample::of_times(helps).shown(1)
    );
    Ok(())
}

fn lift_limits(world: &mut World) -> Result<()> {
    world.broker.process().terminate()?;
    let mut config = fs::OpenOptions::new()
        .append(true)
        .open(world.broker.config())?;
    config.write_all(NO_LIMITS.as_bytes())?;
    world.broker.restart()
}

fn name(number: usize) -> Result<AgentName> {
    Ok(AgentName::new(format!("web-{number}"))?)
}

/// A spec with a closure for each machine that it has not had before.
fn spec(world: &World, count: usize, version: usize) -> Result<String> {
    let mut agents = serde_json::Map::new();
    for number in 0..count {
        let path = format!(
            "/nix/store/{:032}-nixos-system-web-26.11",
            version * 100_000 + number
        );
        agents.insert(name(number)?.to_string(), path.into());
    }
    let path = world.site().dir().join(format!("spec-{version}.json"));
    fs::write(&path, serde_json::json!({ "agents": agents }).to_string())?;
    Ok(path.to_string())
}

/// Runs `hoist` to its good end.
fn hoist(world: &World, args: &[&str]) -> Result<Took> {
    let start = Instant::now();
    let mut process = world.start_hoist("hoist-scale", args)?;
    let mut peak = 0;
    loop {
        // The most there ever was only grows: the last look is the one that counts.
        peak = peak_of(process.pid()).unwrap_or(peak).max(peak);
        if !process.is_alive()? {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = start.elapsed();
    Process::wait_closely(&mut process)?;
    Ok(Took { time, peak })
}

/// The most memory that was resident; none once the process has ended.
fn peak_of(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Agents that are connected.
struct Fleet {
    tasks: JoinSet<Result<()>>,
}

impl Fleet {
    /// Ends them; one that has ended by itself is an error.
    async fn end(mut self) -> Result<()> {
        match self.tasks.try_join_next() {
            Some(ended) => ended?.and_then(|()| bail!("an agent ended")),
            None => {
                self.tasks.shutdown().await;
                Ok(())
            }
        }
    }
}

async fn connect(world: &World, count: usize) -> Result<Fleet> {
    let authority = Authority::load(world.authority.dir())?;
    let trusted = Arc::new(TrustedKeys::new(vec![world.signing_key.public.clone()])?);
    let turns = Arc::new(Semaphore::new(CONNECTING));
    let (ready, mut arrived) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let name = name(number)?;
        let issued = authority.issue(Role::Agent, &name, &[], days(1))?;
        let agent = Agent {
            machine: Machine::new(FleetName::new(FLEET)?, name),
            tls: issued
                .credentials(authority.certificate_pem())
                .client()?
                .config(),
            trusted: Arc::clone(&trusted),
        };
        let (turns, ready, port) = (Arc::clone(&turns), ready.clone(), world.broker.port());
        tasks.spawn(async move {
            let name = agent.machine.agent.clone();
            let ended = agent.run(port, &turns, ready).await;
            ended.with_context(|| format!("the agent {name}"))
        });
    }
    drop(ready);
    for _ in 0..count {
        if arrived.recv().await.is_none() {
            break;
        }
    }
    let mut fleet = Fleet { tasks };
    if let Some(ended) = fleet.tasks.try_join_next() {
        ended??;
    }
    Ok(fleet)
}

struct Agent {
    machine: Machine,
    tls: Arc<ClientConfig>,
    trusted: Arc<TrustedKeys>,
}

impl Agent {
    async fn run(
        self,
        port: u16,
        turns: &Semaphore,
        ready: mpsc::UnboundedSender<()>,
    ) -> Result<()> {
        let turn = turns.acquire().await?;
        let name = self.machine.agent.as_str();
        let mut connection = Connection::open(port, Arc::clone(&self.tls), name).await?;
        let topic = self.machine.topic(Channel::Deploy).to_string();
        // What is retained for it comes before or after it has said that it is there.
        let mut early = connection.subscribe(&topic).await?;
        let online = Bytes::from_static(Presence::Online.as_str().as_bytes());
        self.say(&mut connection, Channel::Presence, 1, online)?;
        let status = Bytes::from(self.status(None).to_json());
        self.say(&mut connection, Channel::Status, 2, status)?;
        connection.flush().await?;
        let mut acknowledged = 0;
        while acknowledged < 2 {
            match connection.receive().await? {
                Packet::PubAck(_) => acknowledged += 1,
                Packet::Publish(publish) => early = Some(publish),
                other => bail!("it got {other:?}"),
            }
        }
        ready.send(())?;
        drop((turn, ready));
        loop {
            let publish = match early.take() {
                Some(publish) => publish,
                None => match connection.receive().await? {
                    Packet::Publish(publish) => publish,
                    Packet::PubAck(_) => continue,
                    other => bail!("it got {other:?}"),
                },
            };
            connection.acknowledge(&publish).await?;
            let verified = self.trusted.verify(&publish.payload, &self.machine)?;
            let status = self.status(Some(verified.deployment())).to_json();
            self.say(&mut connection, Channel::Status, 3, status.into())?;
            connection.flush().await?;
        }
    }

    fn say(
        &self,
        connection: &mut Connection,
        channel: Channel,
        id: u16,
        payload: Bytes,
    ) -> Result<()> {
        let topic = self.machine.topic(channel).to_string();
        let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, payload);
        publish.retain = true;
        publish.pkid = id;
        connection.queue(&Packet::Publish(publish))
    }

    /// What it says when it has carried `deployment` out, or has none.
    fn status(&self, deployment: Option<&Deployment>) -> Status {
        let order = deployment.map(Deployment::order);
        let path: Option<StorePath> = match deployment.map(|of| &of.target().goal) {
            Some(Goal::Closure(path)) => Some(path.clone()),
            Some(Goal::Rollback(_) | Goal::Stay) | None => None,
        };
        Status {
            state: match deployment {
                Some(_) => State::Succeeded,
                None => State::Idle,
            },
            id: order.map(|order| order.id),
            epoch: order.map(|order| order.epoch),
            sequence: order.map(|order| order.sequence),
            floor_epoch: order.map_or(0, |order| order.epoch),
            floor: order.map_or(0, |order| order.sequence),
            current_path: path.clone(),
            profile_path: path.clone(),
            boot_default_path: path.clone(),
            booted_path: path.clone(),
            path,
            kind: Some(Text::lossy("nixos")),
            attempts: 1,
            closure_size: Some(2_400_000_000),
            trusted_keys: vec![self.trusted.keys()[0].name().clone()],
            ..Status::idle(
                &self.machine,
                System::new("x86_64-linux").expect("it is one"),
                Text::lossy("0.1.0"),
                Text::lossy("bench"),
                hoist_certs::program::now(),
            )
        }
    }
}
