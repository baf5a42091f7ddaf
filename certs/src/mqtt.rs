//! MQTT clients, all with the same options, and what to do when they cannot connect.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use hoist_protocol::{BrokerUrl, Text, limits};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, MqttOptions, TlsConfiguration,
    Transport,
};

use crate::credentials::ClientTls;
use crate::verifier::explain_tls;

/// How long a connection may be silent before the client asks whether the broker is still there.
///
/// Short enough for the address translation of home routers, well above the 8 s that some brokers stall.
pub const KEEP_ALIVE: Duration = Duration::from_secs(45);

/// How long TCP, TLS and the broker's CONNACK may take together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Topic, packet id and header of a publish, generously, in bytes.
const PACKET_OVERHEAD: usize = 1024;

/// The options of every Hoist client: MQTT 3.1.1 over mutual TLS, a clean session, packets as large as the
/// protocol's largest payload.
///
/// The connect timeout is not among them, since rumqttc keeps it in the event loop: see [`client`].
#[must_use]
pub fn options(url: &BrokerUrl, client_id: &str, tls: &ClientTls) -> MqttOptions {
    let packet = limits::PAYLOAD_LEN + PACKET_OVERHEAD;
    let mut options = MqttOptions::new(client_id, url.host(), url.port());
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
            tls.config(),
        )))
        .set_clean_session(true)
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(packet, packet);
    options
}

/// A client and its event loop, with [`CONNECT_TIMEOUT`], and a queue of `capacity` requests.
#[must_use]
pub fn client(options: MqttOptions, capacity: usize) -> (AsyncClient, EventLoop) {
    let (client, mut event_loop) = AsyncClient::new(options, capacity);
    event_loop
        .network_options
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_tcp_nodelay(true);
    (client, event_loop)
}

/// What kept a client from the broker, coarsely: what to conclude from it depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailureKind {
    /// The host name has no address.
    Name,
    /// This machine has no network that leads there.
    NoNetwork,
    /// TCP got no answer, or a refusal.
    Unreachable,
    /// One side does not accept the other's certificate, or it is no TLS.
    Tls,
    /// The broker answered, and said no.
    Refused,
    /// The connection was there and broke.
    Lost,
}

impl FailureKind {
    /// Whether the broker has noticed nothing of the try: then it costs nobody much to try again soon.
    #[must_use]
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Name | Self::NoNetwork)
    }
}

/// Why there is no connection, with what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ConnectFailure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    message: String,
}

/// Finds out what `error` of a client of the broker at `url` means.
#[must_use]
pub fn diagnose(error: &ConnectionError, url: &BrokerUrl) -> ConnectFailure {
    let failure = |kind, message: &dyn fmt::Display| ConnectFailure {
        kind,
        message: Text::<1024>::lossy(&format!("{url}: {message}")).to_string(),
    };
    if let Some(error) = find::<rustls::Error>(error) {
        return failure(FailureKind::Tls, &explain_tls(error));
    }
    match error {
        ConnectionError::ConnectionRefused(code) => failure(FailureKind::Refused, &refusal(*code)),
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => failure(
            FailureKind::Unreachable,
            &format_args!(
                "no answer within {} s; check the address, the broker and any firewall between",
                CONNECT_TIMEOUT.as_secs()
            ),
        ),
        _ => match find::<io::Error>(error) {
            Some(error) => {
                let (kind, message) = explain_io(error, url);
                failure(kind, &message)
            }
            None => failure(
                FailureKind::Lost,
                &format_args!("the connection broke: {error}"),
            ),
        },
    }
}

fn explain_io(error: &io::Error, url: &BrokerUrl) -> (FailureKind, String) {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => (
            FailureKind::Unreachable,
            format!(
                "nothing listens on port {}; is the broker running?",
                url.port()
            ),
        ),
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => (
            FailureKind::NoNetwork,
            format!("this machine has no network that leads there ({error})"),
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => (
            FailureKind::Unreachable,
            format!("the network does not reach it ({error})"),
        ),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe => (
            FailureKind::Lost,
            "the other side closed the connection; the broker's log says why".to_owned(),
        ),
        // The resolver's errors have no kind of their own.
        _ if error.to_string().contains("lookup") => (
            FailureKind::Name,
            format!(
                "no address is known for `{}`; check the name and the resolver",
                url.host()
            ),
        ),
        _ => (FailureKind::Lost, format!("the connection broke: {error}")),
    }
}

fn refusal(code: ConnectReturnCode) -> &'static str {
    match code {
        ConnectReturnCode::Success => "the broker says yes and no at once",
        ConnectReturnCode::RefusedProtocolVersion => "the broker does not speak MQTT 3.1.1",
        ConnectReturnCode::BadClientId => {
            "the broker refuses the client id, which must fit the certificate"
        }
        ConnectReturnCode::ServiceUnavailable => "the broker is busy or stopping; try again later",
        ConnectReturnCode::BadUserNamePassword => {
            "the broker asks for a user name and a password; it should take the certificate instead"
        }
        ConnectReturnCode::NotAuthorized => {
            "the broker does not allow this certificate; its log says why"
        }
    }
}

/// The first error of type `E` among `error` and its sources, looking into [`io::Error`]s, which skip what
/// they carry when they are asked for their source.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|carried| carried as &(dyn Error + 'static));
        next = carried.or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    fn diagnosed(error: &ConnectionError) -> ConnectFailure {
        diagnose(error, &"mqtts://broker.example.org:1".parse().unwrap())
    }

    fn tls(error: rustls::Error) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn a_tls_failure_is_found_however_deep_it_lies() {
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        for (error, said) in [
            // While connecting,
            (
                ConnectionError::Tls(rumqttc::TlsError::Io(tls(expired))),
                "the broker's certificate has expired",
            ),
            // and with the first packet: in TLS 1.3 the broker refuses a certificate only then.
            (
                ConnectionError::MqttState(rumqttc::StateError::Io(tls(alert.clone()))),
                "our certificate has been revoked",
            ),
            (
                ConnectionError::Io(tls(alert)),
                "our certificate has been revoked",
            ),
        ] {
            let failure = diagnosed(&error);
            assert_eq!(failure.kind, FailureKind::Tls);
            assert!(failure.to_string().contains(said), "{failure}");
        }
    }

    #[test]
    fn failures_of_the_network_are_told_apart() {
        for (kind, text, expected) in [
            (
                io::ErrorKind::ConnectionRefused,
                "",
                FailureKind::Unreachable,
            ),
            (
                io::ErrorKind::NetworkUnreachable,
                "",
                FailureKind::NoNetwork,
            ),
            (io::ErrorKind::TimedOut, "", FailureKind::Unreachable),
            (io::ErrorKind::ConnectionReset, "", FailureKind::Lost),
            (
                io::ErrorKind::Other,
                "failed to lookup address information: Name or service not known",
                FailureKind::Name,
            ),
        ] {
            let failure = diagnosed(&ConnectionError::Io(io::Error::new(kind, text)));
            assert_eq!(failure.kind, expected, "{failure}");
            assert!(
                failure
                    .to_string()
                    .starts_with("mqtts://broker.example.org:1: "),
                "{failure}"
            );
        }
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized);
        assert_eq!(diagnosed(&refused).kind, FailureKind::Refused);
    }
}
