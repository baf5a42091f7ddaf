//! The clients that a fleet's authority has given a certificate, and those it has taken it back from.

use std::collections::BTreeMap;

use camino::Utf8Path;
use hoist_certs::Role;
use hoist_certs::directory::{self, Issued, Listed};
use hoist_certs::program::now;
use hoist_protocol::{AgentName, FleetName, Timestamp};

use super::ExportError;
use crate::guard::Peer;

/// Whether a name is let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// It has a certificate that holds.
    In,
    /// All that it had were revoked or have ended.
    Out,
}

/// Everybody whom an authority has issued a certificate, by name, but for brokers.
#[derive(Clone, Debug, Default)]
pub struct IssuedClients {
    members: BTreeMap<AgentName, (Peer, Standing)>,
    twofold: Vec<AgentName>,
}

impl IssuedClients {
    /// Of all that the authority in the folder `dir` has issued. Needs no private key.
    ///
    /// # Errors
    /// [`ExportError`]
    pub fn read(dir: &Utf8Path) -> Result<Self, ExportError> {
        let issued = Self::of(&directory::issued(dir)?, now());
        if issued.is_empty() {
            return Err(ExportError::Nobody(dir.to_owned()));
        }
        Ok(issued)
    }

    fn of(issued: &[Listed], now: Timestamp) -> Self {
        let mut by_name: BTreeMap<&AgentName, Vec<&Listed>> = BTreeMap::new();
        for listed in issued {
            if listed.certificate.role != Role::Broker {
                by_name
                    .entry(&listed.certificate.name)
                    .or_default()
                    .push(listed);
            }
        }
        let mut issued = Self::default();
        for (name, listed) in by_name {
            let current = |listed: &&&Listed| listed.certificate.not_after >= now;
            let holds = |listed: &&&Listed| listed.revoked.is_none() && current(listed);
            let holder = listed.iter().find(holds);
            let is_revoked = |listed: &&&Listed| listed.revoked.is_some() && current(listed);
            if holder.is_some() && listed.iter().any(|listed| is_revoked(&listed)) {
                issued.twofold.push(name.clone());
            }
            let standing = match holder {
                Some(_) => Standing::In,
                None => Standing::Out,
            };
            // A name means one holder for ever, so any of them says who it is.
            let certificate = &listed[0].certificate;
            issued
                .members
                .insert(name.clone(), (peer(certificate), standing));
        }
        issued
    }

    /// How many are let in.
    #[must_use]
    pub fn len(&self) -> usize {
        let standings = self.members.values().map(|(_, standing)| standing);
        standings
            .filter(|standing| **standing == Standing::In)
            .count()
    }

    /// Whether nobody is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names with one certificate that was revoked and another that holds: an engine that knows clients by their names
    /// cannot tell them apart.
    #[must_use]
    pub fn twofold(&self) -> &[AgentName] {
        &self.twofold
    }

    /// All of them, by fleet and name.
    pub(super) fn fleets(&self) -> BTreeMap<&FleetName, Vec<(&Peer, Standing)>> {
        let mut fleets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (peer, standing) in self.members.values() {
            let peers = fleets.entry(&peer.fleet).or_default();
            peers.push((peer, *standing));
        }
        fleets
    }
}

fn peer(certificate: &Issued) -> Peer {
    Peer {
        name: certificate.name.clone(),
        role: certificate.role,
        fleet: certificate.fleet.clone(),
    }
}

#[cfg(test)]
mod tests {
    use hoist_certs::authority::{RevocationReason, days};
    use hoist_certs::directory::{Request, init, issue, revoke};
    use hoist_certs::files::Overwrite;

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            let fleet = FleetName::new("prod").unwrap();
            init(folder.path(), &fleet, days(9).into(), Overwrite::No).unwrap();
            folder
        }

        fn path(&self) -> &Utf8Path {
            Utf8Path::from_path(self.0.path()).unwrap()
        }

        fn issue(&self, role: Role, name: &str) {
            let request = Request {
                role,
                name: AgentName::new(name).unwrap(),
                fleet: None,
                hosts: match role {
                    Role::Broker => vec!["localhost".parse().unwrap()],
                    _ => Vec::new(),
                },
                node: false,
                validity: Some(days(5).into()),
            };
            issue(self.path(), &request, Overwrite::Yes).unwrap();
        }

        fn revoke(&self, name: &str) {
            revoke(self.path(), name, RevocationReason::Unspecified, days(9)).unwrap();
        }

        fn standings(&self, at: Timestamp) -> Vec<(String, Standing)> {
            let issued = IssuedClients::of(&directory::issued(self.path()).unwrap(), at);
            let fleets = issued.fleets();
            let peers = fleets.values().flatten();
            peers
                .map(|(peer, standing)| (peer.name.to_string(), *standing))
                .collect()
        }
    }

    #[test]
    fn who_was_revoked_or_has_ended_is_out_and_brokers_are_no_clients() {
        let folder = Folder::new();
        folder.issue(Role::Broker, "main");
        assert!(matches!(
            IssuedClients::read(folder.path()),
            Err(ExportError::Nobody(_))
        ));
        folder.issue(Role::Agent, "web-1");
        folder.issue(Role::Agent, "web-2");
        folder.revoke("web-2");
        let (web_1, web_2) = ("web-1".to_owned(), "web-2".to_owned());
        assert_eq!(
            folder.standings(now()),
            [
                (web_1.clone(), Standing::In),
                (web_2.clone(), Standing::Out)
            ]
        );
        let later = now().plus(days(6));
        assert_eq!(
            folder.standings(later),
            [(web_1, Standing::Out), (web_2, Standing::Out)]
        );
    }

    #[test]
    fn a_name_with_a_revoked_and_a_good_certificate_is_named() {
        let folder = Folder::new();
        folder.issue(Role::Agent, "web-1");
        folder.issue(Role::Agent, "web-2");
        folder.revoke("web-2");
        folder.issue(Role::Agent, "web-2");
        let issued = IssuedClients::read(folder.path()).unwrap();
        assert_eq!(issued.len(), 2);
        assert_eq!(issued.twofold(), [AgentName::new("web-2").unwrap()]);
    }
}
