//! Health checks: what must hold on the machine after an activation.
//!
//! They are tried one after another, each until it holds or has failed once more often than it may. Failures
//! within its grace do not count; and a check that had failed before the activation too need not hold, where the
//! order says so.

mod http;
mod https;
mod tcp;
mod unit;

use std::fmt;
use std::time::{Duration, Instant};

use hoist_protocol::{HealthCheck, Probe, Reason, StorePath, System};

use super::Activator;
use super::failure::{Failure, shown};
use super::kinds;
use super::program::{End, Program};
use super::system::{self, Manager};
use crate::job::{Before, Phase, Record};

/// How long a check is tried at the least, so that it is one even when the time is nearly over.
const LEAST: Duration = Duration::from_millis(10);

/// What a check is about, for the programs of checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) before: &'a Before,
    /// What runs while it is checked.
    pub(super) closure: &'a StorePath,
}

impl Activator {
    /// The numbers of those checks that do not hold already, of those for which that matters.
    pub(super) fn failing_checks(&mut self, before: &Before) -> Result<Vec<usize>, Failure> {
        let Some(running) = before.running.clone() else {
            // Without anything that runs, nothing has held.
            let checks = self.job.spec().target.health_checks.iter().enumerate();
            return Ok(checks
                .filter(|(_, check)| check.only_if_held_before)
                .map(|(number, _)| number)
                .collect());
        };
        let subject = Subject {
            before,
            closure: &running,
        };
        let mut failing = Vec::new();
        for (number, check) in self.checks()? {
            if !check.only_if_held_before {
                continue;
            }
            if let Err(why) = self.try_check(&check, check.timeout(), subject)? {
                self.log.say(&format!(
                    "{} does not hold before the activation: {why}",
                    Shown(&check)
                ));
                failing.push(number);
            }
        }
        Ok(failing)
    }

    /// Tries all checks until they hold, with the activation having ended at `begun`.
    pub(super) fn check(&mut self, before: &Before, begun: Instant) -> Result<(), Failure> {
        let checks = self.checks()?;
        if checks.is_empty() {
            return Ok(());
        }
        self.journal.append([Record::Phase(Phase::Checking)])?;
        let closure = self.job.spec().closure.clone();
        let subject = Subject {
            before,
            closure: &closure,
        };
        for (number, check) in checks {
            if before.failed_checks.contains(&number) {
                self.log.say(&format!(
                    "{} had failed before the activation too, so it does not count",
                    Shown(&check)
                ));
                continue;
            }
            self.log.say(&format!("checking {}", Shown(&check)));
            self.insist(&check, begun, subject)?;
        }
        Ok(())
    }

    fn insist(
        &mut self,
        check: &HealthCheck,
        begun: Instant,
        subject: Subject<'_>,
    ) -> Result<(), Failure> {
        let total = self.job.spec().target.confirm_timeout();
        let failed = |why: String| {
            Failure::rolled_back(
                Reason::HealthCheckFailed,
                format!("the health check {} failed: {why}", Shown(check)),
            )
        };
        let mut failures = 0;
        loop {
            let left = total.saturating_sub(begun.elapsed()).max(LEAST);
            let Err(why) = self.try_check(check, check.timeout().min(left), subject)? else {
                return Ok(());
            };
            if begun.elapsed() >= check.grace() {
                failures += 1;
            }
            if failures > check.retries {
                return Err(failed(why));
            }
            if begun.elapsed() + check.interval() >= total {
                return Err(failed(format!(
                    "{why}; {} s after the activation everything has to be confirmed, so there is no time to try it again",
                    total.as_secs()
                )));
            }
            self.log.say(&format!("{why}; it is tried again"));
            std::thread::sleep(check.interval());
        }
    }

    /// The checks that this machine has, by their number in the order.
    fn checks(&self) -> Result<Vec<(usize, HealthCheck)>, Failure> {
        let system = System::current().map_err(|error| {
            Failure::internal("cannot tell which programs check this machine", &error)
        })?;
        let checks = self.job.spec().target.health_checks.iter().enumerate();
        Ok(checks
            .filter(|(_, check)| {
                !matches!(check.probe, Probe::Program(_)) || check.program(&system).is_some()
            })
            .map(|(number, check)| (number, check.clone()))
            .collect())
    }

    /// One try; the inner error says why the check does not hold.
    fn try_check(
        &mut self,
        check: &HealthCheck,
        limit: Duration,
        subject: Subject<'_>,
    ) -> Result<Result<(), String>, Failure> {
        match &check.probe {
            Probe::Program(_) => self.try_program(check, limit, subject),
            Probe::Unit(unit) => {
                // The units of a home are those of its user.
                let manager = kinds::of(&subject.before.kind)?
                    .units()
                    .map_or(Manager::System, |units| units.manager);
                Ok(unit::probe(manager, unit, limit))
            }
            Probe::Tcp(endpoint) => Ok(tcp::probe(endpoint, limit)),
            Probe::Http(url) => Ok(http::probe(url, limit)),
        }
    }

    fn try_program(
        &mut self,
        check: &HealthCheck,
        limit: Duration,
        subject: Subject<'_>,
    ) -> Result<Result<(), String>, Failure> {
        let system = System::current().ok();
        let Some(path) = system.as_ref().and_then(|system| check.program(system)) else {
            return Ok(Ok(()));
        };
        let before = subject.before;
        let previous = before.running.as_ref();
        let mut environment = system::environment(self.id());
        environment.extend(system::about(
            self.id(),
            subject.closure,
            previous,
            &before.profile,
        ));
        let program = Program::new(&[path.as_str()], environment, limit);
        Ok(match self.run(&program, [])?.end {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(format!("it {}", shown(status))),
            End::TimedOut => Err(format!(
                "it had not ended after {:.1} s",
                limit.as_secs_f64()
            )),
        })
    }
}

/// A check for people.
struct Shown<'a>(&'a HealthCheck);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.probe {
            Probe::Program(programs) => {
                let system = System::current().ok();
                match system.and_then(|system| programs.get(&system)) {
                    Some(program) => write!(f, "{program}"),
                    None => f.write_str("by a program"),
                }
            }
            Probe::Unit(unit) => write!(f, "unit {unit}"),
            Probe::Tcp(endpoint) => write!(f, "tcp {endpoint}"),
            Probe::Http(url) => write!(f, "{url}"),
        }
    }
}
