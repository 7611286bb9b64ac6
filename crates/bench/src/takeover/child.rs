//! The worker processes that compete, and their subscriber.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use store::Event;
use subscription_engine::{
    BoxError as HandlerError, Context, Criteria, Definition, Engine, Registry, Settings, Subscriber, Worker,
};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::PATIENCE;
use crate::BoxError;
use crate::disturb::{ChildProgram, open};

/// How long a slow one takes for an event.
const SLOW: Duration = Duration::from_millis(20);
/// How often a process that is asked to looks whether its database answers.
const PROBE: Duration = Duration::from_millis(100);
const CONNECTIONS: u32 = 8;

/// What such a process is told.
#[derive(Clone, Debug, clap::Args)]
pub struct ChildArguments {
    /// The database.
    url: String,
    /// What it writes beside what it handles.
    #[arg(long)]
    name: String,
    /// Stays in the middle of its first unit.
    #[arg(long)]
    hold: bool,
    /// Takes its time.
    #[arg(long)]
    slow: bool,
    /// Tells when its database does not answer any more, and when it does again.
    #[arg(long)]
    probe: bool,
}

/// By the clock that all processes of a machine share.
pub(super) fn micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// What a unit does between its beginning and its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    Slow,
    Hold,
}

/// Writes down what it handles.
pub(super) struct Relay {
    name: String,
    pace: Option<Pace>,
}

impl Relay {
    pub(super) fn subscriber(name: &str, pace: Option<Pace>) -> Arc<dyn Subscriber> {
        Arc::new(Self { name: name.to_owned(), pace })
    }
}

#[async_trait]
impl Subscriber for Relay {
    fn definition(&self) -> Definition {
        Definition::projector("relay").with_table("handled", "relay_handled")
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), HandlerError> {
        let sql = "CREATE TABLE {t} (position BIGINT PRIMARY KEY, worker TEXT NOT NULL,
                                     began_us BIGINT NOT NULL, ended_us BIGINT NOT NULL)";
        context.execute("handled", sql, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), HandlerError> {
        let began = micros();
        if let Some(Pace::Slow) = self.pace {
            sleep(SLOW).await;
        }
        let row = |event: &Event| (event.position, self.name.clone(), began, micros());
        let rows = events.iter().map(row).collect();
        let sql = "INSERT INTO {t} (position, worker, began_us, ended_us) VALUES {rows}";
        context.execute_many("handled", sql, rows).await?;
        if let Some(Pace::Hold) = self.pace {
            println!("holds");
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// A process that was started; killed when dropped.
pub(super) struct Process {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts one and returns once it is at work.
    pub(super) async fn start(
        program: &ChildProgram,
        url: &str,
        name: &str,
        more: &[&str],
    ) -> Result<Self, BoxError> {
        let mut command = Command::new(&program.0);
        command.args(["takeover-worker", url, "--name", name]).args(more);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("a pipe was asked for")?).lines();
        let mut process = Self { child, output };
        process.says("ready").await?;
        Ok(process)
    }

    /// Waits until it says this.
    pub(super) async fn says(&mut self, word: &str) -> Result<(), BoxError> {
        let saying = async {
            while let Some(line) = self.output.next_line().await? {
                if line == word {
                    return Ok(());
                }
            }
            Err(format!("a worker ended before it was {word:?}").into())
        };
        timeout(PATIENCE, saying).await?
    }

    /// kill -9.
    pub(super) async fn kill(mut self) -> Result<(), BoxError> {
        Ok(self.child.kill().await?)
    }

    /// SIGTERM; answers with how it ended.
    pub(super) async fn stop(mut self) -> Result<ExitStatus, BoxError> {
        let id = self.child.id().ok_or("it has ended already")?.to_string();
        Command::new("kill").args(["-TERM", &id]).status().await?;
        Ok(self.child.wait().await?)
    }
}

/// Is such a process, until SIGTERM.
pub async fn be_child(arguments: &ChildArguments) -> Result<(), BoxError> {
    let store = open(&arguments.url, CONNECTIONS).await?;
    let pace = match arguments {
        ChildArguments { hold: true, .. } => Some(Pace::Hold),
        ChildArguments { slow: true, .. } => Some(Pace::Slow),
        _ => None,
    };
    let registry = Registry::new([Relay::subscriber(&arguments.name, pace)])?;
    let settings = Settings { unit_events: 1, ..Settings::default() };
    let engine = Engine::new(store.clone(), registry, "takeover").with_settings(settings);
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    let worker = Worker::new(engine, Criteria::all(), &arguments.name).run(stop, || println!("ready"));
    let probing = async {
        if !arguments.probe {
            return std::future::pending().await;
        }
        let mut was_there = true;
        loop {
            let is_there = store.head().await.is_ok();
            if is_there != was_there {
                println!("{}", if is_there { "back" } else { "gone" });
            }
            was_there = is_there;
            sleep(PROBE).await;
        }
    };
    tokio::select! {
        ended = worker => ended?,
        () = probing => {}
    }
    store.close().await;
    Ok(())
}
