//! What is seen from outside: the audit log, and where metrics are told.

use std::net::SocketAddr;

use super::{Options, SettingsError};
use crate::observe::AuditSettings;

/// The audit log, when there is one.
pub(super) fn audit(options: &mut Options) -> Result<Option<AuditSettings>, SettingsError> {
    match (options.audit_log.take(), options.audit_failure) {
        (Some(path), on_failure) => Ok(Some(AuditSettings {
            path,
            on_failure: on_failure.unwrap_or_default(),
        })),
        (None, Some(_)) => Err(SettingsError::NoAuditLog),
        (None, None) => Ok(None),
    }
}

/// Where metrics are told; a port alone is one of this machine's own.
pub(super) fn metrics(options: &Options) -> Result<Option<SocketAddr>, SettingsError> {
    let of_port = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let address = |given: &str| {
        let port = given.parse().map(of_port);
        port.or_else(|_| given.parse())
            .map_err(|_| SettingsError::MetricsListen)
    };
    options.metrics_listen.as_deref().map(address).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_to_this_machine_alone_unless_an_address_is_given() {
        let at = |text: &str| {
            let options = Options {
                metrics_listen: Some(text.to_owned()),
                ..Options::default()
            };
            metrics(&options).map(|address| address.unwrap().to_string())
        };
        assert_eq!(at("9464").unwrap(), "127.0.0.1:9464");
        assert_eq!(at("0.0.0.0:9464").unwrap(), "0.0.0.0:9464");
        assert_eq!(at("[::1]:9464").unwrap(), "[::1]:9464");
        for bad in ["", "metrics", "70000", "localhost:1"] {
            assert!(
                matches!(at(bad), Err(SettingsError::MetricsListen)),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_policy_without_an_audit_log_is_a_mistake() {
        let mut options = Options {
            audit_failure: Some(crate::AuditFailure::Refuse),
            ..Options::default()
        };
        assert!(matches!(
            audit(&mut options),
            Err(SettingsError::NoAuditLog)
        ));
    }
}
