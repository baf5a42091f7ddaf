//! The reason codes of MQTT 5, and what is left of them on 3.1.1.

/// Why something is answered as it is (MQTT 5, section 2.4). The same numbers mean the same in every packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum ReasonCode {
    Success = 0x00,
    NoSubscriptionExisted = 0x11,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    /// It is against a rule of this broker.
    ImplementationSpecific = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdNotValid = 0x85,
    NotAuthorized = 0x87,
    ServerShuttingDown = 0x8b,
    BadAuthenticationMethod = 0x8c,
    KeepAliveTimeout = 0x8d,
    SessionTakenOver = 0x8e,
    TopicFilterInvalid = 0x8f,
    TopicNameInvalid = 0x90,
    PacketIdNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    SharedSubscriptionsNotSupported = 0x9e,
}

impl ReasonCode {
    /// The byte on the wire.
    pub(crate) const fn byte(self) -> u8 {
        self as u8
    }

    /// What a CONNACK of MQTT 3.1.1 says instead (section 3.2.2.3); none where it says nothing at all and the
    /// connection is closed.
    pub(crate) const fn return_code(self) -> Option<u8> {
        match self {
            Self::Success => Some(0),
            Self::UnsupportedProtocolVersion => Some(1),
            Self::ClientIdNotValid => Some(2),
            Self::ServerShuttingDown | Self::SessionTakenOver | Self::QuotaExceeded => Some(3),
            Self::NotAuthorized
            | Self::BadAuthenticationMethod
            | Self::ImplementationSpecific
            | Self::TopicNameInvalid
            | Self::PacketTooLarge
            | Self::AdministrativeAction => Some(5),
            Self::NoSubscriptionExisted
            | Self::UnspecifiedError
            | Self::MalformedPacket
            | Self::ProtocolError
            | Self::KeepAliveTimeout
            | Self::TopicFilterInvalid
            | Self::PacketIdNotFound
            | Self::ReceiveMaximumExceeded
            | Self::TopicAliasInvalid
            | Self::SharedSubscriptionsNotSupported => None,
        }
    }
}
