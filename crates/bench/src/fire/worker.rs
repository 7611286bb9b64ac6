//! The worker processes: they die when they are killed, and now and then by themselves, right at a commit.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use subscription_engine::{Criteria, FaultPoint, Faults, Worker};
use testkit::Random;
use tokio::time::Instant;

use super::subscribers::engine_on;
use crate::BoxError;
use crate::disturb::{ChildProgram, open};

/// A worker dies at one commit in so many.
const DIES_ONCE_IN: u64 = 60;
/// What a planned stop may take at most; a unit of ours takes milliseconds.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// With fewer, slow units would wait for each other.
const CONNECTIONS: u32 = 8;

/// What such a process is told.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArguments {
    /// The database.
    url: String,
    /// When it dies by itself follows from this.
    #[arg(long)]
    seed: u64,
    /// The file into which effects are sent.
    #[arg(long)]
    outbox: PathBuf,
}

/// A process that was started; killed when dropped.
#[derive(Debug)]
pub(super) struct WorkerProcess(Child);

/// How a process ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) how: String,
    /// By itself.
    pub(super) died: bool,
    pub(super) violation: Option<String>,
}

impl WorkerProcess {
    /// Does not wait until it works: it may be killed before.
    pub(super) fn start(
        program: &ChildProgram,
        url: &str,
        seed: u64,
        outbox: &Path,
    ) -> Result<Self, BoxError> {
        let child = Command::new(&program.0)
            .args(["fire-worker", url, "--seed", &seed.to_string(), "--outbox"])
            .arg(outbox)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("could not start {}: {error}", program.0.display()))?;
        Ok(Self(child))
    }

    /// kill -9.
    pub(super) fn kill(mut self) -> Result<End, BoxError> {
        let died = self.0.try_wait()?.is_some();
        self.0.kill()?;
        self.reap(died, None)
    }

    /// Closes its standard input, which asks it to stop, and waits until it has.
    pub(super) async fn stop(mut self) -> Result<End, BoxError> {
        let died = self.0.try_wait()?.is_some();
        drop(self.0.stdin.take());
        let deadline = Instant::now() + STOP_LIMIT;
        let mut violation = None;
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                violation = Some(format!("a worker did not stop within {STOP_LIMIT:?}"));
                self.0.kill()?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.reap(died, violation)
    }

    fn reap(&mut self, died: bool, violation: Option<String>) -> Result<End, BoxError> {
        let status = self.0.wait()?;
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        let panicked = said.contains("panicked").then(|| format!("a worker panicked: {said}"));
        let how =
            format!("{status}{}", if said.is_empty() { String::new() } else { format!(": {}", said.trim()) });
        Ok(End { how, died, violation: violation.or(panicked) })
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Dies at random commits.
struct Dying(Mutex<Random>);

impl Faults for Dying {
    fn strikes(&self, point: FaultPoint, _: &str) -> bool {
        let dies = self.0.lock().unwrap_or_else(PoisonError::into_inner).below(DIES_ONCE_IN) == 0;
        // Inside it nobody can die at will: the COMMIT is sent, and its answer is not waited for.
        if dies && point != FaultPoint::InsideCommit {
            std::process::abort();
        }
        dies
    }
}

/// Is such a process, until its standard input ends.
pub async fn be_worker(arguments: &WorkerArguments) -> Result<(), BoxError> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // Also where nobody is left to stop it.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(stop);
    });
    let store = open(&arguments.url, CONNECTIONS).await?;
    let dying = Dying(Mutex::new(Random::from_seed(arguments.seed)));
    let engine = engine_on(&store, &arguments.outbox)?.with_faults(Arc::new(dying));
    let worker = Worker::new(engine, Criteria::all(), "fire");
    let until_stopped = async {
        let _ = stopped.await;
    };
    worker.run(until_stopped, || ()).await?;
    store.close().await;
    Ok(())
}
