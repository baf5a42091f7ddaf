//! What Hoist promises, tried on real processes and real Nix closures.
//!
//! Every scenario has a fleet of its own: folder, authority, broker, cache, machines, ports. When one fails, the
//! end of every log is printed; `KEEP=1` keeps its folder.

mod scenarios {
    mod access;
    mod activation;
    mod ci;
    mod ci_systems;
    mod connection;
    mod crashes;
    mod delivery;
    mod engines;
    mod faults;
    mod fetching;
    mod flakes;
    mod foreign_broker;
    mod local;
    mod machines;
    mod mishaps;
    mod modules;
    mod operators;
    mod orders;
    mod printed;
    mod reading;
    mod rollouts;
    mod signing;
    mod standing;
    mod systemd;
    mod trust;
    mod upgrades;
}
