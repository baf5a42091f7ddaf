//! The lock that says whether an activator lives.

use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

use camino::Utf8Path;

use super::{JobError, files};

/// For how long a new activator tries: longer than anyone looks at the lock, which takes it for a moment.
const PATIENCE: Duration = Duration::from_millis(200);

/// Held by the one activator of a job until it ends, however it ends. Programs it starts do not inherit it.
#[derive(Debug)]
pub(crate) struct JobLock {
    held: File,
}

impl JobLock {
    /// Takes the lock; none when an activator holds it.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub(crate) fn take(path: &Utf8Path) -> Result<Option<Self>, JobError> {
        let file = open(path)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self { held: file })),
                Err(TryLockError::WouldBlock) if begun.elapsed() > PATIENCE => return Ok(None),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
                Err(TryLockError::Error(source)) => {
                    return Err(JobError::io("lock", path, source));
                }
            }
        }
    }

    /// Whether an activator holds it.
    ///
    /// # Errors
    /// [`JobError::Io`]
    pub(super) fn is_held(path: &Utf8Path) -> Result<bool, JobError> {
        let file = open(path)?;
        // Shared, so that two who only look do not take each other for an activator.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(JobError::io("lock", path, source)),
        }
    }
}

impl Drop for JobLock {
    fn drop(&mut self) {
        // A program that is being started at this moment has the file open until it runs, and would hold on to the lock.
        // If this fails, closing the file does it.
        self.held.unlock().ok();
    }
}

fn open(path: &Utf8Path) -> Result<File, JobError> {
    files::open_private(path).map_err(|source| JobError::io("open", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_activator_holds_the_lock_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("lock");
        assert!(!JobLock::is_held(&path).unwrap());
        let held = JobLock::take(&path).unwrap().expect("nobody holds it");
        assert!(JobLock::is_held(&path).unwrap());
        assert!(JobLock::take(&path).unwrap().is_none());
        // As a program has the file that is being started meanwhile.
        let inherited = held.held.try_clone().unwrap();
        drop(held);
        assert!(!JobLock::is_held(&path).unwrap());
        drop(inherited);
    }
}
