//! Processes of their own that disturb: one that writes other tables, one that appends until it is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child as Process, ChildStdout, Command, Stdio};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Executor};
use store::Position;
use testkit::{Acknowledged, Random};
use uuid::Uuid;

use super::Record;
use super::appender::{Kept, some_append};
use crate::BoxError;

/// How long the process that writes its own tables holds SQLite's only write lock, and how long it lets go.
const HOLDS_LOCK: Duration = Duration::from_millis(2);

/// What to start: the benchmark program itself.
#[derive(Clone, Debug)]
pub struct ChildProgram(pub PathBuf);

/// A process that was started; killed when dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    output: BufReader<ChildStdout>,
}

/// What the benchmark program does when it is such a process.
#[derive(Clone, Debug, clap::Args)]
pub struct ChildArguments {
    /// The database.
    url: String,
    /// Appends under this number; without one it writes a table of its own.
    #[arg(long)]
    append: Option<u32>,
}

impl ChildProgram {
    /// Starts one that appends, and returns when it does.
    pub(super) fn append_to(&self, url: &str, number: u32) -> Result<Child, BoxError> {
        self.start(&[url, "--append", &number.to_string()])
    }

    /// Starts one that writes a table of its own, and returns when it does.
    pub(super) fn write_to(&self, url: &str) -> Result<Child, BoxError> {
        self.start(&[url])
    }

    fn start(&self, arguments: &[&str]) -> Result<Child, BoxError> {
        let mut process = Command::new(&self.0)
            .arg("disturb-child")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("could not start {}: {error}", self.0.display()))?;
        let output = BufReader::new(process.stdout.take().ok_or("a pipe was asked for")?);
        let mut child = Child { process, output };
        let mut ready = String::new();
        child.output.read_line(&mut ready)?;
        if ready != "ready\n" {
            return Err(format!("{} did not begin: {ready:?}", self.0.display()).into());
        }
        Ok(child)
    }
}

impl Child {
    /// Kills it and notes what it had said that the log has.
    pub(super) fn kill_and_note(mut self, record: &Record) -> Result<(), BoxError> {
        self.process.kill()?;
        self.process.wait()?;
        let mut said = String::new();
        self.output.read_to_string(&mut said)?;
        // The last line may be half a line.
        for line in said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let (position, id) = line.split_once(' ').ok_or("a position and an id")?;
            let event = Acknowledged { position: Position(position.parse()?), id: id.parse()? };
            record.note(|noted| {
                noted.acknowledged.push(Kept { event, at: None });
                noted.appends += 1;
            });
        }
        Ok(())
    }

    /// Ends it: it must still be at work.
    pub(super) fn end(mut self) -> Result<(), BoxError> {
        if let Some(status) = self.process.try_wait()? {
            return Err(format!("the second process ended early: {status}").into());
        }
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Is such a process, until it is killed.
pub async fn be_child(arguments: &ChildArguments) -> Result<(), BoxError> {
    // Nobody is left to kill it when whoever started it is gone.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    match arguments.append {
        Some(number) => append_until_killed(&arguments.url, number).await,
        None => write_until_killed(&arguments.url).await,
    }
}

async fn append_until_killed(url: &str, number: u32) -> Result<(), BoxError> {
    let store = super::open(url, 2).await?;
    let mut random = Random::from_seed(u64::from(number));
    let mut output = std::io::stdout().lock();
    writeln!(output, "ready")?;
    loop {
        let append = some_append(&format!("child-{number}"), &mut random);
        let last = append.events.last().map_or(Uuid::nil(), |event| event.id);
        let appended = store.append(&append.stream, append.expected, append.events).await?;
        let position = appended.position.ok_or("events were appended")?;
        writeln!(output, "{position} {last}")?;
    }
}

async fn write_until_killed(url: &str) -> Result<(), BoxError> {
    let options: SqliteConnectOptions = url.parse()?;
    let mut connection = options.busy_timeout(Duration::from_secs(10)).connect().await?;
    connection.execute("CREATE TABLE IF NOT EXISTS strange (id INTEGER)").await?;
    println!("ready");
    loop {
        connection.execute(sqlx::raw_sql("BEGIN IMMEDIATE; INSERT INTO strange VALUES (1)")).await?;
        tokio::time::sleep(HOLDS_LOCK).await;
        connection.execute(sqlx::raw_sql("COMMIT")).await?;
        tokio::time::sleep(HOLDS_LOCK).await;
    }
}
