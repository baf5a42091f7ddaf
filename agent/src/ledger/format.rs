//! How a ledger is written, and what is made of two copies of one.
//!
//! A line `hoist-ledger FORMAT SHA256`, then the ledger as JSON. Every format, those to come too, begins with this
//! line, so that an agent knows a newer one from a damaged one.

use hoist_agent_core::Ledger;
use hoist_protocol::digest;

/// A format that this version reads and writes. Fields may be added within one.
///
/// Formats differ where an agent that knows only the one before would read something else than what was meant.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Format {
    /// The checksum is over the JSON.
    One = 1,
    /// The checksum is over the number of the format too: damage to that is not taken for a newer version.
    Two = 2,
}

impl Format {
    /// What the first version wrote.
    pub(super) const OLDEST: Self = Self::One;
    /// What is written once it is sure that no older version comes back.
    pub(super) const NEWEST: Self = Self::Two;

    /// Its number.
    pub(super) const fn number(self) -> u32 {
        self as u32
    }

    fn of(number: u32) -> Option<Self> {
        [Self::One, Self::Two]
            .into_iter()
            .find(|format| format.number() == number)
    }
}

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

/// A ledger and the format that it was found in.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) format: Format,
    pub(super) ledger: Ledger,
}

pub(super) fn encode(ledger: &Ledger, format: Format) -> Vec<u8> {
    let json = serde_json::to_vec(ledger).expect("plain data always has a JSON form");
    let format = format.number();
    let mut bytes = format!("{MAGIC} {format} {}\n", checksum(format, &json)).into_bytes();
    bytes.extend(json);
    bytes
}

/// As in every format but the first, those to come included.
fn checksum(format: u32, json: &[u8]) -> String {
    let covered = if format == Format::One.number() {
        digest(json)
    } else {
        digest(&[format!("{MAGIC} {format}\n").as_bytes(), json].concat())
    };
    covered.to_string()
}

pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, Damage> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Damage::Head)?;
    let (head, json) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| Damage::Head)?;
    let mut words = head.split(' ');
    let (Some(MAGIC), Some(format), Some(sum), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Damage::Head);
    };
    let format: u32 = format.parse().map_err(|_| Damage::Head)?;
    // The checksum first: one bit of damage must not look like a newer version.
    if checksum(format, json) != sum {
        return Err(Damage::Checksum);
    }
    let format = match Format::of(format) {
        Some(format) => format,
        None if format < Format::OLDEST.number() => return Err(Damage::Head),
        None => return Err(Damage::Newer(format)),
    };
    let ledger = serde_json::from_slice(json).map_err(Damage::Content)?;
    Ok(Decoded { format, ledger })
}

/// A ledger file as it was found; none when there is none.
pub(super) type Found = Option<Result<Decoded, Damage>>;

/// What two copies of a ledger come to.
#[derive(Debug)]
pub(super) enum Choice {
    /// There is none yet.
    New,
    /// The first is as it should be.
    Good(Box<Decoded>),
    /// The first is damaged, and the copy is good: nothing is lost.
    FromCopy(Box<Decoded>, Damage),
    /// A newer version wrote one of them at the least.
    Newer(u32),
    /// Neither is of use.
    Lost(Damage),
}

/// Goes by the first; by its copy when that is damaged.
///
/// Where a newer version wrote either, it was at work here, and may have died between the two: an older one would
/// undo what it did.
pub(super) fn choose(first: Found, copy: Found) -> Choice {
    match (first, copy) {
        (Some(Err(Damage::Newer(format))), _) | (_, Some(Err(Damage::Newer(format)))) => {
            Choice::Newer(format)
        }
        (Some(Ok(good)), _) => Choice::Good(Box::new(good)),
        (None, None) => Choice::New,
        (first, Some(Ok(good))) => {
            let damage = first.and_then(Result::err).unwrap_or(Damage::Gone);
            Choice::FromCopy(Box::new(good), damage)
        }
        (Some(Err(damage)), _) | (None, Some(Err(damage))) => Choice::Lost(damage),
    }
}

/// A whole ledger of a format that this version does not know.
#[cfg(test)]
pub(super) fn newer(content: &[u8]) -> Vec<u8> {
    let format = Format::NEWEST.number() + 1;
    let head = format!("{MAGIC} {format} {}\n", checksum(format, content));
    [head.as_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use hoist_agent_core::Floor;
    use hoist_protocol::{DeploymentId, Order};
    use serde_json::Value;

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
        for format in [Format::One, Format::Two] {
            let good = encode(&ledger(), format);
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
                    Choice::FromCopy(read, _) => assert_eq!(read.ledger, ledger(), "{shown}"),
                    other => panic!("{other:?} for {shown}"),
                }
                match choose(found(&good), found(&bytes)) {
                    Choice::Good(read) => assert_eq!(read.ledger, ledger(), "{shown}"),
                    other => panic!("{other:?} for {shown}"),
                }
            }
        }
    }

    #[test]
    fn one_copy_may_be_gone_and_without_both_there_never_was_one() {
        let good = encode(&ledger(), Format::NEWEST);
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
        let newer = || found(&newer(b"of another form"));
        let good = encode(&ledger(), Format::NEWEST);
        for (first, copy) in [
            (newer(), newer()),
            (newer(), None),
            (None, newer()),
            (found(b"x"), newer()),
            (newer(), found(b"x")),
            // It died between the two.
            (newer(), found(&good)),
            (found(&good), newer()),
        ] {
            assert!(matches!(choose(first, copy), Choice::Newer(3)));
        }
    }

    /// Whether all that `less` says stands in `more` too.
    fn says_all(more: &Value, less: &Value) -> bool {
        match (more, less) {
            (Value::Object(more), Value::Object(less)) => less
                .iter()
                .all(|(name, less)| more.get(name).is_some_and(|more| says_all(more, less))),
            (Value::Array(more), Value::Array(less)) => {
                more.len() == less.len() && more.iter().zip(less).all(|(m, l)| says_all(m, l))
            }
            _ => more == less,
        }
    }

    /// Fields may be added; none may be lost, renamed or read otherwise, or a machine forgets at its upgrade.
    #[test]
    fn a_ledger_that_was_written_once_is_read_and_written_with_all_it_says() {
        for (format, golden) in [
            (Format::One, include_bytes!("golden/format-1").as_slice()),
            (Format::Two, include_bytes!("golden/format-2").as_slice()),
        ] {
            let read = decode(golden).unwrap();
            assert_eq!(read.format, format);
            assert_eq!(read.ledger.floor.as_ref().unwrap().order.sequence, 12);
            let json = |bytes: &[u8]| -> Value {
                let start = bytes.iter().position(|byte| *byte == b'\n').unwrap();
                serde_json::from_slice(&bytes[start..]).unwrap()
            };
            let again = encode(&read.ledger, format);
            let (written, golden) = (json(&again), json(golden));
            assert!(says_all(&written, &golden), "{written:#} {golden:#}");
            let empty = encode(&Ledger::default(), format);
            assert!(!says_all(&json(&empty), &golden));
        }
    }

    #[test]
    fn what_a_newer_version_adds_within_a_format_is_left_out() {
        let json = serde_json::to_string(&ledger()).unwrap();
        let added = json.replacen('{', r#"{"added_later":[1,{}],"#, 1);
        let number = Format::NEWEST.number();
        let sum = checksum(number, added.as_bytes());
        let bytes = format!("{MAGIC} {number} {sum}\n{added}");
        assert_eq!(decode(bytes.as_bytes()).unwrap().ledger, ledger());
    }
}
