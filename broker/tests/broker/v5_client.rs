//! A client of MQTT 5 that sees every packet.

use hoist_certs::Role;
use rumqttc::v5::mqttbytes::Error;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode,
    Filter, LastWill, Packet, PubAck, PubAckReason, Publish, PublishProperties, Subscribe,
    SubscribeProperties, SubscribeReasonCode,
};

use crate::support::{Broker, Client, World};

pub(crate) struct Client5 {
    raw: Client,
    packet_id: u16,
}

pub(crate) fn connect(id: &str) -> Connect {
    Connect {
        keep_alive: 600,
        client_id: id.to_owned(),
        clean_start: true,
        properties: None,
    }
}

/// One that comes back, to a session that lives for an hour without it.
pub(crate) fn returning(id: &str) -> Connect {
    Connect {
        clean_start: false,
        properties: Some(ConnectProperties {
            session_expiry_interval: Some(3600),
            ..ConnectProperties::new()
        }),
        ..connect(id)
    }
}

pub(crate) fn filter(path: &str) -> Filter {
    Filter::new(path, QoS::AtLeastOnce)
}

impl Client5 {
    /// Over a connection without a CONNECT.
    pub(crate) const fn over(raw: Client) -> Self {
        Self { raw, packet_id: 0 }
    }

    /// A TLS connection without a CONNECT.
    pub(crate) async fn tls(world: &World, broker: &Broker, role: Role, who: &str) -> Self {
        Self::over(world.tls(broker, role, who).await)
    }

    /// A client after its CONNACK. Its client id is the name, with a suffix for who is no agent.
    pub(crate) async fn new(world: &World, broker: &Broker, role: Role, who: &str) -> Self {
        let mut client = Self::tls(world, broker, role, who).await;
        let id = match role {
            Role::Agent => who.to_owned(),
            _ => format!("{who}.1"),
        };
        client.open(connect(&id), None).await;
        client
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.raw.send_bytes(bytes).await;
    }

    pub(crate) async fn send(&mut self, packet: Packet) {
        let mut bytes = bytes::BytesMut::new();
        packet.write(&mut bytes, None).unwrap();
        self.raw.send_bytes(&bytes).await;
    }

    /// The next packet; none when the broker has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        self.raw
            .next_of(|bytes| match Packet::read(bytes, None) {
                Ok(packet) => Some(packet),
                Err(Error::InsufficientBytes(_)) => None,
                Err(error) => panic!("not a packet: {error}"),
            })
            .await
    }

    pub(crate) async fn connect(&mut self, connect: Connect, will: Option<LastWill>) -> ConnAck {
        self.send(Packet::Connect(connect, will, None)).await;
        match self.next().await {
            Some(Packet::ConnAck(ack)) => ack,
            other => panic!("no CONNACK but {other:?}"),
        }
    }

    /// Connects, and returns whether there was a session.
    pub(crate) async fn open(&mut self, connect: Connect, will: Option<LastWill>) -> bool {
        let ack = self.connect(connect, will).await;
        assert_eq!(ack.code, ConnectReturnCode::Success);
        ack.session_present
    }

    pub(crate) async fn subscribe(
        &mut self,
        filters: Vec<Filter>,
        identifier: Option<usize>,
    ) -> Vec<SubscribeReasonCode> {
        self.packet_id += 1;
        let properties = identifier.map(|id| SubscribeProperties {
            id: Some(id),
            user_properties: Vec::new(),
        });
        let mut subscribe = Subscribe::new_many(filters, properties);
        subscribe.pkid = self.packet_id;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) => {
                assert_eq!(ack.pkid, self.packet_id);
                ack.return_codes
            }
            other => panic!("no SUBACK but {other:?}"),
        }
    }

    /// Sends a PUBLISH and returns its packet id.
    pub(crate) async fn send_publish(
        &mut self,
        topic: &str,
        qos: QoS,
        retain: bool,
        payload: &str,
        properties: Option<PublishProperties>,
    ) -> u16 {
        let mut publish = Publish::new(topic, qos, payload.to_owned(), properties);
        publish.retain = retain;
        if qos != QoS::AtMostOnce {
            self.packet_id += 1;
            publish.pkid = self.packet_id;
        }
        self.send(Packet::Publish(publish)).await;
        self.packet_id
    }

    /// Publishes at QoS 1 with the retain flag; what the PUBACK says.
    pub(crate) async fn retain(
        &mut self,
        topic: &str,
        payload: &str,
        properties: Option<PublishProperties>,
    ) -> PubAck {
        let id = self
            .send_publish(topic, QoS::AtLeastOnce, true, payload, properties)
            .await;
        match self.next().await {
            Some(Packet::PubAck(ack)) => {
                assert_eq!(ack.pkid, id);
                ack
            }
            other => panic!("no PUBACK but {other:?}"),
        }
    }

    /// The next message, acknowledged when it is of QoS 1.
    pub(crate) async fn message(&mut self) -> Publish {
        let message = self.unacknowledged().await;
        if message.qos == QoS::AtLeastOnce {
            self.acknowledge(&message).await;
        }
        message
    }

    pub(crate) async fn unacknowledged(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("no message but {other:?}"),
        }
    }

    pub(crate) async fn acknowledge(&mut self, message: &Publish) {
        self.send(Packet::PubAck(PubAck {
            pkid: message.pkid,
            reason: PubAckReason::Success,
            properties: None,
        }))
        .await;
    }

    /// Asserts that nothing is on its way: a PINGRESP comes next.
    pub(crate) async fn expect_nothing(&mut self) {
        self.send_bytes(&[0xc0, 0]).await;
        let next = self.next().await;
        assert!(matches!(next, Some(Packet::PingResp(_))), "{next:?}");
    }

    /// Asserts that the broker says goodbye for a reason, and closes. What it says in words.
    pub(crate) async fn expect_goodbye(&mut self, reason: DisconnectReasonCode) -> String {
        let said = match self.next().await {
            Some(Packet::Disconnect(Disconnect {
                reason_code,
                properties,
            })) => {
                assert_eq!(reason_code, reason);
                properties.and_then(|properties| properties.reason_string)
            }
            other => panic!("no DISCONNECT but {other:?}"),
        };
        assert_eq!(self.next().await, None, "the broker did not close");
        said.unwrap_or_default()
    }
}
