//! What a closure in the store holds, and what it changes.

use std::process::Stdio;

use hoist_protocol::{Changes, ClosureDigest, ClosureInfo, Closures, Reason, StorePath, Text};
use tokio::io::AsyncReadExt as _;

use super::fetch_error::FetchError;
use super::process::{Group, nix};

/// The most that Nix may tell about closures, in bytes: a large system is about 3 MB.
const ANSWER_MAX: u64 = 256 << 20;

/// What Nix tells about a closure.
#[derive(Clone, Debug)]
pub(super) struct Closure {
    /// Its paths, with the hash and the size of each.
    pub(super) info: ClosureInfo,
    /// What it changes against what runs.
    pub(super) changes: Option<Changes>,
}

/// Asks Nix about `closure` and what it changes against `running`; none when it or one of the `programs` is not in
/// the store with all that it refers to, or when Nix does not tell.
///
/// One call for all: a start of Nix takes longer than the answer, for all but the largest systems.
pub(super) async fn ask(
    closure: &StorePath,
    programs: &[StorePath],
    running: Option<&StorePath>,
) -> Option<Closure> {
    let running = running.filter(|running| *running != closure);
    let of = |closures: &Closures| {
        let info = closures.info(closure)?;
        let before = running.and_then(|running| closures.info(running));
        let changes = before.map(|before| info.difference_from(&before).changes());
        Some(Closure { info, changes })
    };
    let needed: Vec<_> = [closure].into_iter().chain(programs).collect();
    let all: Vec<_> = needed.iter().copied().chain(running).collect();
    let told = match path_info(&all).await {
        // Nix tells nothing at all when one is not there: what runs may come from elsewhere.
        Err(_) if running.is_some() => path_info(&needed).await,
        told => told,
    };
    match told {
        Ok(closures) => of(&closures),
        Err(error) => {
            tracing::debug!(%closure, %error, "Nix does not tell about the closure");
            None
        }
    }
}

/// Whether the closure holds what was signed.
///
/// # Errors
/// [`Reason::DigestMismatch`] when it does not, or [`Reason::FetchFailed`] when Nix does not tell.
pub(super) fn check(
    path: &StorePath,
    closure: Option<&Closure>,
    signed: ClosureDigest,
) -> Result<(), FetchError> {
    let Some(closure) = closure else {
        return Err(FetchError::other(format!(
            "cannot check what {path} holds: `nix path-info --json --recursive` fails on this machine; \
             nothing was activated"
        )));
    };
    let found = closure.info.digest();
    if found == signed {
        return Ok(());
    }
    Err(FetchError {
        reason: Reason::DigestMismatch,
        message: Text::lossy(&format!(
            "{path} holds something else than what was signed: its digest here is {found}, the signed one is \
             {signed}; a cache served other content under the same paths, or the closure was built twice and is \
             not reproducible; deploy it again from the machine that pushed it, and look who can write to the \
             caches; nothing was activated"
        )),
    })
}

async fn path_info(paths: &[&StorePath]) -> Result<Closures, FetchError> {
    let mut command = nix("nix");
    command.args(["--extra-experimental-features", "nix-command"]);
    command.args(["path-info", "--json", "--recursive"]);
    command.args(paths.iter().map(|path| path.as_str()));
    // The local store alone: Nix would ask the caches for a missing path too.
    command.args(["--option", "substitute", "false"]);
    command.stdout(Stdio::piped());
    let mut child = Group::spawn(&mut command, "nix")?;
    let mut answer = Vec::new();
    let mut stdout = child.stdout()?.take(ANSWER_MAX);
    stdout
        .read_to_end(&mut answer)
        .await
        .map_err(|error| FetchError::other(format!("cannot read what nix says: {error}")))?;
    let status = child.wait().await?;
    if !status.success() {
        return Err(FetchError::other(format!(
            "nix path-info ended with {status}"
        )));
    }
    Closures::from_path_info([answer.as_slice()])
        .map_err(|error| FetchError::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_digests_are_named_when_they_differ() {
        let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x").unwrap();
        let info = ClosureInfo::default();
        let found = info.digest();
        let closure = Closure {
            info,
            changes: None,
        };
        check(&path, Some(&closure), found).unwrap();
        let other: ClosureDigest = "00".repeat(32).parse().unwrap();
        let error = check(&path, Some(&closure), other).unwrap_err();
        assert_eq!(error.reason, Reason::DigestMismatch);
        for digest in [found, other] {
            assert!(error.message.as_str().contains(&digest.to_string()));
        }
        let error = check(&path, None, other).unwrap_err();
        assert_eq!(error.reason, Reason::FetchFailed);
    }
}
