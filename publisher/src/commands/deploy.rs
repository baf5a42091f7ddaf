//! `hoist deploy`: what a spec says, signed, published and followed.

use std::collections::BTreeMap;

use hoist_certs::Role;
use hoist_protocol::{Goal, Target};

use super::CommandError;
use super::send::{Sending, Task};
use crate::DeployArgs;
use crate::outcome::Exit;
use crate::settings::{Flags, Settings, process_environment};
use crate::spec::Spec;

/// Runs the command. Everything is checked before anything is sent.
///
/// # Errors
/// [`CommandError`]; then nothing was published.
pub async fn run(args: &DeployArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let spec = Spec::read(&args.spec)?.only(&args.agents)?;
    let caller = settings.caller("deploy", &[Role::Publisher])?;
    let keys = settings.keys(&args.signing)?;
    let (substituters, substituter_keys) =
        settings.caches(&args.substituters, &args.substituter_keys)?;
    let targets: BTreeMap<_, _> = spec
        .agents()
        .iter()
        .map(|(agent, path)| {
            let target = Target {
                kind: args.kind.into(),
                health_checks: spec.health_check().cloned().into_iter().collect(),
                substituters: substituters.clone(),
                substituter_keys: substituter_keys.clone(),
                ..Target::new(Goal::Closure(path.clone()))
            };
            (agent.clone(), target)
        })
        .collect();
    let sending = Sending::new("deploy", &args.deployment, &args.follow, caller, keys)?;
    let task = Task::Targets(targets);
    sending.run(task).await
}
