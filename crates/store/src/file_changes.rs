//! Tells when somebody may have committed to an SQLite file, without looking at it again and again.
//!
//! On Linux the kernel says when a file is written; elsewhere, and where it cannot (no watch is left, say), nobody
//! does, and who waits has to look at intervals. What is told is a hint: the write comes before the commit that it
//! belongs to can be seen, and may belong to none.

use std::path::Path;

/// What is watched of one database.
pub(crate) struct FileChanges(#[cfg(target_os = "linux")] Option<inotify::EventStream<[u8; BUFFER]>>);

/// Room for a few events: they only say that there was one.
#[cfg(target_os = "linux")]
const BUFFER: usize = 4096;

#[cfg(target_os = "linux")]
impl FileChanges {
    /// Watches the database and its log of commits, which must be there already.
    pub(crate) fn watch(file: &Path) -> Self {
        match Self::try_watch(file) {
            Ok(events) => Self(Some(events)),
            Err(error) => {
                tracing::debug!(%error, file = %file.display(), "the kernel tells no changes of the file");
                Self(None)
            }
        }
    }

    fn try_watch(file: &Path) -> std::io::Result<inotify::EventStream<[u8; BUFFER]>> {
        let changes = inotify::Inotify::init()?;
        let mut log = file.as_os_str().to_owned();
        log.push("-wal");
        changes.watches().add(file, inotify::WatchMask::MODIFY)?;
        changes.watches().add(log, inotify::WatchMask::MODIFY)?;
        changes.into_event_stream([0; BUFFER])
    }

    /// Whether anybody tells.
    pub(crate) fn are_told(&self) -> bool {
        self.0.is_some()
    }

    /// Returns after the next write; never, where nobody tells.
    pub(crate) async fn wait(&mut self) {
        if let Some(events) = &mut self.0 {
            match futures_util::StreamExt::next(events).await {
                Some(Ok(_)) => return,
                // From here on nobody tells.
                Some(Err(_)) | None => self.0 = None,
            }
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(not(target_os = "linux"))]
impl FileChanges {
    /// Nobody tells.
    pub(crate) fn watch(_: &Path) -> Self {
        Self()
    }

    pub(crate) fn are_told(&self) -> bool {
        false
    }

    pub(crate) async fn wait(&mut self) {
        std::future::pending::<()>().await;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn s15_a_commit_of_another_connection_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.db");
        let writer = rusqlite::Connection::open(&file).unwrap();
        writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER)").unwrap();
        let mut changes = FileChanges::watch(&file);
        assert!(changes.are_told());

        writer.execute("INSERT INTO t VALUES (1)", ()).unwrap();

        tokio::time::timeout(Duration::from_secs(10), changes.wait()).await.unwrap();
    }

    #[tokio::test]
    async fn s15_where_there_is_nothing_to_watch_nobody_tells() {
        let changes = FileChanges::watch(Path::new("/nowhere/log.db"));
        assert!(!changes.are_told());
    }
}
