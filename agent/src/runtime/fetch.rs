//! A fetch in the background.

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::{Facts, FetchFailure, FetchOrder, Input, Realised};
use hoist_protocol::{DeploymentId, FetchProgress, Kind, Reason, StorePath, Text};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::nix::{self, FetchError, FetchEvent, RealiseRequest};

/// What a fetch tells.
pub(super) enum FetchNews {
    /// It got further.
    Progress(DeploymentId, FetchProgress),
    /// It is done, or has failed.
    Done(Box<FetchOrder>, Result<nix::Realised, FetchError>),
}

impl FetchNews {
    /// What the core wants to know of it.
    pub(super) fn into_input(self, profile: &Utf8Path) -> Option<Input> {
        Some(match self {
            Self::Progress(id, progress) => Input::FetchProgress { id, progress },
            Self::Done(order, result) => Input::Fetched {
                id: order.id,
                result: result.map_err(failure).and_then(|realised| {
                    let facts = facts(&order, profile).map_err(|error| FetchFailure {
                        reason: Reason::Internal,
                        message: Text::lossy(&format!("cannot tell what runs: {error}")),
                    })?;
                    Ok(Realised {
                        closure_size: realised.closure_size,
                        kind: None,
                        fetched: realised.fetched,
                        changes: realised.changes,
                        facts,
                    })
                }),
            },
        })
    }
}

fn failure(error: FetchError) -> FetchFailure {
    FetchFailure {
        reason: error.reason,
        message: error.message,
    }
}

/// The facts that say whether there is anything left to do for this closure, by its kind.
fn facts(order: &FetchOrder, profile: &Utf8Path) -> std::io::Result<Facts> {
    let is_nixos = match order.kind {
        Kind::Nixos => true,
        Kind::Auto => is_nixos(&order.path),
        _ => false,
    };
    if is_nixos {
        nix::facts_of_nixos()
    } else {
        nix::facts_of_profile(profile)
    }
}

/// Whether a closure in the store is a NixOS system.
fn is_nixos(path: &StorePath) -> bool {
    Utf8Path::new(path.as_str()).join("nixos-version").exists()
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
        while let Some(event) = told.recv().await {
            match event {
                FetchEvent::Progress(progress) => {
                    let progress = FetchNews::Progress(order.id, progress);
                    if news.try_send(progress).is_err() {
                        tracing::trace!("progress is told later");
                    }
                }
                FetchEvent::Line(line) => tracing::debug!(id = %order.id, "nix: {line}"),
            }
        }
    };
    let result = async {
        // Which of the machine's systems it changes is known once the closure is there.
        let running = || facts(&order, &profile).ok().and_then(|facts| facts.current);
        let result = nix::realise(&request, running, &events).await;
        // Ends the other one.
        drop(events);
        result
    };
    let (result, ()) = tokio::join!(result, progress);
    if news.send(FetchNews::Done(order, result)).await.is_err() {
        tracing::debug!("the agent ended before the fetch");
    }
}
