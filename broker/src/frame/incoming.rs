//! What a client's packets say, the same for both versions of MQTT.

use std::sync::Arc;

use mqtt_protocol_core::mqtt::packet::{
    MqttBinary, MqttString, Properties, PropertiesParse as _, Property, Qos as WireQos,
    RetainHandling, SubEntry, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::{DisconnectReasonCode, MqttError};

use super::{FrameError, Protocol};
use crate::message::{EXTRAS_LEN, Qos};

/// A packet of a client.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The first packet.
    Connect(Box<Connect>),
    Publish(Publish),
    /// PUBACK: a message of QoS 1 has arrived.
    Puback(u16),
    /// PUBREC: a message of QoS 2 has arrived, or (false) was refused.
    Pubrec(u16, bool),
    /// PUBREL: the client will not send this message of QoS 2 again.
    Pubrel(u16),
    /// PUBCOMP: a message of QoS 2 is settled.
    Pubcomp(u16),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Ping,
    Disconnect {
        /// The client wants its will published all the same.
        with_will: bool,
        /// A new session expiry interval, in seconds.
        session_expiry: Option<u32>,
    },
}

/// A CONNECT. What MQTT 3.1.1 does not have is as MQTT 5 has it when nothing is said.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Connect {
    pub(crate) client_id: String,
    /// Whether a session that is there is thrown away.
    pub(crate) clean_start: bool,
    /// How long the session lives without a connection, in seconds; `u32::MAX` is for ever.
    pub(crate) session_expiry: u32,
    /// In seconds, zero for none.
    pub(crate) keep_alive: u16,
    pub(crate) will: Option<Will>,
    /// Most messages of QoS 1 and 2 that it takes at once.
    pub(crate) receive_maximum: u16,
    /// The largest packet that it takes, in bytes.
    pub(crate) maximum_packet_size: usize,
    /// Whether it wants reasons in words.
    pub(crate) problem_information: bool,
    /// It wants enhanced authentication.
    pub(crate) authentication: bool,
}

/// What is to be published when the connection ends without a goodbye.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// How long after the end of the connection, in seconds.
    pub(crate) delay: u32,
    pub(crate) said: Said,
}

/// What MQTT 5 says of a message beside its payload.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Said {
    /// The properties that are passed on as they are; at most [`EXTRAS_LEN`] bytes.
    pub(crate) properties: Vec<u8>,
    /// How long the message is of use, in seconds.
    pub(crate) expiry: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) topic: String,
    pub(crate) topic_alias: Option<u16>,
    pub(crate) payload: Arc<[u8]>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// None at QoS 0.
    pub(crate) packet_id: Option<u16>,
    pub(crate) said: Said,
}

#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) packet_id: u16,
    pub(crate) identifier: Option<u32>,
    pub(crate) filters: Vec<Filter>,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) filter: String,
    pub(crate) qos: Qos,
    /// Not what the client has published itself.
    pub(crate) no_local: bool,
    /// With the retain flag that it was published with.
    pub(crate) retain_as_published: bool,
    pub(crate) retained: Retained,
}

/// When a subscription brings what is retained.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Retained {
    Always,
    /// When the subscription is a new one.
    IfNew,
    Never,
}

#[derive(Debug)]
pub(crate) struct Unsubscribe {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<String>,
}

const MALFORMED: FrameError = FrameError::Malformed(MqttError::MalformedPacket);

/// CONNECT's protocol name and version, and what it says.
pub(super) fn connect(body: &[u8]) -> Result<(Protocol, Connect), FrameError> {
    let (name, at) = MqttString::decode(body)?;
    let (&[level, flags], _) = body[at..].split_first_chunk::<2>().ok_or(MALFORMED)?;
    match (name.as_str(), level) {
        ("MQTT", 4) => {
            check_connect_flags(flags)?;
            whole(v3_1_1::Connect::parse(body)?, body).and_then(|connect| connect_v4(&connect))
        }
        ("MQTT", 5) => {
            check_connect_flags(flags)?;
            connect_v5(&parse_connect_v5(body, flags)?)
        }
        ("MQTT" | "MQIsdp", level) => Err(FrameError::ProtocolLevel(level)),
        _ => Err(FrameError::ProtocolName),
    }
}

/// Sections 3.1.2.3 to 3.1.2.6: a reserved bit of zero, and no will QoS or will retain without a will.
fn check_connect_flags(flags: u8) -> Result<(), FrameError> {
    let (will, will_qos, will_retain) = (flags & 0x04 != 0, (flags >> 3) & 0x03, flags & 0x20 != 0);
    if flags & 0x01 != 0 || will_qos == 3 || (!will && (will_qos != 0 || will_retain)) {
        return Err(FrameError::ConnectFlags);
    }
    Ok(())
}

fn connect_v4(connect: &v3_1_1::Connect) -> Result<(Protocol, Connect), FrameError> {
    let will = match (connect.will_topic(), connect.will_payload()) {
        (Some(topic), Some(payload)) => Some(Will {
            topic: clean(topic)?,
            payload: payload.to_vec(),
            qos: qos(connect.will_qos()),
            retain: connect.will_retain(),
            delay: 0,
            said: Said::default(),
        }),
        _ => None,
    };
    connect.user_name().map_or(Ok(String::new()), clean)?;
    let clean_session = connect.clean_session();
    let connect = Connect {
        client_id: clean(connect.client_id())?,
        clean_start: clean_session,
        session_expiry: if clean_session { 0 } else { u32::MAX },
        keep_alive: connect.keep_alive(),
        will,
        receive_maximum: u16::MAX,
        maximum_packet_size: usize::MAX,
        problem_information: false,
        authentication: false,
    };
    Ok((Protocol::V4, connect))
}

/// The library knows a password without a user name only as MQTT 3.1.1 does, which forbids it; MQTT 5 does not.
/// Nobody needs the password, so it is cut off.
fn parse_connect_v5(body: &[u8], flags: u8) -> Result<v5_0::Connect, FrameError> {
    if flags & 0xc0 != 0x40 {
        return whole(v5_0::Connect::parse(body)?, body);
    }
    let mut without = body.to_vec();
    // Behind the protocol's name, six bytes, and its level.
    without[7] &= !0x40;
    let (connect, len) = v5_0::Connect::parse(&without)?;
    let (_, password_len) = MqttBinary::decode(&body[len..])?;
    if len + password_len != body.len() {
        return Err(MALFORMED);
    }
    Ok(connect)
}

fn connect_v5(connect: &v5_0::Connect) -> Result<(Protocol, Connect), FrameError> {
    let will = match (connect.will_topic(), connect.will_payload()) {
        (Some(topic), Some(payload)) => Some(Will {
            topic: clean(topic)?,
            payload: payload.to_vec(),
            qos: qos(connect.will_qos()),
            retain: connect.will_retain(),
            delay: will_delay(connect.will_props()),
            said: said(connect.will_props())?,
        }),
        _ => None,
    };
    connect.user_name().map_or(Ok(String::new()), clean)?;
    let mut said = Connect {
        client_id: clean(connect.client_id())?,
        clean_start: connect.clean_start(),
        session_expiry: 0,
        keep_alive: connect.keep_alive(),
        will,
        receive_maximum: u16::MAX,
        maximum_packet_size: usize::MAX,
        problem_information: true,
        authentication: false,
    };
    // The library has checked that none comes twice and that receive maximum and packet size are not zero.
    for property in connect.props() {
        match property {
            Property::SessionExpiryInterval(it) => said.session_expiry = it.val(),
            Property::ReceiveMaximum(it) => said.receive_maximum = it.val(),
            Property::MaximumPacketSize(it) => {
                said.maximum_packet_size = usize::try_from(it.val()).unwrap_or(usize::MAX);
            }
            Property::RequestProblemInformation(it) => said.problem_information = it.val() == 1,
            Property::AuthenticationMethod(_) | Property::AuthenticationData(_) => {
                said.authentication = true;
            }
            Property::UserProperty(it) => {
                clean(it.key())?;
                clean(it.val())?;
            }
            // The broker needs no topic aliases, and answers no request for response information.
            _ => {}
        }
    }
    Ok((Protocol::V5, said))
}

fn will_delay(properties: &Properties) -> u32 {
    let delay = properties.iter().find_map(|property| match property {
        Property::WillDelayInterval(it) => Some(it.val()),
        _ => None,
    });
    delay.unwrap_or(0)
}

/// What is passed on of a message's properties; those of the connection alone are left out.
fn said(properties: &Properties) -> Result<Said, FrameError> {
    let mut said = Said::default();
    for property in properties {
        match property {
            Property::MessageExpiryInterval(it) => said.expiry = Some(it.val()),
            Property::ResponseTopic(it) if it.val().contains(['+', '#', '\0']) => {
                return Err(FrameError::Text);
            }
            Property::ContentType(it) => drop(clean(it.val())?),
            Property::UserProperty(it) => {
                clean(it.key())?;
                clean(it.val())?;
            }
            _ => {}
        }
        match property {
            Property::PayloadFormatIndicator(_)
            | Property::ContentType(_)
            | Property::ResponseTopic(_)
            | Property::CorrelationData(_)
            | Property::UserProperty(_) => {
                said.properties.extend(property.to_continuous_buffer());
            }
            _ => {}
        }
    }
    if said.properties.len() > EXTRAS_LEN {
        return Err(FrameError::Properties);
    }
    Ok(said)
}

/// PUBLISH. The library would keep the whole packet alive for its payload.
pub(super) fn publish(protocol: Protocol, flags: u8, body: &[u8]) -> Result<Publish, FrameError> {
    let qos = Qos::from_number((flags >> 1) & 0x03).ok_or(MALFORMED)?;
    if qos == Qos::AtMostOnce && flags & 0x08 != 0 {
        // MQTT 3.1.1, section 3.3.1.1: nothing of QoS 0 is ever sent again.
        return Err(FrameError::Flags(3));
    }
    let (topic, mut at) = MqttString::decode(body)?;
    let mut packet_id = None;
    if qos != Qos::AtMostOnce {
        let (id, _) = body[at..].split_first_chunk::<2>().ok_or(MALFORMED)?;
        at += id.len();
        packet_id = Some(checked(u16::from_be_bytes(*id))?);
    }
    let (mut topic_alias, mut of_message) = (None, Said::default());
    if protocol == Protocol::V5 {
        let (properties, len) = Properties::parse(&body[at..])?;
        at += len;
        topic_alias = check_publish_properties(&properties)?;
        of_message = said(&properties)?;
    }
    Ok(Publish {
        topic: clean(topic.as_str())?,
        topic_alias,
        payload: Arc::from(&body[at..]),
        qos,
        retain: flags & 0x01 != 0,
        packet_id,
        said: of_message,
    })
}

/// Which properties a client's PUBLISH may have, each once but for the user's own (MQTT 5, section 3.3.2.3).
fn check_publish_properties(properties: &Properties) -> Result<Option<u16>, FrameError> {
    let (mut alias, mut seen) = (None, Vec::new());
    for property in properties {
        match property {
            Property::UserProperty(_) => continue,
            Property::TopicAlias(it) => alias = Some(it.val()),
            Property::PayloadFormatIndicator(_)
            | Property::MessageExpiryInterval(_)
            | Property::ResponseTopic(_)
            | Property::CorrelationData(_)
            | Property::ContentType(_) => {}
            _ => {
                return Err(FrameError::Protocol(
                    "a property that a PUBLISH may not have",
                ));
            }
        }
        let id = property.id().as_u8();
        if seen.contains(&id) {
            return Err(FrameError::Protocol("a property that comes twice"));
        }
        seen.push(id);
    }
    Ok(alias)
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP.
pub(super) fn acknowledgement(
    protocol: Protocol,
    kind: u8,
    body: &[u8],
) -> Result<Incoming, FrameError> {
    let (id, _) = body.split_first_chunk::<2>().ok_or(MALFORMED)?;
    let id = checked(u16::from_be_bytes(*id))?;
    let mut accepted = true;
    match (protocol, kind) {
        (Protocol::V4, _) if body.len() > 2 => return Err(MALFORMED),
        (Protocol::V4, _) => {}
        (Protocol::V5, 4) => drop(whole(v5_0::Puback::parse(body)?, body)?),
        (Protocol::V5, 5) => {
            let pubrec = whole(v5_0::Pubrec::parse(body)?, body)?;
            accepted = pubrec.reason_code().is_none_or(|code| !code.is_failure());
        }
        (Protocol::V5, 6) => drop(whole(v5_0::Pubrel::parse(body)?, body)?),
        (Protocol::V5, _) => drop(whole(v5_0::Pubcomp::parse(body)?, body)?),
    }
    Ok(match kind {
        4 => Incoming::Puback(id),
        5 => Incoming::Pubrec(id, accepted),
        6 => Incoming::Pubrel(id),
        _ => Incoming::Pubcomp(id),
    })
}

pub(super) fn subscribe(protocol: Protocol, body: &[u8]) -> Result<Subscribe, FrameError> {
    let mut identifier = None;
    let (packet_id, entries) = match protocol {
        Protocol::V4 => {
            let packet = whole(v3_1_1::Subscribe::parse(body)?, body)?;
            if packet
                .entries()
                .iter()
                .any(|entry| options(entry) & 0xfc != 0)
            {
                return Err(FrameError::Protocol("a reserved bit beside a QoS"));
            }
            (packet.packet_id(), packet.entries().clone())
        }
        Protocol::V5 => {
            let packet = whole(v5_0::Subscribe::parse(body)?, body)?;
            for property in packet.props() {
                if let Property::SubscriptionIdentifier(it) = property {
                    if it.val() == 0 || identifier.is_some() {
                        let breach = "a subscription identifier of zero, or two";
                        return Err(FrameError::Protocol(breach));
                    }
                    identifier = Some(it.val());
                }
            }
            (packet.packet_id(), packet.entries().clone())
        }
    };
    let filters = entries.iter().map(|entry| {
        let (filter, options) = (entry.topic_filter(), entry.sub_opts());
        if options.nl() && filter.starts_with("$share/") {
            return Err(FrameError::Protocol("no-local on a shared subscription"));
        }
        Ok(Filter {
            filter: filter.to_owned(),
            qos: qos(options.qos()),
            no_local: options.nl(),
            retain_as_published: options.rap(),
            retained: match options.rh() {
                RetainHandling::SendRetained => Retained::Always,
                RetainHandling::SendRetainedIfNotExists => Retained::IfNew,
                RetainHandling::DoNotSendRetained => Retained::Never,
            },
        })
    });
    Ok(Subscribe {
        packet_id: checked(packet_id)?,
        identifier,
        filters: filters.collect::<Result<_, _>>()?,
    })
}

fn options(entry: &SubEntry) -> u8 {
    entry.sub_opts().to_buffer()[0]
}

pub(super) fn unsubscribe(protocol: Protocol, body: &[u8]) -> Result<Unsubscribe, FrameError> {
    let (packet_id, entries) = match protocol {
        Protocol::V4 => {
            let packet = whole(v3_1_1::Unsubscribe::parse(body)?, body)?;
            (packet.packet_id(), packet.entries().clone())
        }
        Protocol::V5 => {
            let packet = whole(v5_0::Unsubscribe::parse(body)?, body)?;
            (packet.packet_id(), packet.entries().clone())
        }
    };
    Ok(Unsubscribe {
        packet_id: checked(packet_id)?,
        filters: entries
            .iter()
            .map(|entry| entry.as_str().to_owned())
            .collect(),
    })
}

pub(super) fn disconnect(protocol: Protocol, body: &[u8]) -> Result<Incoming, FrameError> {
    let (mut with_will, mut session_expiry) = (false, None);
    match protocol {
        Protocol::V4 if body.is_empty() => {}
        Protocol::V4 => return Err(MALFORMED),
        Protocol::V5 => {
            let packet = whole(v5_0::Disconnect::parse(body)?, body)?;
            let code = packet.reason_code();
            // Whatever is not a normal goodbye leaves the will.
            with_will = code.is_some_and(|code| code != DisconnectReasonCode::NormalDisconnection);
            for property in packet.props().iter().flatten() {
                match property {
                    Property::SessionExpiryInterval(it) => session_expiry = Some(it.val()),
                    Property::ServerReference(_) => {
                        return Err(FrameError::Protocol("a server reference of a client"));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(Incoming::Disconnect {
        with_will,
        session_expiry,
    })
}

/// A packet that takes all of its body.
fn whole<T>((packet, len): (T, usize), body: &[u8]) -> Result<T, FrameError> {
    if len == body.len() {
        Ok(packet)
    } else {
        Err(MALFORMED)
    }
}

fn checked(packet_id: u16) -> Result<u16, FrameError> {
    if packet_id == 0 {
        return Err(FrameError::PacketId);
    }
    Ok(packet_id)
}

/// A text without NUL characters (section 1.5.3).
fn clean(text: &str) -> Result<String, FrameError> {
    if text.contains('\0') {
        return Err(FrameError::Text);
    }
    Ok(text.to_owned())
}

fn qos(qos: WireQos) -> Qos {
    match qos {
        WireQos::AtMostOnce => Qos::AtMostOnce,
        WireQos::AtLeastOnce => Qos::AtLeastOnce,
        WireQos::ExactlyOnce => Qos::ExactlyOnce,
    }
}
