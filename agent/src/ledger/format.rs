//! How a ledger is written, and what is made of two copies of one.

use hoist_agent_core::Ledger;
use hoist_protocol::digest;

/// The format that this version writes; fields may be added within it.
pub(super) const FORMAT: u32 = 1;

/// First word of the file.
const MAGIC: &str = "hoist-ledger";

/// Why a ledger file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It is not there, though its copy is.
    #[error("it is gone")]
    Gone,
    /// The disk does not give it back.
    #[error("the disk cannot read it")]
    Unreadable(#[source] std::io::Error),
    /// It does not start like one.
    #[error("its first line is not that of a ledger")]
    Head,
    /// A newer version wrote it.
    #[error("it is of format {0}, which only a newer version reads")]
    Newer(u32),
    /// Some of it is not what was written.
    #[error("its checksum does not hold")]
    Checksum,
    /// It is what was written, and makes no sense.
    #[error("its content is not valid")]
    Content(#[source] serde_json::Error),
}

pub(super) fn encode(ledger: &Ledger) -> Vec<u8> {
    let json = serde_json::to_vec(ledger).expect("plain data always has a JSON form");
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", digest(&json)).into_bytes();
    bytes.extend(json);
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<Ledger, Damage> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Damage::Head)?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| Damage::Head)?;
    let mut words = head.split(' ');
    let (Some(MAGIC), Some(format), Some(checksum), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Damage::Head);
    };
    let format: u32 = format.parse().map_err(|_| Damage::Head)?;
    match format {
        FORMAT => {}
        0 => return Err(Damage::Head),
        newer => return Err(Damage::Newer(newer)),
    }
    if digest(json).as_str() != checksum {
        return Err(Damage::Checksum);
    }
    serde_json::from_slice(json).map_err(Damage::Content)
}

/// A ledger file as it was found; none when there is none.
pub(super) type Found = Option<Result<Ledger, Damage>>;

/// What two copies of a ledger come to.
#[derive(Debug)]
pub(super) enum Choice {
    /// There is none yet.
    New,
    /// The first is as it should be.
    Good(Box<Ledger>),
    /// The first is damaged, and the copy is good: nothing is lost.
    FromCopy(Box<Ledger>, Damage),
    /// A newer version wrote both.
    Newer(u32),
    /// Neither is of use.
    Lost(Damage),
}

/// Goes by the first; by its copy when that is damaged.
///
/// A file that claims to be of a newer format is believed only when its copy does not say otherwise: one bit
/// of damage must not look like a downgrade.
pub(super) fn choose(first: Found, copy: Found) -> Choice {
    match (first, copy) {
        (Some(Ok(ledger)), _) => Choice::Good(Box::new(ledger)),
        (None, None) => Choice::New,
        (first, Some(Ok(ledger))) => {
            let damage = first.and_then(Result::err).unwrap_or(Damage::Gone);
            Choice::FromCopy(Box::new(ledger), damage)
        }
        (Some(Err(Damage::Newer(format))), _) | (_, Some(Err(Damage::Newer(format)))) => {
            Choice::Newer(format)
        }
        (Some(Err(damage)), _) | (None, Some(Err(damage))) => Choice::Lost(damage),
    }
}

#[cfg(test)]
mod tests {
    use hoist_agent_core::Floor;
    use hoist_protocol::{DeploymentId, Order};

    use super::*;

    fn ledger() -> Ledger {
        let order = Order {
            epoch: 1,
            sequence: 7,
            id: DeploymentId::new(uuid::Uuid::from_u128(9)),
        };
        Ledger {
            floor: Some(Floor {
                order,
                content: None,
            }),
            ..Ledger::default()
        }
    }

    fn found(bytes: &[u8]) -> Found {
        Some(decode(bytes))
    }

    #[test]
    fn whatever_befalls_one_of_two_copies_nothing_is_lost() {
        let good = encode(&ledger());
        let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|n| good[..n].to_vec()).collect();
        for n in 0..good.len() {
            bad.extend((0..8).map(|bit| {
                let mut bytes = good.clone();
                bytes[n] ^= 1 << bit;
                bytes
            }));
        }
        for bytes in bad {
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            assert!(decode(&bytes).is_err(), "{shown}");
            match choose(found(&bytes), found(&good)) {
                Choice::FromCopy(read, _) => assert_eq!(*read, ledger(), "{shown}"),
                other => panic!("{other:?} for {shown}"),
            }
            match choose(found(&good), found(&bytes)) {
                Choice::Good(read) => assert_eq!(*read, ledger(), "{shown}"),
                other => panic!("{other:?} for {shown}"),
            }
        }
    }

    #[test]
    fn one_copy_may_be_gone_and_without_both_there_never_was_one() {
        let good = encode(&ledger());
        assert!(matches!(
            choose(None, found(&good)),
            Choice::FromCopy(_, Damage::Gone)
        ));
        assert!(matches!(choose(found(&good), None), Choice::Good(_)));
        assert!(matches!(choose(None, None), Choice::New));
        assert!(matches!(choose(found(b"x"), None), Choice::Lost(_)));
        assert!(matches!(choose(found(b"x"), found(b"")), Choice::Lost(_)));
    }

    #[test]
    fn what_a_newer_version_wrote_is_never_taken_for_damage() {
        let newer = || found(b"hoist-ledger 2 00\n{}");
        for (first, copy) in [
            (newer(), newer()),
            (newer(), None),
            (None, newer()),
            (found(b"x"), newer()),
            (newer(), found(b"x")),
        ] {
            assert!(matches!(choose(first, copy), Choice::Newer(2)));
        }
    }
}
