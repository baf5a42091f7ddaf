//! The broker's side of mutual TLS, from files that may change while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{FleetName, Timestamp};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::credentials::{Credentials, TlsError, Untimely, authorities_in, provider};
use crate::files;
use crate::identity::Identity;
use crate::pem::Pem;
use crate::role::Role;
use crate::trust::{Acceptor, CRL_LEN, Denylist, Lapse, Trust, TrustBuilder};

/// Largest denylist, in bytes.
const DENYLIST_LEN: usize = 4 * 1024 * 1024;

/// What was taken back, and what to do when nobody knows.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Files of revocation lists, PEM or DER. None: revocation lists are not used.
    pub crls: Vec<Utf8PathBuf>,
    /// A file of names and serial numbers that are let in no more.
    pub denylist: Option<Utf8PathBuf>,
    /// What to do when a list's next one is overdue.
    pub on_expired: Lapse,
    /// What to do when lists are used and there is none of a CA.
    pub on_missing: Lapse,
}

impl Default for Revocation {
    /// No lists. An overdue list is a forgotten chore: what it revokes stays revoked, and it must not cut a fleet
    /// off at night. A missing one is a mistake that is noticed when it is made: until it is mended nobody gets in.
    fn default() -> Self {
        Self {
            crls: Vec::new(),
            denylist: None,
            on_expired: Lapse::Accept,
            on_missing: Lapse::Refuse,
        }
    }
}

/// Where everything comes from that the broker's side of TLS needs.
#[derive(Clone, Debug)]
pub struct ServerSources {
    /// The broker's own certificate and key, and the CAs of all fleets without their own.
    pub credentials: Credentials,
    /// The fleets that are served, each with CAs of its own if it has them: those may issue for no other fleet,
    /// and no other CA for it. When there are none here, every fleet is served.
    pub fleets: BTreeMap<FleetName, Option<Pem>>,
    /// What was taken back.
    pub revocation: Revocation,
}

/// The broker's side of mutual TLS. It talks to nobody without a certificate of its own authority.
#[derive(Clone, Debug)]
pub struct ServerTls {
    acceptor: Acceptor,
    identity: Identity,
    not_after: Timestamp,
}

impl ServerTls {
    /// Makes handshakes.
    #[must_use]
    pub const fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// For rustls, where nobody asks who came.
    ///
    /// # Panics
    /// Never: what worked once works always, and it did when this was made.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.acceptor
            .handshake()
            .expect("it worked when it was made")
            .0
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
}

impl From<Credentials> for ServerSources {
    /// All fleets of one CA, nothing taken back.
    fn from(credentials: Credentials) -> Self {
        Self {
            credentials,
            fleets: BTreeMap::new(),
            revocation: Revocation::default(),
        }
    }
}

impl ServerSources {
    /// The files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &Utf8Path> {
        let Credentials {
            ca,
            certificate,
            key,
        } = &self.credentials;
        let texts = [ca, certificate, key]
            .into_iter()
            .chain(self.fleets.values().flatten());
        let pems = texts.filter_map(|pem| match pem {
            Pem::File(path) => Some(path),
            Pem::Inline(_) => None,
        });
        pems.chain(&self.revocation.crls)
            .chain(&self.revocation.denylist)
            .map(Utf8PathBuf::as_path)
    }

    /// Reads everything and checks it. `used` is what is in use: a revocation list may not be older than there.
    ///
    /// # Errors
    /// [`TlsError`], which says which file is wrong and why.
    pub fn load(&self, used: Option<&Trust>) -> Result<ServerTls, TlsError> {
        let credentials = &self.credentials;
        let roots = credentials.roots(Untimely::Refused)?;
        let own = credentials.own(&roots, Untimely::Refused)?;
        if own.identity.role() != Role::Broker {
            return Err(TlsError::NotABroker {
                origin: credentials.certificate.clone(),
                identity: own.identity,
            });
        }
        let provider = provider();
        let key = CertifiedKey::from_der(own.chain, credentials.key.private_key()?, &provider)
            .map_err(|source| credentials.unusable(source))?;
        let certificate: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(key));
        let acceptor = Acceptor::new(provider, certificate, Arc::new(self.trust(used)?));
        acceptor
            .handshake()
            .map_err(|source| credentials.unusable(source))?;
        Ok(ServerTls {
            acceptor,
            identity: own.identity,
            not_after: own.not_after,
        })
    }

    fn trust(&self, used: Option<&Trust>) -> Result<Trust, TlsError> {
        let mut builder =
            TrustBuilder::new(&authorities_in(&self.credentials.ca, Untimely::Refused)?);
        for (fleet, ca) in &self.fleets {
            let own = match ca {
                Some(ca) => Some(authorities_in(ca, Untimely::Refused)?),
                None => None,
            };
            builder.serve(fleet.clone(), own.as_deref());
        }
        let Revocation {
            crls,
            denylist,
            on_expired,
            on_missing,
        } = &self.revocation;
        for path in crls {
            let bytes = match files::read_limited(path, CRL_LEN) {
                Ok(bytes) => bytes,
                // Said with the other complaints, and handled as configured.
                Err(error) if error.is_not_found() => continue,
                Err(source) => return Err(TlsError::File(source)),
            };
            builder.revoke(&bytes).map_err(|source| TlsError::Crl {
                path: path.clone(),
                source,
            })?;
        }
        if let Some(path) = denylist {
            builder.deny(read_denylist(path)?);
        }
        let lapses = (!crls.is_empty()).then_some((*on_expired, *on_missing));
        builder.build(lapses, used).map_err(TlsError::OldCrl)
    }
}

fn read_denylist(path: &Utf8Path) -> Result<Denylist, TlsError> {
    let bytes = files::read_limited(path, DENYLIST_LEN).map_err(TlsError::File)?;
    // What is no UTF-8 becomes a line that denies nobody, which is an error.
    Denylist::parse(&String::from_utf8_lossy(&bytes)).map_err(|source| TlsError::Denylist {
        path: path.to_owned(),
        source,
    })
}
