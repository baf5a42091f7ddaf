//! What a machine says of itself: flat JSON on its `status` topic.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::deployment::FORMAT;
use crate::difference::Changes;
use crate::limits::STATUS_LEN;
use crate::name::{AgentName, FleetName, KeyName};
use crate::order::{DeploymentId, Order};
use crate::store_path::{StorePath, System};
use crate::target::Action;
use crate::text::Text;
use crate::time::Timestamp;
use crate::topic::Machine;
use crate::word::Tag;

/// The version of the status report's JSON. Fields are only ever added within a version.
pub const SCHEMA: u32 = 1;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal;)*) => {
        /// Where a machine stands with its newest deployment.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum State {
            $($(#[$doc])* $name,)*
        }

        impl State {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The state as a number, for tools that only chart numbers: below 20 under way, 20 to 29
            /// good, from 30 on not carried out.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The state as it is written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

states! {
    /// No deployment yet.
    Idle = 0 "idle";
    /// Admitted, not begun: something else has to end first.
    Waiting = 10 "waiting";
    /// Nix fetches the closure.
    Fetching = 11 "fetching";
    /// The activation runs.
    Activating = 12 "activating";
    /// Activated; health checks and the way back to the broker are tried.
    Confirming = 13 "confirming";
    /// Going back to what ran before.
    RollingBack = 14 "rolling_back";
    /// Admitted, not begun: the machine is held, by its own hand or by the deployment.
    Held = 15 "held";
    /// The machine runs it, confirmed.
    Succeeded = 20 "succeeded";
    /// The machine ran it already; nothing was done.
    Unchanged = 21 "unchanged";
    /// The next boot brings it: it becomes succeeded or rolled back then, by what was booted.
    Staged = 22 "staged";
    /// Its activation was tried dry: nothing was changed, and the log says what would be.
    DryActivated = 23 "dry_activated";
    /// It could not be activated; the machine runs what it ran before, untouched or restored.
    Failed = 30 "failed";
    /// It was activated, did not hold, and the machine went back to what it ran before.
    RolledBack = 31 "rolled_back";
    /// It did not hold, and going back failed too: somebody has to look.
    RollbackFailed = 32 "rollback_failed";
    /// Somebody else changed the machine's system meanwhile; it was left as it was found.
    Conflict = 33 "conflict";
    /// It is signed, but this machine does not carry it out; the reason says why.
    Rejected = 34 "rejected";
    /// It had expired before the machine saw it.
    Expired = 35 "expired";
    /// A newer deployment came before it was activated.
    Superseded = 36 "superseded";
    /// A newer deployment cancelled it before it was activated.
    Cancelled = 37 "cancelled";
}

impl State {
    /// Whether a deployment in this state has ended.
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.code() >= 20
    }

    /// Whether a deployment that ended so is what the machine runs.
    #[must_use]
    pub const fn is_good(self) -> bool {
        self.code() >= 20 && self.code() < 30
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $text:literal;)*) => {
        /// Why a deployment did not end well, as a word for programs. The message beside it is for people.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason {
            $($(#[$doc])* $name,)*
            /// A reason that only a newer version knows.
            #[serde(other)]
            Other,
        }

        impl Reason {
            /// The reason as it is written.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Other => "other" }
            }
        }
    };
}

reasons! {
    /// No trusted key signed it, or the envelope is damaged.
    Unverified "unverified";
    /// It is signed for another machine.
    OtherMachine "other_machine";
    /// It is ordered before what the machine has admitted: a replay, or a lost race.
    Stale "stale";
    /// Its sequence lies more than 24 h ahead of the machine's synchronised clock.
    TooFarAhead "too_far_ahead";
    /// It raises the epoch, and its key has no right to.
    EpochNotAllowed "epoch_not_allowed";
    /// Its expiry has passed.
    Expired "expired";
    /// This agent cannot do what it asks for.
    Unsupported "unsupported";
    /// It names a deployment to go back to that the machine's ledger does not hold.
    UnknownDeployment "unknown_deployment";
    /// It was to cancel a deployment that had been activated by then.
    TooLate "too_late";
    /// No binary cache has the path.
    MissingPath "missing_path";
    /// A binary cache has the path, but no trusted cache key signed it.
    UntrustedPath "untrusted_path";
    /// The disk has no room for it.
    DiskFull "disk_full";
    /// Nix could not fetch it for another reason.
    FetchFailed "fetch_failed";
    /// The closure is not of the kind that was asked for.
    WrongKind "wrong_kind";
    /// A binary cache served other content than what was signed.
    DigestMismatch "digest_mismatch";
    /// The new system has no agent, and the deployment does not allow that.
    NoAgent "no_agent";
    /// Something else changes the system at this moment, and went on doing so.
    Busy "busy";
    /// A check before the activation failed; nothing was activated.
    PreSwitchCheckFailed "pre_switch_check_failed";
    /// The activation script failed.
    ActivationScriptFailed "activation_script_failed";
    /// The system was activated, but some of its units failed.
    UnitsFailed "units_failed";
    /// It can only be activated by a boot.
    NeedsReboot "needs_reboot";
    /// The machine was booted into something else than what was staged.
    BootedOther "booted_other";
    /// The activation exited with an error.
    ActivationFailed "activation_failed";
    /// The activation took longer than allowed and was stopped.
    ActivationTimedOut "activation_timed_out";
    /// A health check failed.
    HealthCheckFailed "health_check_failed";
    /// The machine did not reach the broker in time after the activation.
    NotConfirmed "not_confirmed";
    /// The agent, the activator or the machine died in the middle.
    Interrupted "interrupted";
    /// The boot loader could not be set, or does not boot what it should.
    BootLoaderFailed "boot_loader_failed";
    /// The profile could not be set after the confirmation.
    CommitFailed "commit_failed";
    /// Somebody else changed the machine's system.
    ChangedByOthers "changed_by_others";
    /// Something failed inside the agent itself.
    Internal "internal";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A message on the `deploy` topic that the agent refused without carrying its id: nothing in it could be
/// trusted, so it is known by the digest of its bytes alone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refused {
    /// SHA-256 of the received bytes, in hexadecimal.
    pub refused_digest: Text<64>,
    /// Why.
    pub refused_reason: Reason,
    /// Why, for people.
    #[serde(deserialize_with = "lossy")]
    pub refused_message: Text<512>,
    /// When, in milliseconds since 1970.
    pub refused_at: Timestamp,
}

/// How much Nix has fetched.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FetchProgress {
    /// Bytes that came from binary caches.
    pub fetched_bytes: u64,
    /// Bytes that have to come, as far as Nix knows yet.
    pub fetch_bytes: u64,
    /// Store paths that are complete.
    pub fetched_paths: u64,
    /// Store paths that have to come.
    pub fetch_paths: u64,
}

/// What of a system takes effect at a boot only.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RebootReason {
    /// The kernel is another one than the booted one.
    Kernel,
    /// The initial RAM disk is.
    Initrd,
    /// The kernel's modules are.
    KernelModules,
    /// The first process, systemd, is.
    Systemd,
    /// Something that only a newer version knows.
    #[serde(other)]
    Other,
}

impl RebootReason {
    /// The reason as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::KernelModules => "kernel_modules",
            Self::Systemd => "systemd",
            Self::Other => "other",
        }
    }
}

/// The whole report. Absent fields are left out of the JSON.
///
/// `schema`, `state_code`, `needs_reboot` and `updated_at` (RFC 3339) are added when it is written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// Whose report it is.
    pub agent: AgentName,
    /// The fleet it belongs to.
    pub fleet: FleetName,
    /// Where the machine stands with the deployment `id`.
    pub state: State,
    /// When the report was made, in milliseconds since 1970.
    pub ts: Timestamp,
    /// The deployment that `state` is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeploymentId>,
    /// Its epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// Its sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Whether somebody at the machine ordered it: it has an id, but no place among the deployments.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// The epoch of the highest order that this machine has verified.
    #[serde(default)]
    pub floor_epoch: u32,
    /// The sequence of the highest order that this machine has verified; 0 before the first.
    #[serde(default)]
    pub floor: u64,
    /// Why it did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same for people, and what to do.
    #[serde(
        default,
        skip_serializing_if = "Text::is_empty",
        deserialize_with = "lossy"
    )]
    pub message: Text<1024>,
    /// How much of the present state is done, in percent, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
    /// The closure of the deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<StorePath>,
    /// What ran before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_path: Option<StorePath>,
    /// What runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_path: Option<StorePath>,
    /// What the profile names now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_path: Option<StorePath>,
    /// What the next boot brings, where the boot loader can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_default_path: Option<StorePath>,
    /// What the machine was booted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_path: Option<StorePath>,
    /// What of the running system takes effect at the next boot only; none when nothing does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reboot_reasons: Vec<RebootReason>,
    /// How the closure of the deployment is activated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Text<16>>,
    /// What the deployment does with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// How often this deployment was begun.
    #[serde(default)]
    pub attempts: u32,
    /// The size of the closure in the store, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closure_size: Option<u64>,
    /// How far the fetch is, or how much was fetched in all.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<FetchProgress>,
    /// What it changes against what ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// Whether somebody at the machine holds it: deployments wait until it is released.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// When the hold ends by itself, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// What somebody should look at, though deployments go on: at most [`WARNINGS`](crate::limits::WARNINGS).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Text<256>>,
    /// The broker that this was said to: `mqtts://HOST:PORT`. Which of several it is shows during a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<Text<300>>,
    /// What the machine's owner calls it, to select it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// How many lines the deployment wrote to the `log` topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_lines: Option<u64>,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<Text<256>>,
    /// The newest message that was refused unread.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// The agent's version.
    pub agent_version: Text<32>,
    /// The machine's system.
    pub system: System,
    /// The formats of deployments that the agent reads.
    pub formats: Vec<u8>,
    /// The names of the keys it trusts.
    #[serde(default)]
    pub trusted_keys: Vec<KeyName>,
    /// Random for each start of the agent: tells a restart, and two machines with one identity, apart.
    pub session: Text<32>,
}

/// What is shown to people is kept even when a character of it is not fit to show.
fn lossy<'de, D: Deserializer<'de>, const MAX: usize>(from: D) -> Result<Text<MAX>, D::Error> {
    String::deserialize(from).map(|text| Text::lossy(&text))
}

/// Why a payload is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is longer than allowed.
    #[error("the report has {0} bytes, more than are allowed")]
    TooLong(usize),
    /// It is no JSON, or a field is missing or not valid.
    #[error("the report is not valid")]
    Malformed(#[source] serde_json::Error),
    /// It speaks for another machine than the one whose topic it is on.
    #[error("the report speaks for another machine than its topic")]
    OtherMachine,
}

/// Writes a report with the fields that are derived.
fn write(report: &impl Serialize, derived: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let mut json = serde_json::to_value(report).expect("plain data always has a JSON form");
    if let Some(fields) = json.as_object_mut() {
        fields.extend(
            derived
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
    }
    json.to_string().into_bytes()
}

impl Status {
    /// What the agent with this version and session on `machine` says that has been told of no deployment, trusts nobody
    /// and knows nothing of what the machine runs.
    #[must_use]
    pub fn idle(
        machine: &Machine,
        system: System,
        agent_version: Text<32>,
        session: Text<32>,
        ts: Timestamp,
    ) -> Self {
        Self {
            agent: machine.agent.clone(),
            fleet: machine.fleet.clone(),
            state: State::Idle,
            ts,
            id: None,
            epoch: None,
            sequence: None,
            local: false,
            floor_epoch: 0,
            floor: 0,
            reason: None,
            message: Text::default(),
            progress: None,
            path: None,
            previous_path: None,
            current_path: None,
            profile_path: None,
            boot_default_path: None,
            booted_path: None,
            reboot_reasons: Vec::new(),
            kind: None,
            action: None,
            attempts: 0,
            closure_size: None,
            fetch: None,
            changes: None,
            held: false,
            held_until: None,
            warnings: Vec::new(),
            broker: None,
            tags: Vec::new(),
            log_lines: None,
            log_tail: Vec::new(),
            refused: None,
            agent_version,
            system,
            formats: vec![FORMAT],
            trusted_keys: Vec::new(),
            session,
        }
    }

    /// The deployment's order, where the report is about one.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        Some(Order {
            epoch: self.epoch?,
            sequence: self.sequence?,
            id: self.id?,
        })
    }

    /// The payload of the `status` topic. The log's tail and the changed packages are shortened where the
    /// limit demands it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let derived = [
            ("schema", SCHEMA.into()),
            ("state_code", self.state.code().into()),
            (
                "needs_reboot",
                (self.state == State::Staged || !self.reboot_reasons.is_empty()).into(),
            ),
            ("updated_at", self.ts.to_string().into()),
        ];
        let json = write(self, &derived);
        if json.len() <= STATUS_LEN {
            return json;
        }
        if self.log_tail.is_empty() {
            // The packages by name are what is left that has no end; their number stays.
            return match &self.changes {
                Some(changes) if !changes.packages.is_empty() => {
                    let packages = changes.packages[..changes.packages.len() / 2].to_vec();
                    let changes = Some(Changes {
                        packages,
                        ..changes.clone()
                    });
                    let shorter = Self {
                        changes,
                        ..self.clone()
                    };
                    shorter.to_json()
                }
                _ => json,
            };
        }
        let shorter = Self {
            log_tail: self.log_tail[self.log_tail.len().div_ceil(2)..].to_vec(),
            ..self.clone()
        };
        shorter.to_json()
    }

    /// Reads a payload found on the `status` topic of `machine`.
    ///
    /// # Errors
    /// [`ReportError`]; a status is not signed, so nothing may be decided by it but what to show and when to
    /// stop waiting.
    pub fn from_json(bytes: &[u8], machine: &Machine) -> Result<Self, ReportError> {
        if bytes.len() > STATUS_LEN {
            return Err(ReportError::TooLong(bytes.len()));
        }
        let status: Self = serde_json::from_slice(bytes).map_err(ReportError::Malformed)?;
        if status.agent != machine.agent || status.fleet != machine.fleet {
            return Err(ReportError::OtherMachine);
        }
        Ok(status)
    }
}

/// One deployment that has ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HistoryEntry {
    /// Which one.
    pub id: DeploymentId,
    /// Its epoch; of a local one that of the newest deployment that the machine had seen then.
    pub epoch: u32,
    /// Its sequence, likewise.
    pub sequence: u64,
    /// Whether somebody at the machine ordered it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// How it ended.
    pub state: State,
    /// Why it did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same for people.
    #[serde(
        default,
        skip_serializing_if = "Text::is_empty",
        deserialize_with = "lossy"
    )]
    pub message: Text<256>,
    /// Its closure, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<StorePath>,
    /// What ran before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_path: Option<StorePath>,
    /// When the machine admitted it, in milliseconds since 1970.
    pub started_at: Timestamp,
    /// When it ended, in milliseconds since 1970.
    pub ended_at: Timestamp,
    /// The size of the closure in the store, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closure_size: Option<u64>,
    /// How many bytes came from binary caches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_bytes: Option<u64>,
    /// How much it changed against what ran before; packages are not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
}

/// The last deployments of a machine, newest first: JSON on its `history` topic.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct History {
    /// Whose history it is.
    pub agent: AgentName,
    /// The fleet it belongs to.
    pub fleet: FleetName,
    /// The deployments, newest first.
    pub entries: Vec<HistoryEntry>,
}

impl History {
    /// The payload of the `history` topic: as many of the newest entries as the limit has room for.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut shown = self.clone();
        loop {
            let json = write(&shown, &[("schema", SCHEMA.into())]);
            if json.len() <= crate::limits::HISTORY_LEN || shown.entries.pop().is_none() {
                return json;
            }
        }
    }

    /// Reads a payload found on the `history` topic of `machine`.
    ///
    /// # Errors
    /// [`ReportError`]
    pub fn from_json(bytes: &[u8], machine: &Machine) -> Result<Self, ReportError> {
        if bytes.len() > crate::limits::HISTORY_LEN {
            return Err(ReportError::TooLong(bytes.len()));
        }
        let history: Self = serde_json::from_slice(bytes).map_err(ReportError::Malformed)?;
        if history.agent != machine.agent || history.fleet != machine.fleet {
            return Err(ReportError::OtherMachine);
        }
        Ok(history)
    }
}

/// Where a log line came from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// What a program wrote to its standard output.
    Stdout,
    /// What a program wrote to its standard error.
    Stderr,
    /// What the agent or the activator says itself.
    Hoist,
}

/// One line on the `log` topic. Lines may be lost: the final status says how many there were.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogLine {
    /// Which deployment it belongs to.
    pub id: DeploymentId,
    /// Its number, from 1.
    pub line: u64,
    /// When it was read, in milliseconds since 1970.
    pub ts: Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// The line without its end, shortened when it is longer.
    #[serde(deserialize_with = "lossy")]
    pub text: Text<2048>,
}

impl LogLine {
    /// The payload of the `log` topic.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        write(self, &[])
    }

    /// Reads a payload found on a `log` topic.
    ///
    /// # Errors
    /// [`ReportError`]
    pub fn from_json(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() > crate::limits::LOG_LEN {
            return Err(ReportError::TooLong(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(ReportError::Malformed)
    }
}
