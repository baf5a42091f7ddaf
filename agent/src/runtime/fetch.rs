//! A fetch in the background.

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::{Facts, FetchFailure, FetchOrder, Input, Realised};
use hoist_protocol::{DeploymentId, FetchProgress, Kind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::activator::kinds;
use crate::job::{AgentIdentity, BootId, ConfirmBy, JobSpec, Nonce};
use crate::nix::{self, FetchError, FetchEvent, RealiseRequest};

/// What a fetch tells.
pub(super) enum FetchNews {
    /// It got further.
    Progress(DeploymentId, FetchProgress),
    /// It is done, or has failed after it had come so far.
    Done(
        Box<FetchOrder>,
        Result<nix::Realised, (FetchError, FetchProgress)>,
    ),
}

impl FetchNews {
    /// What the core wants to know of it.
    pub(super) fn into_input(self, profile: &Utf8Path) -> Input {
        match self {
            Self::Progress(id, progress) => Input::FetchProgress { id, progress },
            Self::Done(order, result) => Input::Fetched {
                id: order.id,
                result: result.map_err(failure).map(|realised| {
                    // What cannot be told now is for the activator to tell, which does nothing before it can.
                    let (kind, facts) = look(&order, profile).unzip();
                    Realised {
                        closure_size: realised.closure_size,
                        kind,
                        fetched: realised.fetched,
                        changes: realised.changes,
                        facts: facts.unwrap_or_default(),
                    }
                }),
            },
        }
    }
}

fn failure((error, fetched): (FetchError, FetchProgress)) -> FetchFailure {
    FetchFailure {
        reason: error.reason,
        message: error.message,
        fetched,
    }
}

/// Of which kind the closure is, and the facts that say whether there is anything left to do for it.
fn look(order: &FetchOrder, profile: &Utf8Path) -> Option<(Kind, Facts)> {
    // Not a job: only what one would be about.
    let spec = JobSpec {
        id: order.id,
        epoch: 0,
        sequence: 0,
        nonce: Nonce::random(),
        boot_id: BootId::current().ok()?,
        closure: order.path.clone(),
        target: order.target.clone(),
        confirm: ConfirmBy::Broker,
        profile: profile.to_owned(),
        agent: AgentIdentity::current().ok()?,
    };
    kinds::look(&spec)
}

/// A fetch under way.
pub(super) struct Fetch {
    pub(super) id: DeploymentId,
    task: JoinHandle<()>,
}

impl Fetch {
    /// Starts to fetch; what comes of it goes to `news`.
    pub(super) fn start(
        order: Box<FetchOrder>,
        roots: Utf8PathBuf,
        profile: Utf8PathBuf,
        news: mpsc::Sender<FetchNews>,
    ) -> Self {
        let id = order.id;
        let task = tokio::spawn(fetch(order, roots, profile, news));
        Self { id, task }
    }

    /// Stops it; when this returns, nothing of it runs any more.
    pub(super) async fn cancel(self) {
        self.task.abort();
        match self.task.await {
            Ok(()) => {}
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "the fetch has failed"),
        }
    }
}

async fn fetch(
    order: Box<FetchOrder>,
    roots: Utf8PathBuf,
    profile: Utf8PathBuf,
    news: mpsc::Sender<FetchNews>,
) {
    let request = RealiseRequest {
        id: order.id,
        path: order.path.clone(),
        programs: order.programs.clone(),
        digest: order.digest,
        substituters: order.substituters.clone(),
        keys: order.keys.clone(),
        roots,
        timeout: None,
    };
    let (events, mut told) = mpsc::channel(64);
    let progress = async {
        let mut last = FetchProgress::default();
        while let Some(event) = told.recv().await {
            match event {
                FetchEvent::Progress(progress) => {
                    last = progress;
                    let progress = FetchNews::Progress(order.id, progress);
                    if news.try_send(progress).is_err() {
                        tracing::trace!("progress is told later");
                    }
                }
                FetchEvent::Line(line) => tracing::debug!(id = %order.id, "nix: {line}"),
            }
        }
        last
    };
    let result = async {
        // Which of the machine's systems it changes is known once the closure is there.
        let running = || look(&order, &profile).and_then(|(_, facts)| facts.current);
        let result = nix::realise(&request, running, &events).await;
        // Ends the other one.
        drop(events);
        result
    };
    let (result, last) = tokio::join!(result, progress);
    let result = result.map_err(|error| (error, last));
    if news.send(FetchNews::Done(order, result)).await.is_err() {
        tracing::debug!("the agent ended before the fetch");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use hoist_protocol::{Goal, ProfileName, StorePath, Target};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_closure_is_compared_with_its_own_profile_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Utf8Path::from_path(dir.path()).unwrap().join("hoist");
        let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web").unwrap();
        symlink(path.as_str(), &profile).unwrap();
        let mut target = Target::new(Goal::Closure(path.clone()));
        target.kind = Kind::Profile;
        let mut order = FetchOrder {
            id: DeploymentId::new(Uuid::from_u128(1)),
            path: path.clone(),
            target,
            digest: None,
            programs: Vec::new(),
            substituters: Vec::new(),
            keys: Vec::new(),
        };
        let (kind, facts) = look(&order, &profile).unwrap();
        assert_eq!(kind, Kind::Profile);
        assert!(facts.are_all(&path));
        // The same closure, for a profile that nobody has set so far.
        order.target.profile = Some(ProfileName::new("hoist-test-of-no-use").unwrap());
        let (_, facts) = look(&order, &profile).unwrap();
        assert!(!facts.are_all(&path));
    }
}
