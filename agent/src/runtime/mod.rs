//! The loop: inputs go to the core, and its effects to the world, in order.
//!
//! One thread. When nothing is deployed it sleeps until the broker sends something or the status is due; the
//! job directory is looked at only while a job is under way.

mod alone;
mod asked;
mod broker;
mod clock;
mod effects;
mod fetch;
mod notify;
mod own;
mod refusals;
mod start;
mod uplink;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::time::Duration;

use hoist_agent_core::{Agent, Config, Facts, FoundJob, Input, Moment, Offer};
use hoist_certs::program::now;
use hoist_protocol::{DeploymentId, State, System, Text, digest};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::activator::kinds;
use crate::config::Settings;
use crate::control::{self, Asked, Control, Desk};
use crate::error::Error;
use crate::job::{BootId, Job, Jobs, Outage, Trouble};
use crate::ledger::LedgerFile;
use crate::mqtt::jittered;
use broker::{Broker, BrokerEvent, OutageVerdict};
use own::Own;
use refusals::Refusals;
use uplink::Uplink;

pub use alone::AloneError;
pub(crate) use alone::{Alone, preview};
pub(crate) use clock::{Discipline, discipline};
use clock::{Pulse, Reading, WallClock};
use fetch::{Fetch, FetchNews};
use notify::ServiceManager;

pub use start::StartError;
use watch::Watch;

/// How often it is looked at whether the machine slept, and the service manager hears that the agent lives, at the
/// least.
const BEAT: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// [`Error`] when it cannot go on. What was begun is found again at the next start.
pub fn run(settings: Settings) -> Result<(), Error> {
    start::check(&settings.state)?;
    let system = |what| move |source| Error::System { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(system("start the runtime"))?;
    runtime.block_on(async {
        let signals = Signals::new().map_err(system("wait for signals"))?;
        let own = Own::of_settings(&settings);
        tracing::info!(
            machine = %settings.machine,
            broker = %settings.brokers,
            version = env!("CARGO_PKG_VERSION"),
            state = %settings.state,
            certificate_ends = %settings.tls.not_after(),
            "hoist-agent starts"
        );
        let broker = Uplink::Broker(Box::new(Broker::new(settings)));
        let mut shell = Shell::new(own, broker, signals)?;
        if let Err(error) = control::remember(&shell.settings.state, &shell.settings.machine) {
            tracing::warn!(%error, "cannot write down which machine this is, for `hoist-agent status` without an agent");
        }
        shell.run().await
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What wakes the loop.
enum Event {
    Broker(BrokerEvent),
    Fetch(FetchNews),
    /// Somebody at the machine wants something.
    Asked(Asked),
    /// It is time to look at the job.
    Look,
    /// It is time to say again how things are.
    Refresh,
    /// The time has come that the core asked for.
    Wake,
    /// It is time to see whether everything still goes its way.
    Beat,
    Stop(&'static str),
}

struct Shell {
    settings: Own,
    agent: Agent,
    ledger: LedgerFile,
    jobs: Jobs,
    /// The jobs that exist.
    open_jobs: HashMap<DeploymentId, Job>,
    /// The job that is under way.
    watch: Option<Watch>,
    fetch: Option<Fetch>,
    fetch_news: (mpsc::Sender<FetchNews>, mpsc::Receiver<FetchNews>),
    broker: Uplink,
    control: Control,
    /// Who asked, and waits for what.
    desk: Desk,
    /// Inputs that effects gave rise to.
    inputs: VecDeque<Input>,
    /// What the log says about the deployment under way.
    said: Changes,
    /// What it says about brokers that cannot be reached meanwhile.
    unreachable: Changes,
    refusals: Refusals,
    started: Instant,
    refresh_at: Instant,
    beat_at: Instant,
    pulse: Pulse,
    manager: ServiceManager,
    /// The state that was reported last.
    reported: State,
    /// The warnings that were reported last.
    warned: Vec<Text<256>>,
    clock: WallClock,
    signals: Signals,
}

impl Shell {
    fn new(settings: Own, broker: Uplink, signals: Signals) -> Result<Self, Error> {
        let ledger = LedgerFile::open(&settings.state)?;
        let jobs = Jobs::open(&settings.state)?;
        let agent = Agent::new(core_config(&settings)?, ledger.load()?);
        let started = Instant::now();
        Ok(Self {
            broker,
            control: Control::open(&settings.state),
            desk: Desk::default(),
            refresh_at: started + jittered(settings.status_interval),
            settings,
            agent,
            ledger,
            jobs,
            open_jobs: HashMap::new(),
            watch: None,
            fetch: None,
            fetch_news: mpsc::channel(16),
            inputs: VecDeque::new(),
            said: Changes::default(),
            unreachable: Changes::default(),
            refusals: Refusals::default(),
            started,
            beat_at: started,
            pulse: Pulse::new(Reading::now(started.into_std())),
            manager: ServiceManager::from_environment(),
            reported: State::Idle,
            warned: Vec::new(),
            clock: WallClock::default(),
            signals,
        })
    }

    async fn run(&mut self) -> Result<(), Error> {
        let found = self.find_jobs()?;
        self.begin(found).await?;
        self.manager.ready();
        self.serve().await
    }

    /// Goes on from what was found on the disk.
    async fn begin(&mut self, found: Vec<FoundJob>) -> Result<(), Error> {
        self.clock.look().await;
        self.handle(Input::Started(found)).await
    }

    async fn serve(&mut self) -> Result<(), Error> {
        loop {
            match self.next().await {
                Event::Broker(event) => self.on_broker(event).await?,
                Event::Fetch(news) => {
                    let input = news.into_input(&self.settings.profile);
                    self.handle(input).await?;
                }
                Event::Asked(asked) => self.on_asked(asked).await?,
                Event::Look => self.look().await?,
                Event::Refresh => {
                    self.refresh_at = Instant::now() + jittered(self.settings.status_interval);
                    self.clock.look().await;
                    self.broker.refresh().await;
                    self.handle(Input::Refresh).await?;
                }
                Event::Wake => self.handle(Input::Tick).await?,
                Event::Beat => self.beat().await?,
                Event::Stop(name) => {
                    self.stop(name).await;
                    return Ok(());
                }
            }
        }
    }

    /// Waits for what comes first. All of these can be dropped without losing anything.
    async fn next(&mut self) -> Event {
        let at = |time: Option<Instant>| async move {
            match time {
                Some(time) => sleep_until(time).await,
                None => pending().await,
            }
        };
        let wake_at = self.agent.wake_at().map(|uptime| self.started + uptime);
        let look = async {
            match &self.watch {
                Some(watch) => watch.is_due().await,
                None => pending().await,
            }
        };
        tokio::select! {
            name = self.signals.next() => Event::Stop(name),
            event = self.broker.next() => Event::Broker(event),
            Some(news) = self.fetch_news.1.recv() => Event::Fetch(news),
            asked = self.control.next() => Event::Asked(asked),
            () = look => Event::Look,
            () = at(wake_at) => Event::Wake,
            () = sleep_until(self.refresh_at) => Event::Refresh,
            () = sleep_until(self.beat_at) => Event::Beat,
        }
    }

    /// Looks whether time has passed that nobody noticed, and tells the service manager that the agent lives: this is
    /// run by the same loop as everything else, and so stands still when that does.
    async fn beat(&mut self) -> Result<(), Error> {
        let interval = match self.manager.watchdog() {
            // More than once in the time that the service manager waits.
            Some(watchdog) => BEAT.min(watchdog / 3),
            None => BEAT,
        };
        self.beat_at = Instant::now() + interval;
        self.manager.alive();
        let reading = Reading::now(self.started.into_std());
        if let Some(jump) = self.pulse.look(reading, interval) {
            tracing::info!(
                ?jump,
                "the machine was away, or its clock was set: connecting anew"
            );
            self.clock.look().await;
            self.broker.start_over().await;
        }
        if self.clock.is_due() {
            self.clock.look().await;
        }
        let (state, connection) = (self.reported, self.broker.summary());
        self.manager.status(format!("{state}; {connection}"));
        let warnings = self.warnings();
        if warnings != self.warned {
            self.warned = warnings;
            self.handle(Input::Refresh).await?;
        }
        Ok(())
    }

    /// How things are now.
    fn moment(&self) -> Moment {
        let last = self.agent.ledger().latest_how();
        let facts = kinds::facts_here(&self.settings.profile, last).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell what this machine runs");
            Facts::default()
        });
        Moment {
            now: now(),
            synchronised: self.clock.is_synchronised(),
            uptime: self.started.elapsed(),
            facts,
            broker: self.broker.url(),
            warnings: self.warnings(),
        }
    }

    /// What people should know, though deployments go on.
    fn warnings(&self) -> Vec<Text<256>> {
        let mut warnings = self.broker.warnings();
        warnings.extend(self.clock.warning());
        warnings
    }

    /// Hands an input to the core and carries its effects out, and those of what comes of them.
    async fn handle(&mut self, input: Input) -> Result<(), Error> {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            let moment = self.moment();
            for effect in self.agent.handle(&moment, input) {
                self.carry_out(effect).await?;
            }
        }
        self.watch_current();
        Ok(())
    }

    async fn on_broker(&mut self, event: BrokerEvent) -> Result<(), Error> {
        let input = match event {
            BrokerEvent::Connected => Input::Connected,
            BrokerEvent::Deploy(bytes) => match self.verify(bytes) {
                Some(input) => input,
                None => return Ok(()),
            },
            BrokerEvent::Delivered(ids) => Input::Delivered(ids),
            BrokerEvent::Reached(id) => Input::BrokerReached { id },
            BrokerEvent::Unproven { id, why } => {
                self.not_reached(id, &why);
                return Ok(());
            }
            BrokerEvent::Unreachable { id, verdict } => {
                self.unreachable(id, verdict);
                return Ok(());
            }
        };
        self.handle(input).await
    }

    /// A try to reach a broker has failed while a deployment waits for its confirmation: if no other works out, this
    /// is what its outcome says.
    fn not_reached(&self, id: DeploymentId, why: &str) {
        let Some(job) = self.open_jobs.get(&id) else {
            return;
        };
        if let Err(error) = report_trouble(job, why) {
            tracing::error!(%id, %error, "cannot tell the activator why no broker was reached");
        }
    }

    /// Every broker was tried in vain while a deployment waits for its confirmation.
    fn unreachable(&mut self, id: DeploymentId, verdict: OutageVerdict) {
        if !self.unreachable.is_news(&format!("{id} {verdict}")) {
            return;
        }
        tracing::warn!(%id, "no broker can be reached: {verdict}");
        let Some(job) = self.open_jobs.get(&id) else {
            return;
        };
        if verdict == OutageVerdict::Outage
            && let Err(error) = report_outage(job, &verdict.to_string())
        {
            tracing::error!(%id, %error, "cannot tell the activator that the broker is away");
        }
    }

    /// What a message on the `deploy` topic is.
    fn verify(&mut self, bytes: Vec<u8>) -> Option<Input> {
        if bytes.is_empty() {
            // A topic that was cleared: no instruction, and never one to remove anything.
            return None;
        }
        let Own {
            trusted, machine, ..
        } = &self.settings;
        Some(match trusted.verify(&bytes, machine) {
            Ok(deployment) => Input::Offered(Box::new(Offer {
                deployment,
                signed: bytes,
            })),
            Err(error) => {
                let digest = digest(&bytes);
                if let Some(untold) = self.refusals.tell(Instant::now()) {
                    let untold = Some(untold).filter(|untold| *untold > 0);
                    tracing::warn!(%digest, %error, untold, "refused a message on the deploy topic");
                }
                Input::Unverified { error, digest }
            }
        })
    }

    /// The jobs that are there when the agent starts.
    fn find_jobs(&mut self) -> Result<Vec<FoundJob>, Error> {
        let mut found = Vec::new();
        for job in self.jobs.existing()? {
            let id = job.spec().id;
            match watch::found(&job) {
                Ok(job) => found.push(job),
                Err(error) => {
                    // The activator can do more with it than we: it starts again and says what it finds.
                    tracing::error!(%id, error = %crate::job::chain(&error), "cannot read the state of a job");
                    found.push(watch::unreadable(&job));
                }
            }
            self.open_jobs.insert(id, job);
        }
        Ok(found)
    }

    /// Watches the job of the deployment that is under way, when it has one.
    fn watch_current(&mut self) {
        let current = self
            .agent
            .ledger()
            .current
            .as_ref()
            .map(|task| task.order.id);
        let watched = self.watch.as_ref().map(Watch::id);
        if watched == current {
            return;
        }
        let job = current.and_then(|id| self.open_jobs.get(&id));
        self.watch = job.cloned().map(Watch::new);
    }

    /// Looks at the job that is under way.
    async fn look(&mut self) -> Result<(), Error> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        let heard = self.broker.is_connected() || self.desk.is_followed(watch.id());
        let (lines, input) = watch.look(heard);
        for line in lines {
            self.desk.logged(&line);
            self.broker.log(&line);
        }
        match input {
            Some(input) => self.handle(input).await,
            None => Ok(()),
        }
    }

    async fn stop(&mut self, signal: &str) {
        self.manager.stopping();
        self.control.close();
        if self.watch.is_some() {
            tracing::info!(
                signal,
                "hoist-agent stops; the activation under way goes on without it"
            );
        } else {
            tracing::info!(signal, "hoist-agent stops");
        }
        if let Some(fetch) = self.fetch.take() {
            fetch.cancel().await;
        }
        self.broker.stop().await;
    }
}

/// What the core has to know of this machine.
fn core_config(own: &Own) -> Result<Config, Error> {
    let system = System::current().map_err(|error| Error::System {
        what: "tell Nix's name for this machine's system",
        source: std::io::Error::other(error),
    })?;
    let boot_id = BootId::current().map_err(|source| Error::System {
        what: "read the kernel's boot id",
        source,
    })?;
    Ok(Config {
        machine: own.machine.clone(),
        system,
        trusted: own.trusted.clone(),
        version: Text::lossy(env!("CARGO_PKG_VERSION")),
        tags: own.tags.clone(),
        session: Text::lossy(&format!("{:016x}", rand::random::<u64>())),
        boot_id: Text::lossy(&boot_id.to_string()),
    })
}

/// Tells the activator that the broker is away, and not this machine.
fn report_outage(job: &Job, message: &str) -> Result<(), String> {
    let boot_id = BootId::current().map_err(|error| format!("no boot id: {error}"))?;
    job.report_outage(&Outage {
        nonce: job.spec().nonce.clone(),
        boot_id,
        message: Text::lossy(message),
    })
    .map_err(|error| crate::job::chain(&error))
}

/// Tells the activator why no broker was reached so far.
fn report_trouble(job: &Job, why: &str) -> Result<(), String> {
    let boot_id = BootId::current().map_err(|error| format!("no boot id: {error}"))?;
    job.report_trouble(&Trouble {
        nonce: job.spec().nonce.clone(),
        boot_id,
        message: Text::lossy(why),
    })
    .map_err(|error| crate::job::chain(&error))
}

/// How long a warning about the same thing is not repeated.
const REPEAT: Duration = Duration::from_secs(60 * 60);

/// Says something when it changes, and otherwise once an hour.
#[derive(Debug, Default)]
struct Changes {
    said: Option<(String, Instant)>,
}

impl Changes {
    /// Whether `text` should be said now.
    fn is_news(&mut self, text: &str) -> bool {
        let known = self.said.as_ref();
        let is_news = known.is_none_or(|(said, at)| said != text || at.elapsed() >= REPEAT);
        if is_news {
            self.said = Some((text.to_owned(), Instant::now()));
        }
        is_news
    }

    /// It is over: the same text is news again.
    fn clear(&mut self) {
        self.said = None;
    }
}
