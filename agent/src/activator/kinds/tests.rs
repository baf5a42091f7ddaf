//! What tells the kinds apart.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use hoist_protocol::{ClosureFile, Goal, ProfileName, Target};

use super::*;
use crate::job::{AgentIdentity, BootId, ConfirmBy, Nonce};

/// A folder that stands for a closure; kinds look into it by its path alone.
struct Closure {
    dir: tempfile::TempDir,
}

impl Closure {
    fn with(files: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir }
    }

    fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.dir.path()).unwrap()
    }

    fn auto(&self) -> Option<Kind> {
        by_markers(self.path()).ok().map(|(kind, _)| kind)
    }
}

fn spec(kind: Kind) -> JobSpec {
    let closure = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web").unwrap();
    let target = Target {
        kind,
        ..Target::new(Goal::Closure(closure.clone()))
    };
    JobSpec {
        id: DeploymentId::new(uuid::Uuid::from_u128(1)),
        epoch: 0,
        sequence: 1,
        nonce: Nonce::random(),
        boot_id: BootId::current().unwrap(),
        closure,
        target,
        confirm: ConfirmBy::Broker,
        profile: "/nix/var/nix/profiles/hoist".into(),
        agent: AgentIdentity {
            executable: "/bin/hoist-agent".into(),
            unit: None,
            user_unit: false,
            arguments: Vec::new(),
        },
    }
}

#[test]
fn markers_tell_the_kind() {
    let cases: &[(&[&str], Kind)] = &[
        (&["bin/tool"], Kind::Profile),
        (&["nixos-version"], Kind::Nixos),
        (&["darwin-version"], Kind::Darwin),
        (&["darwin-version.json"], Kind::Darwin),
        (&["hm-version", "gen-version"], Kind::HomeManager),
        (&["gen-version"], Kind::HomeManager),
        (&["deploy-rs-activate"], Kind::DeployRs),
        (&["deploy-rs-activate", "hm-version"], Kind::DeployRs),
    ];
    for (files, kind) in cases {
        assert_eq!(
            Closure::with(files).auto().as_ref(),
            Some(kind),
            "{files:?}"
        );
    }
}

#[test]
fn nothing_is_ordered_as_two_kinds_and_every_kind_can_be_ordered() {
    let program = ClosureFile::new("bin/activate").unwrap();
    for kind in [
        Kind::Nixos,
        Kind::Darwin,
        Kind::HomeManager,
        Kind::DeployRs,
        Kind::Custom(program),
        Kind::Profile,
    ] {
        assert_eq!(
            ALL.iter().filter(|known| known.is(&kind)).count(),
            1,
            "{kind}"
        );
    }
    assert!(ALL.iter().all(|known| !known.is(&Kind::Auto)));
}

#[test]
fn a_closure_without_the_marker_or_the_program_of_its_kind_is_refused() {
    // Nothing is at that path, so nothing has a marker or a program.
    for kind in [Kind::Nixos, Kind::Darwin, Kind::HomeManager, Kind::DeployRs] {
        let failure = find(&spec(kind.clone())).err().unwrap();
        assert_eq!(failure.reason, Reason::WrongKind, "{kind}");
        assert!(failure.untouched);
    }
    let program = ClosureFile::new("bin/activate").unwrap();
    let failure = find(&spec(Kind::Custom(program))).err().unwrap();
    assert_eq!(failure.reason, Reason::WrongKind);
    assert!(
        failure.message.contains("bin/activate"),
        "{}",
        failure.message
    );
}

#[test]
fn only_nixos_is_booted_into_or_tested() {
    let mut spec = spec(Kind::Auto);
    for action in [Action::Boot, Action::Test] {
        spec.target.action = action;
        let failure = find(&spec).err().unwrap();
        assert_eq!(failure.reason, Reason::Unsupported, "{action}");
    }
}

#[test]
fn a_profile_is_the_orders_choice_or_the_machines_and_never_the_systems() {
    let mut spec = spec(Kind::Profile);
    assert_eq!(chosen_profile(&spec).unwrap(), spec.profile);
    spec.target.profile = Some(ProfileName::new("web").unwrap());
    let chosen = chosen_profile(&spec).unwrap();
    assert!(chosen.ends_with("profiles/web"), "{chosen}");
    spec.target.profile = None;
    spec.profile = SYSTEM_PROFILE.into();
    let failure = chosen_profile(&spec).unwrap_err();
    assert_eq!(failure.reason, Reason::Unsupported);
}
