//! Reading what a newer version wrote: what is not understood of what is only told is left out, and the rest
//! stays. What is acted on has to be understood, or the ledger is of no use.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Readable<T> {
    Known(T),
    Newer(IgnoredAny),
}

impl<T> Readable<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Newer(_) => None,
        }
    }
}

/// A list without the entries that are not understood.
pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::<Readable<T>>::deserialize(from)?;
    Ok(list.into_iter().filter_map(Readable::known).collect())
}

/// A value; none when it is not understood.
pub(super) fn option<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Readable<T>>::deserialize(from)?.and_then(Readable::known))
}
