//! What the tests of this crate share.

use hoist_protocol::{
    AgentName, DeploymentId, FleetName, HistoryEntry, KeyName, Machine, Order, SigningKey, State,
    Status, StorePath, System, Text, Timestamp,
};
use hoist_protocol::{Draft, KnownOrders, Provenance};
use uuid::Uuid;

use crate::plan::{Orders, Wish};
use crate::signer::Signer;

/// The machine called `agent` of the fleet `prod`.
pub(crate) fn machine(agent: &str) -> Machine {
    Machine::new(
        FleetName::new("prod").unwrap(),
        AgentName::new(agent).unwrap(),
    )
}

/// A deployment id made of a small number.
pub(crate) fn id(n: u128) -> DeploymentId {
    DeploymentId::new(Uuid::from_u128(n))
}

/// The order with the sequence and the id `n`.
pub(crate) fn order(n: u64) -> Order {
    Order {
        epoch: 0,
        sequence: n,
        id: id(n.into()),
    }
}

/// The key called `name`, the same at every call.
pub(crate) fn key(name: &str) -> SigningKey {
    let mut seed = [7; 32];
    seed[..name.len().min(32)].copy_from_slice(&name.as_bytes()[..name.len().min(32)]);
    SigningKey::from_seed(KeyName::new(name).unwrap(), &seed.into())
}

/// What `web-1` reports of the deployment with `order`.
pub(crate) fn status(order: Order, state: State) -> Status {
    Status {
        state,
        id: Some(order.id),
        epoch: Some(order.epoch),
        sequence: Some(order.sequence),
        floor_epoch: order.epoch,
        floor: order.sequence,
        attempts: 1,
        ..Status::idle(
            &machine("web-1"),
            System::new("x86_64-linux").unwrap(),
            Text::lossy("0.1.0"),
            Text::lossy("s"),
            Timestamp::from_ms(order.sequence),
        )
    }
}

/// A store path with this name.
pub(crate) fn path(name: &str) -> StorePath {
    StorePath::new(format!(
        "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-{name}"
    ))
    .unwrap()
}

/// The entry of a history for the deployment `n`, which ended so and brought the path called `name`.
pub(crate) fn entry(n: u64, state: State, name: &str) -> HistoryEntry {
    HistoryEntry {
        id: id(n.into()),
        epoch: 0,
        sequence: n,
        local: false,
        state,
        reason: None,
        message: Text::default(),
        path: Some(path(name)),
        previous_path: None,
        started_at: Timestamp::default(),
        ended_at: Timestamp::default(),
        closure_size: None,
        fetched_bytes: None,
        changes: None,
    }
}

/// Waits for `future` on a runtime of its own.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future)
}

/// A deployment that nobody has signed.
pub(crate) fn draft(machine: Machine, wish: Wish, known: KnownOrders, id: DeploymentId) -> Draft {
    let orders = Orders {
        signers: &[Signer::Key(key("ci"))],
        provenance: &Provenance::default(),
        valid_for: std::time::Duration::from_secs(3600),
        raise_epoch: false,
        now: Timestamp::from_ms(1_795_000_000_000),
    };
    orders.draft(machine, wish, known, id).unwrap()
}
