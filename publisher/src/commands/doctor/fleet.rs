//! What is found in what the machines of the fleet say.

use std::time::Duration;

use hoist_certs::doctor::Finding;
use hoist_protocol::{FleetName, Presence, Timestamp};

use crate::duration;
use crate::snapshot::Snapshot;

/// The clocks of two computers may differ by so much, and what a machine says may be so long under way.
const TOLERANCE: Duration = Duration::from_secs(120);

/// A machine that is online says something every five minutes; when even the newest word is so old, the clock here may
/// be ahead.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// Whether the machines can be read.
pub(super) fn read(snapshot: &Snapshot, fleet: &FleetName) -> Finding {
    let machines = snapshot.machines();
    let online = machines
        .values()
        .filter(|seen| seen.presence == Some(Presence::Online))
        .count();
    let unreadable = machines.iter().find_map(|(agent, seen)| {
        let (channel, error) = seen.unreadable.as_ref()?;
        Some(format!("the {channel} of {agent} cannot be read: {error}"))
    });
    if let Some(unreadable) = unreadable {
        return Finding::wrong("fleet", unreadable)
            .advice("a newer version of Hoist may have written it: this one is too old then");
    }
    match machines.len() {
        0 => Finding::note("fleet", format!("no machine of `{fleet}` has reported yet"))
            .advice("does an agent run, with a certificate of this fleet?"),
        all => Finding::ok(
            "fleet",
            format!("`{fleet}` has {all} machines, {online} of them online"),
        ),
    }
}

/// This computer's clock against those of the machines that are online.
///
/// The newest word of them is minutes old at most. Lies it ahead, then our clock is behind, or theirs are ahead; is it
/// very old, then ours is ahead.
pub(super) fn clock(snapshot: &Snapshot, now: Timestamp) -> Finding {
    let online = snapshot
        .machines()
        .values()
        .filter(|seen| seen.presence == Some(Presence::Online));
    let mut said: Vec<Timestamp> = online
        .filter_map(|seen| seen.status.as_ref().map(|status| status.ts))
        .collect();
    said.sort_unstable();
    let Some(newest) = said.last() else {
        return Finding::note(
            "clock",
            format!("it is {now} here; no machine is online to compare it with"),
        );
    };
    let ahead = |at: &Timestamp| at.since(now) > TOLERANCE;
    let behind = said.iter().filter(|at| ahead(at)).count();
    // One machine whose clock is wrong says nothing of ours.
    if behind * 2 > said.len() {
        let by = duration::show(newest.since(now));
        return Finding::wrong(
            "clock",
            format!("it is {now} here, and {behind} of {} machines that are online are up to {by} ahead", said.len()),
        )
        .advice("set the clock of this computer, or of those machines: deployments are ordered by it");
    }
    let age = now.since(*newest);
    if age > SILENCE {
        return Finding::wrong(
            "clock",
            format!(
                "it is {now} here, and the newest word of the {} machines that are online is {} old",
                said.len(),
                duration::show(age)
            ),
        )
        .advice("this computer's clock is ahead, or no agent has reported for that long: see both");
    }
    Finding::ok(
        "clock",
        format!(
            "it agrees with those of {} machines that are online",
            said.len() - behind
        ),
    )
}

#[cfg(test)]
mod tests {
    use hoist_certs::doctor::Verdict;
    use hoist_protocol::{Channel, State};

    use super::*;
    use crate::testing::{machine, order, status};

    const NOW: u64 = 1_795_000_000_000;

    /// Machines that are online and reported so many seconds ago.
    fn fleet(ages: &[i64]) -> Snapshot {
        let mut snapshot = Snapshot::new(machine("x").fleet);
        for (n, age) in ages.iter().enumerate() {
            let machine = machine(&format!("web-{n}"));
            let mut report = status(order(1), State::Succeeded);
            report.agent = machine.agent.clone();
            report.ts = Timestamp::from_ms(NOW.saturating_add_signed(-age * 1_000));
            let mut saw = |channel, payload: &[u8]| {
                snapshot.saw(&machine.topic(channel), payload).unwrap();
            };
            saw(Channel::Status, &report.to_json());
            saw(Channel::Presence, b"online");
        }
        snapshot
    }

    fn verdict(ages: &[i64]) -> Verdict {
        clock(&fleet(ages), Timestamp::from_ms(NOW)).verdict()
    }

    #[test]
    fn a_clock_that_is_off_is_found_by_what_most_machines_say() {
        assert_eq!(verdict(&[]), Verdict::Note);
        assert_eq!(verdict(&[10, 200, 290]), Verdict::Ok);
        // Ours is a day behind, and a day ahead.
        assert_eq!(verdict(&[-86_400, -86_300, -86_200]), Verdict::Wrong);
        assert_eq!(verdict(&[86_400, 86_500]), Verdict::Wrong);
        // One machine's own fault.
        assert_eq!(verdict(&[-86_400, 10, 200]), Verdict::Ok);
    }

    #[test]
    fn a_report_that_cannot_be_read_is_found() {
        let fleet_name = machine("x").fleet;
        let mut snapshot = fleet(&[1]);
        assert_eq!(read(&snapshot, &fleet_name).verdict(), Verdict::Ok);
        snapshot
            .saw(&machine("web-9").topic(Channel::Status), b"{}")
            .unwrap();
        let finding = read(&snapshot, &fleet_name);
        assert_eq!(finding.verdict(), Verdict::Wrong);
        assert!(
            finding.message().contains("the status of web-9"),
            "{finding:?}"
        );
        assert_eq!(read(&fleet(&[]), &fleet_name).verdict(), Verdict::Note);
    }
}
