//! What stands on a machine's topic: the one thing from the wire whose target is ever signed again.
//!
//! It is taken only when keys that are trusted here have signed it for this machine, as many as are required, and
//! when nothing speaks against its being the newest. A broker can hold back what is newer, together with the
//! machine's word about it: so what is signed again is named with its date before it is published, and one that
//! has expired never is.

use hoist_protocol::{
    DeploymentId, DeploymentParts, Goal, Held, Machine, RollbackTo, Timestamp, TrustedKeys,
    VerifyError,
};

use crate::plan::{Hold, Wish};
use crate::snapshot::Seen;

/// Why nothing of what lies on a machine's topic is signed again.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStanding {
    /// There is nothing.
    #[error(
        "no deployment lies on its topic: the broker has lost it, or there was none; deploy first"
    )]
    Nothing,
    /// Nobody known here signed it.
    #[error(
        "what lies on its topic is not signed as is required here, so its target is not signed again ({0}); another \
         publisher's public key belongs into --trusted-key or `trusted_keys`"
    )]
    Untrusted(VerifyError),
    /// Its time is over.
    #[error(
        "deployment {short} on its topic has expired, and what has expired is not signed again; deploy anew",
        short = .0.short()
    )]
    Expired(DeploymentId),
    /// The machine knows a newer one.
    #[error(
        "it has seen a deployment that is newer than {short} on its topic, so the broker has lost that or holds it back; \
         deploy anew",
        short = .0.short()
    )]
    Behind(DeploymentId),
}

/// A verified deployment that is the newest, as far as anybody can tell.
#[derive(Debug)]
pub(super) struct Standing(DeploymentParts);

impl Standing {
    pub(super) fn of(
        machine: &Machine,
        seen: &Seen,
        trusted: &TrustedKeys,
        now: Timestamp,
    ) -> Result<Self, NotStanding> {
        let bytes = seen.deploy.as_ref().ok_or(NotStanding::Nothing)?;
        let verified = trusted
            .verify(bytes, machine)
            .map_err(NotStanding::Untrusted)?;
        let parts = verified.deployment().parts();
        if parts.expires <= now {
            return Err(NotStanding::Expired(parts.order.id));
        }
        let floor = (seen.status.as_ref()).map(|status| (status.floor_epoch, status.floor));
        if floor.is_some_and(|floor| floor > (parts.order.epoch, parts.order.sequence)) {
            return Err(NotStanding::Behind(parts.order.id));
        }
        Ok(Self(parts.clone()))
    }

    pub(super) const fn parts(&self) -> &DeploymentParts {
        &self.0
    }

    pub(super) const fn id(&self) -> DeploymentId {
        self.0.order.id
    }

    /// The hold that it keeps up still.
    pub(super) fn hold(&self, now: Timestamp) -> Held {
        hold(&self.0, now)
    }

    pub(super) fn is_held(&self, now: Timestamp) -> bool {
        self.hold(now) != Held::No
    }

    /// The same target once more, held or not, for a machine that is to try it only where it has not failed.
    pub(super) fn again(&self, held: Held, now: Timestamp) -> Wish {
        // What is held was not tried: what counts is the one whose target that says again. A hold that has ended by
        // itself may have been.
        let renews = match self.is_held(now) {
            true => self.0.renews,
            false => Some(self.id()),
        };
        Wish {
            hold: Hold::Set(held),
            cancels: self.0.cancels,
            renews,
            ..self.afresh()
        }
    }

    /// The same target once more, to be tried.
    pub(super) fn afresh(&self) -> Wish {
        Wish {
            origin: Some(self.0.provenance.clone()),
            ..Wish::of(self.0.target.clone())
        }
    }

    /// It for people: which one, from when, what it brings.
    pub(super) fn said(&self) -> String {
        let brings = match &self.0.target.goal {
            Goal::Closure(path) => path.name().to_owned(),
            Goal::Rollback(RollbackTo::Deployment(id)) => {
                format!("back to deployment {}", id.short())
            }
            Goal::Rollback(RollbackTo::Before(id)) => {
                format!("back to what ran before deployment {}", id.short())
            }
            Goal::Stay => "what it runs".to_owned(),
        };
        format!(
            "{brings} (deployment {}, signed {})",
            self.id().short(),
            self.0.issued
        )
    }
}

/// The hold that a machine is under by what a trusted key has signed on its topic.
pub(super) fn hold_there(
    machine: &Machine,
    seen: &Seen,
    trusted: &TrustedKeys,
    now: Timestamp,
) -> Held {
    match seen.orders(machine, trusted) {
        (_, Some(Ok(retained))) => hold(retained.deployment().parts(), now),
        (_, Some(Err(_)) | None) => Held::No,
    }
}

/// The hold that a deployment on a machine's topic keeps up still. One that has expired holds nothing.
///
/// Nothing that the machine says is asked: a hold that a trusted key has signed is not for a report that nobody signed
/// to end, and a broker that brings an old one back could as well have kept what is new to itself.
pub(super) fn hold(parts: &DeploymentParts, now: Timestamp) -> Held {
    match parts.held {
        _ if parts.expires <= now => Held::No,
        Held::Until(until) if until <= now => Held::No,
        held => held,
    }
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{KnownOrders, State, Target};

    use super::*;
    use crate::testing::{draft, id, key, machine, order, status};

    const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);

    /// What a machine's topic holds, signed by this key.
    fn seen(wish: Wish, signer: &str) -> Seen {
        let mut draft = draft(machine("web-1"), wish, KnownOrders::default(), id(7));
        draft.sign(&key(signer)).unwrap();
        Seen {
            deploy: Some(draft.finish().unwrap()),
            ..Seen::default()
        }
    }

    fn standing(seen: &Seen, now: Timestamp) -> Result<Standing, NotStanding> {
        let trusted = TrustedKeys::new(vec![key("ci").public()]).unwrap();
        Standing::of(&machine("web-1"), seen, &trusted, now)
    }

    fn wish() -> Wish {
        Wish::of(Target::new(Goal::Stay))
    }

    #[test]
    fn only_what_a_trusted_key_signed_is_signed_again() {
        assert!(standing(&seen(wish(), "ci"), NOW).is_ok());
        let stranger = standing(&seen(wish(), "stranger"), NOW);
        assert!(matches!(stranger, Err(NotStanding::Untrusted(_))));
        let nothing = standing(&Seen::default(), NOW);
        assert!(matches!(nothing, Err(NotStanding::Nothing)));
    }

    #[test]
    fn an_old_deployment_that_a_broker_brings_back_is_not_signed_again() {
        let mut seen = seen(wish(), "ci");
        let later = NOW.plus(std::time::Duration::from_secs(3600));
        assert!(matches!(
            standing(&seen, later),
            Err(NotStanding::Expired(_))
        ));
        let mut newer = status(order(1), State::Succeeded);
        newer.floor = NOW.as_ms() + 1;
        seen.status = Some(newer);
        assert!(matches!(standing(&seen, NOW), Err(NotStanding::Behind(_))));
    }

    #[test]
    fn what_is_said_again_names_the_one_that_was_to_be_tried() {
        let again = standing(&seen(wish(), "ci"), NOW)
            .unwrap()
            .again(Held::UntilReleased, NOW);
        assert_eq!(again.renews, Some(id(7)));
        // It is held now; who releases it means the same one.
        let held = Wish {
            renews: Some(id(3)),
            ..again
        };
        let standing = standing(&seen(held, "ci"), NOW).unwrap();
        assert!(standing.is_held(NOW));
        assert_eq!(standing.again(Held::No, NOW).renews, Some(id(3)));
        assert_eq!(standing.afresh().renews, None);
    }

    #[test]
    fn a_hold_ends_with_its_time_or_with_the_deployment_that_says_it() {
        let held = |held| {
            let wish = Wish {
                hold: Hold::Set(held),
                ..wish()
            };
            draft(machine("web-1"), wish, KnownOrders::default(), id(7))
                .deployment()
                .parts()
                .clone()
        };
        let minutes = |n: u64| NOW.plus(std::time::Duration::from_secs(n * 60));
        let until = Held::Until(minutes(10));
        assert_eq!(hold(&held(until), minutes(9)), until);
        assert_eq!(hold(&held(until), minutes(10)), Held::No);
        let released = Held::UntilReleased;
        assert_eq!(hold(&held(released), minutes(59)), released);
        assert_eq!(hold(&held(released), minutes(60)), Held::No);
        assert_eq!(hold(&held(Held::No), NOW), Held::No);
    }

    #[test]
    fn what_a_hold_that_ended_by_itself_let_begin_is_what_was_tried() {
        let end = NOW.plus(std::time::Duration::from_secs(60));
        let held = Wish {
            hold: Hold::Set(Held::Until(end)),
            renews: Some(id(3)),
            ..wish()
        };
        let standing = standing(&seen(held, "ci"), NOW).unwrap();
        assert_eq!(standing.again(Held::No, NOW).renews, Some(id(3)));
        assert_eq!(standing.again(Held::No, end).renews, Some(id(7)));
    }
}
