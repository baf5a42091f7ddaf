//! The broker's side of one handshake, which remembers who came.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    SignatureScheme,
};

use super::{Admitted, Refusal, Refused, Trust};

/// Makes the server's side of handshakes: a client certificate is required, nothing is kept between connections.
#[derive(Clone)]
pub struct Acceptor {
    provider: Arc<CryptoProvider>,
    certificate: Arc<dyn ResolvesServerCert>,
    trust: Arc<Trust>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// Who came to one handshake. Empty until a certificate was judged, and for ever when none was: a handshake that
/// got round the judgement, by resuming a session, admits nobody.
#[derive(Clone, Debug, Default)]
pub struct Judgement(Arc<OnceLock<Result<Admitted, Refused>>>);

impl Judgement {
    /// What came of the judgement, when there was one.
    #[must_use]
    pub fn judged(&self) -> Option<&Result<Admitted, Refused>> {
        self.0.get()
    }
}

impl Acceptor {
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        certificate: Arc<dyn ResolvesServerCert>,
        trust: Arc<Trust>,
    ) -> Self {
        Self {
            provider,
            certificate,
            trust,
        }
    }

    /// Whose certificates count.
    #[must_use]
    pub const fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The configuration of one handshake, and who came to it.
    ///
    /// # Errors
    /// rustls's, when the provider has no protocol version: never with the one of this workspace.
    pub fn handshake(&self) -> Result<(Arc<ServerConfig>, Judgement), Error> {
        let judgement = Judgement::default();
        let verifier = ClientVerifier {
            provider: Arc::clone(&self.provider),
            trust: Arc::clone(&self.trust),
            judgement: judgement.clone(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&self.certificate));
        // A resumed session would skip the judgement: no cache, no tickets.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((Arc::new(config), judgement))
    }
}

/// Asks [`Trust`] in the place of rustls's own verifier.
#[derive(Debug)]
struct ClientVerifier {
    provider: Arc<CryptoProvider>,
    trust: Arc<Trust>,
    judgement: Judgement,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.trust.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged = self.trust.judge(end_entity, now);
        let answer = match &judged {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refused) => Err(Error::InvalidCertificate(alert(refused))),
        };
        // rustls asks once a handshake; a second answer would not count.
        self.judgement.0.set(judged).ok();
        answer
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What the client is told: the alert that fits.
fn alert(refused: &Refused) -> CertificateError {
    match &refused.refusal {
        Refusal::Revoked(_) | Refusal::Denied { .. } => CertificateError::Revoked,
        Refusal::Ended(_) => CertificateError::Expired,
        Refusal::NotYet(_) => CertificateError::NotValidYet,
        Refusal::Issuer(_) => CertificateError::UnknownIssuer,
        Refusal::CrlExpired(_) | Refusal::CrlMissing(_) => {
            CertificateError::UnknownRevocationStatus
        }
        Refusal::Nobody(_) | Refusal::Unusable(_) | Refusal::Broker | Refusal::Fleet(_) => {
            CertificateError::Other(OtherError(Arc::new(refused.clone())))
        }
    }
}
