//! The machine's certificate, key and CA, read again when their files change.
//!
//! Whoever renews certificates replaces files; the agent takes them at the next connection, and keeps what it has
//! when they cannot be used, or when the broker does not take them.

use std::os::unix::fs::MetadataExt as _;

use hoist_certs::{ClientTls, Credentials, Pem};
use hoist_protocol::Machine;

/// Which file lies under a name, and which state it is in, as far as that can be told without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
}

/// Of CA, certificate and key; none for what is no file, or is not there.
type Stamps = [Option<Stamp>; 3];

fn stamps(credentials: &Credentials) -> Stamps {
    let Credentials {
        ca,
        certificate,
        key,
    } = credentials;
    [ca, certificate, key].map(|pem| match pem {
        Pem::File(path) => path.metadata().ok().map(|found| Stamp {
            file: (found.dev(), found.ino()),
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }),
        Pem::Inline(_) => None,
    })
}

/// How the machine proves who it is, now.
#[derive(Debug)]
pub struct Renewal {
    credentials: Credentials,
    machine: Machine,
    stamps: Stamps,
    tls: ClientTls,
    /// What was used before, until the broker has accepted what is used now.
    before: Option<ClientTls>,
    /// Why what the files hold is not used.
    problem: Option<String>,
}

impl Renewal {
    /// `tls` was made from `credentials`, for `machine`.
    #[must_use]
    pub fn new(credentials: Credentials, tls: ClientTls, machine: Machine) -> Self {
        Self {
            stamps: stamps(&credentials),
            credentials,
            machine,
            tls,
            before: None,
            problem: None,
        }
    }

    /// What to connect with.
    #[must_use]
    pub const fn tls(&self) -> &ClientTls {
        &self.tls
    }

    /// Why the files are not what is used, when that is so.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Looks whether a file has changed, and takes what they hold now. Returns whether something new is to be
    /// connected with.
    pub fn look(&mut self) -> bool {
        let stamps = stamps(&self.credentials);
        if stamps == self.stamps {
            return false;
        }
        self.stamps = stamps;
        match self.read() {
            Ok(tls) => {
                tracing::info!(ends = %tls.not_after(), "took the renewed certificate");
                self.before = Some(std::mem::replace(&mut self.tls, tls));
                self.problem = None;
                true
            }
            Err(problem) => {
                tracing::error!(
                    "keeps the certificate it has, since the files that changed cannot be used: {problem}"
                );
                self.problem = Some(problem);
                false
            }
        }
    }

    fn read(&self) -> Result<ClientTls, String> {
        let tls = self
            .credentials
            .client()
            .map_err(|error| crate::job::chain(&error))?;
        let (found, machine) = (tls.identity(), &self.machine);
        if found.role() != hoist_certs::Role::Agent
            || (found.fleet(), found.name()) != (&machine.fleet, &machine.agent)
        {
            return Err(format!(
                "the new certificate is that of {found}, and this agent was started as {machine}; restart it if \
                 that is what it shall be"
            ));
        }
        Ok(tls)
    }

    /// The broker has taken what is used now.
    pub fn accepted(&mut self) {
        self.before = None;
    }

    /// The TLS handshake failed. Returns whether there is an earlier certificate to go back to, which is then what
    /// is used.
    pub fn refused(&mut self) -> bool {
        let Some(before) = self.before.take() else {
            if self.problem.is_some() {
                // Neither the old nor the new one: the new one may not have been to blame, and is read again.
                self.stamps = Stamps::default();
            }
            return false;
        };
        let problem =
            "the broker does not take the renewed certificate, and the one before is used again";
        tracing::error!("{problem}; check that it was issued by the fleet's CA");
        self.tls = before;
        self.problem = Some(problem.to_owned());
        true
    }
}

#[cfg(test)]
mod tests {
    use camino::{Utf8Path, Utf8PathBuf};
    use hoist_certs::Role;
    use hoist_certs::authority::{Authority, days};
    use hoist_protocol::{AgentName, FleetName, Timestamp};

    use super::*;

    struct Files {
        _guard: tempfile::TempDir,
        dir: Utf8PathBuf,
        authority: Authority,
    }

    impl Files {
        fn new() -> Self {
            let guard = tempfile::tempdir().unwrap();
            let fleet = FleetName::new("prod").unwrap();
            Self {
                dir: Utf8PathBuf::try_from(guard.path().to_owned()).unwrap(),
                _guard: guard,
                authority: Authority::create(&fleet, days(40)).unwrap(),
            }
        }

        /// Puts a certificate of so many days into place, as something that replaces files does.
        fn issue(&self, name: &str, lifetime: u32) {
            let name = AgentName::new(name).unwrap();
            let lifetime = days(lifetime);
            let issued = self
                .authority
                .issue(Role::Agent, &name, &[], lifetime)
                .unwrap();
            self.replace("ca", self.authority.certificate_pem());
            self.replace("certificate", &issued.certificate_pem);
            self.replace("key", &issued.key_pem);
        }

        fn replace(&self, file: &str, content: &str) {
            let new = self.dir.join("new");
            std::fs::write(&new, content).unwrap();
            std::fs::rename(new, self.dir.join(file)).unwrap();
        }

        fn renewal(&self) -> Renewal {
            let file = |name: &str| Pem::File(self.dir.join(Utf8Path::new(name)));
            let credentials = Credentials {
                ca: file("ca"),
                certificate: file("certificate"),
                key: file("key"),
            };
            let tls = credentials.client().unwrap();
            let identity = tls.identity();
            let machine = Machine::new(identity.fleet().clone(), identity.name().clone());
            Renewal::new(credentials, tls, machine)
        }
    }

    fn ends(renewal: &Renewal) -> Timestamp {
        renewal.tls().not_after()
    }

    #[test]
    fn a_renewed_certificate_is_taken_and_an_unchanged_one_is_not_read() {
        let files = Files::new();
        files.issue("web-1", 5);
        let mut renewal = files.renewal();
        let old = ends(&renewal);
        assert!(!renewal.look());
        files.issue("web-1", 20);
        assert!(renewal.look());
        assert!(ends(&renewal) > old);
        assert!(!renewal.look(), "taken once");
        assert_eq!(renewal.problem(), None);
    }

    #[test]
    fn a_broken_file_keeps_the_old_certificate_until_a_good_one_comes() {
        let files = Files::new();
        files.issue("web-1", 5);
        let mut renewal = files.renewal();
        let old = ends(&renewal);
        files.replace("certificate", "half a certi");
        assert!(!renewal.look());
        assert_eq!(ends(&renewal), old);
        let problem = renewal.problem().unwrap();
        assert!(problem.contains("no PEM text"), "{problem}");
        files.issue("web-1", 20);
        assert!(renewal.look());
        assert_eq!(renewal.problem(), None);
    }

    #[test]
    fn a_certificate_of_another_machine_is_not_taken() {
        let files = Files::new();
        files.issue("web-1", 5);
        let mut renewal = files.renewal();
        files.issue("web-2", 5);
        assert!(!renewal.look());
        let problem = renewal.problem().unwrap();
        assert!(
            problem.contains("web-2") && problem.contains("prod/web-1"),
            "{problem}"
        );
    }

    #[test]
    fn a_renewed_certificate_that_the_broker_refuses_gives_way_to_the_one_before() {
        let files = Files::new();
        files.issue("web-1", 5);
        let mut renewal = files.renewal();
        let old = ends(&renewal);
        assert!(!renewal.refused(), "there is nothing to go back to");
        files.issue("web-1", 20);
        assert!(renewal.look());
        assert!(renewal.refused());
        assert_eq!(ends(&renewal), old);
        assert!(renewal.problem().is_some());
        assert!(!renewal.look(), "the same files are no news");
        assert!(!renewal.refused(), "the old one is refused as well");
        assert!(renewal.look(), "so the new one gets another try");

        files.issue("web-1", 21);
        assert!(renewal.look());
        renewal.accepted();
        assert!(!renewal.refused(), "what was accepted once is not to blame");
    }
}
