//! The wire as it is: golden bytes of version 1, round trips, and hostile input.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use hoist_protocol::{
    Action, AgentName, CacheKey, ClosureFile, Deployment, DeploymentId, DeploymentParts, Endpoint,
    FleetName, Goal, HealthCheck, Held, History, HttpUrl, KeyName, Kind, LogLine, Machine, Order,
    Probe, ProfileName, Provenance, PublicKey, RollbackTo, Rollout, SigningKey, Specialisation,
    State, Status, StorePath, SubstituterUrl, System, Target, Text, Timestamp, TrustedKeys,
    TrustedKeysError, UnitName, UnitsFailed, VerifyError, sign,
};
use proptest::prelude::*;

const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new(name).unwrap(), &[seed; 32].into())
}

fn machine(agent: &str) -> Machine {
    Machine::new(
        FleetName::new("prod").unwrap(),
        AgentName::new(agent).unwrap(),
    )
}

fn id(n: u128) -> DeploymentId {
    DeploymentId::new(uuid::Uuid::from_u128(n))
}

fn path(name: &str) -> StorePath {
    StorePath::new(format!("/nix/store/{HASH}-{name}")).unwrap()
}

/// Every field filled, as golden bytes need it.
fn full_parts() -> DeploymentParts {
    let programs = BTreeMap::from([(System::new("x86_64-linux").unwrap(), path("check"))]);
    DeploymentParts {
        machine: machine("web-1"),
        order: Order {
            epoch: 1,
            sequence: 1_795_000_000_000,
            id: id(0x0196_f3a0_7c3e_7b5a_9d5e_0123_4567_89ab),
        },
        issued: Timestamp::from_ms(1_795_000_000_000),
        expires: Timestamp::from_ms(1_795_000_900_000),
        target: Target {
            kind: Kind::Nixos,
            action: Action::Test,
            specialisation: Some(Specialisation::new("fallback").unwrap()),
            health_checks: vec![
                HealthCheck::new(Probe::Program(programs)),
                HealthCheck::new(Probe::Unit(UnitName::new("nginx.service").unwrap())),
                HealthCheck::new(Probe::Tcp(Endpoint::new("localhost:80").unwrap())),
                HealthCheck {
                    grace_ms: 5_000,
                    retries: 3,
                    interval_ms: 500,
                    timeout_ms: 2_000,
                    only_if_held_before: true,
                    ..HealthCheck::new(Probe::Http(HttpUrl::new("http://localhost/up").unwrap()))
                },
            ],
            units_failed: UnitsFailed::KeepIfFailedBefore,
            allow_no_agent: true,
            spread_ms: 60_000,
            closure_digest: Some("0123456789abcdef".repeat(4).parse().unwrap()),
            substituters: vec![SubstituterUrl::new("https://cache.example.org").unwrap()],
            substituter_keys: vec![
                CacheKey::new("c-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=").unwrap(),
            ],
            ..Target::new(Goal::Closure(path("nixos-system-web-1")))
        },
        held: Held::UntilReleased,
        cancels: Some(id(3)),
        renews: Some(id(5)),
        provenance: Provenance {
            revision: Some(Text::new("4f2c").unwrap()),
            run_url: Some(Text::new("https://ci.example.org/1").unwrap()),
            actor: Some(Text::new("alice").unwrap()),
            message: Some(Text::new("second try").unwrap()),
            rollout: Some(Rollout {
                id: id(4).as_uuid(),
                batch: 2,
                batches: 5,
            }),
        },
    }
}

fn full() -> Deployment {
    Deployment::new(full_parts()).unwrap()
}

fn trusting(keys: &[&SigningKey]) -> TrustedKeys {
    TrustedKeys::new(keys.iter().map(|key| key.public()).collect()).unwrap()
}

fn golden(name: &str) -> String {
    let file = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{file}: {error}"))
        .trim()
        .to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn version_1_of_a_signed_deployment_keeps_its_bytes() {
    let signed = sign(&full(), &[key("ci", 7), key("alice", 8)]).unwrap();
    assert_eq!(
        hex(&signed),
        golden("deployment-v1.hex"),
        "the format on the wire has changed"
    );
}

#[test]
fn version_1_of_a_signed_rollback_keeps_its_bytes() {
    let goals = [
        Goal::Rollback(RollbackTo::Deployment(id(1))),
        Goal::Rollback(RollbackTo::Before(id(2))),
        Goal::Stay,
    ];
    let signed: Vec<String> = goals
        .into_iter()
        .map(|goal| {
            let parts = DeploymentParts {
                target: Target::new(goal),
                held: Held::Until(full_parts().issued.plus(Duration::from_secs(60))),
                provenance: Provenance::default(),
                ..full_parts()
            };
            hex(&sign(&Deployment::new(parts).unwrap(), &[key("ci", 7)]).unwrap())
        })
        .collect();
    assert_eq!(
        signed.join("\n"),
        golden("rollback-v1.hex"),
        "the format on the wire has changed"
    );
}

#[test]
fn a_key_keeps_its_text() {
    assert_eq!(key("ci", 7).public().to_string(), golden("public-key.txt"));
}

#[test]
fn version_1_of_a_status_is_read_and_written_the_same() {
    let text = golden("status-v1.json");
    let status = Status::from_json(text.as_bytes(), &machine("web-1")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&status.to_json()).unwrap();
    assert_eq!(
        written,
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    );
    assert_eq!(status.state, State::RolledBack);
}

#[test]
fn version_1_of_a_history_and_a_log_line_are_read_and_written_the_same() {
    let text = golden("history-v1.json");
    let history = History::from_json(text.as_bytes(), &machine("web-1")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&history.to_json()).unwrap();
    assert_eq!(
        written,
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    );
    let text = golden("log-v1.json");
    let line = LogLine::from_json(text.as_bytes()).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&line.to_json()).unwrap();
    assert_eq!(
        written,
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    );
}

#[test]
fn a_status_with_control_characters_is_read_without_them() {
    let text = golden("status-v1.json").replace("health check", "health \\u001b[2J check");
    let status = Status::from_json(text.as_bytes(), &machine("web-1")).unwrap();
    assert!(
        !status.message.as_str().chars().any(char::is_control),
        "{}",
        status.message
    );
}

#[test]
fn a_status_on_another_machines_topic_is_refused() {
    assert!(Status::from_json(golden("status-v1.json").as_bytes(), &machine("web-2")).is_err());
}

#[test]
fn only_a_trusted_key_makes_a_verified_deployment() {
    let signed = sign(&full(), &[key("ci", 7)]).unwrap();
    let verified = trusting(&[&key("ci", 7)])
        .verify(&signed, &machine("web-1"))
        .unwrap();
    assert_eq!(verified.deployment(), &full());
    // The name is a hint: a stranger's key of the same name proves nothing.
    let error = trusting(&[&key("ci", 9)])
        .verify(&signed, &machine("web-1"))
        .unwrap_err();
    assert!(
        matches!(
            error,
            VerifyError::Untrusted {
                valid: 0,
                required: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_deployment_for_another_machine_or_fleet_is_refused() {
    let signed = sign(&full(), &[key("ci", 7)]).unwrap();
    let keys = trusting(&[&key("ci", 7)]);
    let other_fleet = Machine::new(
        FleetName::new("test").unwrap(),
        AgentName::new("web-1").unwrap(),
    );
    for other in [machine("web-2"), other_fleet] {
        assert!(matches!(
            keys.verify(&signed, &other),
            Err(VerifyError::OtherMachine { .. })
        ));
    }
}

#[test]
fn one_key_that_signs_twice_counts_once() {
    let keys = TrustedKeys::with_policy(
        vec![key("a", 1).public(), key("b", 2).public()],
        2,
        Vec::new(),
    )
    .unwrap();
    let twice = sign(&full(), &[key("a", 1), key("x", 1)]).unwrap();
    let error = keys.verify(&twice, &machine("web-1")).unwrap_err();
    assert!(
        matches!(
            error,
            VerifyError::Untrusted {
                valid: 1,
                required: 2,
                ..
            }
        ),
        "{error:?}"
    );
    let both = sign(&full(), &[key("a", 1), key("b", 2)]).unwrap();
    assert_eq!(
        keys.verify(&both, &machine("web-1"))
            .unwrap()
            .signers()
            .len(),
        2
    );
}

#[test]
fn trusted_keys_that_cannot_work_are_refused() {
    let (a, again) = (key("a", 1).public(), key("b", 1).public());
    assert!(matches!(
        TrustedKeys::new(Vec::new()),
        Err(TrustedKeysError::Required { .. })
    ));
    assert!(matches!(
        TrustedKeys::new(vec![a.clone(), again]),
        Err(TrustedKeysError::Twice(_))
    ));
    let stranger = vec![key("c", 3).public()];
    assert!(matches!(
        TrustedKeys::with_policy(vec![a], 1, stranger),
        Err(TrustedKeysError::EpochKey(_))
    ));
}

#[test]
fn only_keys_with_the_right_may_raise_the_epoch() {
    let (ci, root) = (key("ci", 7), key("root", 8));
    let keys =
        TrustedKeys::with_policy(vec![ci.public(), root.public()], 1, vec![root.public()]).unwrap();
    for (signer, may) in [(ci, false), (root, true)] {
        let signed = sign(&full(), &[signer]).unwrap();
        assert_eq!(
            keys.verify(&signed, &machine("web-1"))
                .unwrap()
                .may_raise_epoch(),
            may
        );
    }
}

#[test]
fn a_deployment_whose_parts_do_not_hold_together_is_none() {
    let parts = |change: &dyn Fn(&mut DeploymentParts)| {
        let mut parts = full_parts();
        change(&mut parts);
        Deployment::new(parts)
    };
    assert!(parts(&|p| p.expires = p.issued).is_err());
    assert!(parts(&|p| p.target.confirm_timeout_ms = 0).is_err());
    assert!(parts(&|p| p.target.activation_timeout_ms = u64::MAX).is_err());
    assert!(parts(&|p| p.target.goal = Goal::Rollback(RollbackTo::Before(id(1)))).is_err());
    assert!(parts(&|p| p.cancels = Some(p.order.id)).is_err());
    assert!(parts(&|p| p.renews = Some(p.order.id)).is_err());
    assert!(parts(&|p| p.held = Held::Until(p.expires)).is_err());
    assert!(
        parts(&|p| p.target.goal = Goal::Stay).is_err(),
        "with caches"
    );
    assert!(
        parts(&|p| p.target.action = Action::Boot).is_err(),
        "of a specialisation"
    );
    assert!(
        parts(&|p| p.target.kind = Kind::Darwin).is_err(),
        "with a specialisation"
    );
    assert!(parts(&|p| p.target.profile = Some(ProfileName::new("web").unwrap())).is_err());
    assert!(parts(&|p| p.target.health_checks[3].interval_ms = 0).is_err());
    assert!(parts(&|p| p.target.health_checks[3].retries = 101).is_err());
    assert!(parts(&|p| p.target.spread_ms = u64::MAX).is_err());
    assert!(
        parts(&|p| p.target.substituters = vec![p.target.substituters[0].clone(); 17]).is_err()
    );
}

#[test]
fn each_kind_takes_the_actions_that_it_has() {
    let file = ClosureFile::new("bin/activate").unwrap();
    let kinds = [
        (Kind::Auto, [true, true, true, true]),
        (Kind::Nixos, [true, true, true, true]),
        (Kind::Darwin, [true, false, false, true]),
        (Kind::HomeManager, [true, false, false, true]),
        (Kind::DeployRs, [true, false, false, true]),
        (Kind::Custom(file), [true, false, false, false]),
        (Kind::Profile, [true, false, false, false]),
    ];
    let actions = [
        Action::Switch,
        Action::Boot,
        Action::Test,
        Action::DryActivate,
    ];
    for (kind, takes) in kinds {
        for (action, takes) in actions.into_iter().zip(takes) {
            let target = Target {
                kind: kind.clone(),
                action,
                ..Target::new(Goal::Closure(path("x")))
            };
            let parts = DeploymentParts {
                target,
                ..full_parts()
            };
            assert_eq!(Deployment::new(parts).is_ok(), takes, "{kind} {action}");
        }
    }
}

#[test]
fn the_longest_lists_of_checks_fit_into_a_message() {
    let long = |n: usize| HttpUrl::new(format!("http://h/{}", "x".repeat(200 + n))).unwrap();
    let target = Target {
        health_checks: (0..32)
            .map(|n| HealthCheck::new(Probe::Http(long(n))))
            .collect(),
        ..Target::new(Goal::Closure(path("x")))
    };
    let deployment = Deployment::new(DeploymentParts {
        target,
        ..full_parts()
    })
    .unwrap();
    assert!(sign(&deployment, &[key("ci", 7)]).is_ok());
}

#[test]
fn a_newer_format_is_named() {
    let mut signed = sign(&full(), &[key("ci", 7)]).unwrap();
    signed[0] = 2;
    let error = trusting(&[&key("ci", 7)])
        .verify(&signed, &machine("web-1"))
        .unwrap_err();
    assert!(format!("{error:?}").contains("Format(2)"), "{error:?}");
}

#[test]
fn public_keys_of_the_secret_half_are_refused_by_serde_too() {
    let json = serde_json::to_string(key("ci", 7).to_text().as_str()).unwrap();
    let error = serde_json::from_str::<PublicKey>(&json)
        .unwrap_err()
        .to_string();
    assert!(error.contains("secret half"), "{error}");
}

/// A message on the topic of web-1: the first four kinds are trusted, the others not.
fn a_message(kind: usize) -> Vec<u8> {
    let signed = |keys: &[SigningKey]| sign(&full(), keys).unwrap();
    match kind {
        0 => signed(&[key("ci", 7)]),
        1 => signed(&[key("root", 8), key("ci", 7)]),
        // Two trusted keys have this name.
        2 => signed(&[key("ci", 6)]),
        // A name that nobody has.
        3 => signed(&[key("x", 8)]),
        4 => signed(&[key("ci", 9)]),
        5 => {
            let mut damaged = signed(&[key("ci", 7)]);
            let last = damaged.len() - 3;
            damaged[last] ^= 1;
            damaged
        }
        6 => {
            let mut parts = full_parts();
            parts.machine = machine("web-2");
            sign(&Deployment::new(parts).unwrap(), &[key("ci", 7)]).unwrap()
        }
        7 => Vec::new(),
        _ => vec![1; 50],
    }
}

proptest! {
    #[test]
    fn no_changed_byte_is_accepted(at in any::<prop::sample::Index>(), xor in 1..=255_u8) {
        let keys = trusting(&[&key("ci", 7)]);
        let mut signed = sign(&full(), &[key("ci", 7)]).unwrap();
        let at = at.index(signed.len());
        signed[at] ^= xor;
        // The key's name in the envelope is a hint and may change; what comes out may not.
        if let Ok(verified) = keys.verify(&signed, &machine("web-1")) {
            prop_assert_eq!(verified.deployment(), &full());
        }
    }

    #[test]
    fn no_cut_or_extended_message_is_accepted(cut in 0..400_usize, extra in proptest::collection::vec(any::<u8>(), 1..20)) {
        let keys = trusting(&[&key("ci", 7)]);
        let signed = sign(&full(), &[key("ci", 7)]).unwrap();
        prop_assume!(cut < signed.len());
        prop_assert!(keys.verify(&signed[..cut], &machine("web-1")).is_err());
        prop_assert!(keys.verify(&[signed, extra].concat(), &machine("web-1")).is_err());
    }

    #[test]
    fn many_at_once_are_judged_as_each_by_itself(kinds in proptest::collection::vec(0..9_usize, 0..12)) {
        let keys = TrustedKeys::with_policy(
            vec![key("ci", 7).public(), key("root", 8).public(), key("ci", 6).public()],
            1,
            vec![key("root", 8).public()],
        )
        .unwrap();
        let messages: Vec<Vec<u8>> = kinds.into_iter().map(a_message).collect();
        let here = machine("web-1");
        let found: Vec<_> = messages.iter().map(|bytes| (&here, bytes.as_slice())).collect();
        let screened = keys.screen(&found);
        prop_assert_eq!(screened.len(), messages.len());
        for (screened, bytes) in screened.into_iter().zip(&messages) {
            let alone = keys.verify(bytes, &here);
            let known = |order, may_raise_epoch| (order, may_raise_epoch);
            prop_assert_eq!(
                screened.map(|it| known(it.order(), it.may_raise_epoch())),
                alone.map(|it| known(it.deployment().order(), it.may_raise_epoch()))
            );
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let keys = trusting(&[&key("ci", 7)]);
        prop_assert!(keys.verify(&bytes, &machine("web-1")).is_err());
        prop_assert!(keys.verify(&[&[1][..], &bytes].concat(), &machine("web-1")).is_err());
        prop_assert!(Status::from_json(&bytes, &machine("web-1")).is_err());
        prop_assert!(LogLine::from_json(&bytes).is_err());
    }

    #[test]
    fn what_is_signed_reads_back(
        sequence in any::<u64>(),
        epoch in any::<u32>(),
        uuid in any::<u128>(),
        lasts in 1..u64::from(u32::MAX),
        message in "[ -~äöü\n]{0,100}",
        timeout in 1_000..3_600_000_u64,
    ) {
        let mut parts = full_parts();
        parts.order = Order { epoch, sequence, id: id(uuid) };
        parts.expires = Timestamp::from_ms(parts.issued.as_ms() + lasts);
        parts.provenance.message = Some(Text::new(message).unwrap());
        parts.target.confirm_timeout_ms = timeout;
        let deployment = Deployment::new(parts).unwrap();
        let signed = sign(&deployment, &[key("ci", 7)]).unwrap();
        let verified = trusting(&[&key("ci", 7)]).verify(&signed, &machine("web-1")).unwrap();
        prop_assert_eq!(verified.deployment(), &deployment);
    }
}
