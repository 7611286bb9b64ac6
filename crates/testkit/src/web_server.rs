//! A web server on this machine for tests of those who call one: it notes what it is asked, and answers as it is told.
//! As Slack it speaks the answers that Slack documents.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// So much of a question is read at most.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where.
    pub path: String,
    /// The names in lower case.
    pub headers: Vec<(String, String)>,
    /// What.
    pub body: String,
}

impl Request {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|header| header.0 == name).map_or("", |header| &header.1)
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// This status, with this in `Retry-After` if it is given, and this body.
    Status(u16, Option<u32>, String),
    /// The connection is closed without an answer.
    HangUp,
}

impl Response {
    /// This status with this body.
    pub fn status(status: u16, body: impl Into<String>) -> Self {
        Self::Status(status, None, body.into())
    }
}

type Script = dyn FnMut(&Request) -> Response + Send;

struct Shared {
    script: Mutex<Box<Script>>,
    requests: watch::Sender<Vec<Request>>,
}

/// The server; it ends with this.
pub struct WebServer {
    port: u16,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

impl WebServer {
    /// Listens on a free port of this machine and answers like this.
    pub async fn start(script: impl FnMut(&Request) -> Response + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            script: Mutex::new(Box::new(script)),
            requests: watch::Sender::new(Vec::new()),
        });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, listening })
    }

    /// As Slack: its webhooks are below `/services/`, and its Web API, for this token, below `/api/`.
    pub async fn slack(token: &'static str) -> io::Result<Self> {
        Self::start(move |request| as_slack(request, token)).await
    }

    /// An address of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Answers like this from now on.
    pub fn answer(&self, script: impl FnMut(&Request) -> Response + Send + 'static) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// What it was asked, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.borrow().clone()
    }

    /// Waits until it was asked so often.
    pub async fn has_been_asked(&self, count: usize) {
        let mut requests = self.shared.requests.subscribe();
        requests.wait_for(|requests| requests.len() >= count).await.expect("the sender is ours");
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl fmt::Debug for WebServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebServer").field("port", &self.port).finish_non_exhaustive()
    }
}

/// What Slack answers when all is well with the question, or what is wrong with it.
pub fn as_slack(request: &Request, token: &str) -> Response {
    let body = request.json();
    if request.path.starts_with("/services/") {
        return match body["text"].as_str() {
            Some(text) if !text.is_empty() => Response::status(200, "ok"),
            _ => Response::status(400, "invalid_payload"),
        };
    }
    let refused =
        |error: &str| Response::status(200, serde_json::json!({ "ok": false, "error": error }).to_string());
    if request.path != "/api/chat.postMessage" {
        return refused("unknown_method");
    }
    if request.header("authorization") != format!("Bearer {token}") {
        return refused("invalid_auth");
    }
    match (body["channel"].as_str(), body["text"].as_str()) {
        (Some(channel), Some(text)) if !text.is_empty() => {
            let posted = serde_json::json!({ "ok": true, "channel": channel, "ts": "1503435956.000247" });
            Response::status(200, posted.to_string())
        }
        (None, _) => refused("channel_not_found"),
        _ => refused("no_text"),
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A client that goes away is one of the things that happen.
            let _ = serve(connection, &shared).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One question for each connection.
async fn serve(connection: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut request = Request { path, headers, body: String::new() };
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length.min(MAX_BODY)];
    connection.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    let response = shared.script.lock().unwrap_or_else(PoisonError::into_inner)(&request);
    shared.requests.send_modify(|requests| requests.push(request));
    let Response::Status(status, retry_after, body) = response else { return Ok(()) };
    let retry_after = retry_after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{retry_after}\r\n");
    connection.write_all(format!("{head}{body}").as_bytes()).await?;
    connection.shutdown().await
}
