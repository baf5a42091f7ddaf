//! The three files with which somebody proves who they are.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::Utf8Path;
use hoist_protocol::Timestamp;

use super::Finding;
use crate::files::read_limited;
use crate::inspect::{Found, inspect};
use crate::pem::{STORE, inside};
use crate::program::{report, show_duration};
use crate::{CertificateInfo, Credentials, ENDS_SOON, Pem, Role};

/// Where systemd puts the credentials of a unit while it runs, each as `<unit>/<name>`.
pub const UNIT_CREDENTIALS: &str = "/run/credentials/";

/// Larger than any file of certificates.
const MAX_LEN: usize = 256 * 1024;

/// Whose credentials they are to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// One of these roles.
    pub roles: &'static [Role],
    /// What to do about a certificate of another role.
    pub advice: &'static str,
}

/// Looks at each file, and then at the three together.
#[must_use]
pub fn credentials(credentials: &Credentials, wanted: Wanted, now: Timestamp) -> Vec<Finding> {
    let mut findings = vec![
        authority(&credentials.ca, now),
        certificate(&credentials.certificate, wanted, now),
        key(&credentials.key),
    ];
    if findings.iter().all(Finding::is_fine) {
        findings.extend(together(credentials));
    }
    findings
}

fn authority(ca: &Pem, now: Timestamp) -> Finding {
    let infos = match certificates("ca", ca) {
        Ok(infos) => infos,
        Err(finding) => return finding,
    };
    if let Some(other) = infos.iter().find(|info| !info.is_ca) {
        return Finding::wrong(
            "ca",
            format!("{ca} holds no CA but the certificate of {}", other.subject),
        )
        .advice("give the `ca.pem` that `hoist-certs init` made");
    }
    // While a fleet moves from one to the next, one of several may be past its time, or before it.
    let counts = |info: &CertificateInfo| (info.not_before..=info.not_after).contains(&now);
    let best = infos
        .iter()
        .max_by_key(|info| (counts(info), info.not_after));
    match best {
        Some(info) => in_time(
            "ca",
            info,
            now,
            "make a new one with `hoist-certs init`, and issue all certificates anew",
        ),
        None => Finding::wrong("ca", format!("{ca} holds no certificate")),
    }
}

fn certificate(certificate: &Pem, wanted: Wanted, now: Timestamp) -> Finding {
    let infos = match certificates("certificate", certificate) {
        Ok(infos) => infos,
        Err(finding) => return finding,
    };
    let Some(info) = infos.first() else {
        return Finding::wrong("certificate", format!("{certificate} holds no certificate"));
    };
    match &info.identity {
        Ok(identity) if wanted.roles.contains(&identity.role()) => {
            let renew = format!(
                "issue a new one: `hoist-certs issue {} {} --force`",
                identity.role(),
                identity.name()
            );
            in_time("certificate", info, now, &renew)
        }
        Ok(identity) => Finding::wrong(
            "certificate",
            format!(
                "{certificate} is that of the {} {}",
                identity.role(),
                identity.name()
            ),
        )
        .advice(wanted.advice),
        Err(error) => Finding::wrong(
            "certificate",
            format!("{certificate} is nobody's of a fleet: {error}"),
        )
        .advice(wanted.advice),
    }
}

/// Whose a certificate is, and whether its time is now.
fn in_time(check: &'static str, info: &CertificateInfo, now: Timestamp, renew: &str) -> Finding {
    let whose = match &info.identity {
        Ok(identity) => identity.to_string(),
        Err(_) => info.subject.clone(),
    };
    let (start, end) = (info.not_before, info.not_after);
    if now < start {
        return Finding::wrong(
            check,
            format!("{whose}: not valid before {start}, and it is {now} here"),
        )
        .advice("set the clock");
    }
    if now > end {
        return Finding::wrong(
            check,
            format!("{whose}: it expired on {end}, and it is {now} here"),
        )
        .advice(renew);
    }
    let left = end.since(now);
    let text = format!("{whose}, {} left", show_duration(left));
    if left < ENDS_SOON {
        return Finding::note(check, text).advice(renew);
    }
    Finding::ok(check, text)
}

fn key(key: &Pem) -> Finding {
    let file = match key {
        Pem::Inline(_) => {
            return match found("key", key) {
                Ok(found) if matches!(found[..], [Found::PrivateKey { .. }]) => {
                    Finding::note("key", "it is given as text, not as a file").advice(
                        "a file of its own that only its user can read is better, but in CI",
                    )
                }
                Ok(_) => Finding::wrong("key", "the text that is given is no private key"),
                Err(finding) => finding,
            };
        }
        Pem::File(path) => path,
    };
    match found("key", key) {
        Ok(found) if matches!(found[..], [Found::PrivateKey { .. }]) => {}
        Ok(_) => {
            return Finding::wrong("key", format!("{file} holds no private key"))
                .advice("give the `.key` file that lies beside the certificate");
        }
        Err(finding) => return finding,
    }
    is_private("key", file)
}

/// That a file with a secret is its owner's alone.
#[must_use]
pub fn is_private(check: &'static str, file: &Utf8Path) -> Finding {
    is_private_outside(check, file, STORE)
}

fn is_private_outside(check: &'static str, file: &Utf8Path, store: &str) -> Finding {
    if let Some(real) = inside(file, store) {
        let leads = match real == file {
            true => String::new(),
            false => format!(" leads to {real}, which"),
        };
        return Finding::wrong(
            check,
            format!("{file}{leads} lies in the Nix store, where everybody can read it"),
        )
        .advice("issue a new one, and keep it outside of the store");
    }
    match fs::metadata(file) {
        Err(error) => unreadable(check, file, &format!("cannot read `{file}`: {error}")),
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            // Who owns systemd's credentials cannot be helped, and nobody else can get there.
            if mode & 0o077 != 0 && !file.starts_with(UNIT_CREDENTIALS) {
                return Finding::wrong(
                    check,
                    format!("others than its owner can get at {file}: its mode is {mode:04o}"),
                )
                .advice(format!(
                    "`chmod 600 {file}`; where others can log in, issue a new one too"
                ));
            }
            let us = rustix::process::geteuid();
            if metadata.uid() != us.as_raw() && !us.is_root() {
                return Finding::note(check, format!("{file} belongs to another user"));
            }
            Finding::ok(check, format!("{file}, for its owner alone"))
        }
    }
}

/// That key and certificate are a pair, and that the CA has issued it.
fn together(credentials: &Credentials) -> Vec<Finding> {
    let tls = match credentials.client() {
        Ok(tls) => tls,
        Err(error) => {
            return vec![
                Finding::wrong("credentials", report(&error.into()))
                    .advice("take ca.pem, certificate and key from one folder of `hoist-certs`"),
            ];
        }
    };
    vec![match tls.issuer() {
        Ok(()) => Finding::ok("credentials", "they belong together"),
        Err(why) => Finding::wrong(
            "credentials",
            format!("the certificate was not issued by the CA that is trusted here ({why})"),
        )
        .advice(
            "take ca.pem, certificate and key from one folder of `hoist-certs`, unless the fleet is moving to \
             another CA",
        ),
    }]
}

fn certificates(check: &'static str, pem: &Pem) -> Result<Vec<CertificateInfo>, Finding> {
    let found = found(check, pem)?;
    Ok(found
        .into_iter()
        .filter_map(|found| match found {
            Found::Certificate(info) => Some(*info),
            _ => None,
        })
        .collect())
}

fn found(check: &'static str, pem: &Pem) -> Result<Vec<Found>, Finding> {
    let bytes = match pem {
        Pem::Inline(text) => text.as_bytes().to_vec().into(),
        Pem::File(path) => read_limited(path, MAX_LEN)
            .map_err(|error| unreadable(check, path, &report(&error.into())))?,
    };
    inspect(&bytes).map_err(|error| {
        Finding::wrong(
            check,
            format!("{pem} cannot be used: {}", report(&error.into())),
        )
        .advice("take the file that `hoist-certs` wrote")
    })
}

fn unreadable(check: &'static str, path: &Utf8Path, why: &str) -> Finding {
    let advice = if path.starts_with(UNIT_CREDENTIALS) {
        "systemd has it there while the unit runs, for root and the unit alone: start the unit, or run this as root"
    } else {
        "is it there, and may this user read it?"
    };
    Finding::wrong(check, why).advice(advice)
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;
    use hoist_protocol::{AgentName, FleetName};

    use super::super::Verdict;
    use zeroize::Zeroizing;

    use super::authority as authority_of;
    use super::*;
    use crate::authority::{Authority, Validity, days};

    const WANTED: Wanted = Wanted {
        roles: &[Role::Agent],
        advice: "an agent needs its own",
    };

    fn look(credentials: &Credentials, now: Timestamp) -> Vec<Finding> {
        super::credentials(credentials, WANTED, now)
    }

    struct Files {
        _dir: tempfile::TempDir,
        credentials: Credentials,
    }

    fn authority() -> Authority {
        Authority::create(&FleetName::new("prod").unwrap(), days(400)).unwrap()
    }

    fn files(ca: &Authority, issuer: &Authority, role: Role) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Utf8PathBuf::from_path_buf(dir.path().join(name)).unwrap();
        let name = AgentName::new("web-1").unwrap();
        let issued = issuer.issue(role, &name, &[], days(100)).unwrap();
        fs::write(path("ca"), ca.certificate_pem()).unwrap();
        fs::write(path("certificate"), &issued.certificate_pem).unwrap();
        fs::write(path("key"), issued.key_pem.as_bytes()).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        let credentials = Credentials {
            ca: path("ca").into(),
            certificate: path("certificate").into(),
            key: path("key").into(),
        };
        Files {
            _dir: dir,
            credentials,
        }
    }

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(Finding::verdict).collect()
    }

    fn now() -> Timestamp {
        crate::program::now()
    }

    #[test]
    fn good_credentials_are_good() {
        let ca = authority();
        let files = files(&ca, &ca, Role::Agent);
        let findings = look(&files.credentials, now());
        assert_eq!(verdicts(&findings), [Verdict::Ok; 4], "{findings:?}");
    }

    #[test]
    fn an_expired_certificate_is_found_and_one_that_ends_soon_is_noted() {
        let ca = authority();
        let files = files(&ca, &ca, Role::Agent);
        let at = |n| certificate(&files.credentials.certificate, WANTED, now().plus(days(n)));
        assert_eq!(at(50).verdict(), Verdict::Ok);
        assert_eq!(at(90).verdict(), Verdict::Note);
        let late = at(101);
        assert_eq!(late.verdict(), Verdict::Wrong);
        assert!(late.message().contains("expired"), "{late:?}");
        let early = certificate(
            &files.credentials.certificate,
            WANTED,
            Timestamp::from_ms(0),
        );
        assert!(early.message().contains("not valid before"), "{early:?}");
    }

    #[test]
    fn while_a_fleet_moves_to_another_ca_one_whose_time_is_now_is_enough() {
        let between = |from, until| {
            let validity = Validity::between(now().plus(days(from)), now().plus(days(until)));
            let fleet = FleetName::new("prod").unwrap();
            let ca = Authority::create(&fleet, validity).unwrap();
            ca.certificate_pem().to_owned()
        };
        let (now_good, later) = (between(0, 100), between(50, 800));
        let look = |cas: &[&str], day| {
            let pem = Pem::Inline(Zeroizing::new(cas.concat()));
            authority_of(&pem, now().plus(days(day)))
        };
        for cas in [[&*now_good, &*later], [&*later, &*now_good]] {
            for day in [1, 60, 200] {
                assert_eq!(look(&cas, day).verdict(), Verdict::Ok, "on day {day}");
            }
            assert!(look(&cas, 900).message().contains("expired"));
        }
        let early = look(&[&later], 1);
        assert!(early.message().contains("not valid before"), "{early:?}");
    }

    #[test]
    fn a_ca_that_has_not_issued_the_certificate_is_found() {
        let files = files(&authority(), &authority(), Role::Agent);
        let findings = look(&files.credentials, now());
        let last = findings.last().unwrap();
        assert_eq!(last.verdict(), Verdict::Wrong);
        assert!(last.message().contains("not issued by the CA"), "{last:?}");
    }

    #[test]
    fn another_roles_certificate_is_found() {
        let ca = authority();
        let files = files(&ca, &ca, Role::Publisher);
        let finding = certificate(&files.credentials.certificate, WANTED, now());
        assert_eq!(finding.verdict(), Verdict::Wrong);
        assert!(finding.message().contains("publisher web-1"), "{finding:?}");
    }

    #[test]
    fn a_key_that_others_can_read_is_found() {
        let ca = authority();
        let files = files(&ca, &ca, Role::Agent);
        let Pem::File(path) = &files.credentials.key else {
            unreachable!("it was made as a file")
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let finding = key(&files.credentials.key);
        assert_eq!(finding.verdict(), Verdict::Wrong);
        assert!(finding.message().contains("0644"), "{finding:?}");
    }

    #[test]
    fn a_key_that_leads_into_the_store_is_found() {
        let ca = authority();
        let files = files(&ca, &ca, Role::Agent);
        let Pem::File(path) = &files.credentials.key else {
            unreachable!("it was made as a file")
        };
        let elsewhere = tempfile::tempdir().unwrap();
        let link = Utf8PathBuf::from_path_buf(elsewhere.path().join("key")).unwrap();
        std::os::unix::fs::symlink(path, &link).unwrap();
        assert_eq!(is_private("key", &link).verdict(), Verdict::Ok);
        let real = path.canonicalize_utf8().unwrap();
        let store = real.parent().unwrap().as_str();
        for file in [&link, &real] {
            let finding = is_private_outside("key", file, store);
            assert_eq!(finding.verdict(), Verdict::Wrong);
            assert!(finding.message().contains(real.as_str()), "{finding:?}");
        }
    }

    #[test]
    fn files_that_are_missing_or_mixed_up_are_found() {
        let ca = authority();
        let files = files(&ca, &ca, Role::Agent);
        let Credentials {
            ca,
            certificate: cert,
            key: own,
        } = files.credentials.clone();
        let mixed = Credentials {
            ca: cert,
            certificate: own,
            key: ca,
        };
        let findings = look(&mixed, now());
        assert_eq!(verdicts(&findings), [Verdict::Wrong; 3], "{findings:?}");
        let missing = Pem::File("/run/credentials/hoist-agent.service/key".into());
        assert_eq!(key(&missing).verdict(), Verdict::Wrong);
    }
}
