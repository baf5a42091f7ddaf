//! What the agent says of itself.

use hoist_protocol::{FORMAT, History, HistoryEntry, Order, State, Status, Text};

use crate::agent::{Agent, Work};
use crate::effect::Effect;
use crate::input::{JobPhase, Moment};
use crate::ledger::Ended;

/// A status with everything that does not depend on a deployment.
fn blank(agent: &Agent, moment: &Moment) -> Status {
    let floor = agent.ledger.floor.as_ref().map(|floor| floor.order);
    Status {
        agent: agent.config.machine.agent.clone(),
        fleet: agent.config.fleet().clone(),
        state: State::Idle,
        ts: moment.now,
        id: None,
        epoch: None,
        sequence: None,
        floor_epoch: floor.map_or(0, |order| order.epoch),
        floor: floor.map_or(0, |order| order.sequence),
        reason: None,
        message: Text::default(),
        progress: None,
        path: None,
        previous_path: None,
        current_path: moment.facts.current.clone(),
        profile_path: moment.facts.profile.clone(),
        boot_default_path: None,
        booted_path: moment.facts.booted.clone(),
        reboot_reasons: Vec::new(),
        kind: None,
        action: None,
        attempts: 0,
        closure_size: None,
        fetch: None,
        changes: None,
        held: false,
        held_until: None,
        warnings: moment.warnings.clone(),
        tags: agent.config.tags.clone(),
        log_lines: None,
        log_tail: Vec::new(),
        refused: agent.ledger.refused.clone(),
        agent_version: agent.config.version.clone(),
        system: agent.config.system.clone(),
        formats: vec![FORMAT],
        trusted_keys: agent.config.key_names(),
        session: agent.config.session.clone(),
    }
}

/// A status about the deployment with this order.
fn about(agent: &Agent, moment: &Moment, order: Order) -> Status {
    Status {
        id: Some(order.id),
        epoch: Some(order.epoch),
        sequence: Some(order.sequence),
        ..blank(agent, moment)
    }
}

/// What is under way, or else the newest that has ended.
pub(crate) fn status(agent: &Agent, moment: &Moment) -> Status {
    let Some(task) = &agent.ledger.current else {
        return match &agent.ledger.last {
            Some(last) => ended(agent, moment, last),
            None => blank(agent, moment),
        };
    };
    let (state, progress, message) = match &agent.work {
        Work::Fetching(fetching) => (State::Fetching, fetching.percent, fetching.message.clone()),
        Work::Activating(activating) => {
            let state = match activating.phase {
                JobPhase::Activating => State::Activating,
                JobPhase::Checking | JobPhase::Confirming | JobPhase::Committing => {
                    State::Confirming
                }
                JobPhase::RollingBack => State::RollingBack,
            };
            (state, None, activating.message.clone())
        }
        Work::Idle => (State::Waiting, None, Text::default()),
    };
    Status {
        state,
        progress,
        message,
        path: task.path.clone(),
        attempts: task.attempts,
        closure_size: task.closure_size,
        ..about(agent, moment, task.order)
    }
}

/// A newer deployment waits for the end of the current one.
pub(crate) fn waiting(agent: &Agent, moment: &Moment, order: Order) -> Status {
    let current = agent.ledger.current.as_ref().map(|task| task.order.id);
    let message = current
        .map(|id| format!("begins when {id} has ended"))
        .unwrap_or_default();
    Status {
        state: State::Waiting,
        message: Text::lossy(&message),
        ..about(agent, moment, order)
    }
}

/// How a deployment ended.
pub(crate) fn ended(agent: &Agent, moment: &Moment, ended: &Ended) -> Status {
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
        log_lines: ended.log_lines,
        log_tail: ended.log_tail.clone(),
        ..about(agent, moment, ended.order())
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
