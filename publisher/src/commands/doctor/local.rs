//! What is found without a connection: settings, keys, and Nix.

use std::time::Duration;

use hoist_certs::Role;
use hoist_certs::doctor::{Finding, is_private};
use hoist_certs::program::report;
use hoist_protocol::Text;
use tokio::time::timeout;

use crate::nix_command::nix_command;
use crate::settings::{Settings, SettingsError, SigningFlags};
use crate::signer::Signer;

/// How long Nix may take to say its version.
const PATIENCE: Duration = Duration::from_secs(20);

/// The configuration file, and where each setting is from.
pub(super) fn settings(settings: &Settings<'_>, signing: &SigningFlags) -> Vec<Finding> {
    let file = match settings.file() {
        Some(file) => file.to_string(),
        None => "no file; ./hoist.toml and ~/.config/hoist/hoist.toml are not there".to_owned(),
    };
    let mut findings = vec![Finding::ok("configuration", file)];
    let sources = settings.sources(signing);
    findings.extend(sources.iter().map(|source| {
        Finding::ok(
            source.key,
            format!("{}, from {}", source.shown, source.origin),
        )
    }));
    if sources.iter().all(|source| source.key != "broker") {
        findings.push(
            Finding::wrong("broker", "it is not said where it is")
                .advice("--broker, HOIST_BROKER, or `broker` in hoist.toml: mqtts://HOST[:PORT]"),
        );
    }
    findings
}

/// The signing keys, which only a publisher needs.
pub(super) fn keys(
    settings: &Settings<'_>,
    signing: &SigningFlags,
    role: Option<Role>,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> = (settings.signing_key_files(signing).iter())
        .map(|file| is_private("signing key", file))
        .collect();
    match settings.keys(signing) {
        Ok(keys) => findings.extend(keys.signing.iter().map(Signer::public).map(|key| {
            Finding::ok(
                "signing key",
                format!("{key}, which the machines have to trust"),
            )
        })),
        Err(SettingsError::Missing { .. }) if role == Some(Role::Publisher) => findings.push(
            Finding::note(
                "signing key",
                "none is given, so nothing can be deployed from here",
            )
            .advice("--signing-key, HOIST_SIGNING_KEY, or `signing_key` in hoist.toml"),
        ),
        Err(SettingsError::Missing { .. }) => {}
        // A file that cannot be read was found above.
        Err(_) if findings.iter().any(|finding| !finding.is_fine()) => {}
        Err(error) => findings.push(Finding::wrong("signing key", report(&error.into()))),
    }
    findings
}

/// Whether there is a Nix, which knows what the closures in this computer's store hold.
pub(super) async fn nix() -> Finding {
    let without = "what closures hold can be signed only where the spec has it, and `hoist diff` has the word of machines";
    let mut command = nix_command("nix");
    command.arg("--version");
    match timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            Finding::ok("nix", Text::<128>::lossy(said.trim()).as_str())
        }
        Ok(Ok(output)) => Finding::note(
            "nix",
            format!("`nix --version` ended with {}: {without}", output.status),
        ),
        Ok(Err(error)) => Finding::note("nix", format!("there is none here ({error}): {without}")),
        Err(_) => Finding::note("nix", format!("`nix --version` does not end: {without}")),
    }
}
