//! `hoist-agent doctor` on real machines: as root beside the agent's unit, with what the unit has, and as a user.

use anyhow::{Context as _, Result, ensure};
use hoist_tests::authority::Identity;
use hoist_tests::nspawn::{AGENT, Booted, Trust, USER, UserMachine, booted_scenario};
use hoist_tests::process::Finished;
use hoist_tests::wait;
use serde_json::Value;

/// The doctor's findings.
struct Findings(Vec<Value>);

impl Findings {
    fn read(finished: &Finished) -> Result<Self> {
        let findings: Vec<Value> = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{}{}", finished.stdout, finished.stderr))?;
        let findings = Self(findings);
        let code = i32::from(!findings.with("wrong").is_empty());
        ensure!(finished.code == code, "exit code {}", finished.code);
        Ok(findings)
    }

    /// The checks that ended so.
    fn with(&self, verdict: &str) -> Vec<&str> {
        let of = self
            .0
            .iter()
            .filter(|finding| finding["verdict"] == verdict);
        of.filter_map(|finding| finding["check"].as_str()).collect()
    }

    /// What there is to know; not of the clock, which is the host's.
    fn notes(&self) -> Vec<&str> {
        let notes = self.with("note").into_iter();
        notes.filter(|check| *check != "clock").collect()
    }

    /// What one of them says, and what to do.
    fn say(&self, check: &str) -> String {
        let of = self.0.iter().filter(|finding| finding["check"] == check);
        of.map(|finding| format!("{} {}", finding["message"], finding["advice"]))
            .collect()
    }
}

/// Of root, in a shell that knows nothing of the agent but its program.
fn of_root(machine: &Booted) -> Result<Findings> {
    let start = machine.property(AGENT, "ExecStart")?;
    let program = start
        .split_once("path=")
        .and_then(|(_, rest)| rest.split(' ').next())
        .context("a unit starts a program")?;
    Findings::read(&machine.run(program, &["doctor", "--json"])?)
}

fn of_user(user: &UserMachine) -> Result<Findings> {
    Findings::read(&user.run(&user.agent_program(), &["doctor", "--json"])?)
}

#[test]
fn the_doctor_of_a_machine_finds_the_agents_unit_and_its_credentials_by_itself() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let findings = of_root(&machine)?;
        assert_eq!(findings.with("wrong"), [""; 0], "{:#?}", findings.0);
        assert_eq!(findings.notes(), [""; 0], "{:#?}", findings.0);
        assert!(
            findings
                .say("configuration")
                .contains("/etc/hoist/agent.toml")
        );
        assert!(findings.say("broker").contains("is connected to"));
        assert!(findings.say("store").contains("used directly"));
        assert!(findings.say("systemd").contains("outlive the agent's unit"));

        // With the variables of the unit and no others: what the agent needs is in its PATH.
        let with_unit = format!(
            "exec env -i $(systemctl show --property=Environment --value {AGENT}) \
             $(readlink /proc/$(systemctl show --property=MainPID --value {AGENT})/exe) doctor --json"
        );
        let findings = Findings::read(&machine.run("sh", &["-c", &with_unit])?)?;
        assert_eq!(findings.with("wrong"), [""; 0], "{:#?}", findings.0);

        // Anybody else is told whose agent it is.
        let as_nobody = with_unit.replace("exec ", "exec setpriv --reuid=65534 --clear-groups ");
        let findings = Findings::read(&machine.run("sh", &["-c", &as_nobody])?)?;
        assert_eq!(
            findings.with("wrong"),
            ["configuration"],
            "{:#?}",
            findings.0
        );
        assert!(
            findings
                .say("configuration")
                .contains("sudo hoist-agent doctor")
        );

        // Without the unit there are no credentials but where it has them from.
        machine.run("systemctl", &["stop", AGENT])?.success()?;
        let findings = of_root(&machine)?;
        assert_eq!(findings.with("wrong"), ["agent"], "{:#?}", findings.0);
        let advice = findings.say("agent");
        assert!(advice.contains("systemctl start hoist-agent"), "{advice}");
        machine
            .run("rm", &["/var/lib/secrets/agent.key"])?
            .success()?;
        let findings = of_root(&machine)?;
        assert_eq!(
            findings.with("wrong"),
            ["agent", "key"],
            "{:#?}",
            findings.0
        );
        let said = findings.say("key");
        assert!(said.contains("/var/lib/secrets/agent.key"), "{said}");
        Ok(())
    });
}

/// Gives the machine another certificate, as a renewal does: the agent's unit is started again with it.
fn replace(machine: &Booted, identity: &Identity) -> Result<()> {
    let text = |path| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    machine.write("/var/lib/secrets/agent.key", &text(&identity.key)?)?;
    machine.write("/var/lib/secrets/agent.pem", &text(&identity.certificate)?)
}

#[test]
fn the_doctor_names_an_expired_certificate_and_a_new_one_is_taken_without_a_hand() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        replace(&machine, &world.authority.issue_expired("agent", "web-1")?)?;
        world.watch().wait_presence(machine.name(), "offline")?;
        // The agent goes on with its work, and the broker refuses it.
        wait::until_true("the doctor finds what is wrong", || {
            let findings = of_root(&machine)?;
            let said = findings.say("certificate");
            Ok(findings.with("wrong") == ["certificate", "broker"]
                && said.contains("it expired on")
                && said.contains("hoist-certs issue agent web-1 --force"))
        })?;

        replace(
            &machine,
            &world.authority.issue("agent", "web-1", &["--force"])?,
        )?;
        world.watch().wait_presence(machine.name(), "online")?;
        let findings = of_root(&machine)?;
        assert_eq!(findings.with("wrong"), [""; 0], "{:#?}", findings.0);
        Ok(())
    });
}

#[test]
fn the_doctor_of_a_user_knows_the_daemon_and_who_keeps_the_agent_running() {
    booted_scenario(|world| {
        let user = UserMachine::running(world, "ann-1", Trust::Untrusted)?;
        let findings = of_user(&user)?;
        assert_eq!(findings.with("wrong"), [""; 0], "{:#?}", findings.0);
        assert_eq!(findings.notes(), ["store"], "{:#?}", findings.0);
        assert!(
            findings
                .say("configuration")
                .contains("/home/ann/.config/hoist/agent.toml")
        );
        assert!(findings.say("store").contains("does not trust this user"));
        assert!(
            findings
                .say("state")
                .contains("/home/ann/.local/state/hoist-agent")
        );
        assert!(
            findings
                .say("systemd")
                .contains("this user's service manager")
        );

        // The agent goes on when the user does not linger, for as long as somebody is logged in.
        let linger = format!("/var/lib/systemd/linger/{USER}");
        user.machine().run("rm", &[&linger])?.success()?;
        let findings = of_user(&user)?;
        assert_eq!(findings.notes(), ["store", "linger"], "{:#?}", findings.0);
        user.machine().write(&linger, "")?;

        user.run("systemctl", &["--user", "stop", AGENT])?
            .success()?;
        user.machine()
            .run(
                "systemctl",
                &["stop", "nix-daemon.socket", "nix-daemon.service"],
            )?
            .success()?;
        let findings = of_user(&user)?;
        assert_eq!(
            findings.with("wrong"),
            ["agent", "store"],
            "{:#?}",
            findings.0
        );
        assert!(
            findings
                .say("agent")
                .contains("systemctl --user start hoist-agent")
        );
        assert!(
            findings
                .say("broker")
                .contains("subscription and echo work")
        );
        assert!(findings.say("store").contains("nix-daemon"));
        Ok(())
    });
}
