//! Looks before anything is touched: what the closure is, and what there is to go back to.

use std::os::unix::fs::PermissionsExt as _;

use camino::Utf8Path;
use hoist_protocol::{Kind, Reason};

use super::failure::Failure;
use crate::job::{Before, Job};
use crate::nix::{self, Generation, SYSTEM_PROFILE};

/// Markers of closures that are activated in ways this version does not know.
const FOREIGN: &[(&str, &str)] = &[
    ("darwin-version", "a nix-darwin system"),
    ("darwin-version.json", "a nix-darwin system"),
    ("hm-version", "a home-manager generation"),
    ("gen-version", "a home-manager generation"),
    ("deploy-rs-activate", "a profile that deploy-rs activates"),
];

/// Checks the closure, records what runs, and keeps it from the garbage collector.
pub(super) fn prepare(job: &Job) -> Result<Before, Failure> {
    let spec = job.spec();
    let closure = Utf8Path::new(spec.closure.as_str());
    if closure.symlink_metadata().is_err() {
        return Err(Failure::failed(
            Reason::MissingPath,
            format!("{closure} is not in the store; nothing was activated"),
        ));
    }
    let nixos = is_nixos(&spec.target.kind, closure)?;
    let profile = if nixos {
        SYSTEM_PROFILE.into()
    } else {
        spec.profile.clone()
    };
    let unreadable = |error| Failure::internal("cannot find out what runs", &error);
    let facts = if nixos {
        nix::facts_of_nixos()
    } else {
        nix::facts_of_profile(&profile)
    }
    .map_err(unreadable)?;
    let named = Generation::of(&profile).map_err(unreadable)?;
    let before = Before {
        nixos,
        profile,
        named,
        running: facts.current,
    };
    let roots = job.roots();
    let kept = [
        ("running", before.running.as_ref()),
        ("profile", before.named.as_ref().map(|named| &named.path)),
        ("booted", facts.booted.as_ref()),
    ];
    for (name, path) in kept {
        if let Some(path) = path {
            nix::keep(&roots, name, path).map_err(|error| {
                let what =
                    format!("cannot keep {path}, which runs now, from the garbage collector");
                Failure::internal(&what, &error)
            })?;
        }
    }
    Ok(before)
}

/// Whether the closure is activated as a NixOS system; otherwise it is a plain profile.
fn is_nixos(kind: &Kind, closure: &Utf8Path) -> Result<bool, Failure> {
    let wrong = |message: String| Err(Failure::failed(Reason::WrongKind, message));
    let has = |marker: &str| closure.join(marker).exists();
    match kind {
        Kind::Darwin | Kind::HomeManager | Kind::DeployRs | Kind::Custom(_) => {
            Err(Failure::failed(
                Reason::Unsupported,
                format!("this version cannot activate closures of kind `{kind}`"),
            ))
        }
        Kind::Profile => Ok(false),
        Kind::Nixos if !has("nixos-version") => wrong(format!(
            "{closure} is no NixOS system: it has no `nixos-version`; deploy `config.system.build.toplevel`"
        )),
        Kind::Auto if !has("nixos-version") => match FOREIGN.iter().find(|(m, _)| has(m)) {
            None => Ok(false),
            Some((marker, what)) => wrong(format!(
                "{closure} is {what} (it has `{marker}`), which this version cannot activate; \
                 kind `profile` only sets a profile to it"
            )),
        },
        Kind::Nixos | Kind::Auto => {
            let switch = closure.join("bin/switch-to-configuration");
            match switch.metadata() {
                Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => Ok(true),
                _ => wrong(format!(
                    "{closure} has no executable `bin/switch-to-configuration`, so it cannot be activated; \
                     check `system.switch.enable` of its configuration"
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn markers_tell_the_kind() {
        let dir = tempfile::tempdir().unwrap();
        let closure = Utf8Path::from_path(dir.path()).unwrap();
        let reason = |kind| is_nixos(&kind, closure).map_err(|failure| failure.reason);
        assert_eq!(reason(Kind::Auto), Ok(false));
        assert_eq!(reason(Kind::Nixos), Err(Reason::WrongKind));

        fs::write(closure.join("hm-version"), "24.05").unwrap();
        assert_eq!(reason(Kind::Auto), Err(Reason::WrongKind));
        assert_eq!(reason(Kind::Profile), Ok(false));

        fs::write(closure.join("nixos-version"), "24.05").unwrap();
        assert_eq!(
            reason(Kind::Auto),
            Err(Reason::WrongKind),
            "it cannot switch"
        );
        let switch = closure.join("bin/switch-to-configuration");
        fs::create_dir(closure.join("bin")).unwrap();
        fs::write(&switch, "#!/bin/sh\n").unwrap();
        assert_eq!(
            reason(Kind::Nixos),
            Err(Reason::WrongKind),
            "it is not executable"
        );
        fs::set_permissions(&switch, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(reason(Kind::Auto), Ok(true));
        assert_eq!(reason(Kind::Nixos), Ok(true));
        assert_eq!(reason(Kind::Profile), Ok(false));
    }
}
