//! Frames: what a log file is made of. One frame is one batch, written and synced as a whole.
//!
//! ```text
//! file    = header frame* 0*                                zeros: room for the next frames
//! header  = "hoist-broker store 1\n" salt(8)
//! frame   = len(4) number(8) body(len) checksum(8)         numbers are little-endian
//! body    = 0 change*  |  1                                 a batch; or: closed in order
//! change  = key-len(2) value-len(4) key value               an empty value removes the key
//! ```
//!
//! The number counts the frames of a file from 0. The checksum is XXH3-64 over number and body, seeded with the
//! file's salt: what another file has left on the disk never looks like a frame of this one.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

pub(super) const MAGIC: &[u8] = b"hoist-broker store 1\n";

pub(super) const HEADER_LEN: usize = MAGIC.len() + 8;

/// Length and number.
pub(super) const HEAD_LEN: usize = 12;

pub(super) const CHECKSUM_LEN: usize = 8;

/// Longest body, in bytes: more than any batch has, so that a damaged length allocates nothing absurd.
pub(super) const MAX_BODY_LEN: usize = 128 * 1024 * 1024;

const CHANGES: u8 = 0;
const CLOSED: u8 = 1;

/// A file's random number.
pub(super) type Salt = [u8; 8];

/// A batch that is being put together, as the bytes of its frame.
#[derive(Debug)]
pub(in super::super) struct Batch {
    frame: Vec<u8>,
    changes: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let mut frame = vec![0; HEAD_LEN];
        frame.push(CHANGES);
        Self { frame, changes: 0 }
    }
}

impl Batch {
    /// Adds that `key` has the value that `write` appends; none removes it.
    ///
    /// # Panics
    /// When a key has more than 64 KiB or a value more than 4 GiB.
    pub(in super::super) fn put(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let key_len = u16::try_from(key.len()).expect("a topic has at most some hundred bytes");
        self.frame.extend_from_slice(&key_len.to_le_bytes());
        let at = self.frame.len();
        self.frame.extend_from_slice(&[0; 4]);
        self.frame.extend_from_slice(key.as_bytes());
        let start = self.frame.len();
        write(&mut self.frame);
        let value_len = u32::try_from(self.frame.len() - start).expect("a payload is no gigabyte");
        self.frame[at..at + 4].copy_from_slice(&value_len.to_le_bytes());
        self.changes += 1;
    }

    /// Its size, in bytes.
    pub(in super::super) const fn len(&self) -> usize {
        self.frame.len() + CHECKSUM_LEN
    }

    /// Whether nothing is in it.
    pub(in super::super) const fn is_empty(&self) -> bool {
        self.changes == 0
    }

    /// The frame that says that the file was closed in order.
    pub(super) fn closed() -> Self {
        let mut frame = vec![0; HEAD_LEN];
        frame.push(CLOSED);
        Self { frame, changes: 0 }
    }

    /// The frame's bytes as the `number`th of a file.
    pub(super) fn sealed(&mut self, salt: Salt, number: u64) -> &[u8] {
        let body_end = self.frame.len();
        let len = u32::try_from(body_end - HEAD_LEN).expect("a batch is below MAX_BODY_LEN");
        self.frame[..4].copy_from_slice(&len.to_le_bytes());
        self.frame[4..HEAD_LEN].copy_from_slice(&number.to_le_bytes());
        let checksum = checksum(salt, number, &self.frame[HEAD_LEN..]);
        self.frame.extend_from_slice(&checksum.to_le_bytes());
        &self.frame
    }
}

fn checksum(salt: Salt, number: u64, body: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(u64::from_le_bytes(salt));
    hash.update(&number.to_le_bytes());
    hash.update(body);
    hash.digest()
}

/// The header of a file.
pub(super) fn header(salt: Salt) -> Vec<u8> {
    [MAGIC, &salt].concat()
}

/// A frame's length and number, before its body is read; none when no frame can start so.
pub(super) fn head(bytes: &[u8]) -> Option<(usize, u64)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    (1..=MAX_BODY_LEN)
        .contains(&len)
        .then_some((len, u64::from_le_bytes(*number)))
}

/// What a body says.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Body<'a> {
    Changes(Vec<(&'a str, &'a [u8])>),
    Closed,
}

/// Checks a body with the checksum behind it. None when the checksum is another one.
pub(super) fn checked(salt: Salt, number: u64, body_and_checksum: &[u8]) -> Option<&[u8]> {
    let (body, sum) = body_and_checksum.split_last_chunk::<CHECKSUM_LEN>()?;
    (checksum(salt, number, body) == u64::from_le_bytes(*sum)).then_some(body)
}

/// Takes a body apart. None when no batch looks so, although its checksum holds: no broker has written it.
pub(super) fn parse(body: &[u8]) -> Option<Body<'_>> {
    let (kind, mut rest) = body.split_first()?;
    match *kind {
        CLOSED if rest.is_empty() => return Some(Body::Closed),
        CHANGES => {}
        _ => return None,
    }
    let mut changes = Vec::new();
    while !rest.is_empty() {
        let (key_len, after) = rest.split_first_chunk::<2>()?;
        let (value_len, after) = after.split_first_chunk::<4>()?;
        let value_len = usize::try_from(u32::from_le_bytes(*value_len)).ok()?;
        let (key, after) = after.split_at_checked(u16::from_le_bytes(*key_len).into())?;
        let (value, after) = after.split_at_checked(value_len)?;
        changes.push((std::str::from_utf8(key).ok()?, value));
        rest = after;
    }
    Some(Body::Changes(changes))
}

/// Looks for a whole frame in `bytes` with a number in `numbers`; where it starts.
///
/// After the frame that a crash has torn there is none: each is synced before the next is written. So one that
/// is found proves that what stands before it was damaged later.
pub(super) fn find(salt: Salt, numbers: &Range<u64>, bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|start| {
        let rest = &bytes[*start..];
        let Some((len, number)) = head(rest) else {
            return false;
        };
        numbers.contains(&number)
            && rest
                .get(HEAD_LEN..HEAD_LEN + len + CHECKSUM_LEN)
                .is_some_and(|body| checked(salt, number, body).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = *b"saltsalt";

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        let mut batch = Batch::default();
        assert!(batch.is_empty());
        batch.put("a", |out| out.extend_from_slice(b"1"));
        batch.put("bc", |_| {});
        assert!(!batch.is_empty());
        let len = batch.len();
        let bytes = batch.sealed(SALT, 7);
        assert_eq!(bytes.len(), len);
        let (body_len, number) = head(bytes).unwrap();
        assert_eq!((body_len, number), (len - HEAD_LEN - CHECKSUM_LEN, 7));
        let body = checked(SALT, 7, &bytes[HEAD_LEN..]).unwrap();
        let changes: Vec<(&str, &[u8])> = vec![("a", b"1"), ("bc", b"")];
        assert_eq!(parse(body), Some(Body::Changes(changes)));
    }

    #[test]
    fn a_frame_of_another_file_or_place_is_none() {
        let mut batch = Batch::default();
        batch.put("a", |out| out.push(1));
        let bytes = batch.sealed(SALT, 7);
        assert!(checked(*b"tlastlas", 7, &bytes[HEAD_LEN..]).is_none());
        assert!(checked(SALT, 8, &bytes[HEAD_LEN..]).is_none());
        assert_eq!(find(SALT, &(0..7), bytes), None);
        assert_eq!(find(SALT, &(0..8), bytes), Some(0));
        assert_eq!(find(SALT, &(0..8), &[&[0; 5], bytes].concat()), Some(5));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut batch = Batch::default();
        batch.put("a", |out| out.extend_from_slice(b"value"));
        let good = batch.sealed(SALT, 0).to_vec();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = head(&bad).and_then(|(len, number)| {
                let body = bad.get(HEAD_LEN..HEAD_LEN + len + CHECKSUM_LEN)?;
                (number == 0).then(|| checked(SALT, 0, body)).flatten()
            });
            assert_eq!(read, None, "bit {bit}");
        }
    }
}
