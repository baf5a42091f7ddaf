//! Machines that boot: real systemd, Nix 2.26, the agent as the unit that the NixOS module makes.

mod agent;
mod doctor;
mod fetching;
mod neighbours;
mod power;
mod reboots;
mod service;
mod stand_in;
mod units;
mod users;
