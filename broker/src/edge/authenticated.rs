//! Who the edge has let in, with all that comes of it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Registered;
use crate::guard::{Meter, Peer};
use crate::hub::Number;
use crate::inbox::Control;
use crate::session::Policy;

/// A client after its handshake: who it is, from where, and what holds for it.
pub(crate) struct Authenticated {
    pub(crate) peer: Arc<Peer>,
    pub(crate) address: SocketAddr,
    pub(crate) number: Number,
    /// Told to end when the certificate no longer counts.
    pub(crate) control: Arc<Control>,
    /// Its place among the certificates that are looked after.
    pub(crate) registered: Registered,
    /// Of its fleet.
    pub(crate) policy: Arc<Policy>,
    /// Of its identity and its fleet.
    pub(crate) meter: Arc<Meter>,
}
