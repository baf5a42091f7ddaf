//! What a client asks of a broker's certificate, and what to do when TLS fails.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
};

use hoist_protocol::{Text, Timestamp};

use crate::identity::{Identity, IdentityError};
use crate::role::Role;

/// The server's certificate is of the right authority, but not a broker's.
///
/// Without this check any machine of the fleet could play the broker for the others, if the authority ever
/// gave one a certificate for a host name.
#[derive(Debug, thiserror::Error)]
pub enum NotABroker {
    /// It is somebody else's.
    #[error("the server's certificate is not a broker's but that of {0}")]
    Role(Identity),
    /// It is nobody's.
    #[error("the server's certificate is not a broker's")]
    Nobody(#[source] IdentityError),
}

/// The chain and the host name by webpki, then the role.
#[derive(Debug)]
pub(crate) struct BrokerVerifier(pub(crate) Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for BrokerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let refused = match Identity::from_certificate(end_entity) {
            Ok(identity) if identity.role() == Role::Broker => return Ok(verified),
            Ok(identity) => NotABroker::Role(identity),
            Err(error) => NotABroker::Nobody(error),
        };
        let other = CertificateError::Other(OtherError(Arc::new(refused)));
        Err(Error::InvalidCertificate(other))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What went wrong between a client and the broker, and what to do about it.
#[must_use]
pub fn explain_tls(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => explain_server_certificate(error),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::InvalidMessage(_) => {
            "what answers there does not speak TLS; check the port of the broker".to_owned()
        }
        other => printable(&format!("TLS failed: {other}")),
    }
}

/// The client refuses what the server shows.
fn explain_server_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => {
            "the broker's certificate has expired; issue a new one with `hoist-certs issue broker`, \
             or check this machine's clock"
                .to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the broker's certificate expired on {}, and this machine's clock says {}; issue a new one with \
             `hoist-certs issue broker`, or set the clock right",
            at(*not_after),
            minute(*time)
        ),
        CertificateError::NotValidYet => {
            "the broker's certificate is not valid yet; check this machine's clock".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the broker's certificate is not valid before {}, and this machine's clock says {}; set the clock right",
            at(*not_before),
            minute(*time)
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the broker's certificate was not issued by the CA that is trusted here; \
             give both sides certificates of the same CA (`hoist-certs show` tells the issuer)"
                .to_owned()
        }
        CertificateError::NotValidForName => {
            "the broker's certificate is not for this host name; issue one with \
             `hoist-certs issue broker NAME --host HOST`"
                .to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => printable(&format!(
            "the broker's certificate is for {}, not for `{}`; connect by one of its names, \
             or issue one with `hoist-certs issue broker NAME --host {}`",
            if presented.is_empty() {
                "no host at all".to_owned()
            } else {
                presented.join(", ")
            },
            expected.to_str(),
            expected.to_str(),
        )),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not a broker's; what answers there may not be the broker"
                .to_owned()
        }
        CertificateError::Revoked => "the broker's certificate has been revoked".to_owned(),
        CertificateError::Other(OtherError(error)) => printable(&format!(
            "{error}; what answers there may not be the broker"
        )),
        other => printable(&format!(
            "the broker's certificate cannot be accepted: {other}"
        )),
    }
}

/// The server refuses what the client shows.
fn explain_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "the broker says that our certificate has expired; issue a new one with `hoist-certs issue`, \
             or check the broker's clock"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "the broker does not trust the CA of our certificate; \
             give both sides certificates of the same CA (`hoist-certs show` tells the issuer)"
        }
        AlertDescription::CertificateRevoked => {
            "the broker says that our certificate has been revoked"
        }
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the broker asks for a certificate and got none"
        }
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => {
            "the broker refuses our certificate; its log says why"
        }
        other => {
            return format!("the broker ended the TLS handshake: {other:?}; its log says why");
        }
    }
    .to_owned()
}

fn at(time: UnixTime) -> Timestamp {
    Timestamp::from_ms(time.as_secs().saturating_mul(1000))
}

/// The minute in which something was: who tries again each second says the same for that long.
fn minute(time: UnixTime) -> Timestamp {
    at(UnixTime::since_unix_epoch(Duration::from_secs(
        time.as_secs() / 60 * 60,
    )))
}

fn printable(text: &str) -> String {
    Text::<1024>::line(text).to_string()
}
