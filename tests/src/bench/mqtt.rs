//! An MQTT client with as little between the broker and the clock as can be.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{Connect, Packet, PubAck, Publish, Subscribe};
use rumqttc::mqttbytes::{Error, QoS};
use rumqttc::{ConnectReturnCode, SubscribeReasonCode};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Largest packet, in bytes.
const MAX_PACKET: usize = 64 * 1024;

/// How long a connection may be silent, in seconds: longer than any round takes.
const KEEP_ALIVE: u16 = 600;

/// A connection that the broker has accepted.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    received: BytesMut,
    outgoing: BytesMut,
}

impl Connection {
    /// TCP, TLS, CONNECT and CONNACK.
    pub(crate) async fn open(port: u16, tls: Arc<ClientConfig>, id: &str) -> Result<Self> {
        Self::open_from(Ipv4Addr::LOCALHOST, port, tls, id).await
    }

    /// The same from an address of the loopback network, each of which has as many ports as there are.
    pub(super) async fn open_from(
        address: Ipv4Addr,
        port: u16,
        tls: Arc<ClientConfig>,
        id: &str,
    ) -> Result<Self> {
        Self::open_as((address, port), tls, Connect::new(id)).await
    }

    /// The same with a CONNECT that says more.
    pub(crate) async fn open_as(
        (address, port): (Ipv4Addr, u16),
        tls: Arc<ClientConfig>,
        mut connect: Connect,
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if address != Ipv4Addr::LOCALHOST {
            socket.bind((address, 0).into())?;
        }
        let tcp = socket
            .connect((Ipv4Addr::LOCALHOST, port).into())
            .await
            .context("cannot connect")?;
        tcp.set_nodelay(true)?;
        let stream = TlsConnector::from(tls)
            .connect("127.0.0.1".try_into()?, tcp)
            .await
            .context("TLS failed")?;
        let mut connection = Self {
            stream,
            received: BytesMut::new(),
            outgoing: BytesMut::new(),
        };
        connect.keep_alive = KEEP_ALIVE;
        connection.queue(&Packet::Connect(connect))?;
        connection.flush().await?;
        match connection.receive().await? {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => Ok(connection),
            other => bail!("the broker answered CONNECT with {other:?}"),
        }
    }

    /// Subscribes to one topic at QoS 1. What is retained there can come before the SUBACK, and is handed back.
    pub(crate) async fn subscribe(&mut self, topic: &str) -> Result<Option<Publish>> {
        let mut subscribe = Subscribe::new(topic, QoS::AtLeastOnce);
        subscribe.pkid = 1;
        self.queue(&Packet::Subscribe(subscribe))?;
        self.flush().await?;
        let mut early = None;
        loop {
            match self.receive().await? {
                Packet::SubAck(ack) => {
                    if ack.return_codes != [SubscribeReasonCode::Success(QoS::AtLeastOnce)] {
                        bail!("the broker refused the subscription: {ack:?}");
                    }
                    return Ok(early);
                }
                Packet::Publish(publish) => early = Some(publish),
                other => bail!("the broker answered SUBSCRIBE with {other:?}"),
            }
        }
    }

    /// Puts a packet behind those that are not sent yet.
    pub(crate) fn queue(&mut self, packet: &Packet) -> Result<()> {
        packet.write(&mut self.outgoing, MAX_PACKET)?;
        Ok(())
    }

    /// Sends what is queued.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.stream.write_all_buf(&mut self.outgoing).await?;
        Ok(self.stream.flush().await?)
    }

    /// Acknowledges `publish`, if it asks for that.
    pub(crate) async fn acknowledge(&mut self, publish: &Publish) -> Result<()> {
        if publish.qos == QoS::AtLeastOnce {
            self.queue(&Packet::PubAck(PubAck::new(publish.pkid)))?;
            self.flush().await?;
        }
        Ok(())
    }

    /// The next packet.
    pub(crate) async fn receive(&mut self) -> Result<Packet> {
        loop {
            match Packet::read(&mut self.received, MAX_PACKET) {
                Ok(packet) => return Ok(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(error).context("the broker sent what is no MQTT"),
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                bail!("the broker closed the connection");
            }
        }
    }

    /// Whether a whole packet has been received already; then [`Connection::receive`] does not wait.
    pub(crate) fn has_packet(&self) -> bool {
        let mut ahead = self.received.clone();
        !matches!(
            Packet::read(&mut ahead, MAX_PACKET),
            Err(Error::InsufficientBytes(_))
        )
    }
}
