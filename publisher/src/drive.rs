//! Carries a run out: publishes, follows, shows, until it is over, timed out or interrupted.

use std::time::{Duration, Instant};

use hoist_certs::program::now;
use hoist_protocol::{AgentName, Channel, FleetName, LogLine};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, sleep_until};

use crate::console::Console;
use crate::duration;
use crate::follow::{Action, Cancelled, Heard, Run};
use crate::lines_shown::LinesShown;
use crate::link::{Event, Filter, Link, LinkError, Ticket, filters};
use crate::rollout::{Decision, Pace, Why};

/// How often the time alone may change something.
const TICK: Duration = Duration::from_millis(100);

/// Most events that are handled before the screen is drawn again.
const BATCH: usize = 512;

/// A connection that breaks again within this time is not worth another line.
const REPEAT: Duration = Duration::from_secs(10);

/// What was said of a lost connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Outage {
    /// None was lost.
    #[default]
    None,
    /// That it is lost.
    Said,
    /// That it is back, then.
    SaidAt(Duration),
}

/// Why a run came to its end.
#[derive(Debug)]
pub enum Stop {
    /// There is nothing left to wait for.
    Over,
    /// A rollout goes no further.
    Halted(Why),
    /// Somebody has cancelled the rollout.
    Cancelled(Cancelled),
    /// The time was up.
    TimeUp,
    /// The user or the system asked for it.
    Interrupted,
    /// The broker does not let us in any more.
    Lost(LinkError),
}

/// SIGINT and SIGTERM, from the moment on that this exists.
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// Listens for both.
    ///
    /// # Errors
    /// When the system refuses to.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
        })
    }

    /// Ready when one of them came.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// A run on a connection.
pub struct Driver<'a> {
    link: &'a mut Link,
    console: &'a mut Console,
    fleet: &'a FleetName,
    filters: &'a [Filter],
    timeout: Duration,
    lines_shown: LinesShown,
    outage: Outage,
}

impl<'a> Driver<'a> {
    /// Drives on `link`, on which the run's `filters` are subscribed to, for at most `timeout`.
    pub fn new(
        link: &'a mut Link,
        console: &'a mut Console,
        fleet: &'a FleetName,
        filters: &'a [Filter],
        timeout: Duration,
    ) -> Self {
        Self {
            link,
            console,
            fleet,
            filters,
            timeout,
            lines_shown: LinesShown::default(),
            outage: Outage::None,
        }
    }

    /// Which log lines of each machine were shown.
    #[must_use]
    pub fn into_lines_shown(self) -> LinesShown {
        self.lines_shown
    }

    /// Carries `run` out. `begin` is when it began. Its batches come as `pace` says; without it there is one.
    pub async fn drive(
        &mut self,
        run: &mut Run,
        mut pace: Option<&mut Pace>,
        begin: Instant,
        interrupts: &mut Interrupts,
    ) -> Stop {
        let mut deadline = tokio::time::Instant::from_std(begin) + self.timeout;
        loop {
            if let Some(pace) = &mut pace {
                self.notice(run, pace);
            }
            for action in run.actions(begin.elapsed()) {
                self.act(run, &action);
            }
            let (at, wall) = (begin.elapsed(), now());
            let bakes_for = pace.as_ref().and_then(|pace| pace.bakes_for(at));
            self.console
                .show(run.published(), run.outlook(at, wall), bakes_for);
            match &mut pace {
                None if run.is_over(at, wall) => return Stop::Over,
                None => {}
                Some(pace) => match pace.decide(run.tally(at, wall), at) {
                    Some(Decision::Done) => return Stop::Over,
                    Some(Decision::Stop(why)) => return Stop::Halted(why),
                    Some(Decision::Cancelled) => {
                        return run.cancelled().cloned().map_or(Stop::Over, Stop::Cancelled);
                    }
                    Some(Decision::Release(batch)) => {
                        self.release(run, pace, batch, at);
                        deadline = tokio::time::Instant::now() + self.timeout;
                        continue;
                    }
                    Some(Decision::Bake { batch, until }) => {
                        let number = batch + 1;
                        let bake = duration::show(until.saturating_sub(at));
                        self.console
                            .note(&format!("batch {number} has to stay well for {bake}"));
                        deadline = tokio::time::Instant::from_std(begin) + until + self.timeout;
                    }
                    None => {}
                },
            }
            let event = tokio::select! {
                event = self.link.next() => event.map(Some),
                () = sleep(TICK) => Ok(None),
                () = sleep_until(deadline) => return Stop::TimeUp,
                () = interrupts.next() => return Stop::Interrupted,
            };
            match event.and_then(|first| self.handle_all(run, first, begin)) {
                Ok(()) => {}
                Err(error) => return Stop::Lost(error),
            }
        }
    }

    /// Sees to it that nothing more begins once somebody has cancelled the rollout.
    fn notice(&self, run: &mut Run, pace: &mut Pace) {
        let Some(said) = run.cancelled().map(Cancelled::said) else {
            return;
        };
        if pace.cancel() {
            run.halt();
            self.console.note(&format!(
                "the rollout was cancelled {said}: no further batch comes, and machines that have begun are followed to \
                 their end"
            ));
        }
    }

    fn release(&mut self, run: &mut Run, pace: &Pace, batch: u16, at: Duration) {
        run.release(batch, at);
        let (number, of) = (batch + 1, pace.batches());
        self.console.note(&format!("batch {number} of {of}"));
    }

    /// Handles an event and what else is there already: acknowledgements of a thousand come together.
    fn handle_all(
        &mut self,
        run: &mut Run,
        first: Option<Event>,
        begin: Instant,
    ) -> Result<(), LinkError> {
        let mut next = first;
        for _ in 0..BATCH {
            let Some(event) = next else {
                return Ok(());
            };
            self.handle(run, event, begin.elapsed());
            next = self.link.try_next()?;
        }
        if let Some(event) = next {
            self.handle(run, event, begin.elapsed());
        }
        Ok(())
    }

    fn act(&mut self, run: &Run, action: &Action) {
        match action {
            Action::Publish(number) => {
                let signed = run.deployment(*number);
                let topic = signed.machine.topic(Channel::Deploy);
                self.link.publish(*number, &topic, signed.envelope.clone());
            }
            Action::ReadBack(agents) => {
                let filters = filters(self.fleet, agents, &[Channel::Deploy]);
                self.link.subscribe(Ticket::ReadBack, &filters);
            }
        }
    }

    fn handle(&mut self, run: &mut Run, event: Event, at: Duration) {
        match event {
            Event::Connected => self.link.subscribe(Ticket::Everything, self.filters),
            Event::Granted(Ticket::ReadBack, _) => run.granted(at),
            // What a role may not read was found out with the snapshot.
            Event::Granted(Ticket::Everything, _) => {
                run.connected(at);
                if self.outage == Outage::Said {
                    self.console.note("connected to the broker again");
                    self.outage = Outage::SaidAt(at);
                }
            }
            Event::Acknowledged(number) => run.acknowledged(number),
            Event::Message {
                topic,
                payload,
                retained,
            } => match run.saw(&topic, &payload, retained, at) {
                Some(Heard::Line(line)) => self.show_line(&topic.machine.agent, &line),
                Some(Heard::Unreadable(channel, error)) => self.console.warn(&format!(
                    "{}: what it says on its {channel} topic cannot be read ({error}); a newer version of \
                     Hoist may have written it",
                    topic.machine.agent
                )),
                None => {}
            },
            Event::Disconnected(failure) => {
                run.disconnected();
                let is_new = match self.outage {
                    Outage::None => true,
                    Outage::Said => false,
                    Outage::SaidAt(said) => at.saturating_sub(said) > REPEAT,
                };
                if is_new {
                    self.console.note(&format!("{failure}; connecting again"));
                    self.outage = Outage::Said;
                }
            }
        }
    }

    fn show_line(&mut self, agent: &AgentName, line: &LogLine) {
        if self.lines_shown.is_new(agent, line) {
            self.console.log_line(agent, line);
        }
    }
}
