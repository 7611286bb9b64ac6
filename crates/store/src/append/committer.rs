//! Group commit (S-07): the appends of a process wait in one queue, and who commits takes all that wait.
//!
//! While one commit is on its way to the disk the next appends gather; nobody waits for company. A batch holds at
//! most one append of each stream, so the appends to a stream happen in the order in which they were called. The
//! tasks that commit come into being when there is work and end when there has been none for a moment.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::batch::Lane;
use super::{Append, AppendError, Appended};
use crate::database::Database;
use crate::stream_name::StreamName;
use crate::wake::Signal;

/// Appends that share a commit: beyond this a larger batch is not faster, and everybody waits for its last one.
const BATCH_APPENDS: usize = 256;
/// Payload and metadata that share a commit. One append alone may be larger.
const BATCH_BYTES: usize = 1024 * 1024;
/// Batches under way at the same time on PostgreSQL: while one waits for the disk the other is written.
const POSTGRES_LANES: usize = 2;
/// From this many connections on a lane keeps one while it has work; with fewer, readers would starve.
const CONNECTIONS_TO_KEEP_ONE: u32 = 4;
/// How long a lane stays, with its connection, when there is nothing to do.
const LANE_IDLE: Duration = Duration::from_secs(1);
/// How long an append waits to be begun.
const QUEUE_PATIENCE: Duration = Duration::from_secs(30);

/// Where the appends of one store go through.
#[derive(Debug)]
pub(crate) struct Committer(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) database: Database,
    pub(super) signal: Signal,
    /// Whether the log lives by a time that is set by hand.
    pub(super) time_is_set: bool,
    pub(super) keeps_connections: bool,
    lanes: usize,
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Member>,
    next_ticket: u64,
    /// The streams of the appends that were begun and have no answer yet.
    under_way: HashSet<StreamName>,
    lanes: usize,
    /// Lanes that have a batch.
    busy: usize,
    is_closed: bool,
    tasks: JoinSet<()>,
}

/// One append and who waits for it.
#[derive(Debug)]
pub(super) struct Member {
    ticket: u64,
    pub(super) append: Arc<Append>,
    pub(super) answer: oneshot::Sender<Result<Appended, AppendError>>,
}

/// Appends to different streams, sorted by stream. Their streams are free again when it is dropped.
pub(super) struct Batch {
    shared: Arc<Shared>,
    pub(super) members: Vec<Member>,
    streams: Vec<StreamName>,
    occupies_lane: bool,
}

enum Next {
    Batch(Batch),
    Nothing,
    End,
}

impl Committer {
    pub(crate) fn new(database: &Database, signal: &Signal, time_is_set: bool) -> Self {
        let (lanes, keeps_connections) = match database {
            // It has one writer.
            Database::Sqlite { .. } => (1, false),
            Database::Postgres { pool, .. } => {
                let is_roomy = pool.options().get_max_connections() >= CONNECTIONS_TO_KEEP_ONE;
                (if is_roomy { POSTGRES_LANES } else { 1 }, is_roomy)
            }
        };
        Self(Arc::new(Shared {
            database: database.clone(),
            signal: signal.clone(),
            time_is_set,
            keeps_connections,
            lanes,
            queue: Mutex::default(),
            arrived: Notify::new(),
        }))
    }

    /// Has the append committed, together with whatever else waits, and answers what became of it.
    pub(super) async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let start = Instant::now();
        let stream = append.stream.clone();
        let (answer, mut answered) = oneshot::channel();
        let ticket = self.0.enqueue(append, answer)?;
        let answer = match tokio::time::timeout(QUEUE_PATIENCE, &mut answered).await {
            Ok(answer) => answer,
            Err(_) if self.0.withdraw(ticket) => {
                return Err(AppendError::NotBegun { stream, waited: start.elapsed() });
            }
            // Begun at last: now only the database knows how long it takes.
            Err(_) => answered.await,
        };
        answer.unwrap_or_else(|_| Err(AppendError::OutcomeUnknown(sqlx::Error::WorkerCrashed)))
    }

    /// Refuses new appends, finishes those that wait, and ends every task.
    pub(crate) async fn close(&self) {
        let mut tasks = {
            let mut queue = self.0.lock();
            queue.is_closed = true;
            std::mem::take(&mut queue.tasks)
        };
        self.0.arrived.notify_waiters();
        while tasks.join_next().await.is_some() {}
    }
}

impl Drop for Committer {
    /// Nobody is left to wait for an answer.
    fn drop(&mut self) {
        let tasks = {
            let mut queue = self.0.lock();
            queue.is_closed = true;
            queue.waiting.clear();
            std::mem::take(&mut queue.tasks)
        };
        drop(tasks);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change of the queue is complete before anything in it can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        self: &Arc<Self>,
        append: Append,
        answer: oneshot::Sender<Result<Appended, AppendError>>,
    ) -> Result<u64, AppendError> {
        let mut queue = self.lock();
        if queue.is_closed {
            return Err(AppendError::Closed(append.stream));
        }
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.waiting.push_back(Member { ticket, append: Arc::new(append), answer });
        if queue.busy == queue.lanes && queue.lanes < self.lanes {
            queue.lanes += 1;
            queue.spawn(work(Arc::clone(self)));
        }
        drop(queue);
        self.arrived.notify_one();
        Ok(ticket)
    }

    /// Takes an append out of the queue; says whether it was still there.
    fn withdraw(&self, ticket: u64) -> bool {
        let mut queue = self.lock();
        let before = queue.waiting.len();
        queue.waiting.retain(|member| member.ticket != ticket);
        queue.waiting.len() < before
    }

    fn next(self: &Arc<Self>) -> Next {
        let mut queue = self.lock();
        let (mut members, mut passed_over, mut bytes) = (Vec::new(), VecDeque::new(), 0);
        while members.len() < BATCH_APPENDS
            && let Some(member) = queue.waiting.pop_front()
        {
            if member.answer.is_closed() {
                continue;
            }
            if queue.under_way.contains(&member.append.stream) {
                passed_over.push_back(member);
                continue;
            }
            let size = size_of(&member.append);
            if bytes + size > BATCH_BYTES && !members.is_empty() {
                passed_over.push_back(member);
                break;
            }
            bytes += size;
            queue.under_way.insert(member.append.stream.clone());
            members.push(member);
        }
        passed_over.append(&mut queue.waiting);
        queue.waiting = passed_over;
        if members.is_empty() {
            return if queue.is_closed && queue.waiting.is_empty() {
                queue.lanes -= 1;
                Next::End
            } else {
                Next::Nothing
            };
        }
        queue.busy += 1;
        drop(queue);
        Next::Batch(Batch::new(Arc::clone(self), members, true))
    }

    /// Ends a lane, unless something came in the meantime.
    fn leave(&self) -> bool {
        let mut queue = self.lock();
        let leaves = queue.waiting.is_empty();
        if leaves {
            queue.lanes -= 1;
        }
        leaves
    }
}

impl Queue {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(task);
    }
}

impl Batch {
    fn new(shared: Arc<Shared>, mut members: Vec<Member>, occupies_lane: bool) -> Self {
        // Everybody takes stream rows in this order, so that nobody waits in a circle.
        members.sort_by(|a, b| a.append.stream.as_str().as_bytes().cmp(b.append.stream.as_str().as_bytes()));
        let streams = members.iter().map(|member| member.append.stream.clone()).collect();
        Self { shared, members, streams, occupies_lane }
    }

    pub(super) fn appends(&self) -> Vec<Arc<Append>> {
        self.members.iter().map(|member| Arc::clone(&member.append)).collect()
    }

    /// Makes a batch of its own of one member, which is to be waited for outside of the lanes.
    pub(super) fn set_aside(&mut self, member: Member) -> Self {
        self.streams.retain(|stream| *stream != member.append.stream);
        Self::new(Arc::clone(&self.shared), vec![member], false)
    }

    /// Lets the next appends to these streams go ahead.
    pub(super) fn release(&mut self) {
        if self.streams.is_empty() && !self.occupies_lane {
            return;
        }
        let mut queue = self.shared.lock();
        for stream in self.streams.drain(..) {
            queue.under_way.remove(&stream);
        }
        if std::mem::take(&mut self.occupies_lane) {
            queue.busy -= 1;
        }
        let more = !queue.waiting.is_empty();
        drop(queue);
        if more {
            self.shared.arrived.notify_one();
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.release();
    }
}

/// A lane: takes what waits and commits it, until there is nothing more.
async fn work(shared: Arc<Shared>) {
    let mut lane = Lane::new(Arc::clone(&shared));
    loop {
        let arrived = shared.arrived.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        match shared.next() {
            Next::Batch(batch) => {
                for blocked in lane.commit(batch).await {
                    shared.lock().spawn(Lane::wait_and_commit(Arc::clone(&shared), blocked));
                }
            }
            Next::End => break,
            Next::Nothing => {
                if tokio::time::timeout(LANE_IDLE, arrived).await.is_ok() {
                    // Those who were just answered and append again are let in first: they share the commit.
                    tokio::task::yield_now().await;
                } else if shared.leave() {
                    break;
                }
            }
        }
    }
    lane.give_back().await;
}

fn size_of(append: &Append) -> usize {
    append.events.iter().map(|event| event.payload.as_str().len() + event.metadata.as_str().len()).sum()
}
