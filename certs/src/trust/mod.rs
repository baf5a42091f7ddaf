//! Whose certificates count: the CAs, the fleets they may issue for, and what was taken back.
//!
//! A certificate counts when a CA that may issue for its fleet has signed it itself, it is within its validity,
//! the CA's revocation list does not hold its serial number, and the denylist neither that nor its name. This is
//! asked in the handshake and, for every connection that is there, whenever one of the files has changed.

mod acceptor;
mod anchor;
mod builder;
mod crl;
mod denylist;

use std::collections::BTreeMap;
use std::sync::Arc;

use hoist_protocol::{FleetName, Timestamp};
use rustls::DistinguishedName;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::Deserialize;

pub use acceptor::{Acceptor, Judgement};
pub use anchor::Anchor;
pub(crate) use builder::TrustBuilder;
pub(crate) use crl::CRL_LEN;
pub use crl::{Crl, CrlError};
pub use denylist::{Denylist, DenylistError};

use crate::certificate::CertificateInfo;
use crate::identity::{Identity, IdentityError};
use crate::role::Role;
use crate::serial::Serial;

/// What to do with certificates about which a revocation list would have to say something and does not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Lapse {
    /// They count, and it is said loudly.
    Accept,
    /// They do not count.
    Refuse,
}

/// Why a certificate does not count.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It names nobody of Hoist's.
    #[error("the certificate is nobody's: {0}")]
    Nobody(#[from] IdentityError),
    /// It is no certificate that anybody could verify.
    #[error("the certificate cannot be verified ({0})")]
    Unusable(String),
    /// A broker's certificate is for servers.
    #[error("a broker's certificate is no client's")]
    Broker,
    /// The fleet is none that is served here.
    #[error("fleet {0} is not served here")]
    Fleet(FleetName),
    /// No CA that may issue for its fleet has issued it.
    #[error("no CA that may issue for fleet {0} has issued the certificate")]
    Issuer(FleetName),
    /// It is over.
    #[error("the certificate ended on {0}")]
    Ended(Timestamp),
    /// It has not begun.
    #[error("the certificate is not valid before {0}")]
    NotYet(Timestamp),
    /// The CA has taken it back.
    #[error("the certificate {0} is revoked")]
    Revoked(Serial),
    /// Its name or its serial number is in the denylist.
    #[error("{name} (serial {serial}) is in the denylist")]
    Denied {
        /// Its name.
        name: hoist_protocol::AgentName,
        /// Its serial number.
        serial: Serial,
    },
    /// The CA's list is overdue.
    #[error("the CRL of its CA expired on {0}, and expired_crl is \"refuse\"")]
    CrlExpired(Timestamp),
    /// There is no list of the CA.
    #[error("there is no CRL of its CA ({0}), and missing_crl is \"refuse\"")]
    CrlMissing(String),
}

impl Refusal {
    /// A word for it, for counters.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Nobody(_) => "nobody",
            Self::Unusable(_) => "unusable",
            Self::Broker => "broker",
            Self::Fleet(_) => "fleet",
            Self::Issuer(_) => "issuer",
            Self::Ended(_) => "ended",
            Self::NotYet(_) => "not-yet-valid",
            Self::Revoked(_) => "revoked",
            Self::Denied { .. } => "denied",
            Self::CrlExpired(_) => "crl-expired",
            Self::CrlMissing(_) => "crl-missing",
        }
    }
}

/// A certificate that does not count, and as much as is known of whose it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{refusal}")]
pub struct Refused {
    /// Who it says somebody is. Unproven.
    pub identity: Option<Identity>,
    /// Its serial number. Unproven.
    pub serial: Option<Serial>,
    /// Why it does not count.
    pub refusal: Refusal,
}

/// A certificate that counted when it was looked at; only [`Trust`] makes one.
#[derive(Clone, Debug)]
pub struct Admitted {
    identity: Identity,
    serial: Serial,
    anchor: Arc<Anchor>,
    ends: Timestamp,
}

impl Admitted {
    /// Whose it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its serial number.
    #[must_use]
    pub const fn serial(&self) -> &Serial {
        &self.serial
    }

    /// When it ends, or its CA does.
    #[must_use]
    pub const fn ends(&self) -> Timestamp {
        self.ends
    }
}

/// Some CAs, as webpki wants them and as we do, in the same order.
#[derive(Debug, Default)]
struct Group {
    roots: Vec<TrustAnchor<'static>>,
    anchors: Vec<Arc<Anchor>>,
}

/// Whose certificates count, at one time: it is replaced as a whole when a file changes.
#[derive(Debug)]
pub struct Trust {
    /// Of the fleets that have no CA of their own.
    common: Group,
    /// The fleets that are served, those with CAs of their own with these; all are served when there are none here.
    fleets: BTreeMap<FleetName, Option<Group>>,
    /// Each with what it has revoked.
    lists: Vec<(Arc<Anchor>, Crl)>,
    denylist: Denylist,
    /// Whether revocation lists are used at all.
    wants_lists: bool,
    on_expired: Lapse,
    on_missing: Lapse,
    hints: Vec<DistinguishedName>,
}

impl Trust {
    /// Judges a client's certificate, without a look at who shows it: that TLS does.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn judge(&self, der: &CertificateDer<'_>, now: UnixTime) -> Result<Admitted, Refused> {
        let mut refused = Refused {
            identity: None,
            serial: None,
            refusal: Refusal::Broker,
        };
        match self.examine(der, now, &mut refused) {
            Ok(admitted) => Ok(admitted),
            Err(refusal) => Err(Refused { refusal, ..refused }),
        }
    }

    fn examine(
        &self,
        der: &CertificateDer<'_>,
        now: UnixTime,
        known: &mut Refused,
    ) -> Result<Admitted, Refusal> {
        let info =
            CertificateInfo::parse(der).map_err(|error| Refusal::Unusable(error.to_string()))?;
        known.serial = Some(info.serial.clone());
        let identity = info.identity?;
        known.identity = Some(identity.clone());
        if identity.role() == Role::Broker {
            return Err(Refusal::Broker);
        }
        let group = self
            .group(identity.fleet())
            .ok_or_else(|| Refusal::Fleet(identity.fleet().clone()))?;
        let certificate = webpki::EndEntityCert::try_from(der)
            .map_err(|error| Refusal::Unusable(error.to_string()))?;
        // Nothing between the CA and the certificate: whoever may issue is trusted here by itself.
        let path = certificate.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &group.roots,
            &[],
            now,
            webpki::KeyUsage::client_auth(),
            None,
            None,
        );
        let path = path.map_err(|error| match error {
            webpki::Error::CertExpired { .. } => Refusal::Ended(info.not_after),
            webpki::Error::CertNotValidYet { .. } => Refusal::NotYet(info.not_before),
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Refusal::Issuer(identity.fleet().clone())
            }
            error => Refusal::Unusable(error.to_string()),
        })?;
        let place = group.roots.iter().position(|root| root == path.anchor());
        let anchor = place
            .and_then(|place| group.anchors.get(place))
            .ok_or_else(|| Refusal::Issuer(identity.fleet().clone()))?;
        let admitted = Admitted {
            identity,
            serial: info.serial,
            ends: info.not_after.min(anchor.not_after()),
            anchor: Arc::clone(anchor),
        };
        let now = Timestamp::from_ms(now.as_secs().saturating_mul(1000));
        self.check(&admitted, now)?;
        Ok(admitted)
    }

    /// Whether a certificate that counted once still does.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn check(&self, admitted: &Admitted, now: Timestamp) -> Result<(), Refusal> {
        let identity = &admitted.identity;
        if now > admitted.ends {
            return Err(Refusal::Ended(admitted.ends));
        }
        if self.denylist.holds(identity, &admitted.serial) {
            return Err(Refusal::Denied {
                name: identity.name().clone(),
                serial: admitted.serial.clone(),
            });
        }
        let group = self
            .group(identity.fleet())
            .ok_or_else(|| Refusal::Fleet(identity.fleet().clone()))?;
        // Its signature was verified under this very key.
        if !group.anchors.contains(&admitted.anchor) {
            return Err(Refusal::Issuer(identity.fleet().clone()));
        }
        if !self.wants_lists {
            return Ok(());
        }
        match self.list_of(&admitted.anchor) {
            Some(list) if list.revokes(&admitted.serial) => {
                Err(Refusal::Revoked(admitted.serial.clone()))
            }
            Some(list) if list.has_expired(now) && self.on_expired == Lapse::Refuse => {
                Err(Refusal::CrlExpired(list.next_update()))
            }
            Some(_) => Ok(()),
            None if self.on_missing == Lapse::Refuse => {
                Err(Refusal::CrlMissing(admitted.anchor.to_string()))
            }
            None => Ok(()),
        }
    }

    fn group(&self, fleet: &FleetName) -> Option<&Group> {
        if self.fleets.is_empty() {
            return Some(&self.common);
        }
        let own = self.fleets.get(fleet)?;
        Some(own.as_ref().unwrap_or(&self.common))
    }

    fn list_of(&self, anchor: &Anchor) -> Option<&Crl> {
        let found = self.lists.iter().find(|(other, _)| **other == *anchor);
        found.map(|(_, list)| list)
    }

    /// All CAs, each once.
    fn anchors(&self) -> Vec<&Arc<Anchor>> {
        let mut all: Vec<&Arc<Anchor>> = Vec::new();
        let groups = self.fleets.values().flatten();
        for anchor in groups
            .chain([&self.common])
            .flat_map(|group| &group.anchors)
        {
            if !all.contains(&anchor) {
                all.push(anchor);
            }
        }
        all
    }

    /// When the first of the CAs ends.
    #[must_use]
    pub fn first_end(&self) -> Option<Timestamp> {
        let ends = self.anchors().into_iter().map(|anchor| anchor.not_after());
        ends.min()
    }

    /// The revocation lists in use.
    pub fn lists(&self) -> impl Iterator<Item = &Crl> {
        self.lists.iter().map(|(_, list)| list)
    }

    /// What an operator should know and mend: overdue and missing lists, and what happens because of them.
    #[must_use]
    pub fn complaints(&self, now: Timestamp) -> Vec<String> {
        if !self.wants_lists {
            return Vec::new();
        }
        let outcome = |lapse| match lapse {
            Lapse::Accept => "its certificates are accepted all the same",
            Lapse::Refuse => "its certificates are REFUSED",
        };
        let expired = self
            .lists()
            .filter(|list| list.has_expired(now))
            .map(|list| {
                format!(
                    "the CRL of {} expired on {}; {}: write a new one with `hoist-certs crl`",
                    list.issuer(),
                    list.next_update(),
                    match self.on_expired {
                        Lapse::Accept =>
                            "what it revokes stays revoked, what was revoked since may be unknown",
                        Lapse::Refuse => outcome(Lapse::Refuse),
                    },
                )
            });
        let missing = self
            .anchors()
            .into_iter()
            .filter(|anchor| self.list_of(anchor).is_none());
        let missing = missing.map(|anchor| {
            format!(
                "there is no CRL of the CA {anchor}; {}: write one with `hoist-certs crl`",
                outcome(self.on_missing)
            )
        });
        expired.chain(missing).collect()
    }
}
