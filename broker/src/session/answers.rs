//! What a client is told of an end or a refusal: a reason code of MQTT 5, and words.

use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::Ended;
use crate::deploys::DeployRefusal;
use crate::frame::{FrameError, ReasonCode};
use crate::guard::PublishRefusal;

impl Ended {
    /// What a client is told in words.
    pub(super) fn explain(&self) -> String {
        match self {
            // Where the other one is from is the operator's to know.
            Self::TakenOver(_) => "the same client has connected again".to_owned(),
            ended => ended.to_string(),
        }
    }

    /// What a client of MQTT 5 is told.
    pub(super) const fn code(&self) -> ReasonCode {
        match self {
            Self::Disconnected | Self::Parted => ReasonCode::Success,
            Self::Lost(_) => ReasonCode::UnspecifiedError,
            Self::KeepAlive(_) => ReasonCode::KeepAliveTimeout,
            Self::NoConnect(_) | Self::SlowPacket(_) | Self::Stalled(_) => {
                ReasonCode::AdministrativeAction
            }
            Self::TakenOver(_) | Self::TakeoverLoop => ReasonCode::SessionTakenOver,
            Self::Stopping => ReasonCode::ServerShuttingDown,
            Self::BrokerFailed => ReasonCode::UnspecifiedError,
            Self::Protocol(error) => of_frame(*error),
            Self::ClientId(_) | Self::NoClientId => ReasonCode::ClientIdNotValid,
            Self::Authentication => ReasonCode::BadAuthenticationMethod,
            Self::TooManySessions(_) | Self::Unavailable(_) => ReasonCode::QuotaExceeded,
            Self::Will(refusal) | Self::Publish(refusal) => of_publish(refusal),
            Self::Certificate(_) | Self::Deploy(DeployRefusal::Unverified { .. }) => {
                ReasonCode::NotAuthorized
            }
            Self::Deploy(_) => ReasonCode::ImplementationSpecific,
            Self::Filter(_) => ReasonCode::TopicFilterInvalid,
            Self::Subscription { why, .. } => why.code(),
        }
    }
}

const fn of_frame(error: FrameError) -> ReasonCode {
    match error {
        FrameError::ProtocolLevel(_) => ReasonCode::UnsupportedProtocolVersion,
        FrameError::TooLarge(_) => ReasonCode::PacketTooLarge,
        FrameError::TopicAlias => ReasonCode::TopicAliasInvalid,
        FrameError::ReceiveMaximum => ReasonCode::ReceiveMaximumExceeded,
        FrameError::Properties => ReasonCode::QuotaExceeded,
        FrameError::NotConnect
        | FrameError::ProtocolName
        | FrameError::SecondConnect
        | FrameError::Type(_)
        | FrameError::PacketId
        | FrameError::Malformed(MqttError::ProtocolError)
        | FrameError::Protocol(_) => ReasonCode::ProtocolError,
        FrameError::Flags(_)
        | FrameError::Length
        | FrameError::ConnectFlags
        | FrameError::Text
        | FrameError::Malformed(_) => ReasonCode::MalformedPacket,
    }
}

const fn of_publish(refusal: &PublishRefusal) -> ReasonCode {
    match refusal {
        PublishRefusal::Topic(_) => ReasonCode::TopicNameInvalid,
        PublishRefusal::Forbidden { .. } | PublishRefusal::Clear { .. } => {
            ReasonCode::NotAuthorized
        }
        PublishRefusal::NotRetained(_)
        | PublishRefusal::Retained(_)
        | PublishRefusal::TooLarge { .. }
        | PublishRefusal::Presence(_) => ReasonCode::ImplementationSpecific,
    }
}
