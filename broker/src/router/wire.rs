//! How a message is written on the bus: rumqttd passes a payload on, and nothing beside it.

use std::sync::Arc;

use hoist_protocol::{AgentName, Channel, FleetName, Machine};

use super::{CHANNELS, position};
use crate::message::{Author, Commit, Extras, Message, Qos};

/// On the bus: number, commit (0 for none) and author, eight bytes each, then a byte each for channel, QoS, whether
/// there are extras, and the lengths of the two names, then the names, the extras when there are, the payload.
const HEADER_LEN: usize = 29;

pub(super) fn encode(number: u64, message: &Message) -> Vec<u8> {
    let (fleet, agent) = (&message.topic.machine.fleet, &message.topic.machine.agent);
    let (fleet, agent) = (fleet.as_str().as_bytes(), agent.as_str().as_bytes());
    let len = |name: &[u8]| u8::try_from(name.len()).expect("a name has at most 63 bytes");
    let channel = position(message.topic.channel).unwrap_or(CHANNELS.len());
    let channel = u8::try_from(channel).expect("there are six channels");
    let mut bytes =
        Vec::with_capacity(HEADER_LEN + fleet.len() + agent.len() + message.payload.len());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&message.commit.map_or(0, Commit::number).to_le_bytes());
    bytes.extend_from_slice(&message.author.0.to_le_bytes());
    let extras = u8::from(message.extras.is_some());
    bytes.extend_from_slice(&[
        channel,
        message.qos.number(),
        extras,
        len(fleet),
        len(agent),
    ]);
    bytes.extend_from_slice(fleet);
    bytes.extend_from_slice(agent);
    if let Some(extras) = &message.extras {
        extras.encode(&mut bytes);
    }
    bytes.extend_from_slice(&message.payload);
    bytes
}

/// A message on the bus, with its parts as they lie there.
pub(super) struct Header<'a> {
    pub(super) commit: Option<Commit>,
    author: Author,
    pub(super) channel: Channel,
    qos: Qos,
    pub(super) fleet: &'a str,
    agent: &'a str,
    extras: Option<Extras>,
    payload: &'a [u8],
}

pub(super) fn decode(bytes: &[u8]) -> Option<(u64, Header<'_>)> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (commit, rest) = rest.split_first_chunk::<8>()?;
    let (author, rest) = rest.split_first_chunk::<8>()?;
    let (&[channel, qos, with_extras, fleet_len, agent_len], rest) =
        rest.split_first_chunk::<5>()?;
    let (fleet, rest) = rest.split_at_checked(fleet_len.into())?;
    let (agent, mut payload) = rest.split_at_checked(agent_len.into())?;
    let mut extras = None;
    if with_extras != 0 {
        let decoded = Extras::decode(payload)?;
        (extras, payload) = (Some(decoded.0), decoded.1);
    }
    let commit = u64::from_le_bytes(*commit);
    let header = Header {
        commit: (commit > 0).then(|| Commit::new(commit)),
        author: Author(u64::from_le_bytes(*author)),
        channel: *CHANNELS.get(usize::from(channel))?,
        qos: Qos::from_number(qos)?,
        fleet: std::str::from_utf8(fleet).ok()?,
        agent: std::str::from_utf8(agent).ok()?,
        extras,
        payload,
    };
    Some((u64::from_le_bytes(*number), header))
}

impl Header<'_> {
    pub(super) fn message(self, fleet: &FleetName) -> Option<Message> {
        let agent = AgentName::new(self.agent).ok()?;
        Some(Message {
            topic: Machine::new(fleet.clone(), agent).topic(self.channel),
            payload: Arc::from(self.payload),
            qos: self.qos,
            commit: self.commit,
            author: self.author,
            extras: self.extras.map(Arc::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::message;
    use super::*;

    #[test]
    fn a_message_comes_off_the_bus_as_it_went_on() {
        let fleet = FleetName::new("prod").unwrap();
        for channel in CHANNELS {
            let message = message(channel, 7, 100);
            let bytes = encode(9, &message);
            let (number, header) = decode(&bytes).unwrap();
            assert_eq!((number, header.message(&fleet)), (9, Some(message)));
            for len in 0..HEADER_LEN + 9 {
                assert!(decode(&bytes[..len]).is_none(), "{len} bytes");
            }
        }
    }
}
