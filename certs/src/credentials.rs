//! TLS from three PEM texts, everything checked before the first connection.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_protocol::Timestamp;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{ClientConfig, RootCertStore};

use crate::authority::days;
use crate::certificate::CertificateInfo;
use crate::files::FileError;
use crate::identity::{Identity, IdentityError};
use crate::pem::{Part, Pem, PemError};
use crate::program::now;
use crate::role::Role;
use crate::server::{ServerSources, ServerTls};
use crate::trust::{CrlError, DenylistError};
use crate::verifier::BrokerVerifier;

/// How long before its end a certificate is warned about whenever it is loaded.
pub const ENDS_SOON: Duration = days(14);

/// What TLS needs: the authorities that are trusted, one's own certificate and its private key.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Certificates of the authorities that are trusted.
    pub ca: Pem,
    /// One's own certificate.
    pub certificate: Pem,
    /// The private key of the certificate.
    pub key: Pem,
}

/// Why there is no TLS with these credentials.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of the three cannot be read.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A section of a PEM file is labelled as a certificate and is none.
    #[error("the {part} from {origin} holds something that is no certificate")]
    NotACertificate {
        /// What it is for.
        part: Part,
        /// Where it comes from.
        origin: Pem,
    },
    /// Somebody's certificate was given as the CA.
    #[error("the CA from {origin} is no CA but the certificate of {subject}; give the `ca.pem`")]
    NotACa {
        /// Where it comes from.
        origin: Pem,
        /// Whose it is.
        subject: String,
    },
    /// The CA was given as somebody's certificate.
    #[error(
        "the certificate from {origin} is a CA, not anybody's; give the one that `hoist-certs issue` wrote"
    )]
    IsCa {
        /// Where it comes from.
        origin: Pem,
    },
    /// The certificate's subject is nobody of Hoist's.
    #[error(
        "the certificate from {origin} names nobody of a fleet; `hoist-certs issue` makes one that does"
    )]
    Identity {
        /// Where it comes from.
        origin: Pem,
        /// What is wrong.
        #[source]
        source: IdentityError,
    },
    /// The certificate or CA has ended.
    #[error("the {part} from {origin} expired on {not_after}; {what_to_do}")]
    Expired {
        /// Which one.
        part: Part,
        /// Where it comes from.
        origin: Pem,
        /// When it ended.
        not_after: Timestamp,
        /// How to get a new one.
        what_to_do: &'static str,
    },
    /// The certificate or CA starts later.
    #[error(
        "the {part} from {origin} is not valid before {not_before}, and it is {now} here; check the clock"
    )]
    NotYetValid {
        /// Which one.
        part: Part,
        /// Where it comes from.
        origin: Pem,
        /// When it starts.
        not_before: Timestamp,
        /// The time here.
        now: Timestamp,
    },
    /// The key is another certificate's.
    #[error(
        "the private key from {key} does not belong to the certificate from {certificate}; they are issued as a pair"
    )]
    KeyMismatch {
        /// Where the certificate comes from.
        certificate: Pem,
        /// Where the key comes from.
        key: Pem,
    },
    /// The certificate is of another role.
    #[error(
        "the certificate from {origin} is that of {identity}, and a broker needs a broker's; \
         make one with `hoist-certs issue broker NAME --host HOST`"
    )]
    NotABroker {
        /// Where it comes from.
        origin: Pem,
        /// Whose it is.
        identity: Identity,
    },
    /// rustls cannot use them for another reason.
    #[error("TLS cannot use the certificate from {certificate} with the private key from {key}")]
    Unusable {
        /// Where the certificate comes from.
        certificate: Pem,
        /// Where the key comes from.
        key: Pem,
        /// Why not.
        #[source]
        source: Box<rustls::Error>,
    },
    /// A revocation list cannot be used.
    #[error("cannot use the CRL `{path}`")]
    Crl {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: CrlError,
    },
    /// The revocation lists would take back less than those in use.
    #[error("cannot go back behind the CRL in use")]
    OldCrl(#[source] CrlError),
    /// The denylist cannot be used.
    #[error("cannot use the denylist `{path}`")]
    Denylist {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: DenylistError,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(FileError),
    /// The authorities cannot be used for verification.
    #[error("TLS cannot use the CA from {origin}: {reason}")]
    Ca {
        /// Where they come from.
        origin: Pem,
        /// Why not.
        reason: String,
    },
}

/// The client's side of mutual TLS. It talks to nothing but a broker of its own authority.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    identity: Identity,
    not_after: Timestamp,
    other_ca: Option<String>,
}

impl ClientTls {
    /// For rustls.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Who we are.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When our certificate ends.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether a CA that is trusted here has issued our certificate. The broker decides whether it counts, and may
    /// know more of them than we do.
    ///
    /// # Errors
    /// Says why it does not hold.
    pub fn issuer(&self) -> Result<(), &str> {
        match &self.other_ca {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

impl Credentials {
    /// Makes the client's side: no resumption, so that a revoked or expired certificate never lives on in a
    /// ticket, and the server must have the role of a broker.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn client(&self) -> Result<ClientTls, TlsError> {
        self.client_checked(Untimely::Refused)
    }

    /// The same for a program that nobody watches, whose clock may be wrong until it has a network and whose
    /// certificate may be renewed while it runs: that something has expired, or is not valid yet, is logged as an
    /// error, and whether it counts is decided by the other side at each handshake.
    ///
    /// # Errors
    /// [`TlsError`], but for [`TlsError::Expired`] and [`TlsError::NotYetValid`].
    pub fn unattended_client(&self) -> Result<ClientTls, TlsError> {
        self.client_checked(Untimely::Logged)
    }

    fn client_checked(&self, untimely: Untimely) -> Result<ClientTls, TlsError> {
        let roots = self.roots(untimely)?;
        let own = self.own(&roots, untimely)?;
        let provider = provider();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| self.bad_ca(&error))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| self.unusable(source))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BrokerVerifier(verifier)))
            .with_client_auth_cert(own.chain, self.key.private_key()?)
            .map_err(|source| self.unusable(source))?;
        config.resumption = Resumption::disabled();
        Ok(ClientTls {
            config: Arc::new(config),
            identity: own.identity,
            not_after: own.not_after,
            other_ca: own.other_ca,
        })
    }

    /// Makes the broker's side for all fleets of the CA, without revocation; [`ServerSources`] has the rest.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn server(&self) -> Result<ServerTls, TlsError> {
        ServerSources::from(self.clone()).load(None)
    }

    pub(crate) fn own(&self, roots: &RootCertStore, untimely: Untimely) -> Result<Own, TlsError> {
        let (part, origin) = (Part::Certificate, &self.certificate);
        let chain = origin.certificates(part)?;
        let info = read(&chain[0], part, origin)?;
        if info.is_ca {
            return Err(TlsError::IsCa {
                origin: origin.clone(),
            });
        }
        let what_to_do = "issue a new one with `hoist-certs issue … --force`";
        let now_valid = untimely.accept(check_time(&info, part, origin, what_to_do))?;
        let identity = info.identity.map_err(|source| TlsError::Identity {
            origin: origin.clone(),
            source,
        })?;
        // The check of the issuer is one of the time too.
        let other_ca = if now_valid {
            self.warn_if_of_another_ca(&chain, identity.role(), roots)
        } else {
            None
        };
        let own = Own {
            chain,
            identity,
            not_after: info.not_after,
            other_ca,
        };
        let left = own.not_after.since(now());
        if now_valid && left < ENDS_SOON {
            tracing::warn!(
                certificate = %origin,
                not_after = %own.not_after,
                "our certificate ends soon; renew it with `hoist-certs issue {} {} --force`",
                own.identity.role(),
                own.identity.name(),
            );
        }
        Ok(own)
    }

    pub(crate) fn roots(&self, untimely: Untimely) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for der in authorities_in(&self.ca, untimely)? {
            roots.add(der).map_err(|error| self.bad_ca(&error))?;
        }
        Ok(roots)
    }

    /// The other side decides whether our certificate counts, and it may know more authorities than we do: so
    /// this is no error, but nearly always a mistake.
    fn warn_if_of_another_ca(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        roots: &RootCertStore,
    ) -> Option<String> {
        let usage = match role {
            Role::Broker => webpki::KeyUsage::server_auth(),
            Role::Agent | Role::Publisher | Role::Monitor | Role::Admin => {
                webpki::KeyUsage::client_auth()
            }
        };
        let verified = webpki::EndEntityCert::try_from(&chain[0]).and_then(|certificate| {
            certificate
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &roots.roots,
                    &chain[1..],
                    UnixTime::now(),
                    usage,
                    None,
                    None,
                )
                .map(|_| ())
        });
        let error = verified.err()?;
        tracing::warn!(
            certificate = %self.certificate,
            ca = %self.ca,
            %error,
            "our own certificate does not hold under the CA that is trusted here; \
             unless the fleet is moving to another CA, one of the two is the wrong file"
        );
        Some(error.to_string())
    }

    pub(crate) fn unusable(&self, source: rustls::Error) -> TlsError {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        match source {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { certificate, key },
            source => TlsError::Unusable {
                certificate,
                key,
                source: Box::new(source),
            },
        }
    }

    fn bad_ca(&self, reason: &dyn std::fmt::Display) -> TlsError {
        TlsError::Ca {
            origin: self.ca.clone(),
            reason: reason.to_string(),
        }
    }
}

/// What becomes of a certificate that has expired, or is not valid yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Untimely {
    /// It is an error.
    Refused,
    /// That is logged as an error, and it is used.
    Logged,
}

impl Untimely {
    /// Whether it is valid now.
    fn accept(self, checked: Result<(), TlsError>) -> Result<bool, TlsError> {
        match checked {
            Ok(()) => Ok(true),
            Err(error) if self == Self::Logged => {
                tracing::error!("{error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// The certificates of the CAs in `origin` that hold now, one at least; where none does and that is accepted, all.
pub(crate) fn authorities_in(
    origin: &Pem,
    untimely: Untimely,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let part = Part::Ca;
    let (mut authorities, mut others) = (Vec::new(), Vec::new());
    let mut refused = None;
    for der in origin.certificates(part)? {
        let info = read(&der, part, origin)?;
        if !info.is_ca {
            return Err(TlsError::NotACa {
                origin: origin.clone(),
                subject: info.subject,
            });
        }
        // One of several CAs may be past its time while a fleet moves from one to the next.
        let what_to_do = "make a new one with `hoist-certs init`";
        match check_time(&info, part, origin, what_to_do) {
            Ok(()) => authorities.push(der),
            Err(error) => {
                others.push(der);
                refused = Some(error);
            }
        }
    }
    match refused {
        Some(error) if authorities.is_empty() => {
            untimely.accept(Err(error))?;
            Ok(others)
        }
        _ => Ok(authorities),
    }
}

/// One's own certificate, read and checked.
pub(crate) struct Own {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) identity: Identity,
    pub(crate) not_after: Timestamp,
    /// Why it does not hold under the CA that is trusted here.
    other_ca: Option<String>,
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(der: &CertificateDer<'_>, part: Part, origin: &Pem) -> Result<CertificateInfo, TlsError> {
    CertificateInfo::parse(der).map_err(|_| TlsError::NotACertificate {
        part,
        origin: origin.clone(),
    })
}

fn check_time(
    info: &CertificateInfo,
    part: Part,
    origin: &Pem,
    what_to_do: &'static str,
) -> Result<(), TlsError> {
    let now = now();
    if now > info.not_after {
        return Err(TlsError::Expired {
            part,
            origin: origin.clone(),
            not_after: info.not_after,
            what_to_do,
        });
    }
    if now < info.not_before {
        return Err(TlsError::NotYetValid {
            part,
            origin: origin.clone(),
            not_before: info.not_before,
            now,
        });
    }
    Ok(())
}
