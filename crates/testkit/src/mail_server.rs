//! A mail server on this machine that speaks just enough SMTP, notes what it is given, and misbehaves as it is told.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// So much of a mail is taken at most.
const MAX_MAIL: usize = 4 * 1024 * 1024;

/// A mail that the server was given to the last byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMail {
    /// To whom it goes back.
    pub from: String,
    /// For whom it is.
    pub to: String,
    /// Its bytes, as they were before dots were doubled.
    pub text: String,
}

/// A moment in a conversation at which the server can be told to do something unusual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Somebody has connected.
    Greeting,
    /// Somebody logs in, with this after `AUTH`.
    Login(String),
    /// A recipient was named.
    Recipient(String),
    /// The mail has arrived to its final dot, for this recipient.
    Mail(String),
}

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// What a server does that takes everything.
    Usual,
    /// It says this instead, and a mail is not taken.
    Say(&'static str),
    /// It hangs up; a mail is taken before.
    HangUp,
    /// It says nothing any more; a mail is taken before.
    FallSilent,
}

type Script = dyn FnMut(&Moment) -> Reaction + Send;

struct Shared {
    script: Mutex<Box<Script>>,
    received: watch::Sender<Vec<ReceivedMail>>,
    moments: watch::Sender<Vec<Moment>>,
}

/// The server; it ends with this.
pub struct MailServer {
    port: u16,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

impl MailServer {
    /// Listens on a free port of this machine, and takes everything.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            script: Mutex::new(Box::new(|_| Reaction::Usual)),
            received: watch::Sender::new(Vec::new()),
            moments: watch::Sender::new(Vec::new()),
        });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, listening })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does as this says from now on.
    pub fn react(&self, script: impl FnMut(&Moment) -> Reaction + Send + 'static) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// What it was given to the last byte, taken or not, in order.
    pub fn received(&self) -> Vec<ReceivedMail> {
        self.shared.received.borrow().clone()
    }

    /// What it was given for this recipient.
    pub fn received_for(&self, to: &str) -> Vec<ReceivedMail> {
        self.received().into_iter().filter(|mail| mail.to == to).collect()
    }

    /// How often this recipient was named to it.
    pub fn asked_for(&self, to: &str) -> usize {
        self.shared
            .moments
            .borrow()
            .iter()
            .filter(|moment| **moment == Moment::Recipient(to.to_owned()))
            .count()
    }

    /// How often somebody has connected.
    pub fn connections(&self) -> usize {
        self.shared.moments.borrow().iter().filter(|moment| **moment == Moment::Greeting).count()
    }

    /// Waits until it was given so many.
    pub async fn has_received(&self, count: usize) {
        let mut received = self.shared.received.subscribe();
        received.wait_for(|received| received.len() >= count).await.expect("the sender is ours");
    }

    /// Waits for a moment.
    pub async fn has_seen(&self, moment: &Moment) {
        let mut moments = self.shared.moments.subscribe();
        moments.wait_for(|moments| moments.contains(moment)).await.expect("the sender is ours");
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl fmt::Debug for MailServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailServer").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Conversations end when this does.
async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut conversations = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        conversations.spawn(async move {
            // A client that goes away is one of the things that happen.
            let _ = converse(connection, &shared).await;
        });
        while conversations.try_join_next().is_some() {}
    }
}

impl Shared {
    fn now(&self, moment: Moment) -> Reaction {
        let reaction = self.script.lock().unwrap_or_else(PoisonError::into_inner)(&moment);
        self.moments.send_modify(|moments| moments.push(moment));
        reaction
    }
}

/// What a line is answered with.
enum Step {
    Say(String),
    HangUp,
    FallSilent,
}

impl Step {
    fn of(reaction: Reaction, usual: &str) -> Self {
        match reaction {
            Reaction::Usual => Self::Say(usual.to_owned()),
            Reaction::Say(text) => Self::Say(text.to_owned()),
            Reaction::HangUp => Self::HangUp,
            Reaction::FallSilent => Self::FallSilent,
        }
    }
}

async fn converse(connection: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    let (mut from, mut to) = (String::new(), String::new());
    let mut step = Step::of(shared.now(Moment::Greeting), "220 mail.test ESMTP");
    loop {
        match step {
            Step::Say(text) => connection.write_all(format!("{text}\r\n").as_bytes()).await?,
            Step::HangUp => return Ok(()),
            // Until the client has had enough.
            Step::FallSilent => return connection.read_to_end(&mut Vec::new()).await.map(drop),
        }
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        let (verb, rest) = line.split_at(line.find([' ', ':']).unwrap_or(line.len()));
        step = match verb.to_ascii_uppercase().as_str() {
            "EHLO" => Step::Say("250-mail.test\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN".to_owned()),
            "AUTH" => Step::of(shared.now(Moment::Login(rest.trim().to_owned())), "235 2.7.0 welcome"),
            "MAIL" => {
                from = address(rest);
                Step::Say("250 2.1.0 sender ok".to_owned())
            }
            "RCPT" => {
                to = address(rest);
                Step::of(shared.now(Moment::Recipient(to.clone())), "250 2.1.5 recipient ok")
            }
            "DATA" => {
                connection.write_all(b"354 go ahead\r\n").await?;
                let text = mail(&mut connection).await?;
                let mail = ReceivedMail { from: from.clone(), to: to.clone(), text };
                shared.received.send_modify(|received| received.push(mail));
                Step::of(shared.now(Moment::Mail(to.clone())), "250 2.0.0 queued as 1")
            }
            "QUIT" => {
                connection.write_all(b"221 2.0.0 bye\r\n").await?;
                return Ok(());
            }
            _ => Step::Say("500 5.5.2 what?".to_owned()),
        };
    }
}

/// What stands between `<` and `>`.
fn address(rest: &str) -> String {
    let inner = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(inner, _)| inner);
    inner.unwrap_or_default().to_owned()
}

/// Reads to the line that is only a dot.
async fn mail(connection: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 || text.len() > MAX_MAIL {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == ".\r\n" {
            return Ok(text);
        }
        text.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
