//! A slow network between a program and PostgreSQL, that a test has under control: it can keep back the answer to a
//! certain statement while other things happen, so that one interleaving of two tasks is had for certain; and it can
//! vanish, without a word to either side.
//!
//! It passes everything on, and understands just enough of the protocol to know which statement an answer is to.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// The proxy; it ends, and so does every connection through it, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    rule: Rule,
    way: watch::Sender<Way>,
    _tasks: JoinSet<()>,
}

/// An answer that is kept back until this is released or dropped.
#[derive(Debug)]
pub struct HeldAnswer {
    arrived: oneshot::Receiver<()>,
    _release: oneshot::Sender<()>,
}

/// Whether there is a way at present.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    is_gone: bool,
    /// How often it has vanished.
    times: u64,
}

/// Which answer is kept back: the next one to a statement with this text.
type Rule = Arc<Mutex<Option<(String, Hold)>>>;

#[derive(Debug)]
struct Hold {
    arrived: oneshot::Sender<()>,
    release: oneshot::Receiver<()>,
}

impl Proxy {
    /// Begins to listen, for the server at this URL.
    pub async fn start(url: &str) -> Self {
        let server = address(url).to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let rule = Rule::default();
        let mut tasks = JoinSet::new();
        let of_listener = Arc::clone(&rule);
        let way = watch::Sender::new(Way::default());
        let seen = way.subscribe();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass_on(client, server.clone(), Arc::clone(&of_listener), seen.clone()));
            }
        });
        Self { port, rule, way, _tasks: tasks }
    }

    /// The URL that leads to the same place by this way.
    pub fn url(&self, url: &str) -> String {
        url.replacen(address(url), &format!("127.0.0.1:{}", self.port), 1)
    }

    /// From now on nothing gets through, and nobody is told.
    pub fn vanish(&self) {
        self.way.send_modify(|way| *way = Way { is_gone: true, times: way.times + 1 });
    }

    /// New connections get through again. The server has given up those from before, of which their clients hear
    /// nothing.
    pub fn come_back(&self) {
        self.way.send_modify(|way| way.is_gone = false);
    }

    /// Keeps back the answer to the next statement that has this in its text.
    pub fn hold_answer_to(&self, text: &str) -> HeldAnswer {
        let (arrived, arrives) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let hold = Hold { arrived, release: released };
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some((text.to_owned(), hold));
        HeldAnswer { arrived: arrives, _release: release }
    }
}

impl HeldAnswer {
    /// Waits until the server has answered.
    pub async fn arrived(&mut self) {
        (&mut self.arrived).await.expect("the statement is run");
    }

    /// Lets the answer through.
    pub fn release(self) {}
}

/// `HOST:PORT` of a URL with a user and a database.
fn address(url: &str) -> &str {
    let rest = url.split_once('@').expect("a URL with a user").1;
    rest.split_once('/').expect("a URL with a database").0
}

async fn pass_on(client: TcpStream, server: String, rule: Rule, mut way: watch::Receiver<Way>) {
    // The kernel has accepted it already; of what follows nothing arrives while there is no way.
    let Ok(times) = way.wait_for(|way| !way.is_gone).await.map(|way| way.times) else { return };
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let holds = Arc::new(Mutex::new(None));
    let (mut from_client, mut to_client) = (from_client, to_client);
    {
        let mut statements = pin!(statements(&mut from_client, to_server, &rule, &holds));
        let mut answers = pin!(answers(from_server, &mut to_client, &holds));
        // Whichever side ends first ends both.
        tokio::select! {
            _ = &mut statements => return,
            _ = &mut answers => return,
            _ = way.wait_for(|way| way.times > times) => {}
        }
        let _ = way.wait_for(|way| !way.is_gone).await;
    }
    // The server's side has ended here. The client's never does by itself.
    std::future::pending::<()>().await;
}

/// Passes on what the client says, message by message, and notes when an answer is to be kept back.
async fn statements(
    client: &mut OwnedReadHalf,
    mut server: OwnedWriteHalf,
    rule: &Rule,
    holds: &Mutex<Option<Hold>>,
) -> io::Result<()> {
    // The first message has no kind.
    let length = client.read_u32().await?;
    server.write_u32(length).await?;
    server.write_all(&body(client, length).await?).await?;
    // The prepared statements that have the text of the rule.
    let mut names = HashSet::new();
    loop {
        let kind = client.read_u8().await?;
        let length = client.read_u32().await?;
        let body = body(client, length).await?;
        if let Some(hold) = matching(rule, kind, &body, &mut names) {
            *holds.lock().unwrap_or_else(PoisonError::into_inner) = Some(hold);
        }
        server.write_u8(kind).await?;
        server.write_u32(length).await?;
        server.write_all(&body).await?;
    }
}

/// Takes the rule if this message runs a statement with its text.
fn matching(rule: &Rule, kind: u8, body: &[u8], names: &mut HashSet<Vec<u8>>) -> Option<Hold> {
    let mut rule = rule.lock().unwrap_or_else(PoisonError::into_inner);
    let (text, _) = rule.as_ref()?;
    let mut texts = body.split(|byte| *byte == 0);
    let (first, second) = (texts.next()?, texts.next()?);
    // Parse: a name, a text. Bind: a portal, a name.
    if kind == b'P' && String::from_utf8_lossy(second).contains(text) {
        names.insert(first.to_vec());
    }
    let is_run = kind == b'B' && names.contains(second);
    is_run.then(|| rule.take()).flatten().map(|(_, hold)| hold)
}

async fn body(client: &mut OwnedReadHalf, length: u32) -> io::Result<Vec<u8>> {
    // The length counts itself.
    let mut body = vec![0; length.saturating_sub(4) as usize];
    client.read_exact(&mut body).await?;
    Ok(body)
}

async fn answers(
    mut server: OwnedReadHalf,
    client: &mut OwnedWriteHalf,
    holds: &Mutex<Option<Hold>>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = server.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        let hold = holds.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hold) = hold {
            let _ = hold.arrived.send(());
            let _ = hold.release.await;
        }
        client.write_all(&bytes[..count]).await?;
    }
}
