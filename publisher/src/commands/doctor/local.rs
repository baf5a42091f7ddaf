//! What is found without a connection: settings, keys, and Nix.

use std::time::Duration;

use hoist_certs::doctor::{Finding, is_private};
use hoist_certs::files::FileError;
use hoist_certs::program::report;
use hoist_certs::{Role, SigningKeyError};
use hoist_protocol::Text;
use tokio::time::timeout;

use crate::nix_command::nix_command;
use crate::settings::{Settings, SettingsError, SigningFlags};

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
    let mut all_are_read = true;
    // One by one: that one cannot be used says nothing of the others.
    for key in settings.signing_keys(signing) {
        match key {
            Ok(key) => findings.push(Finding::ok(
                "signing key",
                format!("{}, which the machines have to trust", key.public()),
            )),
            Err(error) => {
                all_are_read = false;
                if !was_found(&error) {
                    findings.push(Finding::wrong("signing key", report(&error.into())));
                }
            }
        }
    }
    for error in settings
        .trusted_keys(signing)
        .into_iter()
        .filter_map(Result::err)
    {
        all_are_read = false;
        findings.push(Finding::wrong("trusted key", report(&error.into())));
    }
    match settings.keys(signing) {
        Err(SettingsError::Missing { .. }) if role == Some(Role::Publisher) => findings.push(
            Finding::note(
                "signing key",
                "none is given, so nothing can be deployed from here",
            )
            .advice("--signing-key, HOIST_SIGNING_KEY, or `signing_key` in hoist.toml"),
        ),
        Ok(_) | Err(SettingsError::Missing { .. }) => {}
        // What is wrong with single keys has been said.
        Err(_) if !all_are_read => {}
        Err(error) => findings.push(Finding::wrong("signing keys", report(&error.into()))),
    }
    findings
}

/// Whether the look at the files has found that already.
fn was_found(error: &SettingsError) -> bool {
    match error {
        SettingsError::SigningKey(_, SigningKeyError::InStore(_)) => true,
        SettingsError::SigningKey(_, SigningKeyError::Read(FileError::Read { source, .. })) => {
            source.kind() == std::io::ErrorKind::NotFound
        }
        _ => false,
    }
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
