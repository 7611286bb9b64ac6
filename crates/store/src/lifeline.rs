//! Whether the server is still there, for whoever waits for its answer (PostgreSQL).
//!
//! A machine or a network that vanishes says no goodbye: whoever has sent a statement would wait for ever, and sqlx has
//! no TCP keep-alive to switch on. So a statement that takes long asks over a new connection whether the server
//! answers, again and again. Where it does not, or runs anew, nobody waits any longer, and no connection from before
//! is used again: the server ends those as well, only later (see `SERVER_KEEPALIVE_IDLE` in `database.rs`).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;

use crate::safe_head::{Known, identify};

/// A statement that takes this long asks whether the server is there, and once more after each further time like it.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// How long the server may take to say so. With [`QUIET`] it is less than what the server grants a silent client, so
/// that a connection which the server has given up is given up here as well.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_millis(4_500);

/// Shared by all who use one server.
#[derive(Debug)]
pub struct Lifeline {
    connect: PgConnectOptions,
    known: Arc<Known>,
    /// The last look: one at a time, since all who wait ask the same.
    last: Mutex<Option<Look>>,
    /// When the server was last found to be gone.
    gone_at: std::sync::Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    began: Instant,
    ended: Instant,
    answers: bool,
}

impl Lifeline {
    pub(crate) fn new(connect: PgConnectOptions, known: Arc<Known>) -> Self {
        Self { connect, known, last: Mutex::default(), gone_at: std::sync::Mutex::default() }
    }

    /// Waits for an answer for as long as the server is there. Where it is not, what was waited for is dropped
    /// half-way: its connection must not be used again.
    pub(crate) fn keep<T, E: From<sqlx::Error>>(
        &self,
        statement: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, E>> {
        // Whatever waits for this would otherwise be larger by all of it, several times over.
        self.keep_boxed(Box::pin(statement))
    }

    async fn keep_boxed<T, E: From<sqlx::Error>>(
        &self,
        mut statement: Pin<Box<impl Future<Output = Result<T, E>>>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        loop {
            tokio::select! {
                biased;
                result = &mut statement => return result,
                () = tokio::time::sleep(QUIET) => {}
            }
            tokio::select! {
                biased;
                result = &mut statement => return result,
                is_there = self.is_there(began) => {
                    if !is_there {
                        return Err(vanished().into());
                    }
                }
            }
        }
    }

    /// Whether a connection of this age may lead to a server that was found to be gone since.
    pub(crate) fn is_from_before(&self, age: Duration) -> bool {
        self.gone_at().is_some_and(|gone_at| age > gone_at.elapsed())
    }

    /// Whether the server answers, and still is the one to which a statement was sent that began then.
    async fn is_there(&self, began: Instant) -> bool {
        self.answers().await && !self.known.is_from_before(began.elapsed())
    }

    async fn answers(&self) -> bool {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(look) = *last {
            // One that began earlier says less about a server that answers than about one that did not until now.
            let since = if look.answers { look.began } else { look.ended };
            if since >= asked {
                return look.answers;
            }
        }
        let began = Instant::now();
        let answers = self.look().await;
        let ended = Instant::now();
        if !answers {
            *self.gone_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        }
        *last = Some(Look { began, ended, answers });
        answers
    }

    async fn look(&self) -> bool {
        let look = async {
            let mut connection = self.connect.connect().await?;
            identify(&mut connection, &self.known).await?;
            connection.close().await
        };
        match tokio::time::timeout(ANSWER_LIMIT, look).await {
            Ok(Ok(())) => true,
            // It refuses, and so it is there. But one that is just being started has forgotten every statement.
            Ok(Err(sqlx::Error::Database(error))) => error.code().as_deref() != Some("57P03"),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    fn gone_at(&self) -> Option<Instant> {
        *self.gone_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is said of a statement whose server has vanished.
pub(crate) fn vanished() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database server does not answer any more"))
}
