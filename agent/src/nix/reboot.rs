//! What of the running system takes effect at the next boot only.

use std::io;

use camino::Utf8Path;
use hoist_protocol::RebootReason;

use super::store::store_path_behind;

/// Parts of a NixOS system that only a boot brings, as NixOS's own `system.autoUpgrade.allowReboot` compares
/// them, and systemd: the first process runs itself anew at a switch, but what it has started as its helpers,
/// such as the user managers and the udev of the initial RAM disk, comes from the boot.
const PARTS: &[(&str, RebootReason)] = &[
    ("kernel", RebootReason::Kernel),
    ("initrd", RebootReason::Initrd),
    ("kernel-modules", RebootReason::KernelModules),
    ("systemd", RebootReason::Systemd),
];

/// Why the machine has to boot to run all of `current`, a system's folder, when it was booted with `booted`. What
/// one of both does not have, such as the kernel of a container, is no reason.
///
/// # Errors
/// A link cannot be read.
pub(super) fn reboot_reasons(
    booted: &Utf8Path,
    current: &Utf8Path,
) -> io::Result<Vec<RebootReason>> {
    let mut reasons = Vec::new();
    for (part, reason) in PARTS {
        let was = store_path_behind(&booted.join(part))?;
        let is = store_path_behind(&current.join(part))?;
        if was.is_some() && is.is_some() && was != is {
            reasons.push(*reason);
        }
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_differs_from_the_booted_system_takes_a_reboot() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let system = |name: &str, parts: &[(&str, u32)]| {
            let system = dir.join(name);
            fs::create_dir(&system).unwrap();
            for (part, number) in parts {
                let target = format!("/nix/store/{number:032}-{part}/file");
                symlink(target, system.join(part)).unwrap();
            }
            system
        };
        let all = [
            ("kernel", 1),
            ("initrd", 1),
            ("kernel-modules", 1),
            ("systemd", 1),
        ];
        let old = system("old", &all);
        let new = system("new", &all.map(|(part, _)| (part, 2)));
        let initrd = system(
            "initrd-only",
            &[
                ("kernel", 1),
                ("initrd", 2),
                ("kernel-modules", 1),
                ("systemd", 1),
            ],
        );
        let container = system("container", &[("systemd", 1)]);
        let reasons = |booted, current| reboot_reasons(booted, current).unwrap();
        assert_eq!(reasons(&old, &old), []);
        assert_eq!(reasons(&old, &initrd), [RebootReason::Initrd]);
        assert_eq!(
            reasons(&old, &new),
            [
                RebootReason::Kernel,
                RebootReason::Initrd,
                RebootReason::KernelModules,
                RebootReason::Systemd
            ]
        );
        assert_eq!(reasons(&container, &old), []);
        assert_eq!(reasons(&dir.join("missing"), &new), []);
    }
}
