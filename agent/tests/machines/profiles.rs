//! Generations: what is gone back to, and what others have moved.

use std::fs;

use hoist_agent::job::{JobResult, JobSpec, Phase};
use hoist_protocol::{Reason, State};

use crate::machine::{
    Activator, PROFILE, SYSTEM, Script, assert_ends, checks_with, confirm, current, generations,
    inside, link, new_id, outcome, result, run,
};

#[test]
fn the_healthy_generation_stays_when_it_is_deployed_again_and_fails() {
    inside(|machine| {
        let (a, b) = (machine.tool("a"), machine.tool("b"));
        machine.running(&a);
        machine.running(&b);
        let mut spec = machine.spec(&b);
        spec.target.health_checks = vec![checks_with(machine.program("bad", "exit 1"))];
        let again = machine.carry_out(&spec);
        assert_eq!(
            outcome(&again),
            (State::RolledBack, Some(Reason::HealthCheckFailed))
        );
        assert_eq!(link(PROFILE).as_ref(), Some(&b));
        assert_eq!(generations(PROFILE), [(1, a.clone()), (2, b.clone())]);

        // Somebody goes back to a; what fails then goes back to a as well, and not to the next lower number.
        run("nix-env", &["-p", PROFILE, "--switch-generation", "1"]);
        let c = machine.tool("c");
        let failed = machine.carry_out(&JobSpec {
            closure: c.clone(),
            id: new_id(),
            ..spec
        });
        assert_eq!(failed.state, State::RolledBack, "{}", failed.message);
        assert_eq!(failed.current.as_ref(), Some(&a));
        assert_eq!(link(PROFILE).as_ref(), Some(&a));
        assert_eq!(generations(PROFILE), [(1, a), (2, b), (3, c)]);
    });
}

#[test]
fn a_plain_profile_is_set_before_it_is_confirmed_and_set_back_when_it_is_not() {
    inside(|machine| {
        let a = machine.tool("a");
        machine.running(&a);
        let b = machine.tool("b");
        let mut spec = machine.spec(&b);
        spec.target.confirm_timeout_ms = 300;
        let job = machine.create(&spec);
        let activator = Activator::start_until(&job, Phase::Confirming);
        assert_eq!(link(PROFILE).as_ref(), Some(&b));
        // The generation to go back to is deleted meanwhile: the path is known.
        fs::remove_file(format!("{PROFILE}-1-link")).unwrap();
        activator.wait();
        let late = result(&job);
        assert_ends(&late, (State::RolledBack, Some(Reason::NotConfirmed)));
        assert_eq!(link(PROFILE).as_ref(), Some(&a));

        let job = machine.create(&machine.spec(&b));
        Activator::start_until(&job, Phase::Confirming).kill();
        Activator::start(&job).wait();
        assert_eq!(
            outcome(&result(&job)),
            (State::RolledBack, Some(Reason::Interrupted))
        );
        assert_eq!(link(PROFILE).as_ref(), Some(&a));
    });
}

#[test]
fn a_first_deployment_that_fails_says_that_there_is_nothing_to_go_back_to() {
    inside(|machine| {
        let early = machine.nixos(
            "early",
            Script {
                before: "exit 1",
                ..Script::PLAIN
            },
        );
        let untouched = machine.carry_out(&machine.spec(&early));
        assert_eq!(
            outcome(&untouched),
            (State::Failed, Some(Reason::PreSwitchCheckFailed))
        );
        assert!(untouched.message.as_str().contains("nothing to go back to"));
        assert_eq!((untouched.current, untouched.profile), (None, None));

        let late = machine.nixos(
            "late",
            Script {
                after: "exit 4",
                ..Script::PLAIN
            },
        );
        let stays = machine.carry_out(&machine.spec(&late));
        assert_eq!(
            outcome(&stays),
            (State::RollbackFailed, Some(Reason::UnitsFailed))
        );
        assert!(
            stays.message.as_str().contains("nothing to go back to"),
            "{}",
            stays.message
        );
        assert_eq!(stays.current.as_ref(), Some(&late));
        assert_eq!(machine.boot_default(), None);
        fs::remove_file("/run/current-system").unwrap();

        let tool = machine.tool("tool");
        let mut spec = machine.spec(&tool);
        spec.target.health_checks = vec![checks_with(machine.program("bad", "exit 1"))];
        let removed = machine.carry_out(&spec);
        assert_eq!(
            outcome(&removed),
            (State::RolledBack, Some(Reason::HealthCheckFailed))
        );
        assert!(removed.message.as_str().contains("nothing to go back to"));
        assert!(!fs::exists(PROFILE).unwrap());
        assert_eq!(
            generations(PROFILE),
            [(1, tool)],
            "generations are never deleted"
        );
    });
}

#[test]
fn a_system_that_somebody_else_moved_is_left_as_it_is() {
    inside(|machine| {
        machine.running(&machine.nixos("a", Script::PLAIN));
        let b = machine.nixos("b", Script::PLAIN);
        let theirs = machine.nixos("theirs", Script::PLAIN);
        let conflict = (State::Conflict, Some(Reason::ChangedByOthers));

        let job = machine.create(&machine.spec(&b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        run("nix-env", &["-p", SYSTEM, "--set", theirs.as_str()]);
        confirm(&job);
        activator.wait();
        assert_eq!(outcome(&result(&job)), conflict, "{}", result(&job).message);
        assert_eq!(link(SYSTEM).as_ref(), Some(&theirs));
        assert_eq!(current().as_ref(), Some(&b));

        let job = machine.create(&machine.spec(&machine.nixos("c", Script::PLAIN)));
        let activator = Activator::start_until(&job, Phase::Confirming);
        run(&format!("{theirs}/bin/switch-to-configuration"), &["test"]);
        let notes = machine.notes();
        activator.kill();
        Activator::start(&job).wait();
        assert_eq!(outcome(&result(&job)), conflict, "{}", result(&job).message);
        assert_eq!(machine.notes(), notes, "nothing was activated over it");

        let (tool, other) = (machine.tool("tool"), machine.tool("other"));
        let mut spec = machine.spec(&tool);
        spec.target.confirm_timeout_ms = 500;
        let job = machine.create(&spec);
        let activator = Activator::start_until(&job, Phase::Confirming);
        run("nix-env", &["-p", PROFILE, "--set", other.as_str()]);
        activator.wait();
        assert_eq!(outcome(&result(&job)), conflict, "{}", result(&job).message);
        assert_eq!(link(PROFILE).as_ref(), Some(&other));
    });
}

#[test]
fn a_store_that_a_health_check_fills_does_not_keep_a_profile_from_going_back() {
    inside(|machine| {
        run("mount", &["-t", "tmpfs", "-o", "size=12m", "none", "/nix"]);
        fs::create_dir_all("/nix/var/nix/profiles").unwrap();
        let a = machine.tool("a");
        machine.running(&a);
        let fills = "cat /dev/zero > /nix/var/fill || exit 1";
        let mut spec = machine.spec(&machine.tool("b"));
        spec.target.health_checks = vec![checks_with(machine.program("fills", fills))];
        let full = machine.carry_out(&spec);
        assert_ends(&full, (State::RolledBack, Some(Reason::HealthCheckFailed)));
        assert!(logged(&full, "No space left"), "the disk was full");
        assert_eq!(link(PROFILE).as_ref(), Some(&a));
    });
}

#[test]
fn a_nix_that_cannot_switch_generations_does_not_keep_a_profile_from_going_back() {
    inside(|machine| {
        let a = machine.tool("a");
        machine.running(&a);
        let nix_env = run("/bin/sh", &["-c", "command -v nix-env"]);
        let nix_env = nix_env.trim();
        let fails =
            format!("case \"$*\" in *--switch-generation*) exit 1 ;; esac\nexec {nix_env} \"$@\"");
        machine.fake("nix-env", &fails);
        let mut spec = machine.spec(&machine.tool("b"));
        spec.target.health_checks = vec![checks_with(machine.program("bad", "exit 1"))];
        let back = machine.carry_out(&spec);
        assert_ends(&back, (State::RolledBack, Some(Reason::HealthCheckFailed)));
        assert!(logged(&back, "without Nix"), "{:?}", back.log_tail);
        assert_eq!(link(PROFILE).as_ref(), Some(&a));
    });
}

/// Whether the last lines of a job's log say so.
fn logged(result: &JobResult, what: &str) -> bool {
    let mut lines = result.log_tail.iter();
    lines.any(|line| line.as_str().contains(what))
}
