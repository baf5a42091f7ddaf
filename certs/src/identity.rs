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
    pub(crate) const fn new(name: AgentName, role: Role, fleet: FleetName) -> Self {
        Self { name, role, fleet }
    }

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
