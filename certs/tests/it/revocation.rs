//! What is taken back counts no more: lists, denylists, CAs of fleets.

use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::authority::{Authority, Issued, RevocationReason, RevokedCertificate, days};
use hoist_certs::program::now;
use hoist_certs::trust::{Lapse, Refusal};
use hoist_certs::{Pem, Revocation, Role, Serial, ServerSources, TlsError};
use hoist_protocol::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::{Folder, fleet, name};

/// A CA with a folder for the broker's files.
struct World {
    folder: Folder,
    authority: Authority,
}

fn authority() -> Authority {
    Authority::create(&fleet("prod"), days(400)).unwrap()
}

fn agent(authority: &Authority, in_fleet: &str, who: &str) -> Issued {
    authority
        .issue_in(&fleet(in_fleet), Role::Agent, &name(who), &[], days(1))
        .unwrap()
}

fn serial(number: u64) -> Serial {
    Serial::from_be_bytes(&number.to_be_bytes())
}

/// A list of `authority` with this number, until `next_update`.
fn list(authority: &Authority, number: u64, next_update: Timestamp, revoked: &[&Issued]) -> String {
    let revoked: Vec<RevokedCertificate> = revoked
        .iter()
        .map(|issued| RevokedCertificate {
            serial: issued.serial.clone(),
            since: now(),
            reason: RevocationReason::KeyCompromise,
        })
        .collect();
    let this_update = Timestamp::from_ms(1_600_000_000_000);
    authority
        .revocation_list(&serial(number), this_update, next_update, &revoked)
        .unwrap()
}

fn tomorrow() -> Timestamp {
    now().plus(days(1))
}

impl World {
    fn new() -> Self {
        Self {
            folder: Folder::new(),
            authority: authority(),
        }
    }

    fn path(&self, file: &str) -> Utf8PathBuf {
        self.folder.path.join(file)
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), text).unwrap();
    }

    /// A broker's files, with `crl.pem` as its list.
    fn sources(&self) -> ServerSources {
        let host = ["localhost".parse().unwrap()];
        let broker = self
            .authority
            .issue(Role::Broker, &name("main"), &host, days(1))
            .unwrap();
        ServerSources {
            revocation: Revocation {
                crls: vec![self.path("crl.pem")],
                ..Revocation::default()
            },
            ..broker.credentials(self.authority.certificate_pem()).into()
        }
    }
}

fn judge(sources: &ServerSources, issued: &Issued) -> Result<(), Refusal> {
    let tls = sources.load(None).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let judged = tls.acceptor().trust().judge(&der, UnixTime::now());
    judged.map(|_| ()).map_err(|refused| refused.refusal)
}

#[test]
fn what_the_list_holds_is_refused_and_nothing_else() {
    let world = World::new();
    let (good, bad) = (
        agent(&world.authority, "prod", "web-1"),
        agent(&world.authority, "prod", "web-2"),
    );
    let text = list(&world.authority, 1, tomorrow(), &[&bad]);
    let der = <(rustls::pki_types::pem::SectionKind, Vec<u8>)>::from_pem_slice(text.as_bytes());
    // As PEM and as DER.
    for bytes in [text.clone().into_bytes(), der.unwrap().1] {
        world.write("crl.pem", bytes);
        let sources = world.sources();
        assert_eq!(judge(&sources, &good), Ok(()));
        assert_eq!(
            judge(&sources, &bad),
            Err(Refusal::Revoked(bad.serial.clone()))
        );
    }
}

#[test]
fn the_newest_of_several_lists_counts() {
    let world = World::new();
    let one = agent(&world.authority, "prod", "web-1");
    let (old, new) = (
        list(&world.authority, 7, tomorrow(), &[&one]),
        list(&world.authority, 258, tomorrow(), &[]),
    );
    for text in [format!("{old}{new}"), format!("{new}{old}")] {
        world.write("crl.pem", text);
        assert_eq!(judge(&world.sources(), &one), Ok(()));
    }
}

#[test]
fn an_expired_list_is_told_of_and_handled_as_configured() {
    let world = World::new();
    let (good, bad) = (
        agent(&world.authority, "prod", "web-1"),
        agent(&world.authority, "prod", "web-2"),
    );
    let past = Timestamp::from_ms(1_700_000_000_000);
    world.write("crl.pem", list(&world.authority, 1, past, &[&bad]));
    let mut sources = world.sources();
    assert_eq!(judge(&sources, &good), Ok(()));
    assert_eq!(
        judge(&sources, &bad),
        Err(Refusal::Revoked(bad.serial.clone()))
    );
    let complaints = sources
        .load(None)
        .unwrap()
        .acceptor()
        .trust()
        .complaints(now());
    assert!(
        complaints[0].contains("expired on 2023-11-14"),
        "{complaints:?}"
    );
    sources.revocation.on_expired = Lapse::Refuse;
    assert_eq!(judge(&sources, &good), Err(Refusal::CrlExpired(past)));
    assert_eq!(
        judge(&sources, &bad),
        Err(Refusal::Revoked(bad.serial.clone()))
    );
}

#[test]
fn a_missing_list_is_told_of_and_handled_as_configured() {
    let world = World::new();
    let good = agent(&world.authority, "prod", "web-1");
    let mut sources = world.sources();
    assert!(matches!(
        judge(&sources, &good),
        Err(Refusal::CrlMissing(_))
    ));
    let complaints = sources
        .load(None)
        .unwrap()
        .acceptor()
        .trust()
        .complaints(now());
    assert!(
        complaints[0].contains("there is no CRL of the CA"),
        "{complaints:?}"
    );
    sources.revocation.on_missing = Lapse::Accept;
    assert_eq!(judge(&sources, &good), Ok(()));
    // Who uses no lists misses none.
    sources.revocation.crls.clear();
    assert_eq!(
        sources
            .load(None)
            .unwrap()
            .acceptor()
            .trust()
            .complaints(now()),
        [""; 0]
    );
}

#[test]
fn a_list_that_takes_back_less_than_before_is_not_taken() {
    let world = World::new();
    let bad = agent(&world.authority, "prod", "web-1");
    world.write("crl.pem", list(&world.authority, 5, tomorrow(), &[&bad]));
    let sources = world.sources();
    let used = sources.load(None).unwrap();
    let reload = || sources.load(Some(used.acceptor().trust()));
    assert!(reload().is_ok());
    world.write("crl.pem", list(&world.authority, 4, tomorrow(), &[]));
    let error = reload().unwrap_err();
    assert!(matches!(error, TlsError::OldCrl(_)), "{error:?}");
    std::fs::remove_file(world.path("crl.pem")).unwrap();
    let error = reload().unwrap_err();
    assert!(matches!(error, TlsError::OldCrl(_)), "{error:?}");
    world.write("crl.pem", list(&world.authority, 6, tomorrow(), &[]));
    assert!(reload().is_ok());
}

#[test]
fn a_list_that_is_damaged_or_a_strangers_is_an_error_that_names_the_file() {
    let world = World::new();
    let text = list(&world.authority, 1, tomorrow(), &[]);
    let mut damaged =
        <(rustls::pki_types::pem::SectionKind, Vec<u8>)>::from_pem_slice(text.as_bytes())
            .unwrap()
            .1;
    let at = damaged.len() - 5;
    damaged[at] ^= 1;
    // Another CA of the very same name.
    let stranger = list(&authority(), 1, tomorrow(), &[]);
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("noise", b"noise".to_vec()),
        ("cut off", text.as_bytes()[..text.len() - 40].to_vec()),
        ("a wrong signature", damaged),
        ("a stranger's", stranger.into_bytes()),
        (
            "a certificate",
            world.authority.certificate_pem().as_bytes().to_vec(),
        ),
    ] {
        world.write("crl.pem", bytes);
        let error = world.sources().load(None).unwrap_err();
        let TlsError::Crl { path, .. } = &error else {
            panic!("{what}: {error:?}");
        };
        assert_eq!(*path, world.path("crl.pem"), "{what}");
    }
}

#[test]
fn a_denylist_holds_without_any_list_of_a_ca() {
    let world = World::new();
    let (by_name, by_serial, good) = (
        agent(&world.authority, "prod", "web-1"),
        agent(&world.authority, "prod", "web-2"),
        agent(&world.authority, "prod", "web-3"),
    );
    let mut sources = world.sources();
    sources.revocation.crls.clear();
    sources.revocation.denylist = Some(world.path("deny"));
    world.write("deny", format!("web-1 # lost\n{}\n", by_serial.serial));
    assert_eq!(judge(&sources, &good), Ok(()));
    for denied in [&by_name, &by_serial] {
        assert!(matches!(
            judge(&sources, denied),
            Err(Refusal::Denied { .. })
        ));
    }
    world.write("deny", "web 1\n");
    assert!(matches!(sources.load(None), Err(TlsError::Denylist { .. })));
    std::fs::remove_file(world.path("deny")).unwrap();
    assert!(matches!(sources.load(None), Err(TlsError::File(_))));
}

#[test]
fn a_ca_of_a_fleet_issues_for_no_other_and_no_other_for_it() {
    let world = World::new();
    let own = authority();
    let mut sources = world.sources();
    sources.revocation.crls.clear();
    let ca = Pem::from(own.certificate_pem().to_owned());
    sources.fleets.insert(fleet("prod"), None);
    sources.fleets.insert(fleet("test"), Some(ca));
    let common = &world.authority;
    for (issuer, of, expected) in [
        (common, "prod", Ok(())),
        (&own, "test", Ok(())),
        (common, "test", Err(Refusal::Issuer(fleet("test")))),
        (&own, "prod", Err(Refusal::Issuer(fleet("prod")))),
        (common, "other", Err(Refusal::Fleet(fleet("other")))),
        (&own, "other", Err(Refusal::Fleet(fleet("other")))),
    ] {
        assert_eq!(
            judge(&sources, &agent(issuer, of, "web-1")),
            expected,
            "{of}"
        );
    }
}

#[test]
fn a_list_of_one_ca_says_nothing_about_another() {
    let world = World::new();
    let own = authority();
    let mut sources = world.sources();
    sources.revocation.crls = vec![world.path("a"), world.path("b")];
    let ca = Pem::from(own.certificate_pem().to_owned());
    sources.fleets.insert(fleet("prod"), None);
    sources.fleets.insert(fleet("test"), Some(ca));
    let (prod, test) = (
        agent(&world.authority, "prod", "web-1"),
        agent(&own, "test", "web-1"),
    );
    // Each list holds the other CA's serial number.
    world.write("a", list(&world.authority, 1, tomorrow(), &[&test]));
    world.write("b", list(&own, 1, tomorrow(), &[&prod]));
    assert_eq!(judge(&sources, &prod), Ok(()));
    assert_eq!(judge(&sources, &test), Ok(()));
    world.write("b", list(&own, 2, tomorrow(), &[&test]));
    assert_eq!(
        judge(&sources, &test),
        Err(Refusal::Revoked(test.serial.clone()))
    );
}

#[test]
fn whoever_stays_is_judged_anew_by_what_is_in_use_then() {
    let world = World::new();
    let issued = agent(&world.authority, "prod", "web-1");
    world.write("crl.pem", list(&world.authority, 1, tomorrow(), &[]));
    let sources = world.sources();
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let used = sources.load(None).unwrap();
    let admitted = used
        .acceptor()
        .trust()
        .judge(&der, UnixTime::now())
        .unwrap();
    let anew = |at| {
        let tls = sources.load(Some(used.acceptor().trust())).unwrap();
        tls.acceptor().trust().check(&admitted, at)
    };
    assert_eq!(anew(now()), Ok(()));
    assert_eq!(
        anew(now().plus(days(2))),
        Err(Refusal::Ended(issued.not_after))
    );
    world.write("crl.pem", list(&world.authority, 2, tomorrow(), &[&issued]));
    assert_eq!(anew(now()), Err(Refusal::Revoked(issued.serial.clone())));
    // The CA is replaced by another of the same name.
    let moved = World {
        folder: world.folder,
        authority: authority(),
    };
    let mut sources = moved.sources();
    sources.revocation.crls.clear();
    let tls = sources.load(None).unwrap();
    let judged = tls.acceptor().trust().check(&admitted, now());
    assert_eq!(judged, Err(Refusal::Issuer(fleet("prod"))));
}

/// The broker's view of what `hoist-certs` writes.
#[test]
fn the_program_revokes_a_name_or_a_serial_number() {
    let folder = Folder::new();
    let dir = &folder.path;
    let certs = dir.join("certs");
    crate::cli::done(dir, &["init", "--fleet", "prod"]);
    crate::cli::done(dir, &["issue", "broker", "main", "--host", "localhost"]);
    for who in ["web-1", "web-2", "web-3"] {
        crate::cli::done(dir, &["issue", "agent", who]);
    }
    // What is revoked by its name is revoked with all its certificates.
    let first = std::fs::read_to_string(certs.join("agent-web-1.pem")).unwrap();
    crate::cli::done(dir, &["issue", "agent", "web-1", "--force"]);
    let said = crate::cli::done(dir, &["revoke", "web-1", "--reason", "key-compromise"]);
    assert_eq!(said.matches("revoked  agent web-1").count(), 2, "{said}");
    let serial = crate::cli::show(dir, &["certs/agent-web-2.pem"])[0]["serial"].clone();
    crate::cli::done(dir, &["revoke", serial.as_str().unwrap()]);
    let said = crate::cli::done(dir, &["revoke", "web-2"]);
    assert!(said.contains("it was revoked before"), "{said}");
    let error = crate::cli::failed(dir, &["revoke", "web-9"]);
    assert!(error.contains("`hoist-certs list`"), "{error}");

    let sources = ServerSources {
        revocation: Revocation {
            crls: vec![certs.join("crl.pem")],
            ..Revocation::default()
        },
        ..hoist_certs::Credentials {
            ca: certs.join("ca.pem").into(),
            certificate: certs.join("broker-main.pem").into(),
            key: certs.join("broker-main.key").into(),
        }
        .into()
    };
    let refused = |text: &str| {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let tls = sources.load(None).unwrap();
        let judged = tls.acceptor().trust().judge(&der, UnixTime::now());
        judged.err().map(|refused| refused.refusal.as_str())
    };
    let read = |file: &str| std::fs::read_to_string(certs.join(file)).unwrap();
    assert_eq!(refused(&first), Some("revoked"));
    assert_eq!(refused(&read("agent-web-1.pem")), Some("revoked"));
    assert_eq!(refused(&read("agent-web-2.pem")), Some("revoked"));
    assert_eq!(refused(&read("agent-web-3.pem")), None);
    // A new certificate for the name is good again.
    crate::cli::done(dir, &["issue", "agent", "web-1", "--force"]);
    assert_eq!(refused(&read("agent-web-1.pem")), None);

    let listed = crate::cli::done(dir, &["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let status = |n: usize| listed[n]["status"].as_str().unwrap().to_owned();
    let of: Vec<String> = (0..6).map(status).collect();
    assert_eq!(
        of,
        ["valid", "revoked", "revoked", "valid", "revoked", "valid"]
    );
    assert_eq!(listed[1]["reason"], "key-compromise");
    crate::cli::done(dir, &["list"]);
}

#[test]
fn a_list_is_written_when_there_is_a_reason() {
    let folder = Folder::new();
    let dir = &folder.path;
    crate::cli::done(dir, &["init", "--fleet", "prod"]);
    let text = |dir: &Utf8Path| std::fs::read_to_string(dir.join("certs/crl.pem")).unwrap();
    crate::cli::done(dir, &["crl"]);
    let first = text(dir);
    let said = crate::cli::done(dir, &["crl"]);
    assert!(said.contains("it is good as it is"), "{said}");
    assert_eq!(text(dir), first);
    // Less than half of what it should hold for is left.
    crate::cli::done(dir, &["crl", "--days", "200"]);
    let second = text(dir);
    assert_ne!(second, first);
    crate::cli::done(dir, &["crl", "--days", "200", "--force"]);
    assert_ne!(text(dir), second);
    // What is no list of this CA is not overwritten.
    std::fs::write(dir.join("certs/crl.pem"), "mine").unwrap();
    let error = crate::cli::failed(dir, &["crl"]);
    assert!(error.contains("--force"), "{error}");
    assert_eq!(text(dir), "mine");
    crate::cli::done(dir, &["crl", "--force"]);
}
