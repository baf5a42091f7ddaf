//! Everything that calls Nix.
