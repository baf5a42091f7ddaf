//! Hoist's embedded MQTT broker: durable retained messages behind mutual TLS, with an access rule a role.
//!
//! ```text
//! clients ─ mTLS → edge       a task per connection: handshake with timeout, who somebody is
//!               → frame       packets, their limits
//!               → guard       client id, topics, who may do what
//!               → session     MQTT 3.1.1 and 5, one state machine a client, without input or output
//!               → store       one writer: batch, one fsync, commit number; then PUBACKs and notifications
//!               → hub, router who is told: straight to those who name a machine, over rumqttd's router to
//!                             those who watch the fleet
//! ```

mod connection;
mod deploys;
mod detached;
mod edge;
pub mod export;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod guard;
mod hub;
mod inbox;
mod log_limit;
pub mod maintenance;
mod message;
mod observe;
mod router;
mod server;
mod session;
mod settings;
mod store;
mod thread;
mod websocket;

pub use deploys::DeployRefusal;
pub use edge::Reload;
pub use guard::Rules;
pub use observe::{AuditError, AuditFailure, AuditSettings};
pub use router::RouterError;
pub use server::{Server, ServerError};
pub use settings::{
    Absence, Fleet, FleetOptions, Fleets, Limits, Options, Quota, Rate, RateError, SessionLimits,
    Settings, SettingsError, Timeouts, WebSockets,
};
pub use store::StoreError;
