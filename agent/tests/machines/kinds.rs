//! Every kind that is activated by a program of its own: what ends well, what goes back, and what a crash leaves.

use std::fs;

use hoist_agent::job::{JobSpec, Phase};
use hoist_protocol::{Action, ClosureFile, Kind, ProfileName, Reason, State, StorePath};

use crate::machine::{
    Activator, Machine, PROFILE, Script, assert_ends, checks_with, confirm, generations, inside,
    link, log, outcome, recover, result, run, until,
};

/// A kind, as the tests need it.
struct Sort {
    kind: Kind,
    /// Whether its order has to name it.
    named: bool,
    make: fn(&Machine, &str, Script) -> StorePath,
    profile: fn(&Machine) -> String,
}

/// Where a user's profiles are since Nix 2.14, once there are any,
fn new_folder(machine: &Machine) -> String {
    format!("{}/home/.local/state/nix/profiles", machine.dir())
}

/// and where they were before.
fn old_folder() -> String {
    let user = run("id", &["-un"]);
    format!("/nix/var/nix/profiles/per-user/{}", user.trim())
}

fn sorts() -> Vec<Sort> {
    let of_machine = |_: &Machine| PROFILE.to_owned();
    vec![
        Sort {
            kind: Kind::HomeManager,
            named: false,
            make: |machine, name, script| machine.home(name, script, true),
            profile: |machine| format!("{}/home-manager", new_folder(machine)),
        },
        Sort {
            kind: Kind::HomeManager,
            named: false,
            make: |machine, name, script| machine.home(name, script, false),
            profile: |_| format!("{}/home-manager", old_folder()),
        },
        Sort {
            kind: Kind::DeployRs,
            named: false,
            make: Machine::deploy_rs,
            profile: of_machine,
        },
        Sort {
            kind: Kind::Custom(ClosureFile::new("bin/setup").unwrap()),
            named: true,
            make: Machine::custom,
            profile: of_machine,
        },
    ]
}

impl Sort {
    fn spec(&self, machine: &Machine, closure: &StorePath) -> JobSpec {
        let mut spec = machine.spec(closure);
        if self.named {
            spec.target.kind = self.kind.clone();
        }
        spec
    }

    /// Has a closure `a` of this kind deployed well.
    fn running_a(&self, machine: &Machine) -> StorePath {
        let a = (self.make)(machine, "a", Script::PLAIN);
        let result = machine.carry_out(&self.spec(machine, &a));
        assert_eq!(result.state, State::Succeeded, "{}", result.message);
        a
    }

    /// Runs `test` on a machine of its own for each kind, one after another.
    fn each(test: impl Fn(&Machine, &Self)) {
        inside(|machine| {
            for sort in sorts() {
                let folder = (sort.profile)(machine);
                fs::create_dir_all(folder.rsplit_once('/').unwrap().0).unwrap();
                test(machine, &sort);
                let leftovers = format!(
                    "rm -rf /nix/var/nix/profiles/hoist* /nix/var/notes {} {}/home/.local",
                    old_folder(),
                    machine.dir()
                );
                run("/bin/sh", &["-c", &leftovers]);
            }
        });
    }
}

#[test]
fn every_kind_sets_its_profile_and_runs_its_program() {
    Sort::each(|machine, sort| {
        let a = sort.running_a(machine);
        let b = (sort.make)(machine, "b", Script::PLAIN);
        let result = machine.carry_out(&sort.spec(machine, &b));
        assert_ends(&result, (State::Succeeded, None));
        assert_eq!(result.kind.as_ref(), Some(&sort.kind));
        assert_eq!(
            (result.previous.as_ref(), result.current.as_ref()),
            (Some(&a), Some(&b))
        );
        let profile = (sort.profile)(machine);
        assert_eq!(link(&profile).as_ref(), Some(&b));
        assert_eq!(machine.notes(), ["a activate", "b activate"]);
    });
}

#[test]
fn every_kind_activates_what_ran_before_when_the_new_one_does_not_hold() {
    Sort::each(|machine, sort| {
        let a = sort.running_a(machine);
        let profile = (sort.profile)(machine);
        let failing = Script {
            after: "exit 7",
            ..Script::PLAIN
        };
        let bad = (sort.make)(machine, "bad", failing);
        let failed = machine.carry_out(&sort.spec(machine, &bad));
        assert_ends(&failed, (State::Failed, Some(Reason::ActivationFailed)));
        assert!(failed.message.as_str().contains("exited with 7"));

        let b = (sort.make)(machine, "b", Script::PLAIN);
        let mut spec = sort.spec(machine, &b);
        spec.target.health_checks = vec![checks_with(machine.program("no", "exit 1"))];
        let unhealthy = machine.carry_out(&spec);
        assert_ends(
            &unhealthy,
            (State::RolledBack, Some(Reason::HealthCheckFailed)),
        );
        assert_eq!(unhealthy.current.as_ref(), Some(&a));
        assert_eq!(link(&profile).as_ref(), Some(&a));
        let expected = ["a", "bad", "a", "b", "a"].map(|name| format!("{name} activate"));
        assert_eq!(machine.notes(), expected);
        let held: Vec<_> = generations(&profile)
            .into_iter()
            .map(|(_, path)| path)
            .collect();
        assert!(
            held.contains(&bad) && held.contains(&b),
            "no generation is deleted"
        );
    });
}

#[test]
fn every_kind_goes_back_when_its_activator_is_killed_before_the_confirmation() {
    Sort::each(|machine, sort| {
        let a = sort.running_a(machine);
        let b = (sort.make)(machine, "b", Script::PLAIN);
        for (phase, state) in [
            (Phase::Activating, State::Failed),
            (Phase::Confirming, State::RolledBack),
        ] {
            if phase == Phase::Activating {
                machine.close("b.activate");
            }
            let job = machine.create(&sort.spec(machine, &b));
            let activator = Activator::start_until(&job, phase);
            until("it is activated", || {
                machine.notes().last().unwrap() == "b activate"
            });
            activator.kill();
            let result = recover(&job);
            assert_eq!(
                outcome(&result),
                (state, Some(Reason::Interrupted)),
                "{phase:?}: {}",
                result.message
            );
            if phase == Phase::Activating {
                machine.open("b.activate");
            }
            assert_eq!(result.current.as_ref(), Some(&a));
            assert_eq!(link(&(sort.profile)(machine)).as_ref(), Some(&a));
            assert_eq!(machine.notes().last().unwrap(), "a activate");
        }
    });
}

#[test]
fn every_kind_goes_back_after_a_power_cut_and_then_takes_the_same_closure() {
    Sort::each(|machine, sort| {
        sort.running_a(machine);
        let b = (sort.make)(machine, "b", Script::PLAIN);
        let job = machine.create(&sort.spec(machine, &b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        machine.power_cut(&job, activator);
        Activator::start(&job).wait();
        assert_eq!(
            outcome(&result(&job)),
            (State::RolledBack, Some(Reason::Interrupted)),
            "a boot undoes nothing of this kind, so the activator does"
        );
        assert_eq!(machine.notes().last().unwrap(), "a activate");

        let job = machine.create(&sort.spec(machine, &b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        confirm(&job);
        activator.wait();
        assert_eq!(result(&job).state, State::Succeeded);
        assert_eq!(link(&(sort.profile)(machine)).as_ref(), Some(&b));
    });
}

#[test]
fn a_dry_activation_changes_nothing_and_says_what_it_would_do() {
    inside(|machine| {
        let dry = |mut spec: JobSpec| {
            spec.target.action = Action::DryActivate;
            let job = machine.create(&spec);
            Activator::start(&job).wait();
            (result(&job), log(&job))
        };
        for closure in [
            machine.home("home", Script::PLAIN, true),
            machine.deploy_rs("rs", Script::PLAIN),
        ] {
            let (result, log) = dry(machine.spec(&closure));
            assert_eq!(result.state, State::DryActivated, "{}", result.message);
            assert!(log.contains("would activate"), "{log}");
        }
        assert_eq!(machine.notes(), ["home dry", "rs dry"]);
        assert_eq!(link(PROFILE), None);
        let (refused, _) = dry(machine.spec(&machine.tool("tool")));
        assert_eq!(
            outcome(&refused),
            (State::Failed, Some(Reason::Unsupported))
        );
    });
}

#[test]
fn the_first_generation_of_a_kind_that_runs_programs_cannot_be_taken_back() {
    inside(|machine| {
        let a = machine.custom("a", Script::PLAIN);
        let mut spec = machine.spec(&a);
        spec.target.kind = Kind::Custom(ClosureFile::new("bin/setup").unwrap());
        spec.target.health_checks = vec![checks_with(machine.program("no", "exit 1"))];
        let stays = machine.carry_out(&spec);
        assert_ends(
            &stays,
            (State::RollbackFailed, Some(Reason::HealthCheckFailed)),
        );
        assert!(stays.message.as_str().contains("nothing to go back to"));
        assert_eq!(
            link(PROFILE),
            Some(a),
            "the garbage collector must not take it"
        );
    });
}

#[test]
fn an_order_chooses_the_profile_and_what_a_custom_activator_is_told() {
    inside(|machine| {
        let kind = Kind::Custom(ClosureFile::new("bin/setup").unwrap());
        let order = |closure: &StorePath| {
            let mut spec = machine.spec(closure);
            spec.target.kind = kind.clone();
            spec.target.profile = Some(ProfileName::new("web").unwrap());
            spec
        };
        let (a, b) = (
            machine.custom("a", Script::PLAIN),
            machine.custom("b", Script::PLAIN),
        );
        assert_eq!(machine.carry_out(&order(&a)).state, State::Succeeded);
        let job = machine.create(&order(&b));
        let activator = Activator::start_until(&job, Phase::Confirming);
        confirm(&job);
        activator.wait();
        let said = format!("b after {a} in /nix/var/nix/profiles/web");
        assert!(log(&job).contains(&said), "{}", log(&job));
        assert_eq!(link("/nix/var/nix/profiles/web"), Some(b));
        assert_eq!(link(PROFILE), None);
    });
}

#[test]
fn a_closure_of_another_kind_or_for_another_machine_is_refused_before_anything_happens() {
    inside(|machine| {
        let home = machine.home("home", Script::PLAIN, true);
        let wrong = |kind: Kind| {
            let mut spec = machine.spec(&home);
            spec.target.kind = kind;
            outcome(&machine.carry_out(&spec))
        };
        let wrong_kind = (State::Failed, Some(Reason::WrongKind));
        assert_eq!(wrong(Kind::Nixos), wrong_kind);
        assert_eq!(wrong(Kind::Darwin), wrong_kind);
        assert_eq!(wrong(Kind::DeployRs), wrong_kind);
        let missing = Kind::Custom(ClosureFile::new("bin/none").unwrap());
        assert_eq!(wrong(missing), wrong_kind);

        let mac = machine.nixos_with(
            "mac",
            Script::PLAIN,
            "mv $out/nixos-version $out/darwin-version; cp $out/bin/* $out/activate",
        );
        let refused = machine.carry_out(&machine.spec(&mac));
        assert_eq!(
            outcome(&refused),
            (State::Failed, Some(Reason::Unsupported))
        );
        assert!(
            refused.message.as_str().contains("macOS"),
            "{}",
            refused.message
        );

        let wrapped = machine.nixos_with(
            "wrapped",
            Script::PLAIN,
            "cp $out/bin/switch-to-configuration $out/deploy-rs-activate",
        );
        assert_eq!(
            outcome(&machine.carry_out(&machine.spec(&wrapped))),
            wrong_kind
        );
        assert_eq!(machine.notes(), Vec::<String>::new());
    });
}
