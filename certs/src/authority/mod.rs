//! The certificate authority: one CA for Hoist alone, and what it signs.

mod crl;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use hoist_protocol::{AgentName, FleetName, Timestamp};
use rand::TryRng as _;
use rand::rngs::SysRng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, DnsName};
use x509_parser::time::ASN1Time;
use zeroize::Zeroizing;

use crate::certificate::CertificateInfo;
use crate::credentials::Credentials;
use crate::directory::{CA_CERTIFICATE, CA_KEY};
use crate::files::{self, FileError};
use crate::pem::{self, Part, Pem, PemProblem};
use crate::program::now;
use crate::role::Role;
use crate::serial::Serial;
use crate::trust::Anchor;

pub use crl::{RevocationReason, RevokedCertificate};

/// How long a CA is valid unless told otherwise: ten years.
pub const CA_VALIDITY: Duration = days(3652);

/// How long a certificate is valid unless told otherwise: a year.
pub const CERTIFICATE_VALIDITY: Duration = days(365);

/// How far back a validity starts, for machines whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// Largest CA file, in bytes.
const MAX_LEN: usize = 64 * 1024;

/// So many days.
#[must_use]
pub const fn days(days: u32) -> Duration {
    Duration::from_secs(days as u64 * 24 * 60 * 60)
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Validity {
    /// From `not_before` to `not_after`, wherever they lie; certificates know whole seconds only.
    #[must_use]
    pub const fn between(not_before: Timestamp, not_after: Timestamp) -> Self {
        Self {
            not_before: whole_seconds(not_before),
            not_after: whole_seconds(not_after),
        }
    }

    /// The same, but over by `end`.
    pub(crate) fn ending_at_most(self, end: Timestamp) -> Self {
        Self {
            not_after: self.not_after.min(end),
            ..self
        }
    }
}

impl From<Duration> for Validity {
    /// From an hour ago until `duration` from now.
    fn from(duration: Duration) -> Self {
        let now = now();
        let skew = u64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(u64::MAX);
        Self::between(
            Timestamp::from_ms(now.as_ms().saturating_sub(skew)),
            now.plus(duration),
        )
    }
}

const fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_ms(time.as_ms() / 1000 * 1000)
}

/// A text that is no host.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is no host: give a DNS name such as broker.example.org (no wildcard), or an IP address"
)]
pub struct HostError(String);

/// A DNS name or an IP address that a broker is reached by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host(HostName);

#[derive(Clone, Debug, Eq, PartialEq)]
enum HostName {
    Dns(rcgen::string::Ia5String),
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse() {
            return Ok(Self(HostName::Address(address)));
        }
        let error = || {
            HostError(
                text.chars()
                    .take(100)
                    .flat_map(char::escape_debug)
                    .collect(),
            )
        };
        let name = DnsName::try_from(text).map_err(|_| error())?;
        let name = name.as_ref().to_lowercase().try_into();
        Ok(Self(HostName::Dns(name.map_err(|_| error())?)))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            HostName::Dns(name) => f.write_str(name.as_str()),
            HostName::Address(address) => write!(f, "{address}"),
        }
    }
}

impl Host {
    fn subject_alt_name(&self) -> SanType {
        match &self.0 {
            HostName::Dns(name) => SanType::DnsName(name.clone()),
            HostName::Address(address) => SanType::IpAddress(*address),
        }
    }
}

/// Why an authority cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of it cannot be read.
    #[error("cannot load the CA; `hoist-certs init` makes one")]
    Read(#[source] FileError),
    /// A file of it holds something else.
    #[error("the CA's file `{file}` cannot be used")]
    Pem {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        #[source]
        source: PemProblem,
    },
    /// The certificate is no CA of Hoist's.
    #[error("this is not a CA that `hoist-certs init` made: {0}")]
    NotOurs(&'static str),
    /// The key is another CA's.
    #[error("`{CA_KEY}` does not belong to `{CA_CERTIFICATE}`; they are made as a pair")]
    KeyMismatch,
    /// A broker without a host could not be connected to.
    #[error("a broker needs at least one host that clients reach it by; give it with --host")]
    NoHost,
    /// Only a broker is connected to.
    #[error("only a broker's certificate is for a host; leave --host out for the role {0}")]
    HostForClient(Role),
    /// It would outlive the CA.
    #[error(
        "the CA ends on {ca}, before the certificate would on {wanted}; choose fewer days, or make a new CA"
    )]
    OutlivesCa {
        /// When the CA ends.
        ca: Timestamp,
        /// When the certificate would.
        wanted: Timestamp,
    },
    /// The validity is empty or has no date in a certificate.
    #[error("{not_before} to {not_after} is no time that a certificate can be valid")]
    Validity {
        /// Its start.
        not_before: Timestamp,
        /// Its end.
        not_after: Timestamp,
    },
    /// There is no randomness.
    #[error("the operating system gives no random numbers")]
    Random(#[source] rand::rngs::SysError),
    /// The library that makes certificates failed.
    #[error("cannot make the certificate")]
    Rcgen(#[from] rcgen::Error),
}

/// A certificate and its key, new.
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key: a secret.
    pub key_pem: Zeroizing<String>,
    /// The serial number.
    pub serial: Serial,
    /// When it ends.
    pub not_after: Timestamp,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("serial", &self.serial.to_string())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// What TLS needs, in memory, with `ca_pem` as the authority that is trusted.
    #[must_use]
    pub fn credentials(&self, ca_pem: &str) -> Credentials {
        Credentials {
            ca: Pem::from(ca_pem.to_owned()),
            certificate: Pem::from(self.certificate_pem.clone()),
            key: Pem::Inline(self.key_pem.clone()),
        }
    }
}

/// A certificate authority of one fleet, with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    fleet: FleetName,
    serial: Serial,
    not_after: Timestamp,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fleet", &self.fleet)
            .field("serial", &self.serial.to_string())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority for `fleet`: ECDSA P-256, path length 0, so that it signs no further authority.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub fn create(
        fleet: &FleetName,
        valid_for: impl Into<Validity>,
    ) -> Result<Self, AuthorityError> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, "Hoist CA");
        subject.push(DnType::OrganizationName, fleet.as_str());
        let mut params = params(subject, valid_for.into())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Self::from_pem(&certificate.pem(), &Zeroizing::new(key.serialize_pem()))
    }

    /// Takes an authority from the texts of its two files.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let of = |file| move |source| AuthorityError::Pem { file, source };
        let certificates = pem::certificates_in(certificate_pem.as_bytes(), Part::Ca)
            .map_err(of(CA_CERTIFICATE))?;
        let [der] = certificates.as_slice() else {
            return Err(AuthorityError::NotOurs("it holds several certificates"));
        };
        let key = pem::private_key_in(key_pem.as_bytes()).map_err(of(CA_KEY))?;
        let info = CertificateInfo::parse(der)
            .map_err(|_| AuthorityError::NotOurs("it is no certificate"))?;
        if !info.is_ca {
            return Err(AuthorityError::NotOurs("it may not sign certificates"));
        }
        let key = KeyPair::try_from(&key)?;
        if !belongs(&key, der) {
            return Err(AuthorityError::KeyMismatch);
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(der, key)?,
            certificate_pem: certificate_pem.to_owned(),
            fleet: fleet_of(der)?,
            serial: info.serial,
            not_after: info.not_after,
        })
    }

    /// Loads the authority that `hoist-certs init` wrote into `dir`.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub fn load(dir: &Utf8Path) -> Result<Self, AuthorityError> {
        let read = |file: &str| {
            let bytes =
                files::read_limited(&dir.join(file), MAX_LEN).map_err(AuthorityError::Read)?;
            // What is no UTF-8 is no PEM either, and the PEM parser says so.
            Ok::<_, AuthorityError>(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
        };
        let certificate = read(CA_CERTIFICATE)?;
        pem::warn_if_readable_by_others(&dir.join(CA_KEY));
        Self::from_pem(&certificate, &read(CA_KEY)?)
    }

    /// The serial number of the authority in `dir`, which needs no private key.
    pub(crate) fn serial_in(dir: &Utf8Path) -> Result<Serial, AuthorityError> {
        let bytes = files::read_limited(&dir.join(CA_CERTIFICATE), MAX_LEN)
            .map_err(AuthorityError::Read)?;
        let file = CA_CERTIFICATE;
        let certificates = pem::certificates_in(&bytes, Part::Ca)
            .map_err(|source| AuthorityError::Pem { file, source })?;
        let info = certificates.first().map(CertificateInfo::parse);
        let info = info.and_then(Result::ok);
        let info = info.ok_or(AuthorityError::NotOurs("it is no certificate"))?;
        Ok(info.serial)
    }

    /// As those see it who trust it.
    pub(crate) fn anchor(&self) -> Result<Arc<Anchor>, AuthorityError> {
        let file = CA_CERTIFICATE;
        let certificates = pem::certificates_in(self.certificate_pem.as_bytes(), Part::Ca)
            .map_err(|source| AuthorityError::Pem { file, source })?;
        let anchor = certificates.first().map(Anchor::parse);
        let anchor = anchor.and_then(Result::ok);
        let (_, anchor) = anchor.ok_or(AuthorityError::NotOurs("it is no certificate"))?;
        Ok(Arc::new(anchor))
    }

    /// Signs a certificate for `name` in the authority's own fleet, with a new key.
    ///
    /// A client's is for client authentication only and names no host; a broker's is for server
    /// authentication, on `hosts`.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub fn issue(
        &self,
        role: Role,
        name: &AgentName,
        hosts: &[Host],
        valid_for: impl Into<Validity>,
    ) -> Result<Issued, AuthorityError> {
        self.issue_in(&self.fleet, role, name, hosts, valid_for)
    }

    /// Signs a certificate for `name` in another fleet that trusts the same authority.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub fn issue_in(
        &self,
        fleet: &FleetName,
        role: Role,
        name: &AgentName,
        hosts: &[Host],
        valid_for: impl Into<Validity>,
    ) -> Result<Issued, AuthorityError> {
        let usages = match role {
            Role::Broker => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Agent | Role::Publisher | Role::Monitor | Role::Admin => {
                vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        self.issue_for(usages, fleet, role, name, hosts, valid_for.into())
    }

    /// Issues a certificate for a broker that is one of a cluster: its nodes connect to each other, so each of them is
    /// server and client.
    ///
    /// # Errors
    /// As [`Authority::issue_in`].
    pub fn issue_node(
        &self,
        fleet: &FleetName,
        name: &AgentName,
        hosts: &[Host],
        valid_for: impl Into<Validity>,
    ) -> Result<Issued, AuthorityError> {
        let usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue_for(usages, fleet, Role::Broker, name, hosts, valid_for.into())
    }

    fn issue_for(
        &self,
        usages: Vec<ExtendedKeyUsagePurpose>,
        fleet: &FleetName,
        role: Role,
        name: &AgentName,
        hosts: &[Host],
        validity: Validity,
    ) -> Result<Issued, AuthorityError> {
        if validity.not_after > self.not_after {
            return Err(AuthorityError::OutlivesCa {
                ca: self.not_after,
                wanted: validity.not_after,
            });
        }
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name.as_str());
        subject.push(DnType::OrganizationalUnitName, role.as_str());
        subject.push(DnType::OrganizationName, fleet.as_str());
        let mut params = params(subject, validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match role {
            Role::Broker if hosts.is_empty() => return Err(AuthorityError::NoHost),
            Role::Agent | Role::Publisher | Role::Monitor | Role::Admin if !hosts.is_empty() => {
                return Err(AuthorityError::HostForClient(role));
            }
            _ => {}
        }
        params.extended_key_usages = usages;
        params.subject_alt_names = hosts.iter().map(Host::subject_alt_name).collect();
        let serial = params.serial_number.as_ref().map_or_else(
            || Serial::from_be_bytes(&[]),
            |serial| Serial::from_be_bytes(serial.as_ref()),
        );
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
            serial,
            not_after: validity.not_after,
        })
    }

    /// The certificate, which everybody may have.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key: whoever has it can be anybody.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// The fleet it was made for.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// The serial number of its certificate, which tells it from an authority of the same name.
    #[must_use]
    pub const fn serial(&self) -> &Serial {
        &self.serial
    }

    /// When it ends.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// What all certificates have in common.
fn params(
    subject: DistinguishedName,
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    let Validity {
        not_before,
        not_after,
    } = validity;
    let bad = || AuthorityError::Validity {
        not_before,
        not_after,
    };
    if not_before >= not_after {
        return Err(bad());
    }
    let date = |time: Timestamp| {
        let seconds = i64::try_from(time.as_ms() / 1000).map_err(|_| bad())?;
        let time = ASN1Time::from_timestamp(seconds).map_err(|_| bad())?;
        Ok::<_, AuthorityError>(time.to_datetime())
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = date(not_before)?;
    params.not_after = date(not_after)?;
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// 126 random bits; the two highest are fixed, so that it is positive and always 16 bytes long.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(AuthorityError::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn fleet_of(der: &CertificateDer<'_>) -> Result<FleetName, AuthorityError> {
    let certificate = crate::certificate::parse(der)
        .map_err(|_| AuthorityError::NotOurs("it is no certificate"))?;
    let mut fleets = certificate.subject().iter_organization();
    let (Some(fleet), None) = (fleets.next(), fleets.next()) else {
        return Err(AuthorityError::NotOurs("its subject names no fleet"));
    };
    fleet
        .as_str()
        .ok()
        .and_then(|fleet| FleetName::new(fleet).ok())
        .ok_or(AuthorityError::NotOurs("its subject names no fleet"))
}

fn belongs(key: &KeyPair, der: &CertificateDer<'_>) -> bool {
    use rcgen::PublicKeyData as _;
    crate::certificate::parse(der)
        .is_ok_and(|certificate| certificate.public_key().raw == key.subject_public_key_info())
}
