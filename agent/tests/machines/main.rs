//! The activator as a process of its own, and Nix itself, on machines in mount namespaces with closures that
//! Nix has built on the spot.

#![allow(clippy::unwrap_used)] // A test that cannot go on says so by a panic.

mod activation;
mod cache;
mod crashes;
mod kinds;
mod machine;
mod nixos;
mod profiles;
mod realise;
mod successor;
