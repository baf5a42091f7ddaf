//! Serial numbers of certificates.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::certificate::hex;

/// Longest serial number, in bytes (RFC 5280, section 4.1.2.2).
const MAX_LEN: usize = 20;

/// A text that is no serial number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a serial number is 1 to 40 hexadecimal digits, with or without colons")]
pub struct SerialError;

/// What an authority tells its certificates apart by, as a number: leading zeros do not count.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// The number with these bytes, the highest first.
    #[must_use]
    pub fn from_be_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|byte| *byte != 0);
        Self(bytes[start.unwrap_or(bytes.len())..].into())
    }

    /// Its bytes, the highest first, without leading zeros.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|byte| *byte != b':')
            .map(|byte| {
                char::from(byte)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            })
            .collect::<Option<_>>()
            .ok_or(SerialError)?;
        if digits.is_empty() || digits.len() > 2 * MAX_LEN {
            return Err(SerialError);
        }
        // An odd number of digits has a zero in front that was left out.
        let bytes: Vec<u8> = digits
            .rchunks(2)
            .rev()
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect();
        Ok(Self::from_be_bytes(&bytes))
    }
}

impl TryFrom<String> for Serial {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, SerialError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

/// Lower-case hexadecimal, as `hoist-certs show` prints it.
impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.pad("00");
        }
        f.pad(&hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_the_same_however_it_is_written() {
        let serial = Serial::from_be_bytes(&[0x0a, 0xbc]);
        for text in ["0abc", "abc", "0A:BC", "00:0a:bc"] {
            assert_eq!(text.parse(), Ok(serial.clone()), "{text}");
        }
        assert_eq!(serial.to_string(), "0abc");
        assert_eq!(Serial::from_be_bytes(&[0]).to_string(), "00");
    }

    #[test]
    fn what_is_no_number_is_no_serial() {
        for text in ["", ":", "web-1", "0x1f", &"a".repeat(41)] {
            assert_eq!(text.parse::<Serial>(), Err(SerialError), "{text:?}");
        }
    }
}
