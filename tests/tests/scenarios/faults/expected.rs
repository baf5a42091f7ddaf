//! How a machine ends, by phase and fault.

use super::fault::Fault;
use super::phase::Phase;

/// Where a machine is meant to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expected {
    /// On the new system, confirmed.
    New,
    /// On the one before.
    Old,
    /// On either, as far as both are promised alike: wholly, and reported so.
    Either,
    /// There is nothing to try.
    NoSuchCase,
}

/// What a dash in the table means.
pub(super) const NO_SUCH_CASE: &str = "no activator runs then";

/// By the rule that only what was confirmed goes forward, and nothing that can go forward goes back.
pub(super) fn expected(phase: Phase, fault: Fault) -> Expected {
    match (phase, fault) {
        (Phase::Fetching | Phase::Reporting, Fault::Activator | Fault::Both) => {
            Expected::NoSuchCase
        }
        (Phase::RollingBack, _) => Expected::Old,
        (Phase::Committing | Phase::Reporting, _) => Expected::New,
        // Nothing was changed: it begins again.
        (Phase::Fetching | Phase::Preparing, Fault::Activator | Fault::Both | Fault::Power) => {
            Expected::New
        }
        // Only an activator knows what it has begun.
        (_, Fault::Activator | Fault::Both | Fault::Power) => Expected::Old,
        // It cannot be confirmed, and the machine cannot tell that from a new system that cuts it off.
        (_, Fault::Network) => Expected::Old,
        // The closure cannot be written.
        (Phase::Fetching, Fault::Disk) => Expected::Old,
        // Whether Nix's database finds the room for a generation differs between versions of Nix, and from time to
        // time.
        (_, Fault::Disk) => Expected::Either,
        // The closure is there in the end; but without Nix it cannot become the profile.
        (Phase::Fetching, Fault::NixDaemon) => Expected::New,
        (_, Fault::NixDaemon) => Expected::Old,
        (_, Fault::Agent | Fault::Broker | Fault::Cache) => Expected::New,
        // Of two copies one is whole; and the job and the broker know what both have forgotten.
        (
            _,
            Fault::LedgerCut | Fault::LedgerBit | Fault::CopyCut | Fault::CopyBit | Fault::BothBits,
        ) => Expected::New,
        (_, Fault::ClockAhead) => Expected::New,
        // The certificates of this fleet are younger than a day, and so not valid yet: no session comes about.
        (_, Fault::ClockBehind) => Expected::Old,
    }
}
