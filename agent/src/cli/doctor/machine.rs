//! The machine itself: clock, disk, folders, service manager, and what waits for somebody.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::Utf8Path;
use hoist_certs::doctor::Finding;
use hoist_certs::program::now;
use rustix::fs::{Access, access, statvfs};

use super::super::show::{bytes, one_line};
use crate::config::Place;
use crate::control::socket_path;
use crate::runtime::Discipline;
use crate::{job, ledger, runtime};

/// Free disk below which a folder is warned about, in bytes: the store, the state, the boot loader's partition.
const STORE_ROOM: u64 = 2 << 30;
const STATE_ROOM: u64 = 64 << 20;
const BOOT_ROOM: u64 = 64 << 20;

/// Where the boot loader's files lie, where they have a place of their own.
const BOOT_FOLDERS: [&str; 3] = ["/boot", "/efi", "/boot/efi"];

/// Whether the clock can be relied on. TLS and the expiry of deployments go by it.
pub(super) async fn clock() -> Finding {
    let now = now();
    // A machine without a battery for its clock starts in 1970, or when its image was made.
    if now.as_ms() < 1_700_000_000_000 {
        return Finding::wrong("clock", format!("it is {now} here, which is long ago"))
            .advice("set it, and let NTP keep it right");
    }
    match runtime::discipline().await {
        Discipline::Synchronised => Finding::ok("clock", format!("synchronised, {now}")),
        Discipline::Free => Finding::note(
            "clock",
            format!(
                "{now}, and nothing keeps it right: TLS and the expiry of deployments go by it"
            ),
        )
        .advice("let NTP set it: `timedatectl set-ntp true`"),
        Discipline::Unknown => Finding::ok(
            "clock",
            format!("{now}; whether something keeps it right cannot be told here"),
        ),
    }
}

/// Everything on the disk.
pub(super) fn look(place: &Place, agent_runs: bool) -> Vec<Finding> {
    let mut findings = state(&place.state, agent_runs);
    findings.extend(waits(&place.state));
    findings.push(profile(&place.profile));
    findings.extend(room("/nix/store".into(), "store disk", STORE_ROOM));
    for boot in BOOT_FOLDERS {
        if is_mount(boot.into()) {
            findings.extend(room(boot.into(), "boot disk", BOOT_ROOM));
        }
    }
    findings.extend(manager());
    findings
}

/// The service manager that keeps activations apart from the agent.
fn manager() -> Vec<Finding> {
    if !job::systemd_runs() {
        return vec![Finding::note(
            "systemd",
            "it is not the service manager here: activations run in sessions of their own beside the agent",
        )];
    }
    let user = rustix::process::geteuid();
    if user.is_root() {
        return vec![Finding::ok(
            "systemd",
            "it runs: activations outlive the agent's unit",
        )];
    }
    let socket = format!("/run/user/{}/systemd/private", user.as_raw());
    let mut findings = vec![match Utf8Path::new(&socket).exists() {
        true => Finding::ok(
            "systemd",
            "this user's service manager runs: activations outlive the agent's unit",
        ),
        false => Finding::note(
            "systemd",
            "this user's service manager does not run, which it does from a login on: activations run in sessions of \
             their own beside the agent",
        ),
    }];
    findings.extend(linger());
    findings
}

/// Whether the user's service manager runs while nobody is logged in, as `loginctl enable-linger` has it.
fn linger() -> Option<Finding> {
    // No name is no path.
    let user = std::env::var("USER")
        .ok()
        .filter(|user| !user.contains('/'))?;
    let lingers = Utf8Path::new("/var/lib/systemd/linger")
        .join(&user)
        .exists();
    (!lingers).then(|| {
        Finding::note(
            "linger",
            "the agent runs only while this user is logged in, and ends with the last session",
        )
        .advice(format!("`loginctl enable-linger {user}` keeps it running"))
    })
}

fn state(state: &Utf8Path, agent_runs: bool) -> Vec<Finding> {
    let metadata = match fs::metadata(state) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !agent_runs => {
            return vec![Finding::note(
                "state",
                format!("{state} is not there yet: the agent makes it when it starts"),
            )];
        }
        Err(error) => {
            return vec![
                Finding::wrong("state", format!("{state}: {error}"))
                    .advice("run this as root, or as the agent's user"),
            ];
        }
    };
    let mode = metadata.permissions().mode() & 0o777;
    let us = rustix::process::geteuid();
    if metadata.uid() != us.as_raw() && !us.is_root() {
        return vec![
            Finding::wrong(
                "state",
                format!("{state} belongs to the user {}", metadata.uid()),
            )
            .advice("run this as root, or as the agent's user"),
        ];
    }
    if mode & 0o022 != 0 {
        return vec![Finding::wrong("state", format!("others can write to {state} (mode {mode:04o}), and so decide what this machine runs"))
            .advice(format!("look at what is in it, then `chmod 700 {state}`"))];
    }
    if access(state.as_std_path(), Access::WRITE_OK).is_err() {
        return vec![
            Finding::wrong("state", format!("{state} cannot be written to"))
                .advice("is its file system read-only?"),
        ];
    }
    let mut findings = vec![Finding::ok("state", state.as_str())];
    findings.extend(room(state, "state disk", STATE_ROOM));
    findings.push(match ledger::read(state) {
        Ok(Some(ledger)) => Finding::ok(
            "ledger",
            format!("{} deployments in its history", ledger.history.len()),
        ),
        Ok(None) => Finding::ok("ledger", "empty: nothing was deployed so far"),
        Err(error) => Finding::wrong("ledger", job::chain(&error))
            .advice("check the disk; the agent goes on without it at its next start"),
    });
    if agent_runs && let Ok(socket) = fs::metadata(socket_path(state)) {
        let mode = socket.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            findings.push(
                Finding::wrong(
                    "socket",
                    format!("others can get at the control socket (mode {mode:04o})"),
                )
                .advice("restart the agent"),
            );
        }
    }
    findings
}

/// What keeps deployments waiting that is nobody's fault.
fn waits(state: &Utf8Path) -> Vec<Finding> {
    let Ok(Some(ledger)) = ledger::read(state) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if let Some(hold) = ledger.hold.as_ref().filter(|_| ledger.is_held(now())) {
        let mut text = match hold.until {
            Some(until) => format!("this machine is held until {until}"),
            None => "this machine is held".to_owned(),
        };
        if !hold.reason.is_empty() {
            text += &format!(": {}", one_line(hold.reason.as_str()));
        }
        findings.push(Finding::note("hold", text).advice("`hoist-agent release` ends it"));
    }
    if let Some(staged) = &ledger.staged {
        findings.push(
            Finding::note(
                "reboot",
                format!("deployment {} waits for one", staged.id()),
            )
            .advice("reboot"),
        );
    }
    if let Some(damage) = &ledger.damage {
        findings.push(Finding::wrong("ledger", damage.as_str()).advice("check the disk"));
    }
    findings
}

fn profile(profile: &Utf8Path) -> Finding {
    let Some(folder) = profile.parent() else {
        return Finding::wrong("profile", format!("{profile} lies in no folder"));
    };
    match fs::metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::note(
            "profile",
            format!("{folder} is not there: it is made for the first plain closure"),
        ),
        Err(error) => Finding::wrong("profile", format!("{folder}: {error}")),
        Ok(_) if access(folder.as_std_path(), Access::WRITE_OK).is_err() => {
            Finding::wrong("profile", format!("{folder} cannot be written to"))
                .advice("run the agent as root, or give it a `profile` of its own")
        }
        Ok(_) => Finding::ok("profile", profile.as_str()),
    }
}

/// Whether a folder is another file system than what it lies in.
fn is_mount(folder: &Utf8Path) -> bool {
    let device = |path: &Utf8Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let above = folder.parent().unwrap_or(folder);
    device(folder).is_some_and(|own| device(above) != Some(own))
}

fn room(folder: &Utf8Path, check: &'static str, wanted: u64) -> Option<Finding> {
    let found = statvfs(folder.as_std_path()).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{folder}: {} free", bytes(free));
    // A file system without inodes left is as full as one without blocks.
    let is_full = free < wanted || (found.f_files > 0 && found.f_favail < 1000);
    Some(match is_full {
        true => Finding::wrong(check, format!("{text}, of which {} should be", bytes(wanted)))
            .advice("`nix-collect-garbage` frees the store; old generations hold it: `nix-collect-garbage -d`"),
        false => Finding::ok(check, text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_certs::doctor::Verdict;

    fn folder() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("state")).unwrap();
        fs::create_dir(&path).unwrap();
        (dir, path)
    }

    #[test]
    fn a_state_folder_that_others_can_write_to_is_wrong() {
        let (_dir, path) = folder();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(
            state(&path, false)
                .iter()
                .all(|finding| finding.verdict() != Verdict::Wrong)
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let findings = state(&path, false);
        assert!(findings[0].message().contains("0777"), "{findings:?}");
        assert_eq!(findings[0].verdict(), Verdict::Wrong);
    }

    #[test]
    fn a_ledger_that_cannot_be_read_is_wrong() {
        let (_dir, path) = folder();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(path.join("ledger"), "nonsense").unwrap();
        let findings = state(&path, false);
        assert_eq!(
            findings.last().unwrap().verdict(),
            Verdict::Wrong,
            "{findings:?}"
        );
    }

    #[test]
    fn a_full_disk_is_wrong() {
        let (_dir, path) = folder();
        assert_eq!(room(&path, "x", 0).unwrap().verdict(), Verdict::Ok);
        assert_eq!(
            room(&path, "x", u64::MAX).unwrap().verdict(),
            Verdict::Wrong
        );
    }
}
