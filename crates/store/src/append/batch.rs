//! Committing one batch of appends, and telling each caller what became of its own.

use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;

use super::committer::{Batch, Shared};
use super::known::known_append;
use super::postgres::{Together, append_on_postgres, append_one_on_postgres};
use super::sqlite::write_group;
use super::{
    Append, AppendError, Appended, Outcome, conflict, is_broken_connection, is_closed_stream, is_duplicate_id,
};
use crate::connection::Connection;
use crate::database::Database;
use crate::database_error::again;

/// How long a batch waits for a stream that somebody else keeps locked, before that append waits alone.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
/// How often an append is begun anew because transactions got into each other's way.
const ATTEMPTS: usize = 5;
/// How long we try to find out whether an append happened whose connection broke.
const PROOF_PATIENCE: Duration = Duration::from_secs(2);

/// Commits batches, on PostgreSQL over a connection that it keeps while there is work: to give one back to the pool
/// costs a round trip.
pub(super) struct Lane {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// Whether it may be kept waiting for a locked stream.
    is_patient: bool,
}

/// What became of one append.
enum Fate {
    Written(Outcome),
    /// Somebody else keeps the stream locked.
    Blocked,
    Failed(AppendError),
}

impl From<Outcome> for Fate {
    fn from(outcome: Outcome) -> Self {
        Self::Written(outcome)
    }
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, connection: None, is_patient: false }
    }

    /// Commits the batch and gives every member its answer, except those that have to wait for a locked stream:
    /// they are handed back, each as a batch of its own.
    pub(super) async fn commit(&mut self, mut batch: Batch) -> Vec<Batch> {
        let appends = batch.appends();
        let fates = match self.shared.database.clone() {
            Database::Sqlite { .. } => self.write_on_sqlite(appends).await,
            Database::Postgres { .. } => self.write_on_postgres(&appends).await,
        };
        if fates.iter().any(|fate| matches!(fate, Fate::Written(Outcome::Appended(_)))) {
            self.shared.signal.send();
        }
        let members = std::mem::take(&mut batch.members);
        let (mut answers, mut blocked) = (Vec::with_capacity(members.len()), Vec::new());
        for (member, fate) in members.into_iter().zip(fates) {
            match fate {
                Fate::Blocked => blocked.push(batch.set_aside(member)),
                fate => answers.push((member, fate)),
            }
        }
        // First, so that who is answered and appends again does not find its own stream under way.
        batch.release();
        let mut to_look_up = Vec::new();
        for (member, fate) in answers {
            let result = match fate {
                Fate::Written(Outcome::Appended(appended)) => Ok(appended),
                Fate::Failed(error) => Err(error),
                Fate::Written(outcome) => {
                    to_look_up.push((member, outcome));
                    continue;
                }
                // Handed back above.
                Fate::Blocked => continue,
            };
            // Who does not wait any more needs no answer.
            let _ = member.answer.send(result);
        }
        for (member, outcome) in to_look_up {
            let result = self.look_up(&member.append, outcome).await;
            let _ = member.answer.send(result);
        }
        if !self.shared.keeps_connections {
            self.give_back().await;
        }
        blocked
    }

    /// Waits for a locked stream as long as it takes, over a connection of its own.
    pub(super) async fn wait_and_commit(shared: Arc<Shared>, batch: Batch) {
        Self { shared, connection: None, is_patient: true }.commit(batch).await;
    }

    /// Lets others have the connection.
    pub(super) async fn give_back(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && !self.is_patient
            && connection.run("RESET lock_timeout").await.is_err()
        {
            connection.close_on_drop();
        }
    }

    async fn connection(&mut self) -> sqlx::Result<&mut Connection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = self.shared.database.writer().await?;
                if !self.is_patient {
                    let sql = format!("SET lock_timeout = {}", LOCK_PATIENCE.as_millis());
                    if let Err(error) = connection.run(sqlx::AssertSqlSafe(sql)).await {
                        connection.close_on_drop();
                        return Err(error);
                    }
                }
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Nobody knows what state it is in.
    fn drop_connection(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
    }

    async fn write_on_sqlite(&mut self, appends: Vec<Arc<Append>>) -> Vec<Fate> {
        let Database::Sqlite { threads, .. } = &self.shared.database else { return Vec::new() };
        let count = appends.len();
        // Held while the job runs, so that units and appends take turns in the order in which they came.
        let written = match self.shared.database.writer().await {
            Ok(_writer) => {
                let time_is_set = self.shared.time_is_set;
                let job = move |connection: &mut rusqlite::Connection| {
                    write_group(connection, &appends, time_is_set)
                };
                threads.write(job).await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(fates) => fates.into_iter().map(|fate| fate.map_or_else(failed, Fate::from)).collect(),
            Err(error) => all_failed(&error, count),
        }
    }

    async fn write_on_postgres(&mut self, appends: &[Arc<Append>]) -> Vec<Fate> {
        let database = self.shared.database.clone();
        let connection = match self.connection().await {
            Ok(connection) => connection,
            Err(error) => return not_sent(&error, appends.len()),
        };
        if appends.len() > 1 {
            let appending = append_on_postgres(connection, appends, Together::EachForItself);
            match database.answer(appending).await {
                Ok(outcomes) => return outcomes.into_iter().map(Fate::from).collect(),
                Err(error) if is_broken_connection(&error) => {
                    self.drop_connection();
                    return self.find_out(appends, &error).await;
                }
                // One of them spoils it for all.
                Err(_) => {}
            }
        }
        let mut fates = Vec::with_capacity(appends.len());
        for append in appends {
            match self.connection().await {
                Ok(_) => fates.push(self.write_one_on_postgres(append).await),
                // What holds for one holds for the others; they need not find out each for itself.
                Err(error) => {
                    fates.extend(not_sent(&error, appends.len() - fates.len()));
                    break;
                }
            }
        }
        fates
    }

    async fn write_one_on_postgres(&mut self, append: &Arc<Append>) -> Fate {
        let database = self.shared.database.clone();
        let mut attempt = 1;
        loop {
            let connection = match self.connection().await {
                Ok(connection) => connection,
                Err(error) => return Fate::Failed(AppendError::Database(error)),
            };
            return match database.answer(append_one_on_postgres(connection, append)).await {
                Ok(outcome) => Fate::Written(outcome),
                Err(error) if is_duplicate_id(&error) => Fate::Written(Outcome::Known),
                Err(error) if is_closed_stream(&error) => Fate::Written(Outcome::StreamClosed),
                Err(error) if is_broken_connection(&error) => {
                    self.drop_connection();
                    let mut fates = self.find_out(std::slice::from_ref(append), &error).await;
                    fates.pop().unwrap_or_else(|| failed(error))
                }
                Err(error) => match error.as_database_error().and_then(DatabaseError::code).as_deref() {
                    // A serialisation failure, a deadlock.
                    Some("40001" | "40P01") if attempt < ATTEMPTS => {
                        attempt += 1;
                        continue;
                    }
                    Some("55P03") if !self.is_patient => Fate::Blocked,
                    _ => failed(error),
                },
            };
        }
    }

    /// The connection broke: what of this is in the log happened (S-26). What is not may still be about to happen.
    async fn find_out(&mut self, appends: &[Arc<Append>], broken: &sqlx::Error) -> Vec<Fate> {
        let mut fates = Vec::with_capacity(appends.len());
        let looking = async {
            let mut connection = self.shared.database.reader().await?;
            for append in appends {
                match known_append(&mut connection, append).await {
                    Ok(appended) => {
                        let appended = Appended { replayed: false, ..appended };
                        fates.push(Fate::Written(Outcome::Appended(appended)));
                    }
                    // Not there, or not like this: who asks again will be told.
                    Err(_) => fates.push(Fate::Failed(AppendError::OutcomeUnknown(again(broken)))),
                }
            }
            Ok::<_, sqlx::Error>(())
        };
        let _ = tokio::time::timeout(PROOF_PATIENCE, looking).await;
        fates.extend(all_failed(broken, appends.len() - fates.len()));
        fates
    }

    /// What is to be said of an append that was not written: only the log can tell.
    async fn look_up(&mut self, append: &Append, outcome: Outcome) -> Result<Appended, AppendError> {
        let database = self.shared.database.clone();
        if self.connection.is_some() {
            let connection = self.connection().await?;
            return database.answer(looked_up(connection, append, outcome)).await;
        }
        database.answer(async { looked_up(&mut database.reader().await?, append, outcome).await }).await
    }
}

impl Drop for Lane {
    /// Its session is set up for a lane; nobody else should get it like this.
    fn drop(&mut self) {
        if !self.is_patient {
            self.drop_connection();
        }
    }
}

async fn looked_up(
    connection: &mut Connection,
    append: &Append,
    outcome: Outcome,
) -> Result<Appended, AppendError> {
    match outcome {
        Outcome::Conflict(actual) => Err(conflict(connection, append, actual).await?),
        // It may have been written before the stream was closed.
        Outcome::StreamClosed => match known_append(connection, append).await {
            Err(AppendError::Database(sqlx::Error::RowNotFound)) => {
                Err(AppendError::StreamClosed(append.stream.clone()))
            }
            known => known,
        },
        Outcome::Known | Outcome::Appended(_) => known_append(connection, append).await,
    }
}

fn failed(error: sqlx::Error) -> Fate {
    Fate::Failed(if is_broken_connection(&error) {
        AppendError::OutcomeUnknown(error)
    } else {
        AppendError::Database(error)
    })
}

/// One failure for everybody.
fn all_failed(error: &sqlx::Error, count: usize) -> Vec<Fate> {
    let is_broken = is_broken_connection(error);
    let fate = |_| {
        let error = again(error);
        Fate::Failed(if is_broken {
            AppendError::OutcomeUnknown(error)
        } else {
            AppendError::Database(error)
        })
    };
    (0..count).map(fate).collect()
}

/// There was no connection: nothing was sent.
fn not_sent(error: &sqlx::Error, count: usize) -> Vec<Fate> {
    (0..count).map(|_| Fate::Failed(AppendError::Database(again(error)))).collect()
}
