//! Who a certificate says somebody is.

use std::fmt;

use hoist_protocol::{AgentName, FleetName, NameError};
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::Tag;
use x509_parser::oid_registry::{
    OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT,
};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::certificate;
use crate::role::{Role, RoleError};

/// The three words that a certificate's subject is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attribute {
    /// CN: the name.
    CommonName,
    /// OU: the role.
    OrganizationalUnit,
    /// O: the fleet.
    Organization,
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommonName => "CN (the name)",
            Self::OrganizationalUnit => "OU (the role)",
            Self::Organization => "O (the fleet)",
        })
    }
}

/// Why a certificate's subject is nobody of Hoist's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate is none.
    #[error("not a certificate")]
    Malformed,
    /// An attribute is missing.
    #[error("the subject has no {0}")]
    Missing(Attribute),
    /// An attribute stands there twice: two readers could each take another one.
    #[error("the subject has more than one {0}")]
    Twice(Attribute),
    /// Two attributes share a place (a multi-valued RDN): readers disagree about what that means.
    #[error("the subject has several attributes in one place")]
    MultiValued,
    /// There is an attribute that Hoist has no meaning for.
    #[error("the subject has another attribute than CN, OU and O: {0}")]
    Unknown(String),
    /// The text is neither a PrintableString nor a UTF8String.
    #[error("the subject's {0} is no PrintableString or UTF8String")]
    Encoding(Attribute),
    /// The CN or the O is no name.
    #[error("the subject's {0} is not valid")]
    Name(Attribute, #[source] NameError),
    /// The OU is no role.
    #[error("the subject's OU is not valid")]
    Role(#[source] RoleError),
}

/// Who somebody is: name, role and fleet, as the authority wrote them into a certificate.
///
/// Says nothing about whether the certificate is valid: TLS decides that.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Identity {
    name: AgentName,
    role: Role,
    fleet: FleetName,
}

impl Identity {
    /// Reads the subject of a certificate: exactly one CN, one OU and one O, and nothing else.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = certificate::parse(der).map_err(|_| IdentityError::Malformed)?;
        Self::from_subject(certificate.subject())
    }

    pub(crate) fn from_subject(subject: &X509Name<'_>) -> Result<Self, IdentityError> {
        let (mut name, mut role, mut fleet) = (None, None, None);
        for rdn in subject.iter_rdn() {
            let mut attributes = rdn.iter();
            let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
                return Err(IdentityError::MultiValued);
            };
            let kind = attribute.attr_type();
            let (which, slot) = if *kind == OID_X509_COMMON_NAME {
                (Attribute::CommonName, &mut name)
            } else if *kind == OID_X509_ORGANIZATIONAL_UNIT {
                (Attribute::OrganizationalUnit, &mut role)
            } else if *kind == OID_X509_ORGANIZATION_NAME {
                (Attribute::Organization, &mut fleet)
            } else {
                return Err(IdentityError::Unknown(kind.to_id_string()));
            };
            if slot.replace(text(attribute, which)?).is_some() {
                return Err(IdentityError::Twice(which));
            }
        }
        let (name, role, fleet) = (
            name.ok_or(IdentityError::Missing(Attribute::CommonName))?,
            role.ok_or(IdentityError::Missing(Attribute::OrganizationalUnit))?,
            fleet.ok_or(IdentityError::Missing(Attribute::Organization))?,
        );
        Ok(Self {
            name: AgentName::new(name)
                .map_err(|e| IdentityError::Name(Attribute::CommonName, e))?,
            role: role.parse().map_err(IdentityError::Role)?,
            fleet: FleetName::new(fleet)
                .map_err(|e| IdentityError::Name(Attribute::Organization, e))?,
        })
    }

    #[cfg(test)]
    pub(crate) const fn new(name: AgentName, role: Role, fleet: FleetName) -> Self {
        Self { name, role, fleet }
    }

    /// The name, unique over all roles and fleets of an authority.
    #[must_use]
    pub const fn name(&self) -> &AgentName {
        &self.name
    }

    /// What it may do.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The fleet it belongs to.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of fleet {}", self.role, self.name, self.fleet)
    }
}

fn text<'a>(
    attribute: &AttributeTypeAndValue<'a>,
    which: Attribute,
) -> Result<&'a str, IdentityError> {
    let value = attribute.attr_value();
    // Other string types are decoded differently by different programs; a name must be the same to all.
    if !matches!(value.tag(), Tag::PrintableString | Tag::Utf8String) {
        return Err(IdentityError::Encoding(which));
    }
    attribute
        .as_str()
        .map_err(|_| IdentityError::Encoding(which))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use x509_parser::prelude::FromDer as _;

    use super::*;
    use crate::authority::{Authority, days};

    const UTF8: u8 = 0x0c;
    const PRINTABLE: u8 = 0x13;
    const CN: u8 = 3;
    const O: u8 = 10;
    const OU: u8 = 11;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let len = u8::try_from(content.len()).unwrap();
        assert!(len < 0x80, "these tests need the short form only");
        [&[tag, len], content].concat()
    }

    /// `SEQUENCE { OID 2.5.4.attribute, text }`
    fn attribute(attribute: u8, tag: u8, text: &[u8]) -> Vec<u8> {
        let oid = der(0x06, &[0x55, 0x04, attribute]);
        der(0x30, &[oid, der(tag, text)].concat())
    }

    /// A name of one SET for each of `sets`, with the attributes in it.
    fn read(sets: &[&[&Vec<u8>]]) -> Result<Identity, IdentityError> {
        let sets: Vec<u8> = sets
            .iter()
            .flat_map(|set| {
                der(
                    0x31,
                    &set.iter().copied().flatten().copied().collect::<Vec<u8>>(),
                )
            })
            .collect();
        let name = der(0x30, &sets);
        Identity::from_subject(&X509Name::from_der(&name).unwrap().1)
    }

    fn text(kind: u8, text: &str) -> Vec<u8> {
        attribute(kind, UTF8, text.as_bytes())
    }

    #[test]
    fn three_words_in_any_order_make_an_identity() {
        let (cn, ou, o) = (text(CN, "web-1"), text(OU, "agent"), text(O, "prod"));
        for [a, b, c] in [[&cn, &ou, &o], [&o, &ou, &cn]] {
            let identity = read(&[&[a], &[b], &[c]]).unwrap();
            assert_eq!(identity.to_string(), "agent web-1 of fleet prod");
        }
        let printable = attribute(CN, PRINTABLE, b"web-1");
        assert!(read(&[&[&printable], &[&ou], &[&o]]).is_ok());
    }

    #[test]
    fn a_word_that_is_missing_or_there_twice_is_refused() {
        let (cn, ou, o) = (text(CN, "web-1"), text(OU, "agent"), text(O, "prod"));
        let missing = read(&[&[&cn], &[&o]]).unwrap_err();
        assert_eq!(
            missing,
            IdentityError::Missing(Attribute::OrganizationalUnit)
        );
        assert_eq!(
            read(&[]).unwrap_err(),
            IdentityError::Missing(Attribute::CommonName)
        );
        let admin = text(OU, "admin");
        let twice = read(&[&[&cn], &[&ou], &[&admin], &[&o]]).unwrap_err();
        assert_eq!(twice, IdentityError::Twice(Attribute::OrganizationalUnit));
    }

    #[test]
    fn words_that_share_a_place_are_refused() {
        let (cn, ou, o) = (text(CN, "web-1"), text(OU, "agent"), text(O, "prod"));
        assert_eq!(
            read(&[&[&cn, &ou], &[&o]]).unwrap_err(),
            IdentityError::MultiValued
        );
    }

    #[test]
    fn a_word_without_meaning_is_refused() {
        let (cn, ou, o) = (text(CN, "web-1"), text(OU, "agent"), text(O, "prod"));
        let country = attribute(6, PRINTABLE, b"DE");
        let error = read(&[&[&cn], &[&ou], &[&o], &[&country]]).unwrap_err();
        assert_eq!(error, IdentityError::Unknown("2.5.4.6".to_owned()));
    }

    #[test]
    fn texts_that_programs_read_differently_are_refused() {
        let (ou, o) = (text(OU, "agent"), text(O, "prod"));
        let (bmp, teletex, ia5, numeric) = (0x1e, 0x14, 0x16, 0x12);
        for (tag, bytes) in [
            (bmp, &b"\0w\0e\0b"[..]),
            (teletex, b"web"),
            (ia5, b"web"),
            (numeric, b"1"),
        ] {
            let cn = attribute(CN, tag, bytes);
            let error = read(&[&[&cn], &[&ou], &[&o]]).unwrap_err();
            assert_eq!(
                error,
                IdentityError::Encoding(Attribute::CommonName),
                "{tag:#x}"
            );
        }
    }

    #[test]
    fn names_and_roles_that_are_none_are_refused() {
        let (ou, o) = (text(OU, "agent"), text(O, "prod"));
        for name in [
            "",
            "web/1",
            "+",
            "#",
            "Web-1",
            "web-1\0.evil",
            "_renew",
            "web 1",
            "wéb",
        ] {
            let error = read(&[&[&text(CN, name)], &[&ou], &[&o]]).unwrap_err();
            assert!(
                matches!(error, IdentityError::Name(Attribute::CommonName, _)),
                "{name:?}: {error}"
            );
        }
        for role in ["Agent", "agent\0", "root", ""] {
            let error = read(&[&[&text(CN, "a")], &[&text(OU, role)], &[&o]]).unwrap_err();
            assert!(matches!(error, IdentityError::Role(_)), "{role:?}: {error}");
        }
        let fleet = read(&[&[&text(CN, "a")], &[&ou], &[&text(O, "Prod Inc.")]]).unwrap_err();
        assert!(matches!(
            fleet,
            IdentityError::Name(Attribute::Organization, _)
        ));
    }

    fn certificate() -> Vec<u8> {
        use rustls::pki_types::pem::PemObject as _;
        let fleet = FleetName::new("prod").unwrap();
        let authority = Authority::create(&fleet, days(2)).unwrap();
        let name = AgentName::new("web-1").unwrap();
        let issued = authority.issue(Role::Agent, &name, &[], days(1)).unwrap();
        CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes())
            .unwrap()
            .to_vec()
    }

    #[test]
    fn bytes_after_a_certificate_are_refused() {
        let mut bytes = certificate();
        assert!(Identity::from_certificate(&CertificateDer::from(bytes.clone())).is_ok());
        bytes.push(0);
        let error = Identity::from_certificate(&CertificateDer::from(bytes)).unwrap_err();
        assert_eq!(error, IdentityError::Malformed);
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_never_panics(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut bytes = certificate();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            // Refused or not: a signature decides about damaged bytes. Here they only must not do harm.
            drop(Identity::from_certificate(&CertificateDer::from(bytes)));
        }
    }
}
