//! Tells at once when there is something new in a job directory, where the kernel can (`inotify(7)`).
//!
//! It only says when to look, never what is there: whoever waits looks from time to time all the same, since the
//! kernel may have no more watches to give, and other systems than Linux have none.

use std::time::Duration;

/// Notices a new record in the journal, and a file that gets its name: the confirmation, the result.
#[derive(Debug)]
pub(crate) struct Notice(imp::Notice);

impl Notice {
    /// From now on; none where the kernel does not tell.
    pub(crate) fn of(job: &super::Job) -> Option<Self> {
        imp::Notice::of(job.dir(), &job.journal_path()).map(Self)
    }

    /// Waits until something has happened since the last [`Notice::take`], or for `at_most` so long.
    pub(crate) fn wait(&self, at_most: Duration) {
        self.0.wait(at_most);
    }

    /// Forgets what has happened so far. To be called before looking, so that nothing falls in between.
    pub(crate) fn take(&self) {
        self.0.take();
    }
}

/// The same for a program that does other things meanwhile.
#[derive(Debug)]
pub(crate) struct AsyncNotice(imp::AsyncNotice);

impl AsyncNotice {
    /// From now on; none where the kernel does not tell. To be called within a runtime.
    pub(crate) fn of(job: &super::Job) -> Option<Self> {
        let notice = Notice::of(job)?;
        imp::AsyncNotice::new(notice.0).map(Self)
    }

    /// Returns when something has happened since the last [`AsyncNotice::take`]. Can be dropped and called again
    /// without losing anything.
    pub(crate) async fn happened(&self) {
        self.0.happened().await;
    }

    /// As [`Notice::take`].
    pub(crate) fn take(&self) {
        self.0.take();
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::File;
    use std::io::Read as _;
    use std::time::Duration;

    use camino::Utf8Path;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    use tokio::net::unix::pipe::Receiver;

    /// Room for the events that are read at once and forgotten, in bytes: some dozens.
    const ROOM: usize = 4096;

    #[derive(Debug)]
    pub(super) struct Notice(File);

    impl Notice {
        pub(super) fn of(dir: &Utf8Path, journal: &Utf8Path) -> Option<Self> {
            let watch = || {
                let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
                add_watch(&events, dir.as_std_path(), WatchFlags::MOVED_TO)?;
                // Not all files of the directory: a flood of log lines is nothing to hurry for.
                add_watch(&events, journal.as_std_path(), WatchFlags::MODIFY)?;
                rustix::io::Result::Ok(Self(events.into()))
            };
            watch()
                .inspect_err(|error| {
                    tracing::debug!(%dir, %error, "the kernel does not tell what happens to a job");
                })
                .ok()
        }

        pub(super) fn wait(&self, at_most: Duration) {
            let Ok(timeout) = Timespec::try_from(at_most) else {
                return;
            };
            let mut events = [PollFd::new(&self.0, PollFlags::IN)];
            // Whatever ends the wait, a signal for one: to look once too often does no harm.
            poll(&mut events, Some(&timeout)).ok();
        }

        pub(super) fn take(&self) {
            let mut room = [0; ROOM];
            while matches!((&self.0).read(&mut room), Ok(1..)) {}
        }
    }

    /// What tokio calls a pipe is a descriptor that is read from and tells when.
    #[derive(Debug)]
    pub(super) struct AsyncNotice(Receiver);

    impl AsyncNotice {
        pub(super) fn new(notice: Notice) -> Option<Self> {
            Receiver::from_file_unchecked(notice.0).ok().map(Self)
        }

        pub(super) async fn happened(&self) {
            // It stays so until an attempt to read finds nothing, which is for `take`.
            if self.0.readable().await.is_err() {
                // The runtime ends.
                std::future::pending::<()>().await;
            }
        }

        pub(super) fn take(&self) {
            let mut room = [0; ROOM];
            while matches!(self.0.try_read(&mut room), Ok(1..)) {}
        }
    }

    #[cfg(test)]
    mod tests {
        use std::fs;
        use std::io::Write as _;

        use super::*;

        #[test]
        fn a_record_and_a_new_file_are_noticed_and_a_line_of_the_log_is_not() {
            let dir = tempfile::tempdir().unwrap();
            let dir = Utf8Path::from_path(dir.path()).unwrap();
            let (journal, log) = (dir.join("journal"), dir.join("log"));
            let append = |path: &Utf8Path| {
                let file = File::options().append(true).create(true).open(path);
                file.unwrap().write_all(b"line\n").unwrap();
            };
            append(&journal);
            let notice = Notice::of(dir, &journal).expect("the kernel has a watch to give");
            let is_new = || matches!((&notice.0).read(&mut [0; ROOM]), Ok(1..));
            assert!(!is_new());
            append(&log);
            assert!(!is_new());
            append(&journal);
            assert!(is_new());
            fs::write(dir.join("result.new"), "").unwrap();
            assert!(!is_new());
            fs::rename(dir.join("result.new"), dir.join("result")).unwrap();
            append(&journal);
            notice.take();
            assert!(!is_new());
        }

        #[tokio::test]
        async fn what_has_happened_is_known_until_it_is_taken() {
            let dir = tempfile::tempdir().unwrap();
            let dir = Utf8Path::from_path(dir.path()).unwrap();
            let journal = dir.join("journal");
            fs::write(&journal, "").unwrap();
            let notice = Notice::of(dir, &journal).expect("the kernel has a watch to give");
            let notice = AsyncNotice::new(notice).unwrap();
            for _ in 0..3 {
                fs::write(&journal, "line").unwrap();
                // Who was interrupted and asks again hears it again.
                notice.happened().await;
                notice.happened().await;
                notice.take();
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::convert::Infallible;
    use std::time::Duration;

    use camino::Utf8Path;

    /// There is none.
    #[derive(Debug)]
    pub(super) struct Notice(Infallible);

    impl Notice {
        pub(super) fn of(_dir: &Utf8Path, _journal: &Utf8Path) -> Option<Self> {
            None
        }

        pub(super) fn wait(&self, _at_most: Duration) {
            match self.0 {}
        }

        pub(super) fn take(&self) {
            match self.0 {}
        }
    }

    #[derive(Debug)]
    pub(super) struct AsyncNotice(Infallible);

    impl AsyncNotice {
        pub(super) fn new(notice: Notice) -> Option<Self> {
            match notice.0 {}
        }

        pub(super) async fn happened(&self) {
            match self.0 {}
        }

        pub(super) fn take(&self) {
            match self.0 {}
        }
    }
}
