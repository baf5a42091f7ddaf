//! What Hoist promises, tried on real processes and real Nix closures.

mod scenarios {
    mod machines;
}
