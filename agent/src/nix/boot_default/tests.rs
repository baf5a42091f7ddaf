use std::fs;

use super::*;

/// A machine's files.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            machine.write(path, text.as_bytes());
        }
        machine
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = below(self.root(), path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn variable(&self, name: &str, value: &str) {
        let mut bytes = vec![7, 0, 0, 0];
        for unit in value.encode_utf16().chain([0]) {
            bytes.extend(unit.to_le_bytes());
        }
        let path = format!("/sys/firmware/efi/efivars/{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
        self.write(&path, &bytes);
    }

    fn root(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    /// The number of the system that boots.
    #[track_caller]
    fn boots(&self, number: impl Into<Option<u32>>) {
        assert_eq!(boot_default(self.root()), number.into().map(system));
    }
}

fn path(number: u32) -> String {
    format!("/nix/store/{number:032}-nixos-system-web-24.05")
}

fn system(number: u32) -> StorePath {
    StorePath::new(path(number)).unwrap()
}

/// As `systemd-boot-builder.py` writes it.
fn entry(number: u32) -> String {
    let path = path(number);
    format!(
        "title NixOS\nsort-key nixos\nversion Generation {number} NixOS Uakari 24.05, Linux Kernel 6.6.30, built on 2024-05-12\n\
         linux /EFI/nixos/0a1-linux-6.6.30-bzImage.efi\ninitrd /EFI/nixos/0b2-initrd-linux-6.6.30-initrd.efi\n\
         options init={path}/init loglevel=4\nmachine-id 4098b3f648d74c13b1f04ccfba7798e8\n"
    )
}

const LOADER: &str = "timeout 5\ndefault nixos-generation-9.conf\neditor 0\nconsole-mode keep\n";

fn systemd_boot(loader: &str, names: &[(&str, u32)]) -> Files {
    let files = Files::new(&[("/boot/loader/loader.conf", loader)]);
    for (name, number) in names {
        let path = format!("/boot/loader/entries/{name}");
        files.write(&path, entry(*number).as_bytes());
    }
    files
}

#[test]
fn a_machine_without_a_boot_loader_tells_nothing() {
    Files::new(&[]).boots(None);
    Files::new(&[("/boot/EFI/nixos/x", "")]).boots(None);
}

#[test]
fn systemd_boot_boots_the_entry_that_its_configuration_names() {
    let entries = [
        ("nixos-generation-8.conf", 8),
        ("nixos-generation-9.conf", 9),
        ("nixos-generation-9-specialisation-big.conf", 90),
        ("nixos-generation-10.conf", 10),
    ];
    systemd_boot(LOADER, &entries).boots(9);
    // As older systems wrote it.
    systemd_boot("default nixos-generation-8\n", &entries).boots(8);
    systemd_boot("default NixOS-generation-10.conf\n", &entries).boots(10);
    systemd_boot(
        "default nixos-generation-9-specialisation-big.conf\n",
        &entries,
    )
    .boots(90);
    // The newest of those that are meant: by number, not by letters. A specialisation stands before its system.
    systemd_boot("default nixos-generation-*.conf\n", &entries[..2]).boots(9);
    systemd_boot("default nixos-*\n", &[entries[1], entries[3]]).boots(10);
    systemd_boot(
        "default nixos-generation-?.conf\n",
        &[entries[0], entries[3]],
    )
    .boots(8);
    // Without a default, or with one that is not there, the first of the menu.
    systemd_boot("timeout 5\n", &[entries[1], entries[3]]).boots(10);
    systemd_boot(
        "default nixos-generation-7.conf\n",
        &[entries[1], entries[3]],
    )
    .boots(10);
    systemd_boot(LOADER, &[]).boots(None);
}

#[test]
fn an_entry_that_failed_to_boot_is_the_last_of_the_menu() {
    let counted = [
        ("nixos-generation-9+3.conf", 9),
        ("nixos-generation-10+0-3.conf", 10),
        ("nixos-generation-8.conf", 8),
    ];
    systemd_boot("default nixos-*\n", &counted).boots(9);
    systemd_boot("default nixos-generation-10.conf\n", &counted).boots(10);
    systemd_boot("preferred nixos-generation-10.conf\n", &counted).boots(9);
    systemd_boot("preferred nixos-generation-9.conf\n", &counted).boots(9);
}

#[test]
fn what_was_chosen_in_the_menu_outweighs_the_configuration() {
    let entries = [
        ("nixos-generation-8.conf", 8),
        ("nixos-generation-9.conf", 9),
    ];
    let files = systemd_boot(LOADER, &entries);
    files.variable("LoaderEntryDefault", "nixos-generation-8.conf");
    files.boots(8);
    files.variable("LoaderEntryDefault", "@saved");
    files.boots(None);
    files.variable("LoaderEntryLastBooted", "nixos-generation-9.conf");
    files.boots(9);
    files.variable("LoaderEntryPreferred", "nixos-generation-8.conf");
    files.boots(8);
}

#[test]
fn what_is_signed_as_an_image_or_not_understood_is_unknown() {
    let files = systemd_boot("default nixos-*\n", &[("nixos-generation-9.conf", 9)]);
    files.write("/boot/EFI/Linux/nixos-generation-10-abc.efi", b"MZ");
    files.boots(None);
    // It is meant and nothing else is.
    let files = systemd_boot(LOADER, &[("nixos-generation-9.conf", 9)]);
    files.write("/boot/EFI/Linux/nixos-generation-10-abc.efi", b"MZ");
    files.boots(9);
    systemd_boot("default nixos-[0-9]*\n", &[("nixos-generation-9.conf", 9)]).boots(None);
    let files = systemd_boot(LOADER, &[]);
    files.write(
        "/boot/loader/entries/nixos-generation-9.conf",
        b"linux /vmlinuz\n",
    );
    files.boots(None);
    files.write("/boot/loader/entries/nixos-generation-9.conf", &[0xff; 20]);
    files.boots(None);
    files.write(
        "/boot/loader/entries/nixos-generation-9.conf",
        &vec![b'x'; 3 << 20],
    );
    files.boots(None);
}

#[test]
fn entries_may_lie_on_a_partition_of_their_own() {
    let files = Files::new(&[("/efi/loader/loader.conf", LOADER)]);
    files.write(
        "/boot/loader/entries/nixos-generation-9.conf",
        entry(9).as_bytes(),
    );
    files.boots(9);
}

/// As `install-grub.pl` writes it, with `default` in place of its choice.
fn grub(default: &str) -> String {
    let entry = |name: &str, number: u32| {
        let path = path(number);
        format!(
            "menuentry \"{name}\" --class nixos --unrestricted {{\nsearch --set=drive1 --fs-uuid 5E1A-0B2C\n\
             search --set=drive2 --fs-uuid 8f3c\n  linux ($drive2)/nix/store/x-linux-6.6.30/bzImage init={path}/init loglevel=4\n\
             \x20 initrd ($drive2)/nix/store/x-initrd/initrd\n}}\n\n"
        )
    };
    format!(
        r#"# Automatically generated.  DO NOT EDIT THIS FILE!

            search --set=drive1 --fs-uuid 5E1A-0B2C
            if [ -s $prefix/grubenv ]; then
              load_env
            fi

            # ‘grub-reboot’ sets a one-time saved entry, which we process here and
            # then delete.
            if [ "${{next_entry}}" ]; then
              set default="${{next_entry}}"
              set next_entry=
              save_env next_entry
              set timeout=1
              set boot_once=true
            else
              set default={default}
              set timeout=5
            fi

            function savedefault {{
                if [ -z "${{boot_once}}"]; then
                saved_entry="${{chosen}}"
                save_env saved_entry
                fi
            }}

            if background_image ($drive1)/background.png; then
              set color_normal=white/black
            fi

{}menuentry "Memtest86+" {{
  linux ($drive1)/memtest.bin
}}
submenu "NixOS - All configurations" --class submenu {{
{}{}}}
"#,
        entry("NixOS", 10),
        entry("NixOS - Configuration 10 (2024-05-12 - 24.05)", 10),
        entry("NixOS - Configuration 9 (2024-05-01 - 24.05)", 9)
    )
}

fn grub_boots(default: &str, environment: &str, number: impl Into<Option<u32>>) {
    let files = Files::new(&[
        ("/boot/grub/grub.cfg", &grub(default)),
        ("/boot/grub/grubenv", environment),
    ]);
    files.boots(number);
}

#[test]
fn grub_boots_the_entry_of_its_number_or_title() {
    grub_boots("0", "", 10);
    grub_boots("\"0\"", "", 10);
    grub_boots("2>1", "", 9);
    grub_boots("2", "", 10);
    grub_boots("\"NixOS\"", "", 10);
    grub_boots(
        "\"NixOS - All configurations>NixOS - Configuration 9 (2024-05-01 - 24.05)\"",
        "",
        9,
    );
    // No NixOS, and nothing at all.
    grub_boots("1", "", None);
    grub_boots("7", "", None);
    grub_boots("\"Windows\"", "", None);
    grub_boots("\"${somewhere}\"", "", None);
}

#[test]
fn grub_boots_what_it_has_saved() {
    let saved = "# GRUB Environment Block\nsaved_entry=2>1\nnext_entry=1\n####";
    grub_boots("\"${saved_entry}\"", saved, 9);
    grub_boots("\"${saved_entry}\"", "# GRUB Environment Block\n", 10);
    grub_boots("0", saved, 10);
}

#[test]
fn a_menu_of_grub_that_does_not_pair_is_unknown() {
    for broken in ["menuentry \"x\" {\n", "}\n"] {
        let text = format!("{}{broken}", grub("0"));
        Files::new(&[("/boot/grub/grub.cfg", &text)]).boots(None);
    }
    let deep = "submenu x {\n".repeat(100_000);
    Files::new(&[("/boot/grub/grub.cfg", &deep)]).boots(None);
}

/// As `extlinux-conf-builder.sh` writes it.
fn extlinux(default: &str) -> String {
    let (ten, nine) = (path(10), path(9));
    format!(
        "# Generated file, all changes will be lost on nixos-rebuild!\n\n\
         # Change this to e.g. nixos-42 to temporarily boot to an older configuration.\n{default}\n\
         MENU TITLE ------------------------------------------------------------\nTIMEOUT 50\n\n\
         LABEL nixos-default\n  MENU LABEL NixOS - Default\n  LINUX ../nixos/x-Image\n  INITRD ../nixos/x-initrd\n\
         \x20 APPEND init={ten}/init console=ttyS0 loglevel=4\n  FDTDIR ../nixos/x-dtbs\n\n\
         LABEL nixos-9-default\n  MENU LABEL NixOS - Configuration 9-default (2024-05-01 12:00 - 24.05)\n\
         \x20 LINUX ../nixos/x-Image\n  APPEND init={nine}/init loglevel=4\n"
    )
}

#[test]
fn extlinux_boots_its_default_label() {
    for (default, number) in [
        ("DEFAULT nixos-default", Some(10)),
        ("default nixos-9-default", Some(9)),
        ("", Some(10)),
        ("DEFAULT nixos-7-default", None),
    ] {
        Files::new(&[("/boot/extlinux/extlinux.conf", &extlinux(default))]).boots(number);
    }
    Files::new(&[("/boot/extlinux/extlinux.conf", "APPEND init=/nix/store\n")]).boots(None);
}

#[test]
fn two_boot_loaders_that_disagree_are_unknown() {
    let files = systemd_boot(LOADER, &[("nixos-generation-9.conf", 9)]);
    files.write("/boot/grub/grub.cfg", grub("0").as_bytes());
    files.boots(None);
    files.write("/boot/grub/grub.cfg", grub("2>1").as_bytes());
    files.boots(9);
    files.write("/boot/grub/grub.cfg", b"set default=0\n");
    files.boots(None);
}

#[test]
fn a_command_line_names_the_system() {
    let line = format!("root=fstab init={}/init quiet", path(1));
    assert_eq!(init(&line), Some(system(1)));
    for other in [
        "",
        "init=/sbin/init",
        "init=/nix/store/",
        "xinit=/nix/store/x",
    ] {
        assert_eq!(init(other), None, "{other}");
    }
}
