//! The signed deployments that publishers, good and bad, may send; signed once for all schedules.

use std::sync::OnceLock;

use hoist_agent_core::{Config, Offer};
use hoist_protocol::limits::SEQUENCE_AHEAD_MS;
use hoist_protocol::{
    Action, AgentName, Deployment, DeploymentId, DeploymentParts, FleetName, Goal, Held, KeyName,
    Machine, Order, Provenance, RollbackTo, SigningKey, StorePath, System, Target, Text, Timestamp,
    TrustedKeys, VerifyError, digest, sign,
};
use uuid::Uuid;

/// When the simulated world begins.
pub(crate) const START_MS: u64 = 1_795_000_000_000;

/// How many deployments come one after another; one schedule publishes some of them.
pub(crate) const LENGTH: usize = 49;

/// What is special about a deployment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Special {
    /// An ordinary closure.
    None,
    /// It expires an hour after it was made.
    Short,
    /// It goes back to what ran before the one with this index.
    Before(usize),
    /// It goes back to what the one with this index brought.
    Again(usize),
    /// Its sequence lies two days ahead.
    FarAhead,
    /// It raises the epoch with the key that may.
    Epoch,
    /// It raises the epoch with a key that may not.
    EpochNotAllowed,
    /// It has the order of the one with this index and another content.
    Twin(usize),
    /// It has the id of the one with this index and a higher order.
    SameId(usize),
    /// It holds the machine.
    Held,
    /// It cancels the one with this index.
    Cancels(usize),
    /// It cancels the one with this index, and leaves the machine as it is.
    Stays(usize),
    /// It says again what the one with this index said.
    Renews(usize),
    /// It holds the machine for ten minutes.
    HeldFor,
    /// It begins within ten minutes.
    Spread,
    /// It is not switched to, but this is done with it.
    Action(Action),
}

/// A deployment as an agent gets it.
pub(crate) struct Published {
    pub(crate) offer: Offer,
    pub(crate) special: Special,
}

impl Published {
    pub(crate) fn order(&self) -> Order {
        self.offer.deployment.deployment().order()
    }

    pub(crate) fn id(&self) -> DeploymentId {
        self.order().id
    }
}

pub(crate) struct Fleet {
    pub(crate) config: Config,
    /// In the order in which they are made.
    pub(crate) published: Vec<Published>,
    /// Messages that nobody trusted signed for this machine.
    pub(crate) junk: Vec<(VerifyError, Text<64>)>,
    /// What the machine runs before its first deployment.
    pub(crate) original: StorePath,
}

pub(crate) fn path(n: usize) -> StorePath {
    StorePath::new(format!(
        "/nix/store/{}-system-{n}",
        "00bgd045z0d4icpbc2yyz4gx48ak44la"
    ))
    .unwrap()
}

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new(name).unwrap(), &[seed; 32].into())
}

/// The id of the `n`th order at the machine.
pub(crate) fn local_id(n: usize) -> DeploymentId {
    DeploymentId::new(Uuid::from_u128(0x0197_0000 + n as u128))
}

fn id(n: usize) -> DeploymentId {
    DeploymentId::new(Uuid::from_u128(0x0196_0000 + n as u128))
}

fn special(n: usize) -> Special {
    match n {
        3 | 14 | 22 | 23 | 26 | 32 | 35 | 40 | 42 => Special::Short,
        5 => Special::Before(4),
        7 => Special::Again(2),
        9 => Special::FarAhead,
        11 => Special::Twin(10),
        13 => Special::EpochNotAllowed,
        15 => Special::SameId(12),
        17 => Special::Epoch,
        19 => Special::Before(18),
        21 => Special::Again(16),
        24 | 27 | 33 | 36 | 41 => Special::Action(Action::Boot),
        25 | 38 => Special::Cancels(n - 1),
        28 => Special::Held,
        29 | 39 => Special::Spread,
        30 => Special::Action(Action::Test),
        31 => Special::Action(Action::DryActivate),
        34 => Special::Before(33),
        37 => Special::Held,
        44 => Special::Renews(43),
        45 => Special::Stays(44),
        46 => Special::HeldFor,
        47 => Special::Renews(46),
        48 => Special::Stays(43),
        _ => Special::None,
    }
}

fn parts(n: usize, machine: &Machine) -> DeploymentParts {
    let special = special(n);
    let issued = START_MS + n as u64 * 1_000;
    let hour = 60 * 60 * 1_000;
    let mut order = Order {
        epoch: u32::from(n >= 17),
        sequence: issued,
        id: id(n),
    };
    let mut goal = Goal::Closure(path(n % 6));
    let mut lives = 90 * 24 * hour;
    let mut cancels = None;
    match special {
        Special::None => {}
        Special::Short => lives = hour,
        Special::Before(of) => goal = Goal::Rollback(RollbackTo::Before(id(of))),
        Special::Again(of) => goal = Goal::Rollback(RollbackTo::Deployment(id(of))),
        Special::FarAhead => order.sequence += 2 * SEQUENCE_AHEAD_MS,
        Special::Epoch => order.epoch = 1,
        Special::EpochNotAllowed => order.epoch = 7,
        Special::Twin(of) => order = parts(of, machine).order,
        Special::SameId(of) => order.id = id(of),
        Special::Cancels(of) => cancels = Some(id(of)),
        Special::Stays(of) => {
            goal = Goal::Stay;
            cancels = Some(id(of));
        }
        Special::Renews(of) => goal = parts(of, machine).target.goal,
        Special::Held | Special::HeldFor | Special::Spread | Special::Action(_) => {}
    }
    let mut target = Target::new(goal);
    match special {
        Special::Spread => target.spread_ms = 600_000,
        Special::Action(action) => target.action = action,
        _ => {}
    }
    DeploymentParts {
        machine: machine.clone(),
        order,
        issued: Timestamp::from_ms(issued),
        expires: Timestamp::from_ms(issued + lives),
        target,
        held: match special {
            Special::Held => Held::UntilReleased,
            Special::HeldFor => Held::Until(Timestamp::from_ms(issued + 600_000)),
            _ => Held::No,
        },
        cancels,
        renews: match special {
            Special::Renews(of) => Some(id(of)),
            _ => None,
        },
        provenance: Provenance::default(),
    }
}

fn make() -> Fleet {
    let machine = Machine::new(
        FleetName::new("prod").unwrap(),
        AgentName::new("web-1").unwrap(),
    );
    let other = Machine::new(
        FleetName::new("prod").unwrap(),
        AgentName::new("web-2").unwrap(),
    );
    let (ci, admin, stranger) = (key("ci", 1), key("admin", 2), key("stranger", 3));
    let trusted =
        TrustedKeys::with_policy(vec![ci.public(), admin.public()], 1, vec![admin.public()])
            .unwrap();
    let signed = |parts: DeploymentParts, key: SigningKey| {
        sign(&Deployment::new(parts).unwrap(), &[key]).unwrap()
    };
    let published = (0..LENGTH)
        .map(|n| {
            // The epoch stays raised, so what follows is signed with the key that may.
            let signer = if n >= 17 {
                key("admin", 2)
            } else {
                key("ci", 1)
            };
            let signed = signed(parts(n, &machine), signer);
            let deployment = trusted.verify(&signed, &machine).unwrap();
            Published {
                offer: Offer { deployment, signed },
                special: special(n),
            }
        })
        .collect();
    let mut damaged = signed(parts(1, &machine), key("ci", 1));
    damaged[40] ^= 1;
    let junk = [
        damaged,
        signed(parts(20, &machine), stranger),
        signed(parts(20, &other), admin),
        b"not a deployment".to_vec(),
    ];
    let junk = junk
        .iter()
        .map(|bytes| (trusted.verify(bytes, &machine).unwrap_err(), digest(bytes)))
        .collect();
    Fleet {
        config: Config {
            machine,
            system: System::new("x86_64-linux").unwrap(),
            trusted,
            version: Text::lossy("0.1.0"),
            session: Text::lossy("simulated"),
            tags: Vec::new(),
            boot_id: Text::lossy("boot-1"),
        },
        published,
        junk,
        original: path(99),
    }
}

/// The one fleet of all schedules.
pub(crate) fn fleet() -> &'static Fleet {
    static FLEET: OnceLock<Fleet> = OnceLock::new();
    FLEET.get_or_init(make)
}
