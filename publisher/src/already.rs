//! Which machines need no new deployment, since they have carried out the same one already.
//!
//! A status is not signed, and so none is enough. A machine is left out only when what lies on its topic is
//! this very target, signed with every key that would sign it now, and the machine reports that it has carried
//! out that deployment and runs its closure. Then publishing again could change no more than an id. A status
//! that lies leaves the machine with a signed order for what the operator wants: whoever can forge it (the
//! broker, or a thief of the machine's certificate) could as well have forged the success of a new deployment,
//! and a broker that shows us an old message to be content with could as well have dropped the new one. What is
//! not noticed is a machine that was changed by hand while its agent was away; its agent reports that when it is back,
//! and the next run repairs it.

use std::time::Duration;

use hoist_protocol::{
    Action, Deployment, Goal, Held, Machine, PublicKey, State, Status, Target, Timestamp,
    TrustedKeys, TrustedKeysError, digest,
};

use crate::signer::Signer;
use crate::snapshot::Seen;

/// Judges who has a target already.
pub struct Already {
    keys: TrustedKeys,
    now: Timestamp,
    valid_for: Duration,
}

impl Already {
    /// By deployments that all of `keys` have signed. One that would last for less than half of `valid_for` is
    /// published anew, so that what never changes does not expire.
    ///
    /// # Errors
    /// [`TrustedKeysError`] when there is no key, or one twice.
    pub fn new(
        keys: &[Signer],
        now: Timestamp,
        valid_for: Duration,
    ) -> Result<Self, TrustedKeysError> {
        let public: Vec<PublicKey> = keys.iter().map(Signer::public).collect();
        let required = public.len();
        Ok(Self {
            keys: TrustedKeys::with_policy(public, required, Vec::new())?,
            now,
            valid_for,
        })
    }

    /// The deployment by which `machine`, of which so much was `seen`, has `target` already.
    #[must_use]
    pub fn by(&self, machine: &Machine, seen: &Seen, target: &Target) -> Option<Deployment> {
        let status = seen.status.as_ref()?;
        let retained = seen.deploy.as_ref()?;
        // Signatures take time, and of ten thousand machines most that get something new say so at once.
        let Goal::Closure(path) = &target.goal else {
            return None;
        };
        if status.current_path.as_ref() != Some(path) {
            return None;
        }
        let verified = self.keys.verify(retained, machine).ok()?;
        let deployment = verified.deployment();
        let is_same = deployment.target() == target && deployment.parts().held == Held::No;
        let lasts = deployment.expires() >= self.now.plus(self.valid_for / 2);
        let is_refused = (status.refused.as_ref())
            .is_some_and(|refused| refused.refused_digest == digest(retained));
        let has = is_same && lasts && !is_refused && carried_out(status, deployment);
        has.then(|| deployment.clone())
    }
}

/// Whether the machine says that it has carried this deployment out for good, and still is as it left it.
fn carried_out(status: &Status, deployment: &Deployment) -> bool {
    let target = deployment.target();
    let Goal::Closure(path) = &target.goal else {
        return false;
    };
    let is_it = |known: &Option<_>| known.as_ref() == Some(path);
    status.order() == Some(deployment.order())
        && matches!(status.state, State::Succeeded | State::Unchanged)
        && target.action == Action::Switch
        && is_it(&status.current_path)
        // What cannot be read there is not in the report.
        && (status.profile_path.is_none() || is_it(&status.profile_path))
        && (status.boot_default_path.is_none() || is_it(&status.boot_default_path))
}

#[cfg(test)]
mod tests {
    use hoist_protocol::{KnownOrders, Provenance, Reason, Refused, StorePath, Text};

    use super::*;
    use crate::plan::{Orders, Wish};
    use crate::testing::{block_on, id, key, machine, status};

    const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

    fn path(name: &str) -> StorePath {
        StorePath::new(format!(
            "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-{name}"
        ))
        .unwrap()
    }

    fn signers(keys: &[&str]) -> Vec<Signer> {
        keys.iter().map(|name| Signer::Key(key(name))).collect()
    }

    fn target() -> Target {
        Target::new(Goal::Closure(path("a")))
    }

    fn done(target: Target, keys: &[&str]) -> Seen {
        let orders = Orders {
            signers: &signers(keys),
            provenance: &Provenance::default(),
            valid_for: MONTH,
            raise_epoch: false,
            now: NOW,
        };
        let known = KnownOrders::default();
        let wish = Wish::of(target);
        let signed = block_on(orders.sign(machine("web-1"), wish, known, id(1))).unwrap();
        let mut status = status(signed.order, State::Succeeded);
        for said in [
            &mut status.path,
            &mut status.current_path,
            &mut status.profile_path,
            &mut status.boot_default_path,
        ] {
            *said = Some(path("a"));
        }
        Seen {
            deploy: Some(signed.envelope),
            status: Some(status),
            ..Seen::default()
        }
    }

    fn has(seen: &Seen, target: &Target, keys: &[&str], valid_for: Duration) -> bool {
        let already = Already::new(&signers(keys), NOW, valid_for).unwrap();
        already.by(&machine("web-1"), seen, target).is_some()
    }

    fn leaves_out(seen: &Seen) -> bool {
        has(seen, &target(), &["ci"], MONTH)
    }

    #[test]
    fn a_machine_that_has_carried_out_the_same_deployment_is_left_out() {
        assert!(leaves_out(&done(target(), &["ci"])));
    }

    #[test]
    fn whatever_else_would_be_signed_is_published() {
        let seen = done(target(), &["ci"]);
        let wanted: [fn(&mut Target); 3] = [
            |target| target.goal = Goal::Closure(path("b")),
            |target| target.confirm_timeout_ms += 1,
            |target| target.allow_no_agent = true,
        ];
        for change in wanted {
            let mut target = target();
            change(&mut target);
            assert!(!has(&seen, &target, &["ci"], MONTH), "{target:?}");
        }
    }

    #[test]
    fn the_word_of_a_machine_is_not_enough() {
        let mut seen = done(target(), &["ci"]);
        seen.deploy = None;
        assert!(!leaves_out(&seen));
        seen.deploy = Some(b"junk".to_vec());
        assert!(!leaves_out(&seen));
        assert!(!leaves_out(&done(target(), &["other"])));
        let both = ["ci", "boss"];
        assert!(!has(&done(target(), &["ci"]), &target(), &both, MONTH));
        assert!(has(&done(target(), &both), &target(), &both, MONTH));
    }

    #[test]
    fn a_machine_that_does_not_say_so_gets_it_again() {
        let changes: [fn(&mut Status); 8] = [
            |status| status.state = State::Failed,
            |status| status.state = State::Staged,
            |status| status.state = State::Confirming,
            |status| status.id = Some(id(2)),
            |status| status.current_path = Some(path("b")),
            |status| status.current_path = None,
            |status| status.profile_path = Some(path("b")),
            |status| status.boot_default_path = Some(path("b")),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut seen = done(target(), &["ci"]);
            change(seen.status.as_mut().unwrap());
            assert!(!leaves_out(&seen), "change {n}");
        }
        let mut silent = done(target(), &["ci"]);
        silent.status = None;
        assert!(!leaves_out(&silent));
    }

    #[test]
    fn one_that_refuses_the_very_bytes_gets_others() {
        let mut seen = done(target(), &["ci"]);
        let refused_digest = digest(seen.deploy.as_ref().unwrap());
        seen.status.as_mut().unwrap().refused = Some(Refused {
            refused_digest,
            refused_reason: Reason::Unverified,
            refused_message: Text::lossy("why"),
            refused_at: Timestamp::default(),
        });
        assert!(!leaves_out(&seen));
    }

    #[test]
    fn what_only_tries_or_waits_for_a_boot_is_tried_again() {
        for action in [Action::Boot, Action::Test, Action::DryActivate] {
            let target = Target { action, ..target() };
            let seen = done(target.clone(), &["ci"]);
            assert!(!has(&seen, &target, &["ci"], MONTH), "{action}");
        }
    }

    #[test]
    fn a_deployment_that_ends_soon_is_published_anew() {
        let seen = done(target(), &["ci"]);
        assert!(has(&seen, &target(), &["ci"], MONTH * 2));
        assert!(!has(&seen, &target(), &["ci"], MONTH * 3));
    }
}
