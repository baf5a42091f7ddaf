//! Many deployments at once, for who passes them on and carries none of them out.

use crate::deployment::Deployment;
use crate::envelope::{Opened, Signature, TrustedKeys, VerifiedDeployment, VerifyError};
use crate::key::{PublicKey, verify_together};
use crate::order::Order;
use crate::topic::Machine;

/// What is to be known of a deployment to pass it on. Only [`TrustedKeys::screen`] makes one, and no
/// [`VerifiedDeployment`] can be made of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScreenedDeployment {
    order: Order,
    may_raise_epoch: bool,
}

impl ScreenedDeployment {
    /// Where it stands among the machine's deployments.
    #[must_use]
    pub const fn order(&self) -> Order {
        self.order
    }

    /// Whether one of its signers has the right to raise the epoch.
    #[must_use]
    pub const fn may_raise_epoch(&self) -> bool {
        self.may_raise_epoch
    }
}

impl From<VerifiedDeployment> for ScreenedDeployment {
    fn from(verified: VerifiedDeployment) -> Self {
        Self {
            order: Deployment::order(verified.deployment()),
            may_raise_epoch: verified.may_raise_epoch(),
        }
    }
}

impl TrustedKeys {
    /// Checks what was found on the `deploy` topics of machines, as [`Self::verify`] does, but all signatures together,
    /// which costs a quarter when there are dozens. The answers have the order of `found`. One signature that does not
    /// hold, and each is checked by itself.
    ///
    /// Whoever has a trusted key's secret half can make a signature that holds here and that no machine accepts. They
    /// gain nothing by that: they could as well sign what no machine can read.
    #[must_use]
    pub fn screen(
        &self,
        found: &[(&Machine, &[u8])],
    ) -> Vec<Result<ScreenedDeployment, VerifyError>> {
        let opened: Vec<_> = found.iter().map(|(_, bytes)| Opened::read(bytes)).collect();
        let together = self.hold_together(opened.iter().flatten());
        let judged = opened.into_iter().zip(found).map(|(opened, (machine, _))| {
            let opened = opened?;
            self.judge(&opened, machine, |key, signature| {
                let held = together && self.named(signature) == Some(key);
                held || opened.is_signed(key, signature)
            })
            .map(Into::into)
        });
        judged.collect()
    }

    /// Whether each signature is of the key that it names, as far as it names one that is trusted. False also when there
    /// are too few for this to pay.
    fn hold_together<'a>(&'a self, opened: impl Iterator<Item = &'a Opened>) -> bool {
        let checks: Vec<_> = opened
            .flat_map(|opened| {
                let signatures = opened.envelope.signatures.iter();
                signatures.filter_map(|signature| {
                    let key = self.named(signature)?;
                    Some((key, &*opened.message, &signature.bytes))
                })
            })
            .collect();
        checks.len() > 1 && verify_together(checks)
    }

    /// The trusted key that a signature names.
    fn named(&self, signature: &Signature) -> Option<&PublicKey> {
        self.keys().iter().find(|key| *key.name() == signature.key)
    }
}
