//! `herald demo`: the real daemon and the real commands on a scratch database, told as a story.
//!
//! Everything it shows is what a user would type and see: the daemon is a process of its own, and so is
//! each command. It ends by itself and leaves nothing behind.

use notification_subscribers::policy::Policy;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use notification_subscribers::delivery::DeliverySettings;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app;
use crate::config::{Config, DATABASE};
use crate::exit::{Code, Exit};
use crate::output::line;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Keep the daemon running after the tour, until Ctrl-C
    #[arg(long)]
    serve: bool,
}

/// How long the demo waits for anything to come true.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn run(arguments: Arguments) -> Result<u8, Exit> {
    let mut signals = Signals::new()?;
    let folder = tempfile::Builder::new().prefix("herald-demo-").tempdir()?;
    let stage = Stage {
        program: std::env::current_exe()?,
        url: format!("sqlite:{}", folder.path().join("herald.db").display()),
    };
    let mut daemon = stage.start_daemon(&folder.path().join("worker.log"))?;
    // Open as long as the demo lives. (Waiting for the daemon would close it.)
    let _lifeline = daemon.stdin.take();
    let result = tokio::select! {
        result = tour(&stage, arguments.serve) => result.map(|()| 0),
        // Not an end that anybody asked for.
        status = daemon.wait() => Err(Exit::new(Code::Failed, format!("the daemon ended by itself: {}", status?))),
        code = signals.next() => Ok(code),
    };
    stage.stop_daemon(&mut daemon).await;
    folder.close()?;
    result
}

async fn tour(stage: &Stage, serve: bool) -> Result<(), Exit> {
    chapter("A daemon runs on a scratch SQLite database. Somebody notifies a user:");
    stage
        .until("the daemon has set up the event store", &["sub", "show", "inbox_1"], |out| {
            out.contains("active")
        })
        .await?;
    let sent = stage.shown(&["user", "notify", "user1", "The first message"]).await?;
    stage.shown(&["user", "notify", "user1", "The second message"]).await?;
    let first = sent.split(' ').nth(2).unwrap_or_default().to_owned();

    chapter("The daemon has projected both into the inbox. The user reads, and acknowledges one:");
    stage
        .until("the inbox has both", &["user", "inbox", "user1"], |out| out.starts_with("2 pending"))
        .await?;
    stage.shown(&["user", "inbox", "user1"]).await?;
    stage.shown(&["user", "acknowledge", "user1", &first]).await?;
    stage.until("the inbox has one", &["user", "inbox", "user1"], |out| out.starts_with("1 pending")).await?;
    stage.shown(&["user", "inbox", "user1"]).await?;

    chapter("Now something breaks: the inbox's table is gone when the next notification comes.");
    let scratch = stage.scratch().await?;
    scratch.database().execute("ALTER TABLE acme_notifications_inbox RENAME TO mislaid", ()).await?;
    stage.shown(&["user", "notify", "user1", "A message that cannot be shown yet"]).await?;
    stage.until("the error shows", &["sub", "show", "inbox_1"], |out| out.contains("retry 1 of 5")).await?;
    stage.shown(&["sub", "show", "inbox_1"]).await?;

    chapter("Nothing is lost. Herald tries again by itself; that fails as well, so it will wait longer:");
    stage
        .until("it was tried again", &["sub", "show", "inbox_1"], |out| out.contains("retry 2 of 5"))
        .await?;
    stage.shown(&["sub", "list"]).await?;

    chapter("An operator brings the table back and sets the subscription going again:");
    scratch.database().execute("ALTER TABLE mislaid RENAME TO acme_notifications_inbox", ()).await?;
    scratch.close().await;
    stage.shown(&["sub", "reactivate", "inbox_1", "--reason", "the table is back"]).await?;
    stage.until("the inbox has two", &["user", "inbox", "user1"], |out| out.starts_with("2 pending")).await?;
    stage.shown(&["user", "inbox", "user1"]).await?;
    stage
        .until("it is at the head", &["sub", "show", "inbox_1"], |out| out.contains("lag 0 positions"))
        .await?;
    stage.shown(&["sub", "list"]).await?;
    stage.shown(&["events", "list"]).await?;

    if serve {
        chapter("The daemon goes on until Ctrl-C. In another terminal:");
        line(&format!("  export {DATABASE}={}", stage.url));
        line("  herald sub list");
        std::future::pending::<()>().await;
    }
    chapter("That was all of it. The scratch database is deleted.");
    Ok(())
}

fn chapter(text: &str) {
    line("");
    line(text);
    line("");
}

/// Whoever ends the demo, it cleans up first.
struct Signals([(Signal, u8); 4]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            (signal(SignalKind::interrupt())?, 130),
            (signal(SignalKind::terminate())?, 143),
            (signal(SignalKind::hangup())?, 129),
            (signal(SignalKind::quit())?, 131),
        ]))
    }

    /// The exit code that says which one came.
    async fn next(&mut self) -> u8 {
        let Self([(interrupt, a), (terminate, b), (hangup, c), (quit, d)]) = self;
        tokio::select! {
            _ = interrupt.recv() => *a,
            _ = terminate.recv() => *b,
            _ = hangup.recv() => *c,
            _ = quit.recv() => *d,
        }
    }
}

struct Stage {
    program: PathBuf,
    url: String,
}

impl Stage {
    /// A command with nothing of the caller's environment that could lead it elsewhere.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HERALD_"))
        {
            command.env_remove(name);
        }
        command.env(DATABASE, &self.url).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn start_daemon(&self, log: &Path) -> Result<Child, Exit> {
        let log = std::fs::File::create(log)?;
        // A group of its own: Ctrl-C is for the demo, which then ends the daemon in an orderly way. Should the
        // demo be killed, the daemon sees its stdin end and goes as well.
        let mut daemon = self.command();
        daemon.args(["worker", "--until-stdin-ends"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        Ok(daemon.process_group(0).spawn()?)
    }

    async fn stop_daemon(&self, daemon: &mut Child) {
        if let Some(id) = daemon.id() {
            let asked = Command::new("kill").args(["-TERM", &id.to_string()]).status().await;
            let ended = tokio::time::timeout(PATIENCE, daemon.wait()).await;
            if asked.is_err() || ended.is_err() {
                let _ = daemon.kill().await;
            }
        }
    }

    async fn scratch(&self) -> Result<store::Store, Exit> {
        let options = store::Options::default();
        let config = Config {
            url: self.url.clone(),
            options,
            test_mode: false,
            who: "demo".to_owned(),
            notify: DeliverySettings::default(),
            policy: Policy::default(),
        };
        app::connect(&config, false).await
    }

    /// Runs a command and shows it as it would look in a terminal.
    async fn shown(&self, arguments: &[&str]) -> Result<String, Exit> {
        line(&format!(
            "$ herald {}",
            arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
        ));
        let output = self.command().args(arguments).output().await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        for text in stdout.lines().chain(stderr.lines()) {
            line(text);
        }
        line("");
        if output.status.success() {
            Ok(stdout)
        } else {
            Err(Exit::new(
                Code::Failed,
                format!("herald {} ended with {}", arguments.join(" "), output.status),
            ))
        }
    }

    /// Asks again and again until the answer is as it should be.
    async fn until(&self, what: &str, arguments: &[&str], holds: impl Fn(&str) -> bool) -> Result<(), Exit> {
        let start = tokio::time::Instant::now();
        loop {
            let output = self.command().args(arguments).output().await?;
            let stdout = String::from_utf8_lossy(&output.stdout);
            if holds(&stdout) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(Exit::new(
                    Code::TimedOut,
                    format!("waited in vain until {what}; last seen: {stdout}"),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() }
}
