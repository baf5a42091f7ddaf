//! Clients that others have written, with their own event loops: rumqttc, mosquitto's, Paho in Python and MQTT.js, of
//! MQTT 3.1.1 and 5.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::v5::mqttbytes::v5::Packet as Packet5;
use rumqttc::v5::{self, mqttbytes::QoS as QoS5};
use rumqttc::{AsyncClient, Event, EventLoop, Packet, QoS, TlsConfiguration, Transport};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::{Broker, PATIENCE, World, issue, topic};

fn client(
    world: &World,
    broker: &Broker,
    role: Role,
    who: &str,
    id: &str,
) -> (AsyncClient, EventLoop) {
    let tls = world.credentials("prod", role, who).client().unwrap();
    let url = format!("mqtts://localhost:{}", broker.address.port())
        .parse()
        .unwrap();
    hoist_certs::mqtt::client(hoist_certs::mqtt::options(&url, id, &tls), 100)
}

async fn until<T>(events: &mut EventLoop, wanted: impl Fn(&Packet) -> Option<T>) -> T {
    let search = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.unwrap()
                && let Some(found) = wanted(&packet)
            {
                return found;
            }
        }
    };
    timeout(PATIENCE, search).await.expect("it never came")
}

#[tokio::test]
async fn rumqttc_publishes_subscribes_and_reads_back() {
    let world = World::new();
    let broker = world.start().await;
    let (agent, mut agent_events) = client(&world, &broker, Role::Agent, "web-1", "web-1");
    let (monitor, mut monitor_events) = client(&world, &broker, Role::Monitor, "mon", "mon.1");
    monitor
        .subscribe("hoist/v1/prod/+/status", QoS::AtLeastOnce)
        .await
        .unwrap();
    until(&mut monitor_events, |p| {
        matches!(p, Packet::SubAck(_)).then_some(())
    })
    .await;
    for n in 0..200_u32 {
        let status = topic("web-1", "status");
        agent
            .publish(status, QoS::AtLeastOnce, true, n.to_string())
            .await
            .unwrap();
        until(&mut agent_events, |p| {
            matches!(p, Packet::PubAck(_)).then_some(())
        })
        .await;
        let payload = until(&mut monitor_events, |packet| match packet {
            Packet::Publish(publish) => Some(publish.payload.clone()),
            _ => None,
        });
        assert_eq!(payload.await, n.to_string());
    }
    broker.stop().await;
}

#[tokio::test]
async fn rumqttc_stays_connected_by_its_pings() {
    let world = World::new();
    let broker = world.start().await;
    let tls = world
        .credentials("prod", Role::Agent, "web-1")
        .client()
        .unwrap();
    let url = format!("mqtts://localhost:{}", broker.address.port())
        .parse()
        .unwrap();
    let mut options = hoist_certs::mqtt::options(&url, "web-1", &tls);
    options.set_keep_alive(Duration::from_secs(1));
    let (_agent, mut events) = hoist_certs::mqtt::client(options, 10);
    // Three pings at one a second are twice what the broker waits for without any.
    for _ in 0..3 {
        until(&mut events, |p| matches!(p, Packet::PingResp).then_some(())).await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn rumqttc_watches_over_mqtt_5() {
    let world = World::new();
    let broker = world.start().await;
    let tls = world
        .credentials("prod", Role::Monitor, "mon")
        .client()
        .unwrap();
    let mut options = v5::MqttOptions::new("mon.1", "localhost", broker.address.port());
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
        tls.config(),
    )));
    options.set_keep_alive(Duration::from_secs(60));
    options.set_topic_alias_max(Some(0));
    let (monitor, mut events) = v5::AsyncClient::new(options, 10);
    monitor
        .subscribe("hoist/v1/prod/+/status", QoS5::ExactlyOnce)
        .await
        .unwrap();
    let mut next = async || {
        let search = async {
            loop {
                if let v5::Event::Incoming(packet) = events.poll().await.unwrap()
                    && matches!(packet, Packet5::SubAck(_) | Packet5::Publish(_))
                {
                    return packet;
                }
            }
        };
        timeout(PATIENCE, search).await.expect("it never came")
    };
    assert!(matches!(next().await, Packet5::SubAck(_)));
    let mut agent = world.agent(&broker, "web-1").await;
    for n in 0..50 {
        agent.retain(&topic("web-1", "status"), n.to_string()).await;
        let Packet5::Publish(publish) = next().await else {
            panic!("no message");
        };
        assert_eq!(publish.payload, n.to_string());
    }
    broker.stop().await;
}

/// A certificate's files, and where the broker is, for a client of another process.
struct Files {
    folder: TempDir,
    port: u16,
    websocket: Option<u16>,
}

impl Files {
    fn new(world: &World, broker: &Broker, role: Role, who: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let issued = issue(&world.authority, "prod", role, who);
        for (name, pem) in [
            ("ca", world.authority.certificate_pem()),
            ("certificate", &issued.certificate_pem),
            ("key", &issued.key_pem),
        ] {
            std::fs::write(folder.path().join(name), pem).unwrap();
        }
        Self {
            folder,
            port: broker.address.port(),
            websocket: broker.websocket.map(|address| address.port()),
        }
    }

    /// One of mosquitto's clients.
    fn mosquitto(&self, program: &str, id: &str, more: &[&str]) -> Child {
        let file = |name| self.folder.path().join(name);
        let mut command = Command::new(program);
        command
            .args(["-h", "localhost", "-p", &self.port.to_string(), "-i", id])
            .arg("--cafile")
            .arg(file("ca"))
            .arg("--cert")
            .arg(file("certificate"))
            .arg("--key")
            .arg(file("key"))
            .args(more);
        spawn(command)
    }

    /// A script of `clients/`, as its first lines say.
    fn script(&self, script: Script, (transport, version): (&str, &str), rest: [&str; 4]) -> Child {
        let port = match transport {
            "tcp" => self.port,
            _ => self.websocket.unwrap(),
        };
        let mut command = script.command();
        command
            .arg(self.folder.path())
            .args([&port.to_string(), transport, version])
            .args(rest);
        spawn(command)
    }
}

/// A client with a script of its own.
#[derive(Clone, Copy, Debug)]
enum Script {
    Paho,
    MqttJs,
}

impl Script {
    fn command(self) -> Command {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broker/clients");
        match self {
            Self::Paho => {
                // Debian's, which has Debian's modules.
                let mut command = Command::new("/usr/bin/python3");
                command.arg(folder.join("paho_client.py"));
                command
            }
            Self::MqttJs => {
                let mut command = Command::new("node");
                command
                    .arg(folder.join("mqttjs_client.js"))
                    .env("NODE_PATH", "/usr/share/nodejs");
                command
            }
        }
    }
}

fn spawn(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let program = command.as_std().get_program().to_owned();
    let spawned = command.spawn();
    spawned.unwrap_or_else(|error| panic!("{program:?}: {error}; `make setup` installs it"))
}

async fn output(child: Child) -> String {
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn mosquittos_clients_publish_and_watch_in_both_versions_at_every_qos() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let agent = Files::new(&world, &broker, Role::Agent, "web-1");
    let monitor = Files::new(&world, &broker, Role::Monitor, "mon");
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let said = format!("{version} {qos}");
            let publish = ["-V", version, "-q", qos, "-r", "-t", &status, "-m", &said];
            output(agent.mosquitto("mosquitto_pub", "web-1", &publish)).await;
            // At QoS 0 nobody says when it has arrived; whoever watches sees it once it has.
            let filter = "hoist/v1/prod/+/status";
            let watch = [
                "-V", version, "-q", qos, "-C", "1", "-F", "%p %q %r", "-t", filter,
            ];
            loop {
                let seen = output(monitor.mosquitto("mosquitto_sub", "mon.1", &watch)).await;
                if seen.trim_end() == format!("{said} {qos} 1") {
                    break;
                }
            }
        }
    }
    // A session that stays: what it missed comes as news, not as what is retained.
    let history = topic("web-1", "history");
    let stays = ["-V", "mqttv311", "-c", "-q", "1", "-R", "-t", &history];
    let once = [&stays[..], &["-E"]].concat();
    output(monitor.mosquitto("mosquitto_sub", "mon.stays", &once)).await;
    let publish = ["-q", "1", "-r", "-t", &history, "-m", "missed"];
    output(agent.mosquitto("mosquitto_pub", "web-1", &publish)).await;
    let later = [&stays[..], &["-C", "1"]].concat();
    let seen = output(monitor.mosquitto("mosquitto_sub", "mon.stays", &later)).await;
    assert_eq!(seen, "missed\n");
    broker.stop().await;
}

/// Every way in that a client has.
const WAYS: [(&str, &str); 4] = [
    ("tcp", "3.1.1"),
    ("tcp", "5"),
    ("websockets", "3.1.1"),
    ("websockets", "5"),
];

fn reachable_by_websocket() -> World {
    World::with(Options {
        websocket_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..Options::default()
    })
}

/// A fleet is watched, as it is and as it changes, and nobody does what his role may not.
async fn watches_a_fleet(script: Script) {
    let world = reachable_by_websocket();
    let broker = world.start().await;
    let statuses = "hoist/v1/prod/+/status";
    let (first, second) = (topic("web-1", "status"), topic("web-2", "status"));
    let deploy = topic("web-1", "deploy");
    let monitor = Files::new(&world, &broker, Role::Monitor, "mon");
    let agent = Files::new(&world, &broker, Role::Agent, "web-1");
    let mut other = world.agent(&broker, "web-2").await;
    for way in WAYS {
        let said = format!("{} {}", way.0, way.1);
        let publish = ["web-1", "publish", &first, &said];
        let seen = output(agent.script(script, way, publish)).await;
        assert_eq!(seen, "acknowledged\n", "{way:?}");
        other.retain(&second, "before").await;

        let watch = ["mon.1", "subscribe", statuses, "3"];
        let mut watcher = monitor.script(script, way, watch);
        let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
        let mut next = async || {
            let line = timeout(PATIENCE, lines.next_line()).await;
            line.unwrap().unwrap()
        };
        assert_eq!(next().await.as_deref(), Some("granted 1"), "{way:?}");
        let mut retained = [next().await.unwrap(), next().await.unwrap()];
        retained.sort_unstable();
        assert_eq!(
            retained,
            [format!("{first} 1 {said}"), format!("{second} 1 before")]
        );
        other.retain(&second, "after").await;
        assert_eq!(next().await, Some(format!("{second} 0 after")), "{way:?}");
        assert_eq!(next().await, None);

        // Others' deployments cannot be read, nor written.
        let spy = ["web-1", "subscribe", "hoist/v1/prod/web-2/deploy", "1"];
        let seen = output(agent.script(script, way, spy)).await;
        let code = if way.1 == "5" { 135 } else { 128 };
        assert_eq!(seen, format!("refused {code}\n"), "{way:?}");
        let forge = ["mon.1", "publish", &deploy, "forged"];
        let seen = output(monitor.script(script, way, forge)).await;
        if way.1 == "3.1.1" {
            // It knows no other answer.
            assert!(seen.starts_with("closed"), "{way:?}: {seen}");
        } else if matches!(script, Script::MqttJs) {
            assert_eq!(seen, "refused 135\n", "{way:?}");
        }
    }
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    publisher.subscribe(&[&deploy]).await;
    publisher.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn paho_in_python_watches_a_fleet_over_tls_and_websocket_in_both_versions() {
    watches_a_fleet(Script::Paho).await;
}

#[tokio::test]
async fn mqtt_js_watches_a_fleet_over_tls_and_websocket_in_both_versions() {
    watches_a_fleet(Script::MqttJs).await;
}
