//! `hoist-certs show`

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::authority::days;
use hoist_certs::directory::{CRL, INDEX, REVOKED};
use hoist_certs::inspect::{Found, inspect};
use hoist_certs::program::{now, report};
use hoist_certs::{CertificateInfo, files};
use hoist_protocol::Timestamp;
use serde_json::{Value, json};

use super::print;

/// Largest file that is looked at, in bytes.
const MAX_LEN: usize = 256 * 1024;

/// From how many days before its end on a certificate comes with a warning.
const SOON_DAYS: u32 = 30;

/// Show what certificates and keys are, and when they end
///
/// Never prints a secret. Warns when a certificate ends within 30 days.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  hoist-certs show certs/*.pem certs/ci.signing-key
  hoist-certs show --json certs/*.pem | jq '.[] | select(.days_left < 30) | .file'")]
pub(crate) struct Show {
    /// Certificates and keys
    #[arg(required = true, value_name = "FILE")]
    files: Vec<Utf8PathBuf>,
    /// Print one JSON array, with an object for every certificate and key
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        let mut shown = Vec::new();
        for file in &self.files {
            // `show certs/*` meets them, and nothing is wrong with them.
            if let Some(what) = record(file) {
                eprintln!("{file}: {what}");
                continue;
            }
            match look(file) {
                Ok(found) => shown.extend(found.into_iter().map(|found| (file, found))),
                // The others are shown all the same.
                Err(error) => {
                    eprintln!("error: {}", report(&error));
                    code = ExitCode::FAILURE;
                }
            }
        }
        let now = now();
        if self.json {
            let objects: Vec<Value> = shown
                .iter()
                .map(|(file, found)| as_json(file, found, now))
                .collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&objects)?))?;
        } else {
            for (file, found) in &shown {
                print(&as_text(file, found, now))?;
            }
        }
        Ok(code)
    }
}

/// What a file of the CA's folder is that holds no certificate and no key.
fn record(file: &Utf8Path) -> Option<&'static str> {
    match file.file_name()? {
        INDEX => Some("the record of what the CA has issued; `hoist-certs list` shows it"),
        REVOKED => Some("the record of what the CA has revoked; `hoist-certs list` shows it"),
        CRL => Some("the revocation list (CRL), for every broker"),
        _ => None,
    }
}

fn look(file: &Utf8Path) -> anyhow::Result<Vec<Found>> {
    let bytes = files::read_limited(file, MAX_LEN)?;
    inspect(&bytes).with_context(|| format!("cannot tell what `{file}` is"))
}

/// How a certificate stands in time.
#[derive(Clone, Copy)]
enum Standing {
    NotYet,
    Good { days_left: u64 },
    Soon { days_left: u64 },
    Expired,
}

impl Standing {
    fn of(info: &CertificateInfo, now: Timestamp) -> Self {
        if now > info.not_after {
            return Self::Expired;
        }
        if now < info.not_before {
            return Self::NotYet;
        }
        let left = info.not_after.since(now);
        let days_left = whole_days(left);
        if left < days(SOON_DAYS) {
            Self::Soon { days_left }
        } else {
            Self::Good { days_left }
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::NotYet => "not-yet-valid",
            Self::Good { .. } => "valid",
            Self::Soon { .. } => "ends-soon",
            Self::Expired => "expired",
        }
    }

    /// Whole days until it ends; none when it does not hold now.
    const fn days_left(self) -> Option<u64> {
        match self {
            Self::Good { days_left } | Self::Soon { days_left } => Some(days_left),
            Self::NotYet | Self::Expired => None,
        }
    }
}

const fn whole_days(duration: Duration) -> u64 {
    duration.as_secs() / days(1).as_secs()
}

fn as_text(file: &Utf8Path, found: &Found, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        writeln!(text, "  {label:<12} {value}").expect("a String takes all that is written to it");
    };
    let headline = match found {
        Found::Certificate(info) => {
            let standing = Standing::of(info, now);
            let left = match standing.days_left() {
                Some(days) => format!("{days} days left"),
                None => standing.as_str().replace('-', " "),
            };
            line(
                "valid",
                &format!("{} to {} ({left})", info.not_before, info.not_after),
            );
            if !info.hosts.is_empty() {
                line("hosts", &info.hosts.join(", "));
            }
            line("issuer", &info.issuer);
            line("serial", &info.serial.to_string());
            line("fingerprint", &format!("SHA-256 {}", info.fingerprint));
            line("public key", &format!("SHA-256 {}", info.public_key));
            match standing {
                Standing::Good { .. } => {}
                Standing::Soon { .. } => {
                    line("WARNING", &format!("it ends soon; {}", renewal(info)));
                }
                Standing::Expired => line("WARNING", &format!("it has expired; {}", renewal(info))),
                Standing::NotYet => line("WARNING", "it is not valid yet; check the clock"),
            }
            certificate_headline(info)
        }
        Found::PrivateKey { public_key } => {
            line("public key", &format!("SHA-256 {public_key}"));
            "private key of a certificate (secret); it belongs to the one with the same public key"
                .to_owned()
        }
        Found::SigningKey(key) => {
            line("public half", &key.to_string());
            format!(
                "signing key {}, the secret half (signs deployments)",
                key.name()
            )
        }
        Found::PublicKey(key) => {
            line("public half", &key.to_string());
            format!(
                "signing key {}, the public half (for trusted_keys)",
                key.name()
            )
        }
        Found::CacheKey(key) => {
            line("public key", key.as_str());
            "public key of a Nix binary cache; it signs store paths, not deployments".to_owned()
        }
        Found::CacheSecretKey { name } => format!(
            "secret key {name} of a Nix binary cache; it signs store paths, not deployments"
        ),
    };
    format!("{file}: {headline}\n{text}")
}

fn certificate_headline(info: &CertificateInfo) -> String {
    match (&info.identity, info.is_ca) {
        (_, true) => format!("certificate authority (CA), {}", info.subject),
        (Ok(identity), false) => format!("certificate of {identity}"),
        (Err(error), false) => format!(
            "certificate of nobody in a fleet ({error}), {}",
            info.subject
        ),
    }
}

fn renewal(info: &CertificateInfo) -> String {
    match &info.identity {
        _ if info.is_ca => "make a new CA with `hoist-certs init` in another folder".to_owned(),
        Ok(identity) => format!(
            "renew it with `hoist-certs issue {} {} --force`",
            identity.role(),
            identity.name()
        ),
        Err(_) => "issue a new one with `hoist-certs issue`".to_owned(),
    }
}

fn as_json(file: &Utf8Path, found: &Found, now: Timestamp) -> Value {
    match found {
        Found::Certificate(info) => {
            let standing = Standing::of(info, now);
            let identity = info.identity.as_ref().ok();
            json!({
                "file": file,
                "kind": if info.is_ca { "ca" } else { "certificate" },
                "name": identity.map(|identity| identity.name().as_str()),
                "role": identity.map(|identity| identity.role().as_str()),
                "fleet": identity.map(|identity| identity.fleet().as_str()),
                "subject": info.subject,
                "issuer": info.issuer,
                "serial": info.serial,
                "not_before": info.not_before.to_string(),
                "not_after": info.not_after.to_string(),
                "status": standing.as_str(),
                "days_left": standing.days_left(),
                "hosts": info.hosts,
                "fingerprint_sha256": info.fingerprint,
                "public_key_sha256": info.public_key,
            })
        }
        Found::PrivateKey { public_key } => json!({
            "file": file,
            "kind": "private-key",
            "secret": true,
            "public_key_sha256": public_key,
        }),
        Found::SigningKey(key) => json!({
            "file": file,
            "kind": "signing-key",
            "secret": true,
            "name": key.name().as_str(),
            "public_half": key.to_string(),
        }),
        Found::PublicKey(key) => json!({
            "file": file,
            "kind": "signing-key",
            "secret": false,
            "name": key.name().as_str(),
            "public_half": key.to_string(),
        }),
        Found::CacheKey(key) => json!({
            "file": file,
            "kind": "nix-cache-key",
            "secret": false,
            "public_key": key.as_str(),
        }),
        Found::CacheSecretKey { name } => json!({
            "file": file,
            "kind": "nix-cache-key",
            "secret": true,
            "name": name.as_str(),
        }),
    }
}
