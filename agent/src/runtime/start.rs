//! What must hold before the agent begins: a state folder of its own, and Nix.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};

/// The programs of Nix that the agent and its activator call.
const NIX: [&str; 3] = ["nix-store", "nix-env", "nix"];

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be made or written to.
    #[error(
        "cannot write to the state folder `{path}`, where the agent records what it does before it does it; make \
         it writable for the user {user}, or give another one as `state`"
    )]
    State {
        /// The folder.
        path: Utf8PathBuf,
        /// Who we are, by number.
        user: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else lies where the state folder belongs.
    #[error("the state folder `{0}` is no folder; give another one as `state`")]
    NotAFolder(Utf8PathBuf),
    /// The folder belongs to somebody else.
    #[error(
        "the state folder `{path}` belongs to the user {owner} and the agent runs as {user}; give it to that user, \
         run the agent as {owner}, or give another folder as `state`"
    )]
    NotOurs {
        /// The folder.
        path: Utf8PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Others can write to the folder.
    #[error(
        "others can write to the state folder `{path}` (mode {mode:04o}), and with it decide what this machine runs; \
         check what is in it, then run `chmod 700 {path}`"
    )]
    OpenToOthers {
        /// The folder.
        path: Utf8PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Nix is not there.
    #[error(
        "{program} is in none of the folders of PATH ({searched}); install Nix (https://nixos.org/download), or add \
         its `bin` folder to the PATH of the agent's service"
    )]
    NoNix {
        /// What was looked for.
        program: &'static str,
        /// Where.
        searched: String,
    },
}

/// Checks that the agent can do its work with the state folder `state`, which is made when it is not there.
///
/// # Errors
/// [`StartError`]
pub(super) fn check(state: &Utf8Path) -> Result<(), StartError> {
    let user = rustix::process::geteuid().as_raw();
    check_folder(state, user)?;
    let searched = env::var_os("PATH").unwrap_or_default();
    find_nix(&searched)
}

fn check_folder(state: &Utf8Path, user: u32) -> Result<(), StartError> {
    let failed = |source| StartError::State {
        path: state.to_owned(),
        user,
        source,
    };
    match fs::metadata(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .map_err(failed)?,
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    let found = fs::metadata(state).map_err(failed)?;
    if !found.is_dir() {
        return Err(StartError::NotAFolder(state.to_owned()));
    }
    if found.uid() != user {
        return Err(StartError::NotOurs {
            path: state.to_owned(),
            owner: found.uid(),
            user,
        });
    }
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(StartError::OpenToOthers {
            path: state.to_owned(),
            mode,
        });
    }
    if mode & 0o055 != 0 {
        // The logs of activations are nobody else's business.
        tracing::warn!(%state, "others could read the state folder; it is the agent's alone from now on");
        fs::set_permissions(state, Permissions::from_mode(mode & 0o700)).map_err(failed)?;
    }
    // Permissions do not tell everything: a file system can be mounted read-only. Without a name, the file stays behind
    // in no case.
    tempfile::tempfile_in(state).map(drop).map_err(failed)
}

fn find_nix(path: &OsStr) -> Result<(), StartError> {
    let is_there = |program: &str| {
        env::split_paths(path)
            .filter(|folder| folder.is_absolute())
            .any(|folder| is_program(&folder.join(program)))
    };
    match NIX.into_iter().find(|program| !is_there(program)) {
        None => Ok(()),
        Some(program) => Err(StartError::NoNix {
            program,
            searched: path.to_string_lossy().escape_debug().to_string(),
        }),
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder {
        _guard: tempfile::TempDir,
        path: Utf8PathBuf,
    }

    fn folder() -> Folder {
        let guard = tempfile::tempdir().unwrap();
        Folder {
            path: Utf8PathBuf::try_from(guard.path().join("state")).unwrap(),
            _guard: guard,
        }
    }

    fn us() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn mode(path: &Utf8Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    fn make(path: &Utf8Path, mode: u32) {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_made_for_us_alone() {
        let folder = folder();
        let deep = folder.path.join("a/b");
        check_folder(&deep, us()).unwrap();
        assert_eq!(mode(&deep), 0o700);
        assert_eq!(deep.read_dir_utf8().unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_others_can_read_is_closed_and_one_they_can_write_to_is_refused() {
        let readable = folder();
        make(&readable.path, 0o755);
        check_folder(&readable.path, us()).unwrap();
        assert_eq!(mode(&readable.path), 0o700);
        for open in [0o777, 0o770, 0o702] {
            let folder = folder();
            make(&folder.path, open);
            let error = check_folder(&folder.path, us()).unwrap_err();
            assert!(
                matches!(error, StartError::OpenToOthers { mode, .. } if mode == open),
                "{error}"
            );
        }
    }

    #[test]
    fn a_folder_of_somebody_else_and_a_file_are_refused() {
        let folder = folder();
        make(&folder.path, 0o700);
        let error = check_folder(&folder.path, us() + 1).unwrap_err();
        assert!(matches!(error, StartError::NotOurs { .. }), "{error}");
        let file = folder.path.join("file");
        fs::write(&file, "").unwrap();
        let error = check_folder(&file, us()).unwrap_err();
        assert!(matches!(error, StartError::NotAFolder(_)), "{error}");
        let error = check_folder(&file.join("below"), us()).unwrap_err();
        assert!(matches!(error, StartError::State { .. }), "{error}");
    }

    #[test]
    fn nix_is_looked_for_where_programs_are_found() {
        let folder = folder();
        make(&folder.path, 0o700);
        let path = format!("relative:{}", folder.path);
        for program in NIX {
            let error = find_nix(OsStr::new(&path)).unwrap_err().to_string();
            assert!(error.contains(program) && error.contains(&path), "{error}");
            let file = folder.path.join(program);
            fs::write(&file, "").unwrap();
            assert!(find_nix(OsStr::new(&path)).is_err(), "it is no program yet");
            fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        }
        find_nix(OsStr::new(&path)).unwrap();
    }
}
