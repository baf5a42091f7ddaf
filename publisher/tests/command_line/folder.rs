//! A folder with everything that `hoist` needs but a broker.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use camino::Utf8PathBuf;
use hoist_certs::Role;
use hoist_certs::authority::{Authority, CERTIFICATE_VALIDITY};
use hoist_certs::files::{Overwrite, write_private};
use hoist_protocol::{AgentName, FleetName, KeyName, SigningKey};
use tempfile::TempDir;

pub(crate) const PATH: &str = "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-system";

/// A folder with everything that `hoist` needs but a broker; it runs in there.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let fleet = FleetName::new("prod").unwrap();
        let authority = Authority::create(&fleet, CERTIFICATE_VALIDITY * 2).unwrap();
        let issued = authority
            .issue(
                Role::Publisher,
                &AgentName::new("ci").unwrap(),
                &[],
                CERTIFICATE_VALIDITY,
            )
            .unwrap();
        let key = SigningKey::from_seed(KeyName::new("ci").unwrap(), &[7; 32].into());
        // A port that nobody listens on any more.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        folder.write("ca.pem", authority.certificate_pem());
        folder.write("ci.pem", &issued.certificate_pem);
        folder.write("ci.key", &issued.key_pem);
        folder.write("ci.signing-key", &key.to_text());
        folder.write(
            "hoist.toml",
            &format!(
                "broker = 'mqtts://127.0.0.1:{port}'\nca = 'ca.pem'\ncertificate = 'ci.pem'\nkey = 'ci.key'\n\
                 signing_key = 'ci.signing-key'\n"
            ),
        );
        folder.write(
            "spec.json",
            &format!(r#"{{"agents": {{"web-1": "{PATH}"}}}}"#),
        );
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = Utf8PathBuf::from_path_buf(self.path().join(name)).unwrap();
        write_private(&path, text.as_bytes(), Overwrite::Yes).unwrap();
    }

    /// Puts a program of this name where `hoist` finds it.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let folder = self.path().join("bin");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn hoist(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What `hoist` says on stderr when it exits with `code`, with nothing on stdout.
    pub(crate) fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.hoist(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(text(&output.stdout), "");
        said
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
