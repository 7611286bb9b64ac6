//! A PostgreSQL cluster for tests, made from the server programs of this machine and thrown away afterwards.
//!
//! It never touches a cluster that is already there and never outlives its owner: a small supervisor
//! (`cluster/supervisor.sh`) reads from a pipe that only this process holds. However this process ends, the pipe
//! closes, and the supervisor stops the server and removes its folder.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::server::{NoServer, Server};

mod supervisor;

use supervisor::Supervisor;

/// Below the range from which Linux takes the ports of outgoing connections: there, a client that reconnects in a
/// loop while the server restarts can be given the server's own port, and keeps it.
const PORTS: Range<u16> = 15_000..32_000;
/// Between the look for a free port and the server's `bind`, somebody else may have taken it.
const PORT_ATTEMPTS: usize = 5;
/// Far more than a start takes on a busy machine, even one that recovers from the log first; only a hang gets here.
const READY_LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// What of the server's log stands in an error.
const LOG_LINES: usize = 12;

/// A running throw-away cluster; dropping it stops the server and removes all data.
#[derive(Debug)]
pub struct Cluster {
    port: u16,
    folder: PathBuf,
    supervisor: Mutex<Supervisor>,
}

/// Why there is no cluster, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This machine has no server programs.
    #[error(transparent)]
    NoServer(#[from] NoServer),
    /// This process belongs to root, whom PostgreSQL refuses.
    #[error(
        "run PostgreSQL as root, for it refuses that, nor as another user, for there is no `postgres` or `nobody`"
    )]
    NoUser,
    /// The supervisor, a `/bin/sh`, could not be launched.
    #[error("launch the supervisor of a throw-away PostgreSQL")]
    Launch(#[source] io::Error),
    /// The supervisor ended or hangs.
    #[error("get an answer from the supervisor of the throw-away PostgreSQL to {order:?}")]
    NoAnswer {
        /// What it was told.
        order: String,
    },
    /// `initdb` failed, or `pg_basebackup` for a standby.
    #[error("create a throw-away PostgreSQL in {}; its log ends with:\n{log}", .folder.display())]
    Create {
        /// Where it should have been.
        folder: PathBuf,
        /// The last lines of what it said.
        log: String,
    },
    /// The server ended at once or was not ready in time.
    #[error("start a throw-away PostgreSQL on port {port}; its log ends with:\n{log}")]
    Start {
        /// Where it should have listened.
        port: u16,
        /// The last lines of what the server said.
        log: String,
    },
}

impl Cluster {
    /// Creates a cluster and starts it; it accepts connections when this returns.
    pub fn start() -> Result<Cluster, ClusterError> {
        Cluster::start_with(&[])
    }

    /// As [`Cluster::start`], with further settings such as `"wal_level=logical"`.
    pub fn start_with(settings: &[&str]) -> Result<Cluster, ClusterError> {
        Cluster::start_as(None, settings)
    }

    /// A hot standby of this cluster: it follows what is committed here and can be read. It accepts connections
    /// when this returns; `SELECT pg_promote()` makes it a primary.
    pub fn start_standby(&self) -> Result<Cluster, ClusterError> {
        Cluster::start_as(Some(&self.url("postgres")), &[])
    }

    fn start_as(primary: Option<&str>, settings: &[&str]) -> Result<Cluster, ClusterError> {
        let server = Server::find()?;
        let (mut supervisor, folder) = Supervisor::launch(&server, primary, settings)?;
        let port = start_on_free_port(&mut supervisor, &folder)?;
        Ok(Cluster { port, folder, supervisor: Mutex::new(supervisor) })
    }

    /// Where to connect for `database`; the database `postgres` is always there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Crashes the server (`pg_ctl stop -m immediate`: no checkpoint, all connections cut) and starts it again on
    /// the same port and data, so that it recovers from its log. It accepts connections when this returns.
    pub fn restart_immediate(&self) -> Result<(), ClusterError> {
        self.restart("QUIT")
    }

    /// Stops the server in good order (`pg_ctl stop -m fast`: all connections cut, open transactions rolled back)
    /// and starts it again on the same port and data. It accepts connections when this returns.
    pub fn restart_fast(&self) -> Result<(), ClusterError> {
        self.restart("INT")
    }

    fn restart(&self, signal: &str) -> Result<(), ClusterError> {
        let mut supervisor = self.supervisor();
        supervisor.ask(&format!("stop {signal}"))?;
        start_on(&mut supervisor, &self.folder, self.port)
    }

    fn supervisor(&self) -> MutexGuard<'_, Supervisor> {
        // A test that panicked in between has left the pipe in order: an answer is read with its order.
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start_on_free_port(supervisor: &mut Supervisor, folder: &Path) -> Result<u16, ClusterError> {
    let mut attempt = 1;
    loop {
        let port = free_port();
        match start_on(supervisor, folder, port) {
            Ok(()) => return Ok(port),
            Err(ClusterError::Start { .. }) if attempt < PORT_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

fn start_on(supervisor: &mut Supervisor, folder: &Path, port: u16) -> Result<(), ClusterError> {
    supervisor.ask(&format!("start {port}"))?;
    let deadline = Instant::now() + READY_LIMIT;
    while !(says_ready(folder) && open_session(port).is_ok()) {
        if supervisor.ask("look")? == "gone" || Instant::now() > deadline {
            supervisor.ask("stop QUIT")?;
            return Err(ClusterError::Start { port, log: end_of_log(folder) });
        }
        thread::sleep(LOOK_AGAIN_AFTER);
    }
    Ok(())
}

fn free_port() -> u16 {
    let count = u64::from(PORTS.end - PORTS.start);
    loop {
        let offset = RandomState::new().hash_one(()) % count;
        let port = PORTS.start + u16::try_from(offset).expect("less than the length of a range of u16");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn end_of_log(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_else(|error| format!("(no log: {error})"));
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Whether the server of this folder, and no other that was faster to take the port, is the one that answers there.
/// It writes so into the eighth line of a file in its folder.
fn says_ready(folder: &Path) -> bool {
    let status = fs::read_to_string(folder.join("data/postmaster.pid"));
    status.is_ok_and(|status| matches!(status.lines().nth(7).map(str::trim_end), Some("ready" | "standby")))
}

/// Speaks just enough of PostgreSQL's protocol, version 3, to be told "ready for query".
fn open_session(port: u16) -> io::Result<TcpStream> {
    const PARAMETERS: &[u8] = b"user\0postgres\0database\0postgres\0\0";
    const PROTOCOL_3: i32 = 3 << 16;

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;

    let length = i32::try_from(8 + PARAMETERS.len()).expect("a short constant");
    let startup = [&length.to_be_bytes()[..], &PROTOCOL_3.to_be_bytes(), PARAMETERS].concat();
    stream.write_all(&startup)?;

    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        // The length counts itself.
        let rest = u64::from(u32::from_be_bytes(length).saturating_sub(4));
        io::copy(&mut Read::by_ref(&mut stream).take(rest), &mut io::sink())?;
        match kind {
            b'Z' => return Ok(stream),
            b'E' => return Err(io::Error::other("the server refuses sessions")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::own_postgres_or_left_out;

    const HOLDS_A_CLUSTER: &str = "HERALD_TEST_HOLDS_A_CLUSTER";

    /// Returns once the server has closed `session`.
    fn wait_for_end(mut session: TcpStream) {
        session.set_read_timeout(Some(READY_LIMIT)).unwrap();
        session.read_to_end(&mut Vec::new()).unwrap();
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + READY_LIMIT;
        while !condition() {
            assert!(Instant::now() < deadline, "not within {READY_LIMIT:?}");
            thread::sleep(LOOK_AGAIN_AFTER);
        }
    }

    #[test]
    fn a_cluster_accepts_sessions_until_it_is_dropped() {
        let Some(cluster) = own_postgres_or_left_out("a_cluster_accepts_sessions_until_it_is_dropped") else {
            return;
        };
        let (port, folder) = (cluster.port, cluster.folder.clone());
        assert_eq!(cluster.url("orders"), format!("postgres://postgres@127.0.0.1:{port}/orders"));
        let session = open_session(port).unwrap();

        drop(cluster);

        wait_for_end(session);
        assert!(!folder.exists());
        assert!(open_session(port).is_err());
    }

    #[test]
    fn a_restart_cuts_sessions_and_keeps_port_and_data() {
        let Some(cluster) = own_postgres_or_left_out("a_restart_cuts_sessions_and_keeps_port_and_data")
        else {
            return;
        };

        for restart in [Cluster::restart_immediate, Cluster::restart_fast] {
            let session = open_session(cluster.port).unwrap();
            restart(&cluster).unwrap();
            wait_for_end(session);
            open_session(cluster.port).unwrap();
        }

        let log = fs::read_to_string(cluster.folder.join("log")).unwrap();
        assert_eq!(log.matches("was not properly shut down; automatic recovery").count(), 1, "{log}");
    }

    #[test]
    fn a_setting_the_server_does_not_know_is_reported_in_its_words() {
        let name = "a_setting_the_server_does_not_know_is_reported_in_its_words";
        if own_postgres_or_left_out(name).is_none() {
            return;
        }

        let error = Cluster::start_with(&["no_such_setting=1"]).unwrap_err();

        assert!(matches!(error, ClusterError::Start { .. }), "{error}");
        assert!(error.to_string().contains("no_such_setting"), "{error}");
    }

    #[test]
    fn another_server_on_the_port_is_not_taken_for_ours() {
        let Some(ours) = own_postgres_or_left_out("another_server_on_the_port_is_not_taken_for_ours") else {
            return;
        };
        let other = Cluster::start().unwrap();
        let mut supervisor = ours.supervisor();
        supervisor.ask("stop INT").unwrap();

        let error = start_on(&mut supervisor, &ours.folder, other.port).unwrap_err();

        assert!(error.to_string().contains("Address already in use"), "{error}");
    }

    /// Runs itself once more as the test process that gets killed.
    #[test]
    fn nothing_outlives_a_killed_test_process() {
        let Some(cluster) = own_postgres_or_left_out("nothing_outlives_a_killed_test_process") else {
            return;
        };
        if env::var_os(HOLDS_A_CLUSTER).is_some() {
            println!("\nholds {} {}", cluster.port, cluster.folder.display());
            io::stdin().read_to_end(&mut Vec::new()).unwrap();
            return;
        }
        let mut holder = Command::new(env::current_exe().unwrap())
            .args(["--exact", "cluster::tests::nothing_outlives_a_killed_test_process", "--nocapture"])
            .env(HOLDS_A_CLUSTER, "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (port, folder) = BufReader::new(holder.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                let (port, folder) = line.strip_prefix("holds ")?.split_once(' ')?;
                Some((port.parse().unwrap(), PathBuf::from(folder)))
            })
            .unwrap();
        let session = open_session(port).unwrap();

        holder.kill().unwrap();
        holder.wait().unwrap();

        wait_for_end(session);
        wait_until(|| !folder.exists());
        assert!(open_session(port).is_err());
        open_session(cluster.port).expect("only the killed process loses its cluster");
    }
}
