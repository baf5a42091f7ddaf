//! What a spec says of one machine: a store path, or an object with more.

use hoist_protocol::{
    AgentName, ClosureDigest, ClosureFile, Endpoint, HealthCheck, HttpUrl, Probe, ProfileName,
    Specialisation, StorePath, UnitName, limits,
};

use super::json::{Fields, Json};
use super::{FieldError, programs};
use crate::duration;
use crate::options::{ActionArg, KindArg, Options, UnitsFailedArg};

/// The keys that the object of a machine may have.
pub(super) const AGENT_KEYS: &[&str] = &[
    "path",
    "kind",
    "custom_activator",
    "profile",
    "action",
    "specialisation",
    "units_failed",
    "allow_no_agent",
    "activation_timeout",
    "confirm_timeout",
    "spread",
    "checks",
    "digest",
];

/// The keys that a health check may have; the first four say what is tried.
pub(super) const CHECK_KEYS: &[&str] = &[
    "unit",
    "tcp",
    "http",
    "program",
    "grace",
    "retries",
    "interval",
    "timeout",
    "only_if_held_before",
];

/// What one machine shall run, and how it gets there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentSpec {
    /// What it shall run.
    pub path: StorePath,
    /// What the spec says of it beside the path.
    pub options: Options,
    /// What the closure holds, where whoever wrote the spec knows it.
    pub digest: Option<ClosureDigest>,
}

impl From<StorePath> for AgentSpec {
    fn from(path: StorePath) -> Self {
        Self {
            path,
            options: Options::default(),
            digest: None,
        }
    }
}

impl AgentSpec {
    pub(super) fn read(agent: &AgentName, json: Json) -> Result<Self, FieldError> {
        let at = format!("`agents.{agent}`");
        let path = |text: String| {
            StorePath::new(text).map_err(|source| FieldError::AgentPath {
                agent: agent.clone(),
                source,
            })
        };
        let entries = match json {
            Json::Text(text) => return path(text).map(Self::from),
            Json::Object(entries) => entries,
            other => return Err(other.mismatch(&at, "a store path, or an object with one,")),
        };
        let mut fields = Fields::new(&at, "an agent", AGENT_KEYS, entries)?;
        let Some((field, value)) = fields.take("path") else {
            return Err(FieldError::NoPath { at });
        };
        let path = path(value.text(&field, "a store path")?)?;
        let digest = fields.read("digest", "64 hexadecimal digits", str::parse)?;
        let allow_no_agent = match fields.take("allow_no_agent") {
            Some((field, value)) => value.flag(&field)?,
            None => false,
        };
        let checks = match fields.take("checks") {
            Some((field, value)) => read_checks(&field, value)?,
            None => Vec::new(),
        };
        let options = Options {
            kind: fields.word::<KindArg>("kind")?,
            custom_activator: fields.read(
                "custom_activator",
                A_STRING,
                str::parse::<ClosureFile>,
            )?,
            profile: fields.read("profile", A_STRING, str::parse::<ProfileName>)?,
            action: fields.word::<ActionArg>("action")?,
            specialisation: fields.read(
                "specialisation",
                A_STRING,
                str::parse::<Specialisation>,
            )?,
            units_failed: fields.word::<UnitsFailedArg>("units_failed")?,
            allow_no_agent,
            activation_timeout: fields.read(
                "activation_timeout",
                A_DURATION,
                duration::activation_timeout,
            )?,
            confirm_timeout: fields.read(
                "confirm_timeout",
                A_DURATION,
                duration::confirm_timeout,
            )?,
            spread: fields.read("spread", A_DURATION, duration::spread)?,
            checks,
        };
        Ok(Self {
            path,
            options,
            digest,
        })
    }
}

const A_STRING: &str = "a string";
const A_DURATION: &str = "a duration such as \"30s\"";

fn read_checks(field: &str, json: Json) -> Result<Vec<HealthCheck>, FieldError> {
    let inner = field.trim_matches('`');
    json.list(field, "a list of health checks")?
        .into_iter()
        .enumerate()
        .map(|(number, json)| read_check(&format!("`{inner}[{number}]`"), json))
        .collect()
}

fn read_check(at: &str, json: Json) -> Result<HealthCheck, FieldError> {
    let entries = json.object(at, "an object such as {\"unit\": \"nginx.service\"}")?;
    let mut fields = Fields::new(at, "a health check", CHECK_KEYS, entries)?;
    let program = match fields.take("program") {
        Some((field, value)) => Some(Probe::Program(programs(&field, value)?)),
        None => None,
    };
    let probes = [
        fields
            .read("unit", A_STRING, str::parse::<UnitName>)?
            .map(Probe::Unit),
        fields
            .read("tcp", A_STRING, str::parse::<Endpoint>)?
            .map(Probe::Tcp),
        fields
            .read("http", A_STRING, str::parse::<HttpUrl>)?
            .map(Probe::Http),
        program,
    ];
    let mut probes = probes.into_iter().flatten();
    let (Some(probe), None) = (probes.next(), probes.next()) else {
        return Err(FieldError::Probe { at: at.to_owned() });
    };
    let mut check = HealthCheck::new(probe);
    if let Some(grace) = fields.read("grace", A_DURATION, duration::check_grace)? {
        check.grace_ms = duration::ms(grace);
    }
    if let Some(interval) = fields.read("interval", A_DURATION, duration::check_interval)? {
        check.interval_ms = duration::ms(interval);
    }
    if let Some(timeout) = fields.read("timeout", A_DURATION, duration::check_timeout)? {
        check.timeout_ms = duration::ms(timeout);
    }
    if let Some((field, value)) = fields.take("retries") {
        let count = value.count(&field)?;
        let retries = u16::try_from(count).ok();
        let retries = retries.filter(|retries| usize::from(*retries) <= limits::CHECK_RETRIES);
        check.retries = retries.ok_or(FieldError::Retries {
            field,
            found: count,
        })?;
    }
    if let Some((field, value)) = fields.take("only_if_held_before") {
        check.only_if_held_before = value.flag(&field)?;
    }
    Ok(check)
}
