//! A machine for a test: a `/nix`, a `/run` and a boot of its own, in a mount namespace.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent::job::{
    AgentIdentity, BootId, ConfirmBy, Confirmation, Job, JobResult, JobSpec, Jobs, LogCursor,
    Nonce, Phase,
};
use hoist_protocol::{
    DeploymentId, Goal, HealthCheck, Probe, Reason, State, StorePath, System, Target,
};
use rustix::process::{Pid, Signal};

pub(crate) const SYSTEM: &str = "/nix/var/nix/profiles/system";
pub(crate) const PROFILE: &str = "/nix/var/nix/profiles/hoist";

/// Where the made-up systems write down what they do.
const NOTES: &str = "/nix/var/notes";

const INSIDE: &str = "HOIST_TEST_MACHINE";

const ENTER: &str = r#"
dir=$1; shift
mount --bind "$dir/nix" /nix
mount --bind "$dir/run" /run
mount --bind "$dir/boot_id" /proc/sys/kernel/random/boot_id
exec "$@"
"#;

const NIX_CONF: &str = "\
substituters =
sandbox = false
build-users-group =
experimental-features = nix-command
";

/// Runs this very test once more inside of a new machine, and `test` only there.
pub(crate) fn inside(test: impl FnOnce(&Machine)) {
    if let Ok(dir) = std::env::var(INSIDE) {
        test(&Machine { dir: dir.into() });
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let dir = Utf8Path::from_path(temporary.path()).unwrap();
    for folder in [
        "nix/var/nix/profiles",
        "run",
        "conf",
        "home",
        "state",
        "bin",
    ] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join("conf/nix.conf"), NIX_CONF).unwrap();
    fs::write(
        dir.join("boot_id"),
        "11111111-1111-4111-8111-111111111111\n",
    )
    .unwrap();
    let name = std::thread::current().name().unwrap().to_owned();
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let output = unshare
        .args(["/bin/sh", "-euc", ENTER, "sh", dir.as_str()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(INSIDE, dir)
        .env("NIX_CONF_DIR", dir.join("conf"))
        .env("HOME", dir.join("home"))
        .env(
            "PATH",
            format!("{dir}/bin:{}", std::env::var("PATH").unwrap()),
        )
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn new_id() -> DeploymentId {
    DeploymentId::new(uuid::Uuid::from_u128(rand::random()))
}

/// The machine that this process runs in. Its `bin` comes first in `PATH`.
pub(crate) struct Machine {
    dir: Utf8PathBuf,
}

/// What a made-up NixOS system does beside what all do.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    /// Before it is activated.
    pub(crate) before: &'static str,
    /// After it was activated.
    pub(crate) after: &'static str,
    /// When it is made what boots.
    pub(crate) boot: &'static str,
}

impl Script {
    /// Nothing beside it.
    pub(crate) const PLAIN: Self = Self {
        before: "",
        after: "",
        boot: "",
    };
}

/// Builds a NixOS system out of its script.
const NIXOS: &str = r#"mkdir -p $out/bin
echo 1 > $out/nixos-version
echo "$script" | sed "s|@out@|$out|g" > $out/bin/switch-to-configuration
chmod 755 $out/bin/switch-to-configuration"#;

fn nixos_script(name: &str, script: Script) -> String {
    let Script {
        before,
        after,
        boot,
    } = script;
    format!(
        r"#!/bin/sh
set -eu
mkdir -p {NOTES}/gates
echo {name} $1 >> {NOTES}/log
echo switching to {name}
while [ -e {NOTES}/gates/{name}.$1 ]; do sleep 0.01; done
case $1 in
test)
    {before}
    ln -sfn @out@ /run/current-system
    {after}
    ;;
boot)
    {boot}
    echo @out@ > {NOTES}/boot-default
    ;;
dry-activate)
    echo would restart x.service
    ;;
esac
"
    )
}

/// A running activator.
pub(crate) struct Activator(Child);

impl Machine {
    pub(crate) fn state(&self) -> Utf8PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    fn build(&self, expression: &str) -> StorePath {
        let file = self.dir.join(format!("{}.nix", new_id()));
        fs::write(&file, expression).unwrap();
        let path = run("nix-build", &["--no-out-link", file.as_str()]);
        StorePath::new(path.trim()).unwrap()
    }

    pub(crate) fn derive(&self, name: &str, script: &str, builder: &str) -> StorePath {
        let quoted = |text: &str| format!("{text:?}").replace("${", "\\${");
        let (script, builder) = (quoted(script), quoted(builder));
        self.build(&format!(
            r#"derivation {{
                name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh";
                PATH = "/usr/bin:/bin"; script = {script};
                args = [ "-euc" {builder} ];
            }}"#
        ))
    }

    /// A NixOS system as far as Hoist can tell. It waits at `gates/<name>.<action>` while that exists.
    pub(crate) fn nixos(&self, name: &str, script: Script) -> StorePath {
        self.nixos_with(name, script, "")
    }

    /// A NixOS system with more in it: `more` runs in its builder, with its path in `$out`.
    pub(crate) fn nixos_with(&self, name: &str, script: Script, more: &str) -> StorePath {
        let builder = format!("{NIXOS}\n{more}");
        self.derive(name, &nixos_script(name, script), &builder)
    }

    /// A home-manager generation: versioned ones leave the profile to whoever activates them, others set the one in
    /// the old folder.
    pub(crate) fn home(&self, name: &str, script: Script, versioned: bool) -> StorePath {
        let own = if versioned {
            "[ \"$*\" = '--driver-version 1' ]"
        } else {
            "nix-env --profile /nix/var/nix/profiles/per-user/$USER/home-manager --set @out@"
        };
        let work = format!(
            "{own}\nroots=$HOME/.local/state/home-manager/gcroots; mkdir -p $roots; ln -sfn @out@ $roots/current-home"
        );
        let builder = format!(
            "echo 24.05 > $out/hm-version; {}",
            if versioned {
                "echo 1 > $out/gen-version"
            } else {
                ":"
            }
        );
        self.activated(
            name,
            script,
            "activate",
            "[ -n \"${DRY_RUN:-}\" ]",
            &work,
            &builder,
        )
    }

    /// A closure of deploy-rs, whose script goes by what the profile names.
    pub(crate) fn deploy_rs(&self, name: &str, script: Script) -> StorePath {
        let dry = "[ \"$DRY_ACTIVATE\" = 1 ]";
        let work = "[ $(cat $PROFILE/name) = $(cat @out@/name) ]";
        self.activated(name, script, "deploy-rs-activate", dry, work, ":")
    }

    /// A closure with an activator of its own, `bin/setup`.
    pub(crate) fn custom(&self, name: &str, script: Script) -> StorePath {
        let work = format!(
            "[ $1 = activate ]; [ $HOIST_CLOSURE = @out@ ]\necho {name} after ${{HOIST_PREVIOUS:-nothing}} in $HOIST_PROFILE"
        );
        self.activated(name, script, "bin/setup", "false", &work, ":")
    }

    /// A closure with a program that activates it, and writes down `<name> activate` or `<name> dry`.
    fn activated(
        &self,
        name: &str,
        script: Script,
        program: &str,
        dry: &str,
        work: &str,
        more: &str,
    ) -> StorePath {
        let Script { before, after, .. } = script;
        let text = format!(
            r"#!/bin/sh
set -eu
mkdir -p {NOTES}/gates
if {dry}; then
    echo {name} dry >> {NOTES}/log
    echo would activate {name}
    exit 0
fi
echo {name} activate >> {NOTES}/log
while [ -e {NOTES}/gates/{name}.activate ]; do sleep 0.01; done
{before}
{work}
{after}
"
        );
        let builder = format!(
            r#"mkdir -p $out/bin; echo $name > $out/name
            echo "$script" | sed "s|@out@|$out|g" > $out/{program}
            chmod 755 $out/{program}
            {more}"#
        );
        self.derive(name, &text, &builder)
    }

    /// A plain profile.
    pub(crate) fn tool(&self, name: &str) -> StorePath {
        self.derive(name, "", "mkdir -p $out/bin; echo $name > $out/bin/tool")
    }

    /// An executable file of the store.
    pub(crate) fn program(&self, name: &str, script: &str) -> StorePath {
        let script = format!("#!/bin/sh\n{script}\n");
        self.derive(name, &script, r#"echo "$script" > $out; chmod 755 $out"#)
    }

    /// What the made-up systems were asked for, one `<name> <action>` after another.
    pub(crate) fn notes(&self) -> Vec<String> {
        let log = fs::read_to_string(format!("{NOTES}/log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Lets a system wait when it is asked for an action; [`Machine::open`] lets it go on.
    pub(crate) fn close(&self, gate: &str) {
        fs::create_dir_all(format!("{NOTES}/gates")).unwrap();
        fs::write(format!("{NOTES}/gates/{gate}"), "").unwrap();
    }

    pub(crate) fn open(&self, gate: &str) {
        fs::remove_file(format!("{NOTES}/gates/{gate}")).unwrap();
    }

    /// The system that boots by default.
    pub(crate) fn boot_default(&self) -> Option<StorePath> {
        let path = fs::read_to_string(format!("{NOTES}/boot-default")).ok()?;
        Some(StorePath::new(path.trim()).unwrap())
    }

    /// Takes the power away from whatever runs for a job, and boots the default.
    pub(crate) fn power_cut(&self, job: &Job, activator: Activator) {
        activator.kill();
        let mark = format!("HOIST_DEPLOYMENT_ID={}", job.spec().id);
        for entry in fs::read_dir("/proc").unwrap() {
            let entry = entry.unwrap();
            // A process may end while it is looked at.
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
            let marked = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes());
            if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| marked) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
        run("/bin/sh", &["-c", "rm -f /run/current-system"]);
        if let Some(system) = self.boot_default() {
            std::os::unix::fs::symlink(system.as_str(), "/run/current-system").unwrap();
        }
        let id = format!("{}\n", new_id());
        fs::write(self.dir.join("boot_id"), id).unwrap();
    }

    pub(crate) fn spec(&self, closure: &StorePath) -> JobSpec {
        JobSpec {
            id: new_id(),
            epoch: 0,
            sequence: 1,
            nonce: Nonce::random(),
            boot_id: BootId::current().unwrap(),
            closure: closure.clone(),
            target: Target::new(Goal::Closure(closure.clone())),
            confirm: ConfirmBy::Broker,
            profile: PROFILE.into(),
            agent: AgentIdentity {
                executable: "/bin/hoist-agent".into(),
                unit: None,
                user_unit: false,
                arguments: Vec::new(),
            },
        }
    }

    pub(crate) fn create(&self, spec: &JobSpec) -> Job {
        Jobs::open(&self.state()).unwrap().create(spec).unwrap()
    }

    /// Carries out a job and confirms it.
    pub(crate) fn carry_out(&self, spec: &JobSpec) -> JobResult {
        let job = self.create(spec);
        let activator = Activator::start(&job);
        until("it waits for the confirmation or has ended", || {
            let view = job.view().unwrap();
            view.phase == Some(Phase::Confirming) || view.result.is_some()
        });
        confirm(&job);
        activator.wait();
        result(&job)
    }

    /// Carries out a job that nobody confirms.
    pub(crate) fn carry_out_unconfirmed(&self, spec: &JobSpec) -> JobResult {
        let job = self.create(spec);
        Activator::start(&job).wait();
        result(&job)
    }

    /// Puts a program first in `PATH`.
    pub(crate) fn fake(&self, name: &str, script: &str) {
        let file = self.dir.join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        run("chmod", &["755", file.as_str()]);
    }

    /// Has `closure` deployed well, as the state that a test starts from.
    pub(crate) fn running(&self, closure: &StorePath) -> JobResult {
        let result = self.carry_out(&self.spec(closure));
        assert!(result.state.is_good(), "{}", result.message);
        result
    }
}

impl Activator {
    pub(crate) fn start(job: &Job) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_hoist-agent"))
            .args(["activator", "--job", job.dir().as_str()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Starts one and waits until it is in `phase`.
    pub(crate) fn start_until(job: &Job, phase: Phase) -> Self {
        let activator = Self::start(job);
        until("the phase is reached", || {
            let view = job.view().unwrap();
            assert_eq!(view.result, None, "it ended before {phase:?}");
            view.phase == Some(phase)
        });
        activator
    }

    /// `kill -9` of it alone.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn wait(mut self) {
        let mut status = None;
        until("the activator ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

pub(crate) fn confirmation(job: &Job) -> Confirmation {
    Confirmation {
        nonce: job.spec().nonce.clone(),
        boot_id: BootId::current().unwrap(),
        executable: "/bin/hoist-agent".into(),
    }
}

pub(crate) fn confirm(job: &Job) {
    job.confirm(&confirmation(job)).unwrap();
}

pub(crate) fn result(job: &Job) -> JobResult {
    let view = job.view().unwrap();
    assert!(!view.alive, "the lock is free once there is a result");
    view.result.expect("an activator that ended wrote a result")
}

/// Lets an activator work on a job until it has ended, and returns how.
pub(crate) fn recover(job: &Job) -> JobResult {
    // A program that a killed one was about to start holds its lock until it is what it shall be.
    until("the lock of the one before is free", || {
        !job.view().unwrap().alive
    });
    Activator::start(job).wait();
    result(job)
}

/// A job has ended so.
pub(crate) fn assert_ends(result: &JobResult, expected: (State, Option<Reason>)) {
    assert_eq!(outcome(result), expected, "{}", result.message);
}

/// What a link leads to in the end.
pub(crate) fn link(path: &str) -> Option<StorePath> {
    let target = Utf8Path::new(path).canonicalize_utf8().ok()?;
    Some(StorePath::new(target.into_string()).unwrap())
}

pub(crate) fn current() -> Option<StorePath> {
    link("/run/current-system")
}

/// The numbers of a profile's generations and what they hold.
pub(crate) fn generations(profile: &str) -> Vec<(u32, StorePath)> {
    let profile = Utf8Path::new(profile);
    let prefix = format!("{}-", profile.file_name().unwrap());
    let mut found = Vec::new();
    for entry in profile.parent().unwrap().read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().strip_prefix(&prefix);
        if let Some(number) = name.and_then(|name| name.strip_suffix("-link")) {
            found.push((
                number.parse().unwrap(),
                link(entry.path().as_str()).unwrap(),
            ));
        }
    }
    found.sort();
    found
}

/// Runs a program to its end, which must be a good one; what it printed comes back.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a job ended, for programs.
pub(crate) fn outcome(result: &JobResult) -> (State, Option<Reason>) {
    (result.state, result.reason)
}

/// All that a job logged.
pub(crate) fn log(job: &Job) -> String {
    let mut cursor = LogCursor::default();
    let mut text = String::new();
    loop {
        let lines = job.lines(&mut cursor).unwrap();
        if lines.is_empty() {
            return text;
        }
        for line in lines {
            text.push_str(line.text.as_str());
            text.push('\n');
        }
    }
}

/// The machine runs `system`, boots it and has it as its profile.
pub(crate) fn assert_all_is(machine: &Machine, system: &StorePath) {
    assert_eq!(current().as_ref(), Some(system));
    assert_eq!(link(SYSTEM).as_ref(), Some(system));
    assert_eq!(machine.boot_default().as_ref(), Some(system));
}

/// A health check that runs `program` once.
pub(crate) fn checks_with(program: StorePath) -> HealthCheck {
    let programs = [(System::current().unwrap(), program)];
    HealthCheck::new(Probe::Program(programs.into()))
}
