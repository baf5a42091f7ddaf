//! Deployments that replace the agent, and what counts as the machine's word that it works.

use std::fs;

use hoist_agent::job::{AgentIdentity, ConfirmBy, JobSpec, Outage, Phase, Trouble};
use hoist_protocol::{Reason, State, StorePath, Text, UnitName, limits};

use crate::machine::{
    Activator, Machine, Script, assert_all_is, assert_ends, confirm, confirmation, inside, log,
    outcome, result, until,
};

const UNIT: &str = "agent.service";

/// The file of that unit where `systemd-run` made it.
const TRANSIENT: &str = "/run/systemd/transient/agent.service";

/// A system whose agent is `program`.
fn with_agent(machine: &Machine, name: &str, program: &StorePath) -> StorePath {
    let more = format!(
        "mkdir -p $out/etc/systemd/system
        printf '[Service]\\nLoadCredential=key:/secret/key\\nExecStart={program} run\\n' > $out/etc/systemd/system/{UNIT}"
    );
    machine.nixos_with(name, Script::PLAIN, &more)
}

/// A systemd that writes down what it is asked for, with a main process of the agent's unit or none.
fn with_systemd(machine: &Machine, main_pid: u32) {
    fs::create_dir_all("/run/systemd/system").unwrap();
    fs::create_dir_all("/run/systemd/transient").unwrap();
    let calls = machine.dir().join("calls");
    machine.fake(
        "systemctl",
        &format!(
            r#"case "$*" in
*MainPID*) echo {main_pid} ;;
*FragmentPath*) if [ -e {TRANSIENT} ]; then echo {TRANSIENT}; else echo /etc/systemd/system/{UNIT}; fi ;;
is-system-running) echo running ;;
restart*|stop*) echo "$@" >> {calls} ;;
esac"#
        ),
    );
    machine.fake(
        "systemd-run",
        &format!(
            r#"echo "$@" >> {calls}
case "$*" in *--unit={UNIT}*) touch {TRANSIENT}; exit 0 ;; esac
while [ "$1" != -- ]; do shift; done; shift; exec "$@""#
        ),
    );
    machine.fake("systemd-inhibit", "exec cat");
}

fn calls(machine: &Machine) -> String {
    fs::read_to_string(machine.dir().join("calls")).unwrap_or_default()
}

fn spec(machine: &Machine, closure: &StorePath, agent: &StorePath) -> JobSpec {
    JobSpec {
        agent: AgentIdentity {
            executable: agent.as_str().into(),
            unit: Some(UnitName::new(UNIT).unwrap()),
            user_unit: false,
            arguments: vec!["run".to_owned(), "--config=/etc/agent.toml".to_owned()],
        },
        ..machine.spec(closure)
    }
}

#[test]
fn only_the_new_systems_agent_confirms_and_it_is_started_when_the_switch_left_the_old_one() {
    inside(|machine| {
        let (old, new) = (machine.program("old", ":"), machine.program("new", ":"));
        let a = with_agent(machine, "a", &old);
        machine.running(&a);
        let b = with_agent(machine, "b", &new);
        // This process stands for the old agent, which nothing restarts.
        with_systemd(machine, std::process::id());
        let job = machine.create(&spec(machine, &b, &old));
        let activator = Activator::start_until(&job, Phase::Confirming);
        assert!(
            calls(machine).contains("restart -- agent.service"),
            "{}",
            calls(machine)
        );

        let mut word = confirmation(&job);
        word.executable = old.as_str().into();
        job.confirm(&word).unwrap();
        until("the old agent is not believed", || {
            log(&job).contains("does not count")
        });
        assert!(job.view().unwrap().result.is_none());
        word.executable = new.as_str().into();
        job.confirm(&word).unwrap();
        activator.wait();
        assert_eq!(outcome(&result(&job)), (State::Succeeded, None));
        assert_all_is(machine, &b);

        // An agent that stays as it is needs no restart.
        let calls_before = calls(machine).matches("restart").count();
        let c = with_agent(machine, "c", &new);
        let job = machine.create(&spec(machine, &c, &new));
        let activator = Activator::start_until(&job, Phase::Confirming);
        let mut word = confirmation(&job);
        word.executable = new.as_str().into();
        job.confirm(&word).unwrap();
        activator.wait();
        assert_eq!(result(&job).state, State::Succeeded);
        assert_eq!(calls(machine).matches("restart").count(), calls_before);
    });
}

#[test]
fn a_system_without_an_agent_is_refused_unless_the_order_allows_it() {
    inside(|machine| {
        let old = machine.program("old", ":");
        let a = with_agent(machine, "a", &old);
        machine.running(&a);
        with_systemd(machine, 0);
        let bare = machine.nixos("bare", Script::PLAIN);
        let notes = machine.notes();
        let refused = machine.carry_out(&spec(machine, &bare, &old));
        assert_ends(&refused, (State::Failed, Some(Reason::NoAgent)));
        assert_eq!(machine.notes(), notes);

        // The switch has stopped the agent: it is started again, with its credentials, to confirm and tell.
        let mut allowed = spec(machine, &bare, &old);
        allowed.target.allow_no_agent = true;
        allowed.target.confirm_timeout_ms = 400;
        let unheard = machine.carry_out_unconfirmed(&allowed);
        assert_ends(&unheard, (State::RolledBack, Some(Reason::NotConfirmed)));
        let asked = calls(machine);
        let started = format!(
            "--property=LoadCredential=key:/secret/key --setenv=PATH -- {old} run --config=/etc/agent.toml"
        );
        assert!(asked.contains(&started), "{asked}");
        let stopped = asked.find("stop -- agent.service");
        assert!(
            stopped > asked.find(&started),
            "it makes way for the old system's own: {asked}"
        );
        assert_all_is(machine, &a);

        assert!(
            !fs::exists(TRANSIENT).unwrap(),
            "its file would go before the system's own"
        );
        let mut allowed = spec(machine, &bare, &old);
        allowed.target.allow_no_agent = true;
        assert_eq!(machine.carry_out(&allowed).state, State::Succeeded);
        assert_all_is(machine, &bare);
    });
}

#[test]
fn an_outage_of_the_broker_is_waited_out_when_it_is_about_this_job() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        machine.running(&a);
        let b = machine.nixos("b", Script::PLAIN);
        let outage = |job: &hoist_agent::job::Job| Outage {
            nonce: job.spec().nonce.clone(),
            boot_id: job.spec().boot_id.clone(),
            message: Text::lossy("nothing listens there"),
        };
        let mut spec = machine.spec(&b);
        spec.target.confirm_timeout_ms = 400;
        let job = machine.create(&spec);
        let mut foreign = outage(&job);
        foreign.nonce = hoist_agent::job::Nonce::random();
        job.report_outage(&foreign).unwrap();
        Activator::start(&job).wait();
        assert_eq!(
            outcome(&result(&job)),
            (State::RolledBack, Some(Reason::NotConfirmed))
        );

        let mut spec = machine.spec(&b);
        spec.target.confirm_timeout_ms = 1_000;
        let job = machine.create(&spec);
        job.report_outage(&outage(&job)).unwrap();
        let activator = Activator::start_until(&job, Phase::Confirming);
        let cap = limits::OUTAGE_CAP_MS / 1_000;
        until("it says how long it waits", || {
            log(&job).contains(&format!("until {cap} s after"))
        });
        let begun = std::time::Instant::now();
        until("its own time is over", || {
            begun.elapsed() > spec.target.confirm_timeout()
        });
        assert!(
            job.view().unwrap().result.is_none(),
            "its own time is over, and it waits"
        );
        confirm(&job);
        activator.wait();
        assert_eq!(outcome(&result(&job)), (State::Succeeded, None));
    });
}

#[test]
fn what_kept_a_job_from_its_confirmation_is_what_its_outcome_says() {
    inside(|machine| {
        machine.running(&machine.nixos("a", Script::PLAIN));
        let b = machine.nixos("b", Script::PLAIN);
        let mut spec = machine.spec(&b);
        spec.target.confirm_timeout_ms = 400;
        let said = |told: Option<&Trouble>, spec: &JobSpec| {
            let job = machine.create(spec);
            if let Some(told) = told {
                job.report_trouble(told).unwrap();
            }
            Activator::start(&job).wait();
            let ended = result(&job);
            assert_eq!(
                outcome(&ended),
                (State::RolledBack, Some(Reason::NotConfirmed))
            );
            ended.message.to_string()
        };
        let trouble = Trouble {
            nonce: spec.nonce.clone(),
            boot_id: spec.boot_id.clone(),
            message: Text::lossy("mqtts://b:8883: this machine's clock says 2026"),
        };
        let message = said(Some(&trouble), &spec);
        assert!(message.contains(trouble.message.as_str()), "{message}");

        // The word of another job's agent, and no word.
        let foreign = Trouble {
            nonce: hoist_agent::job::Nonce::random(),
            ..trouble
        };
        for (n, told) in [(1, Some(foreign)), (2, None)] {
            let b = machine.nixos(&format!("b{n}"), Script::PLAIN);
            let mut spec = machine.spec(&b);
            spec.target.confirm_timeout_ms = 400;
            let message = said(told.as_ref(), &spec);
            assert!(message.contains("did not say what it tried"), "{message}");
        }
    });
}

#[test]
fn a_stand_in_is_started_with_the_settings_of_the_one_that_stood_in_before() {
    inside(|machine| {
        let old = machine.program("old", ":");
        let bare = machine.nixos("bare", Script::PLAIN);
        machine.running(&bare);
        with_systemd(machine, 0);
        // As systemd has it, for no closure does.
        let unit = "# /run/systemd/transient/agent.service\n[Service]\nLoadCredential=key:/secret/key\nUMask=0077\n";
        let calls_to = machine.dir().join("calls");
        machine.fake(
            "systemctl",
            &format!(
                r#"case "$*" in
*MainPID*) if [ -e {TRANSIENT} ]; then echo $PPID; else echo 0; fi ;;
cat*) printf '{}' ;;
is-system-running) echo running ;;
restart*|stop*) echo "$@" >> {calls_to} ;;
esac"#,
                unit.replace('\n', "\\n")
            ),
        );
        let next = machine.nixos("next", Script::PLAIN);
        let mut allowed = spec(machine, &next, &old);
        allowed.target.allow_no_agent = true;
        assert_eq!(machine.carry_out(&allowed).state, State::Succeeded);
        let started = format!(
            "--property=LoadCredential=key:/secret/key --property=UMask=0077 --setenv=PATH -- {old} run"
        );
        let asked = calls(machine);
        assert!(asked.contains(&started), "{asked}");
    });
}

#[test]
fn an_order_of_the_machine_itself_is_confirmed_by_its_health_checks_alone() {
    inside(|machine| {
        machine.running(&machine.nixos("a", Script::PLAIN));
        let b = machine.nixos("b", Script::PLAIN);
        let mut spec = machine.spec(&b);
        spec.confirm = ConfirmBy::HealthChecks;
        let job = machine.create(&spec);
        Activator::start(&job).wait();
        assert_eq!(outcome(&result(&job)), (State::Succeeded, None));
        assert_all_is(machine, &b);
    });
}

#[test]
fn what_a_newer_version_adds_to_a_job_does_not_trouble_this_one() {
    inside(|machine| {
        let a = machine.nixos("a", Script::PLAIN);
        let job = machine.create(&machine.spec(&a));
        let file = job.dir().join("spec");
        let text = fs::read_to_string(&file).unwrap();
        let newer = text.replacen('{', "{\"added_later\":[1,{}],", 1);
        fs::write(&file, newer).unwrap();
        let activator = Activator::start_until(&job, Phase::Confirming);
        confirm(&job);
        activator.wait();
        assert_eq!(result(&job).state, State::Succeeded);
    });
}
