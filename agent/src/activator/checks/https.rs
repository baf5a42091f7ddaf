//! HTTPS: whom a check believes, and why it does not.

use std::sync::Arc;

use hoist_protocol::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// The authorities that may have issued a server's certificate.
pub(super) type Authorities = Vec<Certificate<'static>>;

/// Those that the machine trusts: of the file or folder in `SSL_CERT_FILE` or `SSL_CERT_DIR`, else where the system
/// keeps them. Read at each try, since an activation may change them.
///
/// # Errors
/// There are none; says where they were looked for.
pub(super) fn authorities() -> Result<Authorities, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map(ToString::to_string);
        return Err(format!(
            "this machine has no certificate authorities: {}",
            why.unwrap_or_else(|| "there is no such file".to_owned())
        ));
    }
    let authorities = found.certs.iter();
    Ok(authorities
        .map(|der| Certificate::from_der(der).to_owned())
        .collect())
}

pub(super) fn trusting(authorities: Authorities) -> TlsConfig {
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(authorities)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// Why a server was not believed, and what to do; none when the error is about something else.
pub(super) fn refusal(error: &ureq::Error) -> Option<String> {
    let error = match error {
        ureq::Error::Rustls(error) => error,
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    let rustls::Error::InvalidCertificate(error) = error else {
        return None;
    };
    Some(match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no certificate authority that this machine trusts has issued its certificate; make the machine trust \
             the one that has (on NixOS with `security.pki.certificateFiles`)"
                .to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate expired on {}, and this machine's clock says {}; renew it, or set the clock right",
            shown(*not_after),
            shown(*time)
        ),
        CertificateError::Expired => {
            "its certificate has expired; renew it, or check this machine's clock".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid before {}, and this machine's clock says {}; set the clock right",
            shown(*not_before),
            shown(*time)
        ),
        CertificateError::NotValidYet => {
            "its certificate is not valid yet; check this machine's clock".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "its certificate is for {}, not for `{}`; ask for it by one of its names",
            names(presented),
            expected.to_str()
        ),
        CertificateError::NotValidForName => {
            "its certificate is not for this host name; ask for it by one of its names".to_owned()
        }
        other => format!("its certificate is not valid: {other}"),
    })
}

/// What a certificate is for; rustls tells `DnsName("web.example.org")`.
fn names(presented: &[String]) -> String {
    let bare = presented.iter().map(|name| {
        let quoted = name.strip_prefix("DnsName(\"");
        quoted
            .and_then(|name| name.strip_suffix("\")"))
            .unwrap_or(name)
    });
    match presented {
        [] => "no host at all".to_owned(),
        _ => bare.collect::<Vec<_>>().join(", "),
    }
}

fn shown(time: UnixTime) -> Timestamp {
    Timestamp::from_ms(time.as_secs().saturating_mul(1000))
}
