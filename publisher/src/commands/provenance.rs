//! Where a deployment comes from: from flags, else from what CI systems say of themselves.

use hoist_protocol::{Provenance, Text, TextError};

use super::CommandError;
use crate::DeploymentArgs;
use crate::settings::Environment;

/// Gathers it. A flag has to be valid; of an environment variable what can be shown is taken.
pub(super) fn gather(
    args: &DeploymentArgs,
    environment: Environment<'_>,
) -> Result<Provenance, CommandError> {
    let first = |names: &[&str]| names.iter().find_map(|name| environment(name));
    Ok(Provenance {
        revision: text(
            "--revision",
            args.revision.as_ref(),
            first(&["GITHUB_SHA", "CI_COMMIT_SHA"]),
        )?,
        run_url: text(
            "--run-url",
            args.run_url.as_ref(),
            github_run(environment).or_else(|| environment("CI_JOB_URL")),
        )?,
        actor: text(
            "--actor",
            args.actor.as_ref(),
            first(&["GITHUB_ACTOR", "GITLAB_USER_LOGIN"]),
        )?,
        message: text("--message", args.message.as_ref(), None)?,
        rollout: None,
    })
}

fn text<const MAX: usize>(
    flag: &'static str,
    given: Option<&String>,
    default: Option<String>,
) -> Result<Option<Text<MAX>>, CommandError> {
    let invalid = |error: TextError| CommandError::Provenance(flag, error);
    match given {
        Some(given) => Text::new(given.as_str()).map(Some).map_err(invalid),
        None => Ok(default.map(|default| Text::lossy(&default))),
    }
}

/// The page of this run, in GitHub Actions.
pub(crate) fn github_run(environment: Environment<'_>) -> Option<String> {
    let server = environment("GITHUB_SERVER_URL")?;
    let repository = environment("GITHUB_REPOSITORY")?;
    let run = environment("GITHUB_RUN_ID")?;
    Some(format!("{server}/{repository}/actions/runs/{run}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn args() -> DeploymentArgs {
        DeploymentArgs {
            prepare: None,
            expires: Duration::from_secs(1),
            message: None,
            revision: None,
            run_url: None,
            actor: None,
            raise_epoch: false,
        }
    }

    fn github(name: &str) -> Option<String> {
        let value = match name {
            "GITHUB_SHA" => "abc",
            "GITHUB_SERVER_URL" => "https://github.com",
            "GITHUB_REPOSITORY" => "a/b",
            "GITHUB_RUN_ID" => "7",
            "GITHUB_ACTOR" => "ann\u{1b}",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn what_ci_says_of_itself_is_taken() {
        let made = gather(&args(), &github).unwrap();
        assert_eq!(made.revision.unwrap().as_str(), "abc");
        assert_eq!(
            made.run_url.unwrap().as_str(),
            "https://github.com/a/b/actions/runs/7"
        );
        assert_eq!(made.actor.unwrap().as_str(), "ann\u{fffd}");
    }

    #[test]
    fn a_flag_comes_first_and_has_to_be_valid() {
        let mut args = args();
        args.revision = Some("v1".to_owned());
        let made = gather(&args, &github).unwrap();
        assert_eq!(made.revision.unwrap().as_str(), "v1");
        args.revision = Some("a\u{1b}b".to_owned());
        let error = gather(&args, &github).unwrap_err();
        assert!(error.to_string().contains("--revision"), "{error}");
    }
}
