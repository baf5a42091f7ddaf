//! Revocation lists, as the authority signs them.

use hoist_protocol::Timestamp;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use serde::{Deserialize, Serialize};
use x509_parser::time::ASN1Time;

use super::{Authority, AuthorityError};
use crate::serial::Serial;

/// Why a certificate is taken back (RFC 5280, section 5.3.1). It changes nothing about what happens.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationReason {
    /// Nobody says.
    #[default]
    Unspecified,
    /// Somebody else may have the private key.
    KeyCompromise,
    /// Another certificate has taken its place.
    Superseded,
    /// The machine or job is gone.
    CessationOfOperation,
}

/// One certificate on a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RevokedCertificate {
    /// Which one.
    pub serial: Serial,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: RevocationReason,
}

impl Authority {
    /// Signs the list of all that was taken back, in PEM. `number` has to grow from list to list; `next_update` is
    /// the promise that there is a newer one by then.
    ///
    /// # Errors
    /// [`AuthorityError`]
    pub fn revocation_list(
        &self,
        number: &Serial,
        this_update: Timestamp,
        next_update: Timestamp,
        revoked: &[RevokedCertificate],
    ) -> Result<String, AuthorityError> {
        let date = |time: Timestamp| {
            let bad = AuthorityError::Validity {
                not_before: this_update,
                not_after: next_update,
            };
            let Ok(seconds) = i64::try_from(time.as_ms() / 1000) else {
                return Err(bad);
            };
            let time = ASN1Time::from_timestamp(seconds).map_err(|_| bad)?;
            Ok(time.to_datetime())
        };
        let mut entries = Vec::with_capacity(revoked.len());
        for certificate in revoked {
            entries.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.serial.as_bytes()),
                revocation_time: date(certificate.since)?,
                reason_code: match certificate.reason {
                    // It is left out (RFC 5280, section 5.3.1).
                    RevocationReason::Unspecified => None,
                    RevocationReason::KeyCompromise => Some(rcgen::RevocationReason::KeyCompromise),
                    RevocationReason::Superseded => Some(rcgen::RevocationReason::Superseded),
                    RevocationReason::CessationOfOperation => {
                        Some(rcgen::RevocationReason::CessationOfOperation)
                    }
                },
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: date(this_update)?,
            next_update: date(next_update)?,
            crl_number: SerialNumber::from_slice(number.as_bytes()),
            issuing_distribution_point: None,
            revoked_certs: entries,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}
