//! What is not as it should be with the connection, for the status.

use hoist_certs::ENDS_SOON;
use hoist_certs::program::now;
use hoist_protocol::{Text, Timestamp};

use super::Broker;

impl Broker {
    /// What people should know of the connection and the machine's identity; none when all is well.
    pub(in crate::runtime) fn warnings(&self) -> Vec<Text<256>> {
        let mut warnings = Vec::new();
        let mut warn = |text: &str| warnings.push(Text::lossy(text));
        let connected_for = self.connected.map(|since| since.elapsed());
        if self.backoff.is_suspicious(connected_for) {
            warn(
                "another machine seems to use this machine's certificate: connections are taken away right after \
                 they are made; issue one of its own for one of them: hoist-certs issue agent NAME",
            );
        }
        if let Some(problem) = self.identity.problem() {
            warn(&format!("certificate not renewed: {problem}"));
        }
        if let Some(text) = ending(self.identity.tls().not_after(), now()) {
            warn(&text);
        }
        if self.is_connected() && !self.turn.is_first() {
            let preferred = &self.settings.brokers.urls()[0];
            warn(&format!(
                "connected to {}: {preferred}, which is preferred, did not answer",
                self.url()
            ));
        }
        for channel in &self.denied {
            warn(&format!(
                "the broker does not let this agent read its own `{}` topic",
                channel.as_str()
            ));
        }
        if self.weakly_confirmed {
            warn(
                "the last deployment was confirmed without an echo, which the broker does not pass on: by TLS, login \
                 and subscription alone",
            );
        }
        warnings
    }
}

/// What to say of a certificate that ends at `not_after`.
fn ending(not_after: Timestamp, now: Timestamp) -> Option<String> {
    if now > not_after {
        return Some(format!(
            "this machine's certificate ended on {not_after}; issue a new one with hoist-certs"
        ));
    }
    (not_after.since(now) < ENDS_SOON).then(|| {
        format!("this machine's certificate ends on {not_after}; renew it with hoist-certs")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_is_warned_about_two_weeks_before_its_end() {
        let day = |n: u64| Timestamp::from_ms(n * 24 * 60 * 60 * 1000);
        assert_eq!(ENDS_SOON, Duration::from_secs(14 * 24 * 60 * 60));
        assert_eq!(ending(day(100), day(80)), None);
        assert!(
            ending(day(100), day(87))
                .unwrap()
                .contains("ends on 1970-04-11")
        );
        assert!(ending(day(100), day(101)).unwrap().contains("ended on"));
    }
}
