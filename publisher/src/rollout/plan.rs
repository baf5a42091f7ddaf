//! Who comes when: the canaries first, then batch by batch, and at the end those that are away.

use hoist_protocol::{Presence, StorePath};

use super::Share;
use crate::snapshot::Seen;

/// How a rollout is divided.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Division {
    /// How many come first, alone.
    pub canary: Option<Share>,
    /// How many come at a time after that; all when it is not said.
    pub batch: Option<Share>,
}

/// What is known of a machine beforehand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// It is connected.
    Online,
    /// It says that it runs the closure already: nothing can go wrong with it.
    Done,
    /// It is not connected, or was never heard of, or is held: it can neither prove the closure good nor bad.
    Away,
}

impl Known {
    /// What was seen of a machine that is to run the closure at `path`; none when what it shall run has no path. `held`
    /// is one that stays held from afar.
    #[must_use]
    pub fn of(seen: Option<&Seen>, path: Option<&StorePath>, held: bool) -> Self {
        let begins = |seen: &&Seen| {
            let held_there = seen.status.as_ref().is_some_and(|status| status.held);
            seen.presence == Some(Presence::Online) && !held && !held_there
        };
        let Some(seen) = seen.filter(begins) else {
            return Self::Away;
        };
        let runs_it = seen.status.as_ref().is_some_and(|status| {
            let is_it = |known: &Option<StorePath>| known.as_ref() == path;
            status.state.is_good() && is_it(&status.path) && is_it(&status.current_path)
        });
        match path.is_some() && runs_it {
            true => Self::Done,
            false => Self::Online,
        }
    }
}

/// The number of the batch of each machine, in the order of `machines`, and how many batches there are.
///
/// Machines that are done come with the first batch, on top of it: they answer at once. Those that are away come last,
/// with a batch of their own: what waits for them on their topic is what the others proved good.
#[must_use]
pub fn divide(division: Division, machines: &[Known]) -> (Vec<u16>, u16) {
    let online = machines
        .iter()
        .filter(|known| **known == Known::Online)
        .count();
    let mut sizes = Vec::new();
    let mut left = online;
    if let Some(canary) = division.canary {
        let size = canary.round_up(online).clamp(1, left.max(1));
        sizes.push(size);
        left = left.saturating_sub(size);
    }
    let size = match division.batch {
        Some(batch) => batch.round_up(online).max(1),
        None => left.max(1),
    };
    while left > 0 {
        // More batches than a number has room for are no batches: the last one takes what is left.
        let is_last = sizes.len() + 2 >= usize::from(u16::MAX);
        let size = if is_last { left } else { size.min(left) };
        sizes.push(size);
        left -= size;
    }
    let mut numbers = sizes
        .iter()
        .enumerate()
        .flat_map(|(number, size)| std::iter::repeat_n(number, *size));
    let last = sizes.len();
    let number = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    let batches: Vec<u16> = machines
        .iter()
        .map(|known| match known {
            Known::Done => 0,
            Known::Away => number(last),
            Known::Online => number(numbers.next().unwrap_or(last)),
        })
        .collect();
    let of = batches
        .iter()
        .max()
        .map_or(0, |last| last.saturating_add(1));
    (batches, of)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use hoist_protocol::State;

    use super::Known::{Away, Done, Online};
    use super::*;
    use crate::testing::{order, status};

    fn division(canary: &str, batch: &str) -> Division {
        Division {
            canary: canary.parse().ok(),
            batch: batch.parse().ok(),
        }
    }

    #[test]
    fn a_machine_is_done_when_it_is_there_and_says_that_it_runs_the_closure_well() {
        let path = |name: &str| {
            StorePath::new(format!(
                "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-{name}"
            ))
            .unwrap()
        };
        let mut report = status(order(1), State::Succeeded);
        report.path = Some(path("a"));
        report.current_path = Some(path("a"));
        let mut seen = Seen {
            status: Some(report.clone()),
            presence: Some(Presence::Online),
            ..Seen::default()
        };
        assert_eq!(Known::of(Some(&seen), Some(&path("a")), false), Done);
        assert_eq!(Known::of(Some(&seen), Some(&path("b")), false), Online);
        assert_eq!(Known::of(Some(&seen), None, false), Online);
        // Whoever holds it, it begins nothing.
        assert_eq!(Known::of(Some(&seen), Some(&path("b")), true), Away);
        report.held = true;
        seen.status = Some(report.clone());
        assert_eq!(Known::of(Some(&seen), Some(&path("b")), false), Away);
        report.held = false;
        // It runs it, but its last deployment of it did not end well.
        report.state = State::Failed;
        seen.status = Some(report);
        assert_eq!(Known::of(Some(&seen), Some(&path("a")), false), Online);
        seen.presence = Some(Presence::Offline);
        assert_eq!(Known::of(Some(&seen), Some(&path("a")), false), Away);
        assert_eq!(Known::of(None, Some(&path("a")), false), Away);
    }

    #[test]
    fn canaries_come_first_then_batches_then_those_that_are_away() {
        let machines = [Away, Online, Done, Online, Online, Online, Online];
        let (batches, of) = divide(division("1", "2"), &machines);
        assert_eq!(batches, [3, 0, 0, 1, 1, 2, 2]);
        assert_eq!(of, 4);
    }

    #[test]
    fn without_canaries_or_batches_all_come_at_once() {
        let (batches, of) = divide(Division::default(), &[Online; 3]);
        assert_eq!((batches, of), (vec![0; 3], 1));
        let (batches, of) = divide(division("10%", ""), &[Online; 20]);
        assert_eq!(batches.iter().filter(|batch| **batch == 0).count(), 2);
        assert_eq!(of, 2);
    }

    #[test]
    fn a_fleet_that_is_away_has_one_batch() {
        assert_eq!(divide(division("1", "1"), &[Away; 2]).0, [1; 2]);
        assert_eq!(divide(division("1", "1"), &[]), (Vec::new(), 0));
    }

    proptest! {
        #[test]
        fn everybody_has_a_batch_and_none_is_larger_than_asked_for(
            canary in prop::option::of(0..200_usize),
            percent in prop::option::of(0..=100_u8),
            machines in prop::collection::vec(prop::sample::select(vec![Online, Done, Away]), 0..300),
        ) {
            let division = Division {
                canary: canary.map(Share::Count),
                batch: percent.map(Share::Percent),
            };
            let (batches, of) = divide(division, &machines);
            prop_assert_eq!(batches.len(), machines.len());
            let online = machines.iter().filter(|known| **known == Online).count();
            let of_batch = |number: u16| {
                let both = batches.iter().zip(&machines);
                both.filter(|(batch, known)| **batch == number && **known == Online).count()
            };
            for number in 0..of {
                let most = match (number, canary, percent) {
                    (0, Some(canary), _) => canary.max(1),
                    (_, _, Some(percent)) => Share::Percent(percent).round_up(online).max(1),
                    _ => online,
                };
                prop_assert!(of_batch(number) <= most);
            }
            prop_assert_eq!((0..of).map(of_batch).sum::<usize>(), online);
            let last_online = batches.iter().zip(&machines).filter(|(_, known)| **known == Online).map(|(batch, _)| *batch).max();
            for (batch, known) in batches.iter().zip(&machines) {
                if *known == Away {
                    prop_assert!(last_online.is_none_or(|last| *batch > last));
                }
            }
        }
    }
}
