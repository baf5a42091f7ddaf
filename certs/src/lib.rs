//! Identities: who a certificate says somebody is, the authority that says so, and TLS between the two.
//!
//! The rest is what every program of Hoist needs the same way: an MQTT client's options ([`mqtt`]), files that
//! are never half written or readable by others ([`files`]), configuration, logging and errors ([`program`]), and finding out what
//! is wrong ([`doctor`]).

pub mod authority;
mod certificate;
mod credentials;
pub mod directory;
pub mod doctor;
pub mod files;
mod identity;
pub mod inspect;
pub mod mqtt;
mod pem;
pub mod program;
mod role;
mod serial;
mod server;
mod signing_key;
pub mod trust;
mod verifier;

pub use certificate::{CertificateError, CertificateInfo};
pub use credentials::{ClientTls, Credentials, ENDS_SOON, TlsError};
pub use identity::{Attribute, Identity, IdentityError};
pub use pem::{Part, Pem, PemError, PemProblem};
pub use role::{Role, RoleError};
pub use serial::{Serial, SerialError};
pub use server::{Revocation, ServerSources, ServerTls};
pub use signing_key::{SigningKeyError, SigningKeySource};
pub use verifier::{NotABroker, explain_tls};
