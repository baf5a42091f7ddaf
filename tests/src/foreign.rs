//! mosquitto's own clients: proof that any MQTT client can do what Hoist's programs do.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{AgentName, DeploymentId, History, LogLine, Machine, State, Status};

use crate::authority::Identity;
use crate::process::{self, Finished, Process};
use crate::wait;

/// What `mosquitto_sub -W` exits with when nothing came in time.
const TIMED_OUT: i32 = 27;

/// A line each message, with retain flag, topic and payload: JSON and presence hold no newline.
const FORMAT: &str = "%r %t %p";

/// Runs a command again and again; each dies with the shell. `$0` is [`process::UNLESS_ORPHANED`].
const RESUBSCRIBE: &str = r#"while :; do
    setpriv --pdeathsig KILL -- /bin/sh -c "$0" sh $$ "$@"
    sleep 0.1
done"#;

/// Who connects: certificate and client id.
#[derive(Clone, Debug)]
pub struct Client {
    identity: Identity,
    id: String,
    port: u16,
    logs: Utf8PathBuf,
}

impl Client {
    /// A client that calls itself `id` on the broker's `port`.
    #[must_use]
    pub fn new(identity: Identity, id: &str, port: u16, logs: &Utf8Path) -> Self {
        Self {
            identity,
            id: id.to_owned(),
            port,
            logs: logs.to_owned(),
        }
    }

    /// `program` with all that it takes to connect.
    fn command(&self, program: &str) -> Command {
        let mut command = process::command(program);
        command.args(self.arguments());
        command
    }

    fn arguments(&self) -> Vec<String> {
        let Identity {
            ca,
            certificate,
            key,
        } = &self.identity;
        let port = self.port.to_string();
        let broker = ["-h", "127.0.0.1", "-p", &port, "-V", "311", "-i", &self.id];
        let files = [
            ("--cafile", ca.as_str()),
            ("--cert", certificate.as_str()),
            ("--key", key.as_str()),
        ];
        let files = files.into_iter().flat_map(|(flag, file)| [flag, file]);
        broker.into_iter().chain(files).map(str::to_owned).collect()
    }

    /// Publishes at QoS 1, retained when `retain`; an empty payload clears a retained message. Exit code 0 only
    /// says that the broker acknowledged it, if at all.
    ///
    /// # Errors
    /// When `mosquitto_pub` cannot be run.
    pub fn publish(&self, topic: &str, payload: &[u8], retain: bool) -> Result<Finished> {
        self.publish_with(topic, payload, retain, &[])
    }

    /// The same with further arguments, such as a last will.
    ///
    /// # Errors
    /// When `mosquitto_pub` cannot be run.
    pub fn publish_with(
        &self,
        topic: &str,
        payload: &[u8],
        retain: bool,
        more: &[&str],
    ) -> Result<Finished> {
        let file = self.logs.join(format!("payload-{}", uuid::Uuid::now_v7()));
        fs::write(&file, payload)?;
        let mut command = self.command("mosquitto_pub");
        command.args(["-q", "1", "-t", topic]).args(more);
        if retain {
            command.arg("-r");
        }
        if payload.is_empty() {
            command.arg("-n");
        } else {
            command.args(["-f", file.as_str()]);
        }
        let finished = process::run("mosquitto_pub", command, &self.logs);
        fs::remove_file(&file)?;
        finished
    }

    /// Subscribes to `filters`, and goes on until it is dropped.
    ///
    /// # Errors
    /// When `mosquitto_sub` cannot be run.
    pub fn subscribe(&self, filters: &[&str]) -> Result<Subscription> {
        self.subscribe_as(filters, FORMAT)
    }

    /// The same for payloads that are no text: they are given in hexadecimal.
    ///
    /// # Errors
    /// When `mosquitto_sub` cannot be run.
    pub fn subscribe_hex(&self, filter: &str) -> Result<Subscription> {
        self.subscribe_as(&[filter], "%r %t %x")
    }

    fn subscribe_as(&self, filters: &[&str], format: &str) -> Result<Subscription> {
        let mut command = self.command("mosquitto_sub");
        command.args(["-q", "1", "-F", format]);
        for filter in filters {
            command.args(["-t", filter]);
        }
        let process = Process::start(&format!("sub-{}", self.id), command, &self.logs)?;
        Ok(Subscription::new(process))
    }

    /// Subscribes to `filters` at QoS 0, as Hoist's programs do, and again whenever the connection was lost:
    /// `mosquitto_sub` ends then.
    ///
    /// # Errors
    /// When no shell can be run.
    pub fn keep_subscribed(&self, filters: &[&str]) -> Result<Subscription> {
        let mut command = process::command("/bin/sh");
        command.args(["-c", RESUBSCRIBE, process::UNLESS_ORPHANED]);
        command.arg("mosquitto_sub").args(self.arguments());
        command.args(["-q", "0", "-F", FORMAT]);
        for filter in filters {
            command.args(["-t", filter]);
        }
        let process = Process::start(&format!("sub-{}", self.id), command, &self.logs)?;
        Ok(Subscription::new(process))
    }

    /// Whether the broker takes a subscription to `filter` within 5 s, as one that elects its leader does not.
    ///
    /// # Errors
    /// When `mosquitto_sub` cannot be run.
    pub fn can_subscribe(&self, filter: &str) -> Result<bool> {
        let mut command = self.command("mosquitto_sub");
        command.args(["-t", filter, "-E", "-W", "5"]);
        Ok(process::run("mosquitto_sub", command, &self.logs)?.code == 0)
    }

    /// The retained payload of `topic` as the broker has it now, in bytes; none when nothing comes within 1 s.
    ///
    /// # Errors
    /// When `mosquitto_sub` cannot be run.
    pub fn retained(&self, topic: &str) -> Result<Option<Vec<u8>>> {
        let mut command = self.command("mosquitto_sub");
        command.args([
            "-t",
            topic,
            "-C",
            "1",
            "-W",
            "1",
            "--retained-only",
            "-F",
            "%x",
        ]);
        let finished = process::run("mosquitto_sub", command, &self.logs)?;
        // A subscription that was refused is no failure either.
        if !matches!(finished.code, 0 | TIMED_OUT) && !finished.stderr.contains("denied") {
            bail!(
                "mosquitto_sub exited with {}: {}",
                finished.code,
                finished.stderr
            );
        }
        let hex = finished.stdout.trim();
        if hex.is_empty() {
            return Ok(None);
        }
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16);
        Ok(Some(
            (0..hex.len())
                .step_by(2)
                .map(byte)
                .collect::<Result<_, _>>()?,
        ))
    }
}

/// A `mosquitto_sub` that runs.
pub struct Subscription {
    process: Process,
    received: Mutex<Received>,
}

/// What was read of a subscription's output so far: whole lines, each of them once.
#[derive(Default)]
struct Received {
    bytes: u64,
    messages: Vec<Message>,
}

/// One message as it was delivered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Whether the broker had kept it.
    pub retained: bool,
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: String,
}

impl Subscription {
    fn new(process: Process) -> Self {
        Self {
            process,
            received: Mutex::default(),
        }
    }

    /// Everything that has come, in order.
    ///
    /// # Errors
    /// When the output of `mosquitto_sub` cannot be read.
    pub fn messages(&self) -> Result<Vec<Message>> {
        self.look(<[Message]>::to_vec)
    }

    /// The payloads of `topic`, in order.
    fn payloads(&self, topic: &str) -> Result<Vec<String>> {
        self.look(|messages| {
            let messages = messages.iter().filter(|message| message.topic == topic);
            messages.map(|message| message.payload.clone()).collect()
        })
    }

    /// The newest payload of `topic`.
    fn newest(&self, topic: &str) -> Result<Option<String>> {
        self.look(|messages| {
            let message = messages.iter().rfind(|message| message.topic == topic);
            message.map(|message| message.payload.clone())
        })
    }

    /// Looks at everything that has come.
    fn look<T>(&self, look: impl FnOnce(&[Message]) -> T) -> Result<T> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.process.stdout_after(received.bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(&bytes[..whole]);
        received.messages.extend(lines.lines().filter_map(message));
        received.bytes += u64::try_from(whole)?;
        Ok(look(&received.messages))
    }

    /// The process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A message from its line, as [`FORMAT`] has it.
fn message(line: &str) -> Option<Message> {
    let mut parts = line.splitn(3, ' ');
    Some(Message {
        retained: parts.next()? == "1",
        topic: parts.next()?.to_owned(),
        payload: parts.next().unwrap_or_default().to_owned(),
    })
}

/// What a fleet says of itself, watched by a foreign client.
pub struct Watch {
    fleet: String,
    subscription: Subscription,
}

impl Watch {
    /// Watches everything but the deployments, which are no text.
    ///
    /// # Errors
    /// When `mosquitto_sub` cannot be run.
    pub fn start(client: &Client, fleet: &str) -> Result<Self> {
        let filters = ["status", "presence", "history", "log"]
            .map(|channel| format!("hoist/v1/{fleet}/+/{channel}"));
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        Ok(Self {
            fleet: fleet.to_owned(),
            subscription: client.keep_subscribed(&filters)?,
        })
    }

    fn topic(&self, agent: &AgentName, channel: &str) -> String {
        format!("hoist/v1/{}/{agent}/{channel}", self.fleet)
    }

    fn payloads(&self, agent: &AgentName, channel: &str) -> Result<Vec<String>> {
        self.subscription.payloads(&self.topic(agent, channel))
    }

    fn newest(&self, agent: &AgentName, channel: &str) -> Result<Option<String>> {
        self.subscription.newest(&self.topic(agent, channel))
    }

    fn machine(&self, agent: &AgentName) -> Result<Machine> {
        Ok(Machine::new(self.fleet.parse()?, agent.clone()))
    }

    /// Every status that came, in order.
    ///
    /// # Errors
    /// When one is not valid.
    pub fn statuses(&self, agent: &AgentName) -> Result<Vec<Status>> {
        let machine = self.machine(agent)?;
        self.payloads(agent, "status")?
            .iter()
            .map(|text| status(text, &machine))
            .collect()
    }

    /// The newest status; none before the first.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn status(&self, agent: &AgentName) -> Result<Option<Status>> {
        match self.newest(agent, "status")? {
            Some(text) => Ok(Some(status(&text, &self.machine(agent)?)?)),
            None => Ok(None),
        }
    }

    /// Every state that the machine went through with the deployment `id`, repeats left out.
    ///
    /// # Errors
    /// When a status is not valid.
    pub fn states(&self, agent: &AgentName, id: DeploymentId) -> Result<Vec<State>> {
        let machine = self.machine(agent)?;
        let word = id.to_string();
        let mut states = Vec::new();
        for text in self.payloads(agent, "status")? {
            // Most are of others, and a status takes its time to be read.
            if text.contains(&word) {
                let status = status(&text, &machine)?;
                states.extend((status.id == Some(id)).then_some(status.state));
            }
        }
        states.dedup();
        Ok(states)
    }

    /// The newest presence.
    ///
    /// # Errors
    /// When the output of `mosquitto_sub` cannot be read.
    pub fn presence(&self, agent: &AgentName) -> Result<Option<String>> {
        self.newest(agent, "presence")
    }

    /// The newest history; none before the first.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn history(&self, agent: &AgentName) -> Result<Option<History>> {
        let machine = self.machine(agent)?;
        match self.newest(agent, "history")? {
            Some(text) => Ok(Some(History::from_json(text.as_bytes(), &machine)?)),
            None => Ok(None),
        }
    }

    /// Every log line that came.
    ///
    /// # Errors
    /// When one is not valid.
    pub fn log(&self, agent: &AgentName) -> Result<Vec<LogLine>> {
        let lines = self.payloads(agent, "log")?;
        Ok(lines
            .iter()
            .map(|line| LogLine::from_json(line.as_bytes()))
            .collect::<Result<_, _>>()?)
    }

    /// Waits for a newest status that `fits`, and gives it.
    ///
    /// # Errors
    /// When it does not come; shows the newest.
    pub fn wait_status(
        &self,
        agent: &AgentName,
        what: &str,
        fits: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let found = wait::until(&format!("{agent} reports that {what}"), || {
            Ok(self.status(agent)?.filter(|status| fits(status)))
        });
        match found {
            Ok(status) => Ok(status),
            Err(error) => match self.status(agent)? {
                Some(last) => {
                    bail!(
                        "{error}; its last report: {}",
                        String::from_utf8_lossy(&last.to_json())
                    )
                }
                None => bail!("{error}; it never reported"),
            },
        }
    }

    /// Waits until the newest deployment that the machine reports has ended, and gives that report. What another
    /// client has seen a moment ago may still be on its way to this one.
    ///
    /// # Errors
    /// When it does not end in `state`; shows the newest report.
    pub fn wait_end(&self, agent: &AgentName, state: State) -> Result<Status> {
        self.wait_status(agent, &format!("its deployment {state}"), |status| {
            status.state == state
        })
    }

    /// Waits until the newest presence is `online` or `offline`.
    ///
    /// # Errors
    /// When it does not become so.
    pub fn wait_presence(&self, agent: &AgentName, expected: &str) -> Result<()> {
        wait::until_true(&format!("{agent} is {expected}"), || {
            Ok(self.presence(agent)?.as_deref() == Some(expected))
        })
    }
}

fn status(text: &str, machine: &Machine) -> Result<Status> {
    Status::from_json(text.as_bytes(), machine).with_context(|| format!("a status: {text}"))
}
