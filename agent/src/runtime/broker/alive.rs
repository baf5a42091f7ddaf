//! Whether a broker runs that has just closed a connection.
//!
//! A connection that ends right after it was made looks the same whether the broker died or another machine came with
//! the same identity. What tells them apart is whether somebody is there who answers, a moment later: TCP alone does
//! not show it, since something in between may accept connections for a broker that is gone, and so the TLS handshake
//! is made too. It ends before MQTT begins, and so takes no connection away from anybody.

use std::time::Duration;

use hoist_certs::ClientTls;
use hoist_protocol::BrokerUrl;
use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::tokio_rustls::rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long all of it may take: a machine waits for so long at the most before it connects again.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether the broker at `url` makes a TLS handshake.
pub(super) async fn is_alive(url: BrokerUrl, tls: ClientTls) -> bool {
    matches!(timeout(ANSWER, handshake(&url, &tls)).await, Ok(Ok(())))
}

async fn handshake(url: &BrokerUrl, tls: &ClientTls) -> std::io::Result<()> {
    let name = ServerName::try_from(url.host().to_owned()).map_err(std::io::Error::other)?;
    let stream = TcpStream::connect((url.host(), url.port())).await?;
    let connector = TlsConnector::from(tls.config());
    connector.connect(name, stream).await.map(drop)
}
