//! What Hoist's programs say to each other: names, topics, signed deployments and status reports.
//!
//! This crate is pure: no clock, no files, no network, no tokio. A value that exists is valid, and
//! [`VerifiedDeployment`] has one maker, [`TrustedKeys::verify`].

mod check;
mod client;
mod closure;
mod closures;
mod conversions;
mod deployment;
mod difference;
mod draft;
mod envelope;
mod exit;
mod key;
pub mod limits;
mod name;
mod order;
mod screen;
mod status;
mod store_path;
mod substituter;
mod target;
mod text;
mod time;
mod topic;
mod word;

pub use check::{Endpoint, EndpointError, HealthCheck, HttpUrl, Probe};
pub use client::{BrokerUrl, BrokerUrlError, DEFAULT_PORT, client_id, is_client_id_of};
pub use closure::{ClosureDigest, ClosureDigestError, ClosureInfo, ClosureInfoError};
pub use closures::Closures;
pub use deployment::{
    DecodeError, Deployment, DeploymentError, DeploymentParts, FORMAT, Held, Provenance, Rollout,
};
pub use difference::{Changes, ClosureDifference, PackageChange, PackageDifference, PackageFate};
pub use draft::{AddError, Draft, SignError};
pub use envelope::{TrustedKeys, TrustedKeysError, VerifiedDeployment, VerifyError, digest, sign};
pub use exit::Exit;
pub use key::{KeyError, PublicKey, SigningKey};
pub use name::{AgentName, FleetName, KeyName, NameError, nearest};
pub use order::{DeploymentId, DeploymentIdError, KnownOrders, Order, SequenceError};
pub use screen::ScreenedDeployment;
pub use status::{
    FetchProgress, History, HistoryEntry, LogLine, Reason, RebootReason, Refused, ReportError,
    SCHEMA, State, Status, Stream,
};
pub use store_path::{STORE, StorePath, StorePathError, System, SystemError};
pub use substituter::{CacheKey, SubstituterError, SubstituterUrl};
pub use target::{Action, Goal, Kind, RollbackTo, Target, TargetError, UnitsFailed};
pub use text::{Text, TextError};
pub use time::Timestamp;
pub use topic::{Channel, Machine, Presence, ROOT, Topic, TopicError, fleet_filter};
pub use word::{ClosureFile, ProfileName, Specialisation, Tag, UnitName, WordError};
