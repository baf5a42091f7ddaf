//! The kinds of closures: one file each, which says all that is particular about it.
//!
//! | kind | what runs is told by | profile |
//! |---|---|---|
//! | [`nixos`] | `/run/current-system` | the system's, set when the activation is confirmed |
//! | [`darwin`] | `/run/current-system` | the system's |
//! | [`home_manager`] | the root that its activation leaves | the user's `home-manager` |
//! | [`deploy_rs`], [`custom`], [`profile`] | the profile | the order's or the machine's own choice |
//!
//! All but NixOS change what survives a boot at once: their profile is set, then they are activated, and only
//! what is not confirmed is taken back.

mod custom;
mod darwin;
mod deploy_rs;
mod home_manager;
mod nixos;
mod profile;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_agent_core::{Facts, How};
use hoist_protocol::{Action, DeploymentId, Kind, ProfileName, Reason, StorePath};

use super::failure::Failure;
use super::program::Program;
use super::system::{self, Manager};
use crate::job::JobSpec;
use crate::nix::{self, CURRENT_SYSTEM, SYSTEM_PROFILE};
use home_manager::HomeManager;

/// All kinds, those first whose markers say more: `auto` takes the first that has one of its own.
const ALL: &[&dyn ClosureKind] = &[
    &deploy_rs::DeployRs,
    &nixos::Nixos,
    &darwin::Darwin,
    &HomeManager,
    &custom::Custom,
    &profile::Profile,
];

/// Where root's profiles are.
const PROFILES: &str = "/nix/var/nix/profiles";

/// A kind of closure.
pub(super) trait ClosureKind {
    /// Whether closures that were ordered as `kind` are of this one. Nothing is ordered as two kinds.
    fn is(&self, kind: &Kind) -> bool;

    /// As what `auto` has found a closure of this kind; none for a kind that has to be ordered by its name.
    fn found(&self) -> Option<Kind>;

    /// Files or folders of which a closure of this kind has one at the least. None at all when every closure
    /// is of this kind that is of no other.
    fn markers(&self) -> &'static [&'static str];

    /// Whether this machine can activate the closure, before anything happens.
    ///
    /// # Errors
    /// [`Failure`] with the reason `wrong_kind` or `unsupported`
    fn check(&self, spec: &JobSpec, kind: &Kind) -> Result<(), Failure>;

    /// The profile that an activation sets.
    ///
    /// # Errors
    /// [`Failure`] when this machine has none
    fn profile(&self, spec: &JobSpec) -> Result<Utf8PathBuf, Failure>;

    /// What runs once the closure is activated.
    ///
    /// # Errors
    /// [`Failure`] when the closure does not have what the order wants of it
    fn brings(&self, spec: &JobSpec) -> Result<StorePath, Failure> {
        Ok(spec.closure.clone())
    }

    /// What runs now.
    ///
    /// # Errors
    /// A link cannot be read.
    fn facts(&self, profile: &Utf8Path) -> io::Result<Facts>;

    /// Whether a boot undoes an activation. Then the profile is set only when it was confirmed.
    fn is_volatile(&self) -> bool {
        false
    }

    /// Whether setting the profile is all that an activation is.
    fn sets_only(&self) -> bool {
        false
    }

    /// Whether the profile has to name a closure before the closure can be activated again: its programs look
    /// for themselves through the profile.
    fn runs_by_profile(&self) -> bool {
        false
    }

    /// The program that activates a closure; none when setting the profile is all there is to do.
    fn activation(&self, call: &Call) -> Option<Program>;

    /// The program that says what an activation would do; none where nothing can say it.
    fn dry_activation(&self, _call: &Call) -> Option<Program> {
        None
    }

    /// The program that makes the closure, which the profile names, what the next boot brings.
    fn commitment(&self, _call: &Call) -> Option<Program> {
        None
    }

    /// What the end of [`ClosureKind::activation`] means; `said` are the last lines that it printed.
    fn verdict(&self, status: ExitStatus, _said: &[String]) -> Verdict {
        if status.success() {
            Verdict::Done
        } else {
            Verdict::Failed(Wrong {
                reason: Reason::ActivationFailed,
                meaning: "see the log",
                extent: Extent::Unknown,
            })
        }
    }

    /// Why the closure can only be brought by a boot although the order wants it now; none when it need not.
    ///
    /// # Errors
    /// What says so cannot be read.
    fn needs_boot(
        &self,
        _brings: &StorePath,
        _running: Option<&StorePath>,
    ) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Whether something else changes the system at this moment.
    ///
    /// # Errors
    /// It cannot be told.
    fn is_busy(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Why the boot loader has no room for the closure; none when it has, or when that cannot be told.
    ///
    /// # Errors
    /// The disk cannot be asked.
    fn lacks_room(&self, _closure: &StorePath) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Clears what an activation that was stopped has left in the way of the next.
    ///
    /// # Errors
    /// A file cannot be removed.
    fn clear_leftovers(&self) -> io::Result<()> {
        Ok(())
    }

    /// Where a closure of this kind has systemd units.
    fn units(&self) -> Option<Units> {
        None
    }
}

/// Where closures have systemd units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Units {
    /// Below the closure's top.
    pub(super) folder: &'static str,
    /// Who runs them.
    pub(super) manager: Manager,
}

/// What is to be activated, and in place of what.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) id: DeploymentId,
    /// Of which kind it is; never `auto`.
    pub(super) kind: Kind,
    /// What is activated, or made what boots.
    pub(super) path: StorePath,
    /// What ran until now.
    pub(super) previous: Option<StorePath>,
    pub(super) profile: Utf8PathBuf,
    /// Where a program that runs in a unit of its own writes down its exit code.
    pub(super) exit_code: Utf8PathBuf,
    /// How long it may take.
    pub(super) limit: Duration,
    /// Whether the machine goes back: then no check may stand in the way.
    pub(super) back: bool,
}

impl Call {
    /// A program of the closure, with the environment that all of them get.
    fn program(&self, file: &str, arguments: &[&str]) -> Program {
        let file = format!("{}/{file}", self.path);
        let arguments = [&[file.as_str()], arguments].concat();
        Program::new(&arguments, system::environment(self.id), self.limit)
    }
}

/// What the end of an activation means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It went well.
    Done,
    /// It was activated, but these units failed, as far as it said which.
    UnitsFailed(Vec<String>),
    /// Nothing was activated: only a boot can bring it.
    NeedsBoot,
    /// Nothing was activated: something else changes the system.
    Busy,
    /// It went wrong.
    Failed(Wrong),
}

/// What went wrong with an activation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Wrong {
    pub(super) reason: Reason,
    /// The same for people.
    pub(super) meaning: &'static str,
    /// How much of it was activated all the same.
    pub(super) extent: Extent,
}

/// How much of a closure was activated when its activation went wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Extent {
    /// Nothing, for certain.
    Nothing,
    /// Nobody knows: some of it, most likely.
    Unknown,
    /// It runs.
    All,
}

impl Wrong {
    /// The failure that it is for the deployment.
    pub(super) fn into_failure(self, message: String) -> Failure {
        match self.extent {
            Extent::Nothing => Failure::untouched(self.reason, message),
            Extent::Unknown => Failure::failed(self.reason, message),
            Extent::All => Failure::rolled_back(self.reason, message),
        }
    }
}

/// The kind that `kind`, which is not `auto`, stands for.
pub(super) fn of(kind: &Kind) -> Result<&'static dyn ClosureKind, Failure> {
    let found = ALL.iter().find(|known| known.is(kind)).copied();
    found.ok_or_else(|| {
        Failure::untouched(
            Reason::Unsupported,
            format!("this version cannot activate closures of kind `{kind}`"),
        )
    })
}

/// Of which kind the closure is, as it was ordered or by its markers.
pub(super) fn find(spec: &JobSpec) -> Result<(Kind, &'static dyn ClosureKind), Failure> {
    let closure = Utf8Path::new(spec.closure.as_str());
    let (kind, known) = match &spec.target.kind {
        Kind::Auto => by_markers(closure)?,
        kind => {
            let known = of(kind)?;
            if !has_marker(closure, known) {
                return Err(wrong_kind(format!(
                    "{closure} is not of kind `{kind}`: it has no `{}`; nothing was activated",
                    known.markers().join("` or `")
                )));
            }
            (kind.clone(), known)
        }
    };
    let action = spec.target.action;
    let boots = known.is_volatile();
    if !boots
        && (matches!(action, Action::Boot | Action::Test) || spec.target.specialisation.is_some())
    {
        return Err(Failure::untouched(
            Reason::Unsupported,
            format!(
                "{closure} is of kind `{kind}`, and only NixOS systems can be booted into, tested or specialised"
            ),
        ));
    }
    known.check(spec, &kind)?;
    Ok((kind, known))
}

/// Of which kind a closure in the store is, and what the machine's facts of that kind are; none when this
/// machine cannot activate it, or cannot tell: its job says why.
pub(crate) fn look(spec: &JobSpec) -> Option<(Kind, Facts)> {
    let (kind, known) = find(spec).ok()?;
    let profile = known.profile(spec).ok()?;
    Some((kind, known.facts(&profile).ok()?))
}

/// The facts for a status report: those of what this agent deploys. Reads links and the files of the boot loader, in
/// less than a millisecond.
///
/// Root's agent deploys the system, where there is one. Another agent, and one on a machine without a system, has
/// its user's home-manager generation or a plain profile: that which was deployed here last, and before that whichever
/// is there. `profile` is the plain one of an agent that is not told another.
///
/// # Errors
/// A link cannot be read.
pub(crate) fn facts_here(profile: &Utf8Path, last: Option<&How>) -> io::Result<Facts> {
    if system::is_root() && nix::store_path_behind(CURRENT_SYSTEM.into())?.is_some() {
        return nix::facts_of_nixos();
    }
    let named = last.and_then(|how| how.profile.as_ref());
    // A user without a home has no profile there.
    let named = named.and_then(|name| named_profile(name).ok());
    let plain = nix::facts_of_profile(named.as_deref().unwrap_or(profile))?;
    let is_home = match last.map(|how| &how.kind) {
        None | Some(Kind::Auto) => plain.current.is_none(),
        Some(kind) => *kind == Kind::HomeManager,
    };
    // An account without a home or a name has no generation of home-manager either.
    match home_manager::profile().ok().filter(|_| is_home) {
        Some(home) => HomeManager.facts(&home),
        None => Ok(plain),
    }
}

fn by_markers(closure: &Utf8Path) -> Result<(Kind, &'static dyn ClosureKind), Failure> {
    for known in ALL.iter().copied() {
        if let Some(kind) = known.found().filter(|_| has_marker(closure, known)) {
            return Ok((kind, known));
        }
    }
    Err(wrong_kind(format!("{closure} is of no known kind")))
}

fn has_marker(closure: &Utf8Path, known: &dyn ClosureKind) -> bool {
    let markers = known.markers();
    markers.is_empty() || markers.iter().any(|marker| closure.join(marker).exists())
}

fn wrong_kind(message: String) -> Failure {
    Failure::untouched(Reason::WrongKind, message)
}

/// Whether the closure has this program.
fn has_program(closure: &StorePath, file: &str) -> bool {
    let file = Utf8Path::new(closure.as_str()).join(file);
    file.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Refuses a closure that lacks a program without which it cannot be activated.
fn need_program(closure: &StorePath, file: &str, help: &str) -> Result<(), Failure> {
    if has_program(closure, file) {
        return Ok(());
    }
    Err(wrong_kind(format!(
        "{closure} has no executable `{file}`, so it cannot be activated; {help}"
    )))
}

/// The profile of closures that have none of their own: the order's choice, or the machine's. Never the one of
/// the machine's system.
fn chosen_profile(spec: &JobSpec) -> Result<Utf8PathBuf, Failure> {
    let profile = match &spec.target.profile {
        None => spec.profile.clone(),
        Some(name) => named_profile(name)?,
    };
    if profile == SYSTEM_PROFILE {
        return Err(Failure::untouched(
            Reason::Unsupported,
            format!(
                "{SYSTEM_PROFILE} belongs to the machine's system; give the agent another `profile`"
            ),
        ));
    }
    Ok(profile)
}

/// Where this user's profile of that name is.
fn named_profile(name: &ProfileName) -> Result<Utf8PathBuf, Failure> {
    if system::is_root() {
        return Ok(Utf8Path::new(PROFILES).join(name.as_str()));
    }
    Ok(system::home()?
        .join(".local/state/nix/profiles")
        .join(name.as_str()))
}

#[cfg(test)]
mod tests;
