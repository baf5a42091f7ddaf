//! What the authority has taken back, and the list that says so.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::{Index, Issued};
use super::{DirectoryError, INDEX};
use crate::authority::{Authority, RevocationReason, RevokedCertificate, days};
use crate::files::{self, FileError, Overwrite};
use crate::program::now;
use crate::serial::Serial;
use crate::trust::{CRL_LEN, Crl};

/// The revocation list, which every broker of the fleet gets.
pub const CRL: &str = "crl.pem";

/// One line of JSON for every certificate that was revoked.
pub const REVOKED: &str = "revoked.jsonl";

/// How long a revocation list holds unless told otherwise: 90 days. By then there has to be a newer one.
pub const CRL_VALIDITY: Duration = days(90);

/// How long a certificate stays on the list after its end, for brokers whose clock is behind.
const LINGER: Duration = days(30);

/// One certificate that was revoked: a line of [`REVOKED`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Revoked {
    authority: Serial,
    /// Its serial number.
    pub serial: Serial,
    /// Since when.
    pub revoked: Timestamp,
    /// Why.
    pub reason: RevocationReason,
    /// When it would have ended.
    pub not_after: Timestamp,
}

/// One certificate that was issued, and what became of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// What was issued.
    pub certificate: Issued,
    /// When and why it was revoked, if it was.
    pub revoked: Option<Revoked>,
}

/// A revocation list on disk.
#[derive(Clone, Debug)]
pub struct WrittenList {
    /// Where it lies.
    pub path: Utf8PathBuf,
    /// Its number.
    pub number: Serial,
    /// Until when it holds.
    pub next_update: Timestamp,
    /// How many certificates it revokes.
    pub len: usize,
    /// Whether it was written now; otherwise the one that was there is good.
    pub is_new: bool,
}

/// Everything that the authority in `dir` has issued, the oldest first. Needs no private key.
///
/// # Errors
/// [`DirectoryError`]
pub fn issued(dir: &Utf8Path) -> Result<Vec<Listed>, DirectoryError> {
    let authority = Authority::serial_in(dir)?;
    let certificates: Vec<Issued> = Index::open(&dir.join(INDEX))?.entries()?;
    let revoked: Vec<Revoked> = Index::open(&dir.join(REVOKED))?.entries()?;
    let ours = certificates
        .into_iter()
        .filter(|issued| issued.authority == authority);
    let listed = ours.map(|certificate| {
        let found = revoked
            .iter()
            .find(|revoked| revoked.authority == authority && revoked.serial == certificate.serial);
        Listed {
            revoked: found.cloned(),
            certificate,
        }
    });
    Ok(listed.collect())
}

/// Takes back everything that holds today and was issued to the name `whom`, or has the serial number `whom`, and
/// writes the list anew. Returns what is revoked now that was not before.
///
/// # Errors
/// [`DirectoryError`]
pub fn revoke(
    dir: &Utf8Path,
    whom: &str,
    reason: RevocationReason,
    valid_for: Duration,
) -> Result<(Vec<Issued>, WrittenList), DirectoryError> {
    let authority = Authority::load(dir)?;
    let (now, serial) = (now(), whom.parse::<Serial>().ok());
    let mut found = false;
    let mut taken = Vec::new();
    for listed in issued(dir)? {
        let certificate = listed.certificate;
        let is_meant =
            certificate.name.as_str() == whom || Some(&certificate.serial) == serial.as_ref();
        if is_meant && certificate.not_after >= now {
            found = true;
            if listed.revoked.is_none() {
                taken.push(certificate);
            }
        }
    }
    if !found {
        let shown = hoist_protocol::Text::<64>::lossy(whom);
        return Err(DirectoryError::NotIssued(shown.to_string()));
    }
    let mut index = Index::open(&dir.join(REVOKED))?;
    for certificate in &taken {
        index.append(&Revoked {
            authority: authority.serial().clone(),
            serial: certificate.serial.clone(),
            revoked: now,
            reason,
            not_after: certificate.not_after,
        })?;
    }
    drop(index);
    let list = write_list(dir, valid_for, Overwrite::No)?;
    Ok((taken, list))
}

/// Writes the revocation list of the authority in `dir`, unless the one that is there says the same and has more
/// than half of its time left. `overwrite` writes it in any case, also in the place of a file that is no list of
/// this authority.
///
/// # Errors
/// [`DirectoryError`]
pub fn write_list(
    dir: &Utf8Path,
    valid_for: Duration,
    overwrite: Overwrite,
) -> Result<WrittenList, DirectoryError> {
    let authority = Authority::load(dir)?;
    let path = dir.join(CRL);
    // Held until the list is written: two at once would give two lists one number.
    let mut index = Index::open(&dir.join(REVOKED))?;
    let now = now();
    let revoked: Vec<RevokedCertificate> = index
        .entries::<Revoked>()?
        .into_iter()
        .filter(|revoked| revoked.authority == *authority.serial())
        .filter(|revoked| revoked.not_after.plus(LINGER) >= now)
        .map(|revoked| RevokedCertificate {
            serial: revoked.serial,
            since: revoked.revoked,
            reason: revoked.reason,
        })
        .collect();
    let before = match read_list(&path, &authority) {
        Ok(before) => before,
        Err(_) if overwrite == Overwrite::Yes => None,
        Err(error) => return Err(error),
    };
    if let Some(list) = &before
        && overwrite == Overwrite::No
        && list.len() == revoked.len()
        && revoked.iter().all(|entry| list.revokes(&entry.serial))
        && list.next_update().since(now) > valid_for / 2
        && let Some(number) = list.number()
    {
        return Ok(WrittenList {
            number: number.clone(),
            next_update: list.next_update(),
            len: list.len(),
            is_new: false,
            path,
        });
    }
    let number = next_number(before.as_ref().and_then(Crl::number), now);
    let next_update = now.plus(valid_for);
    let text = authority.revocation_list(&number, now, next_update, &revoked)?;
    files::write_public(&path, text.as_bytes(), Overwrite::Yes)?;
    Ok(WrittenList {
        path,
        number,
        next_update,
        len: revoked.len(),
        is_new: true,
    })
}

/// The list in a file, if it is one of this authority.
fn read_list(path: &Utf8Path, authority: &Authority) -> Result<Option<Crl>, DirectoryError> {
    let bytes = match files::read_limited(path, CRL_LEN) {
        Ok(bytes) => bytes,
        Err(FileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match Crl::parse_all(&bytes, &[authority.anchor()?]) {
        Ok(lists) => Ok(lists.into_iter().next().map(|(_, list)| list)),
        Err(source) => Err(DirectoryError::ForeignList {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A number above `before`, and above all earlier ones if the list is lost: the time, unless it stands still.
fn next_number(before: Option<&Serial>, now: Timestamp) -> Serial {
    let seconds = Serial::from_be_bytes(&(now.as_ms() / 1000).to_be_bytes());
    let Some(before) = before else {
        return seconds;
    };
    let mut bytes = vec![0];
    bytes.extend_from_slice(before.as_bytes());
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    let next = Serial::from_be_bytes(&bytes);
    let key = |serial: &Serial| (serial.as_bytes().len(), serial.clone());
    if key(&seconds) > key(&next) {
        seconds
    } else {
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_also_when_the_clock_does_not() {
        let at = Timestamp::from_ms(1_000_000);
        let first = next_number(None, at);
        assert_eq!(first.to_string(), "03e8");
        assert_eq!(next_number(Some(&first), at).to_string(), "03e9");
        let early = Timestamp::from_ms(1000);
        assert_eq!(next_number(Some(&first), early).to_string(), "03e9");
        let full = "ffff".parse().unwrap();
        assert_eq!(next_number(Some(&full), at).to_string(), "010000");
        let later = Timestamp::from_ms(2_000_000);
        assert_eq!(next_number(Some(&first), later).to_string(), "07d0");
    }
}
