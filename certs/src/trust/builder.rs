//! Puts [`Trust`] together from what the files say.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoist_protocol::FleetName;
use rustls::DistinguishedName;
use rustls::pki_types::CertificateDer;

use super::{Anchor, Crl, CrlError, Denylist, Group, Lapse, Trust};

/// [`Trust`] in the making.
pub(crate) struct TrustBuilder(Trust);

impl TrustBuilder {
    /// Every fleet, under these CAs.
    pub(crate) fn new(authorities: &[CertificateDer<'_>]) -> Self {
        Self(Trust {
            common: group(authorities),
            fleets: BTreeMap::new(),
            lists: Vec::new(),
            denylist: Denylist::default(),
            wants_lists: false,
            on_expired: Lapse::Accept,
            on_missing: Lapse::Refuse,
            hints: Vec::new(),
        })
    }

    /// Only this fleet and others that are named so; under its own CAs if it has some.
    pub(crate) fn serve(&mut self, fleet: FleetName, authorities: Option<&[CertificateDer<'_>]>) {
        self.0.fleets.insert(fleet, authorities.map(group));
    }

    /// Takes the revocation lists in a file. Of several of one CA the newest counts.
    pub(crate) fn revoke(&mut self, bytes: &[u8]) -> Result<(), CrlError> {
        let anchors: Vec<Arc<Anchor>> = self.0.anchors().into_iter().cloned().collect();
        for (signer, list) in Crl::parse_all(bytes, &anchors)? {
            let Some(anchor) = anchors.get(signer) else {
                continue;
            };
            match self.0.lists.iter_mut().find(|(other, _)| other == anchor) {
                Some((_, known)) if list.is_newer_than(known) => *known = list,
                Some(_) => {}
                None => self.0.lists.push((Arc::clone(anchor), list)),
            }
        }
        Ok(())
    }

    /// Takes the denylist.
    pub(crate) fn deny(&mut self, denylist: Denylist) {
        self.0.denylist = denylist;
    }

    /// What it makes. `lapses` says what to do about expired and missing lists, when lists are used.
    pub(crate) fn build(
        mut self,
        lapses: Option<(Lapse, Lapse)>,
        used: Option<&Trust>,
    ) -> Result<Trust, CrlError> {
        if let Some((on_expired, on_missing)) = lapses {
            self.0.wants_lists = true;
            (self.0.on_expired, self.0.on_missing) = (on_expired, on_missing);
        }
        // What was revoked must not come back because a file is gone or an old one was put in its place.
        for (anchor, before) in used.iter().flat_map(|used| &used.lists) {
            match self.0.list_of(anchor) {
                Some(list) => list.check_not_older(before)?,
                None if self.0.wants_lists && self.0.anchors().contains(&anchor) => {
                    return Err(CrlError::Gone(before.issuer().clone()));
                }
                None => {}
            }
        }
        let groups = self.0.fleets.values().flatten().chain([&self.0.common]);
        let mut hints: Vec<DistinguishedName> = groups
            .flat_map(|group| &group.roots)
            .map(|root| DistinguishedName::in_sequence(&root.subject))
            .collect();
        hints.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        hints.dedup_by(|a, b| a.as_ref() == b.as_ref());
        self.0.hints = hints;
        Ok(self.0)
    }
}

/// What is no CA that webpki can use was refused when the file was read.
fn group(authorities: &[CertificateDer<'_>]) -> Group {
    let mut group = Group::default();
    for (root, anchor) in authorities.iter().filter_map(|der| Anchor::parse(der).ok()) {
        group.roots.push(root);
        group.anchors.push(Arc::new(anchor));
    }
    group
}
