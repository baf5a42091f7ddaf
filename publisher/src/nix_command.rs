//! How Nix's programs are run.

use std::process::Stdio;

use tokio::process::Command;

/// Variables that CI systems put secrets into. Like our own, some of which hold keys as they are, they are nothing
/// that Nix, its builders and its helpers have a use for.
const OF_CI: [&str; 2] = ["GITHUB_TOKEN", "CI_JOB_TOKEN"];

/// One of Nix's programs, without input, without our secrets, and never outliving what waits for it.
pub(crate) fn nix_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        let shown = name.to_string_lossy();
        if shown.starts_with("HOIST_") || OF_CI.contains(&shown.as_ref()) {
            command.env_remove(&name);
        }
    }
    command
}
