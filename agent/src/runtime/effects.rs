//! What the core decided, done.

use hoist_agent_core::{Effect, Input, JobOrder, Origin, Told};
use hoist_protocol::{Channel, DeploymentId, History, Status, Text};

use crate::error::Error;
use crate::job::{AgentIdentity, BootId, ConfirmBy, Confirmation, Job, JobSpec, Nonce};
use crate::mqtt::{Payload, Receipt};
use crate::nix;

use super::fetch::Fetch;
use super::{Shell, Watch};

impl Shell {
    /// Carries out one effect. What fails becomes an input.
    ///
    /// # Errors
    /// The ledger cannot be written: nothing more may be done, and the next start goes on from the last one
    /// that was.
    pub(super) async fn carry_out(&mut self, effect: Effect) -> Result<(), Error> {
        match effect {
            Effect::Persist(ledger) => self.ledger.save(&ledger)?,
            Effect::Fetch(order) => {
                tracing::info!(id = %order.id, path = %order.path, "fetching");
                if let Some(before) = self.fetch.take() {
                    before.cancel().await;
                }
                self.broker.prepare(order.id, &order.substituters);
                let news = self.fetch_news.0.clone();
                let profile = self.settings.profile.clone();
                self.fetch = Some(Fetch::start(order, self.roots(), profile, news));
            }
            Effect::CancelFetch(id) => {
                if let Some(fetch) = self.fetch.take_if(|fetch| fetch.id == id) {
                    tracing::info!(%id, "stops fetching: there is something newer");
                    fetch.cancel().await;
                }
            }
            Effect::CreateJob(order) => self.create_job(*order),
            Effect::StartActivator(id) => self.start_activator(id),
            Effect::ReachBroker(id) => self.broker.reach(id).await,
            Effect::Confirm(id) => self.confirm(id).await,
            Effect::Forget(id) => self.forget(id),
            Effect::Answer { request, result } => self.answer(request, result),
            Effect::Report(status) => self.report(&status),
            Effect::ReportHistory {
                history,
                undelivered,
            } => self.report_history(&history, undelivered),
        }
        Ok(())
    }

    fn roots(&self) -> camino::Utf8PathBuf {
        self.settings.state.join("roots")
    }

    fn create_job(&mut self, order: JobOrder) {
        let id = order.order.id;
        match self.new_job(order) {
            Ok(job) => {
                self.open_jobs.insert(id, job);
            }
            Err(message) => {
                tracing::error!(%id, %message, "cannot make a job");
                let message = Text::lossy(&message);
                self.inputs.push_back(Input::JobNotCreated { id, message });
            }
        }
    }

    fn new_job(&self, order: JobOrder) -> Result<Job, String> {
        let JobOrder {
            order,
            origin,
            path,
            target,
        } = order;
        let boot_id = BootId::current()
            .map_err(|error| format!("the kernel does not tell its boot id: {error}"))?;
        let agent = AgentIdentity::current()
            .map_err(|error| format!("this agent cannot tell who it is: {error}"))?;
        let spec = JobSpec {
            id: order.id,
            epoch: order.epoch,
            sequence: order.sequence,
            nonce: Nonce::random(),
            boot_id,
            closure: path,
            target,
            confirm: match origin {
                Origin::Publisher => ConfirmBy::Broker,
                Origin::Local => ConfirmBy::HealthChecks,
            },
            profile: self.settings.profile.clone(),
            agent,
        };
        self.jobs
            .create(&spec)
            .map_err(|error| crate::job::chain(&error))
    }

    fn start_activator(&mut self, id: DeploymentId) {
        // Without a job there is an input on its way that says so.
        let Some(job) = self.open_jobs.get(&id) else {
            return;
        };
        tracing::info!(%id, path = %job.spec().closure, "starts the activator");
        match job.start_activator() {
            Ok(()) => match &mut self.watch {
                Some(watch) if watch.id() == id => watch.restarted(),
                _ => self.watch = Some(Watch::new(job.clone())),
            },
            Err(error) => {
                let error = crate::job::chain(&error);
                tracing::error!(%id, %error, "cannot start the activator");
                let message = Text::lossy(&format!("cannot start the activator: {error}"));
                self.inputs.push_back(Input::ActivatorLost { id, message });
            }
        }
    }

    async fn confirm(&mut self, id: DeploymentId) {
        let Some(watch) = self.watch.as_ref().filter(|watch| watch.id() == id) else {
            return;
        };
        match confirm(watch.job()) {
            Ok(()) => tracing::info!(%id, "confirmed: the broker is in reach"),
            Err(message) => {
                tracing::error!(%id, %message, "cannot confirm; trying again");
                self.broker.reach(id).await;
            }
        }
    }

    /// Removes what a deployment that has ended left behind.
    fn forget(&mut self, id: DeploymentId) {
        self.broker.stop_reaching(id);
        self.watch.take_if(|watch| watch.id() == id);
        if let Some(job) = self.open_jobs.remove(&id)
            && let Err(error) = job.remove()
        {
            // It is found at the next start, and removed then.
            tracing::warn!(%id, error = %crate::job::chain(&error), "cannot remove a job");
        }
        let ledger = self.agent.ledger();
        let under_way = ledger.under_way();
        let keep = ledger.kept(self.settings.keep_generations);
        if let Err(error) = nix::release_roots(&self.roots(), &under_way, &keep) {
            tracing::warn!(%id, %error, "cannot release what was kept from the garbage collector");
        }
    }

    fn report(&mut self, status: &Status) {
        self.tell_followers(status);
        self.reported = status.state;
        let said = format!("{:?} {} {:?}", status.id, status.state, status.message);
        if self.said.is_news(&said) {
            tracing::info!(
                state = %status.state,
                id = status.id.map(tracing::field::display),
                reason = status.reason.map(tracing::field::display),
                message = Some(&status.message).filter(|m| !m.is_empty()).map(tracing::field::display),
                "status"
            );
        }
        self.broker.publish(Payload {
            channel: Channel::Status,
            bytes: status.to_json(),
            receipt: Receipt::None,
        });
    }

    fn report_history(&mut self, history: &History, mut undelivered: Vec<Told>) {
        let bytes = history.to_json();
        // The oldest entries are left out where the limit has no room: those are not told by this one.
        match History::from_json(&bytes, &self.settings.machine) {
            Ok(told) => undelivered
                .retain(|outcome| told.entries.iter().any(|entry| entry.id == outcome.id)),
            Err(error) => {
                tracing::error!(%error, "the history reads back wrong");
                return;
            }
        }
        let receipt = if undelivered.is_empty() {
            Receipt::None
        } else {
            Receipt::Outcomes(undelivered)
        };
        self.broker.publish(Payload {
            channel: Channel::History,
            bytes,
            receipt,
        });
    }
}

fn confirm(job: &Job) -> Result<(), String> {
    let boot_id = BootId::current().map_err(|error| format!("no boot id: {error}"))?;
    let executable = std::env::current_exe()
        .map_err(|error| format!("the kernel does not tell which program this is: {error}"))?;
    let executable = camino::Utf8PathBuf::from_path_buf(executable)
        .map_err(|path| format!("`{}` is no UTF-8", path.display()))?;
    job.confirm(&Confirmation {
        nonce: job.spec().nonce.clone(),
        boot_id,
        executable,
    })
    .map_err(|error| crate::job::chain(&error))
}
