//! SQLite connections that live on threads of their own, for the two places where a hop per row or statement
//! would cost more than the work: a page of events is read in one job, and a group of appends is written in
//! one. sqlx sends every row and every statement through a channel; here a whole job travels.
//!
//! Jobs see only what is committed, never somebody's open transaction. Who writes here holds the one sqlx
//! connection that may write while the job runs: that keeps the order of waiting fair.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OnceCell, Semaphore, oneshot};

use crate::connection::SQLITE_BUSY_TIMEOUT;
use crate::database_error::from_rusqlite;

/// Statements that a connection keeps prepared.
const PREPARED_STATEMENTS: usize = 64;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The threads of one database file. None runs before it is needed.
#[derive(Debug)]
pub struct SqliteThreads {
    file: PathBuf,
    writes: Writes,
    /// What the writer's connection is told first.
    writer_pragmas: &'static str,
    writer: OnceCell<SqliteThread>,
    idle_readers: Mutex<Vec<SqliteThread>>,
    readers: Semaphore,
}

/// Whether the file may be written, as the URL has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Writes {
    Allowed,
    /// SQLite says so itself, to whoever tries.
    Refused,
}

impl SqliteThreads {
    pub(crate) fn new(file: &Path, writes: Writes, writer_pragmas: &'static str, readers: usize) -> Self {
        Self {
            file: file.to_owned(),
            writes,
            writer_pragmas,
            writer: OnceCell::new(),
            idle_readers: Mutex::default(),
            readers: Semaphore::new(readers),
        }
    }

    /// Runs a job that reads. One that nobody waits for any more runs to its end all the same.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> sqlx::Result<T> {
        let _permit = self.readers.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let idle = self.lock_readers().pop();
        let thread = match idle {
            Some(thread) => thread,
            None => SqliteThread::start(self.file.clone(), OpenFlags::SQLITE_OPEN_READ_ONLY, "").await?,
        };
        let result = thread.run(job).await;
        // A reader whose caller gives up is dropped with its future, and another one is started when needed.
        self.lock_readers().push(thread);
        result
    }

    /// Runs a job that writes, alone: it begins and ends its transaction itself. The caller holds the sqlx
    /// connection that may write.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> sqlx::Result<T> {
        let start = || {
            let flags = match self.writes {
                Writes::Allowed => OpenFlags::SQLITE_OPEN_READ_WRITE,
                Writes::Refused => OpenFlags::SQLITE_OPEN_READ_ONLY,
            };
            SqliteThread::start(self.file.clone(), flags, self.writer_pragmas)
        };
        self.writer.get_or_try_init(start).await?.run(job).await
    }

    /// Ends every thread, each after the job that it is at. Nothing can be run afterwards but by a writer that
    /// is in use.
    pub(crate) async fn close(&self) {
        self.readers.close();
        let readers = std::mem::take(&mut *self.lock_readers());
        for thread in &readers {
            thread.stop().await;
        }
        if let Some(writer) = self.writer.get() {
            writer.stop().await;
        }
    }

    fn lock_readers(&self) -> std::sync::MutexGuard<'_, Vec<SqliteThread>> {
        // A panic while it was held can only have left a list of idle threads.
        self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection and the thread that owns it.
struct SqliteThread {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl SqliteThread {
    async fn start(file: PathBuf, flags: OpenFlags, pragmas: &'static str) -> sqlx::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, is_open) = oneshot::channel();
        let body = move || match open(&file, flags, pragmas) {
            Ok(mut connection) => {
                let _ = opened.send(Ok(()));
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        let handle = std::thread::Builder::new()
            .name("herald-sqlite".to_owned())
            .spawn(body)
            .map_err(sqlx::Error::Io)?;
        is_open.await.map_err(|_| sqlx::Error::WorkerCrashed)?.map_err(from_rusqlite)?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), handle: Mutex::new(Some(handle)) })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> sqlx::Result<T> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: what was done is done.
            let _ = answer.send(job(connection));
        });
        let sent = match &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(jobs) => jobs.send(job).is_ok(),
            None => return Err(sqlx::Error::PoolClosed),
        };
        if !sent {
            return Err(sqlx::Error::WorkerCrashed);
        }
        result.await.map_err(|_| sqlx::Error::WorkerCrashed)?.map_err(from_rusqlite)
    }

    /// Ends the thread and waits for that, so that its connection is closed.
    async fn stop(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            let _ = tokio::task::spawn_blocking(move || handle.join()).await;
        }
    }
}

impl fmt::Debug for SqliteThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteThread").finish_non_exhaustive()
    }
}

fn open(file: &Path, flags: OpenFlags, pragmas: &str) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(file, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(SQLITE_BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
    connection.execute_batch(pragmas)?;
    Ok(connection)
}
