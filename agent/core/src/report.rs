//! What the agent says of itself.

use hoist_protocol::limits::WARNINGS;
use hoist_protocol::{History, HistoryEntry, Order, State, Status, Text};

use crate::agent::{Agent, Wait, Work, percent};
use crate::effect::Effect;
use crate::input::{JobPhase, Moment, Origin};
use crate::ledger::{Ended, How, Task};

/// A status with everything that does not depend on a deployment.
fn blank(agent: &Agent, moment: &Moment) -> Status {
    let floor = agent.ledger.floor.as_ref().map(|floor| floor.order);
    let hold = agent.ledger.hold.as_ref();
    let mut warnings: Vec<_> = agent.ledger.damage.iter().cloned().collect();
    warnings.extend(moment.warnings.iter().cloned());
    warnings.truncate(WARNINGS);
    let config = &agent.config;
    let (version, session) = (config.version.clone(), config.session.clone());
    let idle = Status::idle(
        &config.machine,
        config.system.clone(),
        version,
        session,
        moment.now,
    );
    Status {
        floor_epoch: floor.map_or(0, |order| order.epoch),
        floor: floor.map_or(0, |order| order.sequence),
        current_path: moment.facts.current.clone(),
        profile_path: moment.facts.profile.clone(),
        boot_default_path: moment.facts.boot_default.clone(),
        booted_path: moment.facts.booted.clone(),
        reboot_reasons: moment.facts.reboot_reasons.clone(),
        held: hold.is_some(),
        held_until: hold.and_then(|hold| hold.until),
        warnings,
        broker: moment
            .broker
            .as_ref()
            .map(|url| Text::lossy(&url.to_string())),
        tags: config.tags.clone(),
        refused: agent.ledger.refused.clone(),
        trusted_keys: config.key_names(),
        ..idle
    }
}

/// A status about the deployment with this order. What was ordered at the machine has no place among them.
fn about(agent: &Agent, moment: &Moment, order: Order, origin: Origin) -> Status {
    let signed = origin == Origin::Publisher;
    Status {
        id: Some(order.id),
        epoch: signed.then_some(order.epoch),
        sequence: signed.then_some(order.sequence),
        local: !signed,
        ..blank(agent, moment)
    }
}

fn about_task(agent: &Agent, moment: &Moment, task: &Task) -> Status {
    Status {
        path: task.path.clone(),
        attempts: task.attempts,
        kind: kind(task.how.as_ref()),
        action: task.action,
        closure_size: task.closure_size,
        fetch: task.fetch,
        changes: task.changes.clone(),
        ..about(agent, moment, task.order, task.origin)
    }
}

fn kind(how: Option<&How>) -> Option<Text<16>> {
    how.map(|how| Text::lossy(how.kind.as_str()))
}

/// What is under way, or what waits, or else the newest that has ended.
pub(crate) fn status(agent: &Agent, moment: &Moment) -> Status {
    let Some(task) = &agent.ledger.current else {
        return match (&agent.ledger.next, &agent.ledger.last) {
            (Some(_), _) => waiting(agent, moment),
            (None, Some(last)) => ended(agent, moment, last),
            (None, None) => blank(agent, moment),
        };
    };
    let about = about_task(agent, moment, task);
    match &agent.work {
        Work::Fetching(fetching) => Status {
            state: State::Fetching,
            progress: fetching.progress.and_then(percent),
            fetch: fetching.progress,
            message: fetching.message.clone(),
            ..about
        },
        Work::Activating(activating) => Status {
            state: match activating.phase {
                JobPhase::Activating => State::Activating,
                JobPhase::Checking | JobPhase::Confirming | JobPhase::Committing => {
                    State::Confirming
                }
                JobPhase::RollingBack => State::RollingBack,
            },
            message: activating.message.clone(),
            ..about
        },
        Work::Idle => Status {
            state: State::Waiting,
            ..about
        },
    }
}

/// The newest deployment waits, for the end of the current one or for something else.
pub(crate) fn waiting(agent: &Agent, moment: &Moment) -> Status {
    let Some(task) = &agent.ledger.next else {
        return blank(agent, moment);
    };
    let current = agent.ledger.current.as_ref().map(|task| task.order.id);
    let (state, message) = match (agent.wait(moment.now), current) {
        (Some(Wait::HeldHere), _) => {
            let hold = agent.ledger.hold.as_ref();
            let until = hold.and_then(|hold| hold.until);
            let reason = hold
                .map(|hold| &hold.reason)
                .filter(|reason| !reason.is_empty());
            let until = until.map_or("it is released".to_owned(), |until| until.to_string());
            let reason = reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            (
                State::Held,
                format!("held at the machine until {until}{reason}"),
            )
        }
        (Some(Wait::HeldFromAfar(until)), _) => (
            State::Held,
            match until {
                Some(until) => {
                    format!("held from afar until {until}; `hoist release` ends that before")
                }
                None => "held from afar; `hoist release` ends that".to_owned(),
            },
        ),
        (Some(Wait::Spread(begins)), _) => (
            State::Waiting,
            format!("begins at {begins}: the fleet does not begin at once"),
        ),
        (None, Some(id)) => (State::Waiting, format!("begins when {id} has ended")),
        (None, None) => (State::Waiting, String::new()),
    };
    Status {
        state,
        message: Text::lossy(&message),
        ..about_task(agent, moment, task)
    }
}

/// How a deployment ended.
pub(crate) fn ended(agent: &Agent, moment: &Moment, ended: &Ended) -> Status {
    let origin = match ended.entry.local {
        true => Origin::Local,
        false => Origin::Publisher,
    };
    let HistoryEntry {
        state,
        reason,
        path,
        previous_path,
        closure_size,
        ..
    } = ended.entry.clone();
    Status {
        state,
        reason,
        path,
        previous_path,
        closure_size,
        message: ended.message.clone(),
        attempts: ended.attempts,
        kind: kind(ended.how.as_ref()),
        action: ended.action,
        fetch: ended.fetch,
        changes: ended.changes.clone(),
        log_lines: ended.log_lines,
        log_tail: ended.log_tail.clone(),
        ..about(agent, moment, ended.order(), origin)
    }
}

/// The history, and which outcomes are delivered once the broker has acknowledged it.
pub(crate) fn history(agent: &Agent) -> Effect {
    let records = &agent.ledger.history;
    Effect::ReportHistory {
        history: Box::new(History {
            agent: agent.config.machine.agent.clone(),
            fleet: agent.config.fleet().clone(),
            entries: records.iter().map(|record| record.entry.clone()).collect(),
        }),
        undelivered: agent.ledger.undelivered().collect(),
    }
}
