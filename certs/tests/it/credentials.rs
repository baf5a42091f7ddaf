//! What is found out before the first connection.

use camino::Utf8Path;
use hoist_certs::authority::{Authority, Validity, days};
use hoist_certs::files::{Overwrite, write_private, write_public};
use hoist_certs::{Credentials, Pem, Role};
use hoist_protocol::Timestamp;

use crate::{Folder, fleet, name};

/// `ca.pem`, `own.pem` and `own.key` of an agent in `dir`.
fn write(dir: &Utf8Path, validity: impl Into<Validity>) -> Credentials {
    let authority = Authority::create(&fleet("prod"), days(3650)).unwrap();
    let own = authority
        .issue(Role::Agent, &name("web-1"), &[], validity)
        .unwrap();
    let public = |file: &str, text: &str| {
        write_public(&dir.join(file), text.as_bytes(), Overwrite::Yes).unwrap();
    };
    public("ca.pem", authority.certificate_pem());
    public("own.pem", &own.certificate_pem);
    write_private(&dir.join("own.key"), own.key_pem.as_bytes(), Overwrite::Yes).unwrap();
    Credentials {
        ca: dir.join("ca.pem").into(),
        certificate: dir.join("own.pem").into(),
        key: dir.join("own.key").into(),
    }
}

/// The error of loading, with its causes, and without the folder's name.
fn error(credentials: &Credentials, dir: &Utf8Path) -> String {
    let error = anyhow::Error::from(credentials.client().unwrap_err());
    hoist_certs::program::report(&error).replace(dir.as_str(), "DIR")
}

#[test]
fn good_credentials_say_whose_they_are_and_until_when() {
    let folder = Folder::new();
    let tls = write(&folder.path, days(7)).client().unwrap();
    assert_eq!(tls.identity().to_string(), "agent web-1 of fleet prod");
    let left = tls.not_after().since(hoist_certs::program::now());
    assert!(left > days(6) && left <= days(7), "{left:?}");
}

#[test]
fn credentials_can_be_given_as_text_and_are_not_shown() {
    let folder = Folder::new();
    let files = write(&folder.path, days(7));
    let inline = |pem: &Pem| {
        let Pem::File(path) = pem else {
            panic!("written as a file")
        };
        std::fs::read_to_string(path)
            .unwrap()
            .parse::<Pem>()
            .unwrap()
    };
    let texts = Credentials {
        ca: inline(&files.ca),
        certificate: inline(&files.certificate),
        key: inline(&files.key),
    };
    assert!(texts.client().is_ok());
    assert!(!format!("{texts:?}").contains("BEGIN"), "{texts:?}");
}

#[test]
fn an_expired_certificate_is_named_with_its_date() {
    let folder = Folder::new();
    let over = Validity::between(
        Timestamp::from_ms(1_600_000_000_000),
        Timestamp::from_ms(1_700_000_000_000),
    );
    let said = error(&write(&folder.path, over), &folder.path);
    assert_eq!(
        said,
        "the certificate from `DIR/own.pem` expired on 2023-11-14T22:13:20.000Z; \
         issue a new one with `hoist-certs issue … --force`"
    );
}

#[test]
fn a_program_that_nobody_watches_is_not_stopped_by_its_clock() {
    let folder = Folder::new();
    let now = hoist_certs::program::now();
    let ago = |days: u64| Timestamp::from_ms(now.as_ms() - days * 86_400_000);
    for period in [
        Validity::between(ago(3), ago(1)),
        Validity::between(now.plus(days(2)), now.plus(days(4))),
    ] {
        let credentials = write(&folder.path, period);
        let tls = credentials.unattended_client().unwrap();
        assert_eq!(tls.identity().to_string(), "agent web-1 of fleet prod");
        assert_eq!(tls.issuer(), Ok(()));
    }
    let mut without = write(&folder.path, days(7));
    without.key = folder.path.join("none").into();
    assert!(without.unattended_client().is_err(), "all else is an error");
}

#[test]
fn a_certificate_of_the_future_points_to_the_clock() {
    let folder = Folder::new();
    let soon = hoist_certs::program::now().plus(days(2));
    let credentials = write(&folder.path, Validity::between(soon, soon.plus(days(2))));
    let said = error(&credentials, &folder.path);
    assert!(
        said.contains("`DIR/own.pem` is not valid before") && said.contains("check the clock"),
        "{said}"
    );
}

#[test]
fn files_in_each_others_place_are_told_apart() {
    let folder = Folder::new();
    let good = write(&folder.path, days(7));
    let (ca, own, key) = (&good.ca, &good.certificate, &good.key);
    for (ca, certificate, key, said) in [
        (own, own, key, "`DIR/own.pem` is no CA"),
        (ca, ca, key, "`DIR/ca.pem` is a CA"),
        (
            ca,
            key,
            key,
            "`DIR/own.key` cannot be used: it holds a private key and no certificate",
        ),
        (
            ca,
            own,
            own,
            "`DIR/own.pem` cannot be used: it holds a certificate and no private key",
        ),
        (
            key,
            own,
            key,
            "`DIR/own.key` cannot be used: it holds a private key and no certificate",
        ),
    ] {
        let credentials = Credentials {
            ca: ca.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
        };
        let error = error(&credentials, &folder.path);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_key_of_another_certificate_is_named() {
    let (one, two) = (Folder::new(), Folder::new());
    let credentials = Credentials {
        key: write(&two.path, days(7)).key,
        ..write(&one.path, days(7))
    };
    let said = error(&credentials, &one.path);
    assert!(
        said.contains("own.key` does not belong to the certificate from `DIR/own.pem`"),
        "{said}"
    );
}

#[test]
fn a_file_that_is_missing_is_named() {
    let folder = Folder::new();
    let credentials = write(&folder.path, days(7));
    std::fs::remove_file(folder.path.join("own.key")).unwrap();
    let said = error(&credentials, &folder.path);
    assert_eq!(
        said,
        "cannot read the private key: cannot read `DIR/own.key`: No such file or directory (os error 2)"
    );
}

#[test]
fn a_secret_that_lost_its_line_breaks_is_explained_and_not_repeated() {
    let folder = Folder::new();
    let good = write(&folder.path, days(7));
    let text = std::fs::read_to_string(folder.path.join("own.key")).unwrap();
    let one_line = text.replace('\n', " ");
    let middle = &text.lines().nth(1).unwrap()[..20];
    let credentials = Credentials {
        key: one_line.parse().unwrap(),
        ..good
    };
    let said = error(&credentials, &folder.path);
    assert!(said.contains("needs a line of its own"), "{said}");
    let debug = format!("{:?}", credentials.client().unwrap_err());
    assert!(
        !said.contains(middle) && !debug.contains(middle),
        "{said} {debug}"
    );
}

#[test]
fn text_that_is_no_pem_and_an_empty_file_are_refused() {
    let folder = Folder::new();
    let credentials = write(&folder.path, days(7));
    for text in ["", "hello"] {
        std::fs::write(folder.path.join("own.pem"), text).unwrap();
        let said = error(&credentials, &folder.path);
        assert!(
            said.contains("`DIR/own.pem` cannot be used: it is no PEM text"),
            "{said}"
        );
    }
}

#[test]
fn an_encrypted_key_is_explained() {
    let folder = Folder::new();
    let credentials = write(&folder.path, days(7));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGbMFcGCSqGSIb3DQEFDTBK\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(folder.path.join("own.key"), encrypted).unwrap();
    let said = error(&credentials, &folder.path);
    assert!(said.contains("the private key is encrypted"), "{said}");
}
