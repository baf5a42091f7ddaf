//! Where systemd has a unit's credentials from: they are there only while the unit runs, and one that does not start
//! may have them to blame.

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::doctor::UNIT_CREDENTIALS;
use hoist_certs::{Credentials, Pem};

/// The same credentials; those of a unit that does not run are where its `LoadCredential` has them from.
pub(super) fn behind(credentials: &Credentials) -> Credentials {
    Credentials {
        ca: resolve(&credentials.ca),
        certificate: resolve(&credentials.certificate),
        key: resolve(&credentials.key),
    }
}

fn resolve(pem: &Pem) -> Pem {
    let source = match pem {
        Pem::File(path) if !path.exists() => source(path),
        _ => None,
    };
    source.map_or_else(|| pem.clone(), Pem::File)
}

fn source(path: &Utf8Path) -> Option<Utf8PathBuf> {
    let (unit, name) = path
        .as_str()
        .strip_prefix(UNIT_CREDENTIALS)?
        .split_once('/')?;
    let output = Command::new("systemctl")
        .args(["cat", "--no-pager", "--", unit])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    loaded(&String::from_utf8_lossy(&output.stdout), name)
}

/// The file that the text of a unit (systemd.exec(5)) loads as the credential `name`; the last word counts.
fn loaded(unit: &str, name: &str) -> Option<Utf8PathBuf> {
    let settings = unit
        .lines()
        .filter_map(|line| line.trim().strip_prefix("LoadCredential="));
    let mut files = settings.filter_map(|setting| {
        let (id, file) = setting.split_once(':')?;
        (id == name).then(|| Utf8PathBuf::from(file))
    });
    files.rfind(|file: &Utf8PathBuf| file.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_tells_where_its_credentials_are_from() {
        let unit = "[Service]\nLoadCredential=key:/a/key\nLoadCredential=certificate:/a/cert\n\
                    # an addition\n[Service]\nLoadCredential=key:/b/key\nLoadCredential=other\n";
        assert_eq!(loaded(unit, "key").unwrap(), "/b/key");
        assert_eq!(loaded(unit, "certificate").unwrap(), "/a/cert");
        assert_eq!(loaded(unit, "other"), None);
        assert_eq!(loaded("LoadCredential=key:relative", "key"), None);
    }

    #[test]
    fn files_elsewhere_stay_as_they_are() {
        let pem = Pem::File("/no/such/key".into());
        assert!(matches!(resolve(&pem), Pem::File(path) if path == "/no/such/key"));
    }
}
