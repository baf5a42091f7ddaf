//! What time it is, whether that can be relied on, and whether time has passed that this process did not see.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hoist_protocol::Text;
use tokio::process::Command;

/// How long the operating system may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A machine that slept for less has not been away.
const NAP: Duration = Duration::from_secs(1);

/// A look that comes so much too late means that the process stood still, as in a virtual machine that was paused.
const LATE: Duration = Duration::from_secs(20);

/// A wall clock that moved by so much more or less than time has passed was set.
const SET: Duration = Duration::from_secs(60);

/// How soon it is looked again whether a clock is kept right that was not.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How long a machine may take from its boot until its clock is set; nothing is said of it until then.
const SETTLED: Duration = Duration::from_secs(5 * 60);

/// The clocks at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reading {
    /// Time since some start, without the time for which the machine slept.
    awake: Duration,
    /// Time since some start, all of it.
    elapsed: Duration,
    /// Time since 1970.
    wall: Duration,
}

/// Why what was true a moment ago may not be so any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Jump {
    /// The machine slept.
    Slept(Duration),
    /// This process was not run.
    StoodStill(Duration),
    /// The wall clock was set, by so much.
    ClockSet(Duration),
}

/// Compares the clocks from time to time.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Reading,
}

impl Reading {
    /// Of this machine's clocks.
    pub(super) fn now(start: Instant) -> Self {
        Self {
            awake: start.elapsed(),
            elapsed: with_sleep(),
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

impl Pulse {
    /// From now on.
    pub(super) const fn new(now: Reading) -> Self {
        Self { last: now }
    }

    /// What has happened since the last look, which was meant to be `interval` ago.
    pub(super) fn look(&mut self, now: Reading, interval: Duration) -> Option<Jump> {
        let last = std::mem::replace(&mut self.last, now);
        let awake = now.awake.saturating_sub(last.awake);
        let elapsed = now.elapsed.saturating_sub(last.elapsed);
        let slept = elapsed.saturating_sub(awake);
        if slept >= NAP {
            return Some(Jump::Slept(slept));
        }
        let late = awake.saturating_sub(interval);
        if late >= LATE {
            return Some(Jump::StoodStill(late));
        }
        let set = now.wall.abs_diff(last.wall + elapsed);
        (set >= SET).then_some(Jump::ClockSet(set))
    }
}

/// The time since some start, including that for which the machine slept.
#[cfg(target_os = "linux")]
fn with_sleep() -> Duration {
    clock(rustix::time::ClockId::Boottime)
}

/// The time since some start, including that for which the machine slept: on macOS `CLOCK_MONOTONIC` goes on then,
/// and [`Instant`] does not.
#[cfg(not(target_os = "linux"))]
fn with_sleep() -> Duration {
    clock(rustix::time::ClockId::Monotonic)
}

fn clock(id: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(id);
    // Neither is ever negative on these clocks.
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Whether something such as NTP keeps the wall clock right.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Discipline {
    /// It does.
    Synchronised,
    /// Nothing does.
    Free,
    /// That cannot be told here: in most containers, for instance, whose clock is the host's.
    #[default]
    Unknown,
}

/// As far as systemd can tell: timedated asks the kernel (`ntp_adjtime(3)`), whoever it is that disciplines the clock.
/// What keeps the clock of a container right is the host's business, and not always the kernel's.
#[cfg(not(target_os = "macos"))]
pub(crate) async fn discipline() -> Discipline {
    // systemd-timesyncd's own mark, without starting a program.
    if std::path::Path::new("/run/systemd/timesync/synchronized").exists() {
        return Discipline::Synchronised;
    }
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        return Discipline::Unknown;
    }
    let arguments = ["show", "--property=NTPSynchronized", "--value"];
    let found = read(&says("timedatectl", &arguments).await, "yes", "no");
    // Written by systemd as the first process of a container, which does not keep the clock itself.
    let is_container = std::path::Path::new("/run/systemd/container").exists();
    match found {
        Discipline::Free if is_container => Discipline::Unknown,
        found => found,
    }
}

/// As far as macOS tells, and it tells root alone.
#[cfg(target_os = "macos")]
pub(crate) async fn discipline() -> Discipline {
    let said = says("/usr/sbin/systemsetup", &["-getusingnetworktime"]).await;
    read(&said, "Network Time: On", "Network Time: Off")
}

/// What an answer means that says so `when_synchronised`, and otherwise `when_free`.
fn read(said: &str, when_synchronised: &str, when_free: &str) -> Discipline {
    match said.trim() {
        said if said == when_synchronised => Discipline::Synchronised,
        said if said == when_free => Discipline::Free,
        _ => Discipline::Unknown,
    }
}

/// What `program` prints when it succeeds.
async fn says(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(ANSWER, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(Ok(output)) => {
            tracing::debug!(program, status = %output.status, "it does not tell whether the clock is synchronised");
            String::new()
        }
        Ok(Err(error)) => {
            tracing::debug!(program, %error, "cannot ask whether the clock is synchronised");
            String::new()
        }
        Err(_) => String::new(),
    }
}

/// What is known about the wall clock.
#[derive(Debug, Default)]
pub(super) struct WallClock {
    discipline: Discipline,
    /// When that was looked at.
    looked: Option<Instant>,
}

impl WallClock {
    /// Finds out whether something keeps it right.
    pub(super) async fn look(&mut self) {
        self.discipline = discipline().await;
        self.looked = Some(Instant::now());
    }

    /// Whether it is time to look again: a clock that nothing kept right may be synchronised any moment.
    pub(super) fn is_due(&self) -> bool {
        let is_old = |looked: Instant| looked.elapsed() >= LOOK_AGAIN;
        self.discipline == Discipline::Free && self.looked.is_some_and(is_old)
    }

    pub(super) fn is_synchronised(&self) -> bool {
        self.discipline == Discipline::Synchronised
    }

    /// What people should know of it; none when all is well, or when nobody can tell.
    pub(super) fn warning(&self) -> Option<Text<256>> {
        self.warning_after(with_sleep())
    }

    fn warning_after(&self, boot: Duration) -> Option<Text<256>> {
        let is_told = self.discipline == Discipline::Free && boot >= SETTLED;
        is_told.then(|| {
            Text::lossy(
                "nothing keeps this machine's clock right, and certificates and the expiry of deployments go by it: \
                 let NTP set it (timedatectl set-ntp true)",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    /// After so many seconds on each clock.
    fn at(awake: u64, elapsed: u64, wall: u64) -> Reading {
        let seconds = Duration::from_secs;
        Reading {
            awake: seconds(100 + awake),
            elapsed: seconds(2_000 + elapsed),
            wall: seconds(1_800_000_000 + wall),
        }
    }

    fn jump(to: Reading) -> Option<Jump> {
        Pulse::new(at(0, 0, 0)).look(to, INTERVAL)
    }

    #[test]
    fn a_machine_that_slept_is_noticed() {
        let slept = Duration::from_secs(3_600);
        assert_eq!(jump(at(3, 3_603, 3_603)), Some(Jump::Slept(slept)));
        // Also when its clock was not set right yet.
        assert_eq!(jump(at(3, 3_603, 3)), Some(Jump::Slept(slept)));
    }

    #[test]
    fn a_process_that_stood_still_is_noticed() {
        let late = Duration::from_secs(55);
        assert_eq!(jump(at(60, 60, 60)), Some(Jump::StoodStill(late)));
        assert_eq!(
            jump(at(20, 20, 20)),
            None,
            "a busy machine is late at times"
        );
    }

    #[test]
    fn a_wall_clock_that_was_set_is_noticed_in_both_directions() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(jump(at(5, 5, 3_605)), Some(Jump::ClockSet(hour)));
        let back = Pulse::new(at(0, 0, 3_600)).look(at(5, 5, 5), INTERVAL);
        assert_eq!(back, Some(Jump::ClockSet(hour)));
        assert_eq!(
            jump(at(5, 5, 7)),
            None,
            "NTP corrects a little all the time"
        );
    }

    #[test]
    fn what_was_noticed_is_not_noticed_again() {
        let mut pulse = Pulse::new(at(0, 0, 0));
        assert!(pulse.look(at(3, 3_603, 3_603), INTERVAL).is_some());
        assert_eq!(pulse.look(at(8, 3_608, 3_608), INTERVAL), None);
    }

    #[test]
    fn the_clocks_of_this_machine_go_on() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Reading::now(start));
        assert_eq!(pulse.look(Reading::now(start), INTERVAL), None);
        assert!(with_sleep() > Duration::ZERO);
    }

    #[test]
    fn only_a_clock_that_is_known_to_be_free_is_warned_about() {
        let of = |said: &str| WallClock {
            discipline: read(said, "yes", "no"),
            looked: None,
        };
        let warns = |said: &str| of(said).warning_after(SETTLED).is_some();
        assert!(of("yes\n").is_synchronised() && !warns("yes\n"));
        assert!(!of("no\n").is_synchronised() && warns("no\n"));
        // What timedatectl says where timedated cannot run, and where there is no such program.
        for unknown in ["", "Failed to query server", "n/a", "not"] {
            assert!(
                !of(unknown).is_synchronised() && !warns(unknown),
                "{unknown:?}"
            );
        }
    }

    #[test]
    fn a_machine_that_has_just_booted_may_take_its_time_to_set_its_clock() {
        let clock = WallClock {
            discipline: Discipline::Free,
            looked: None,
        };
        assert!(clock.warning_after(Duration::from_secs(60)).is_none());
        assert!(clock.warning_after(SETTLED).is_some());
    }
}
