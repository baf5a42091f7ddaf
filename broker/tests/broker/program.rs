//! The program as a service manager sees it: its lines, its signals, its exit codes.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use hoist_certs::Role;
use hoist_certs::authority::days;
use tempfile::TempDir;

use crate::support::{Broker, World, name, topic};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_hoist-broker");

/// A folder with certificates and a configuration.
pub(crate) struct Folder {
    pub(crate) world: World,
    pub(crate) dir: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let dir = TempDir::new().unwrap();
        let hosts = ["localhost".parse().unwrap()];
        let issued = world
            .authority
            .issue(Role::Broker, &name("main"), &hosts, days(1))
            .unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write("ca.pem", world.authority.certificate_pem());
        write("broker.pem", &issued.certificate_pem);
        write("broker.key", &issued.key_pem);
        let config = "listen = \"127.0.0.1:0\"\nca = \"ca.pem\"\ncertificate = \"broker.pem\"\n\
                      key = \"broker.key\"\nstate = \"state\"\n";
        write("broker.toml", config);
        Self { world, dir }
    }

    /// The command, run by a shell with `wrapper` before it.
    pub(crate) fn command(&self, wrapper: &str, flags: &str) -> Command {
        let mut command = Command::new("sh");
        let script = format!("{wrapper} {PROGRAM} run --config broker.toml {flags}");
        command
            .args(["-c", &script])
            .current_dir(&self.dir)
            .env_remove("NOTIFY_SOCKET");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end, which has to be an error, and returns what it said.
    fn fails(&self, flags: &str) -> String {
        let output = self.command("exec", flags).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A broker in a process of its own, killed when it is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) broker: Broker,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn start(mut command: Command) -> Running {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line
        .strip_prefix("ready: listening on ")
        .unwrap_or_else(|| panic!("not ready: {line:?}"))
        .trim_end()
        .parse()
        .unwrap();
    Running {
        child,
        broker: Broker::elsewhere(address),
    }
}

impl Running {
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end: the exit code, and what it said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

#[tokio::test]
async fn it_says_when_it_is_ready_and_ends_well_on_sigterm() {
    let folder = Folder::new();
    let socket = folder.dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let mut command = folder.command("exec", "");
    command.env("NOTIFY_SOCKET", &socket);
    let running = start(command);
    let mut told = [0; 64];
    let len = manager.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"READY=1");
    let mut agent = folder.world.agent(&running.broker, "web-1").await;
    assert!(agent.retain(&topic("web-1", "status"), "x").await);
    running.terminate();
    agent.expect_closed().await;
    let len = manager.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"STOPPING=1");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("a client's certificate ends soon") && said.contains("identity=agent web-1"),
        "a certificate of one day is told: {said}"
    );
    assert!(
        said.contains("no trusted_keys"),
        "a broker without keys says so: {said}"
    );
}

#[test]
fn errors_say_what_to_do() {
    let folder = Folder::new();
    let config = folder.dir.path().join("broker.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{good}max_conections = 7\n")).unwrap();
    let said = folder.fails("");
    assert!(
        said.contains("broker.toml:6") && said.contains("did you mean `max_connections`"),
        "{said}"
    );
    std::fs::write(&config, good.replace("state = \"state\"\n", "")).unwrap();
    assert!(folder.fails("").contains("--state"));
    std::fs::write(&config, &good).unwrap();
    assert!(folder.fails("--ca missing.pem").contains("missing.pem"));
    let said = folder.fails("--state /proc/none");
    assert!(said.contains("/proc/none"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = folder.fails(&format!("--listen {address}"));
    assert!(said.contains(&address), "{said}");
    let said = folder.fails("--required-signatures 2");
    assert!(said.contains("trusted_keys"), "{said}");
}

#[tokio::test]
async fn no_secret_is_in_its_log() {
    let folder = Folder::new();
    let key = std::fs::read_to_string(folder.dir.path().join("broker.key")).unwrap();
    let running = start(folder.command("HOIST_LOG=trace exec", "-vvv"));
    running.terminate();
    let (code, said) = running.end();
    assert_eq!(code, Some(0));
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        assert!(
            !said.contains(line),
            "a line of the private key is in the log"
        );
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = TempDir::new().unwrap();
    let pages = folder.path().join("share/man1");
    let status = Command::new(PROGRAM).arg("man").arg(&pages).status();
    assert!(status.unwrap().success());
    for command in ["", "-run", "-export", "-check", "-backup", "-restore"] {
        let page = pages.join(format!("hoist-broker{command}.1"));
        assert!(page.is_file(), "{page:?}");
    }
}
