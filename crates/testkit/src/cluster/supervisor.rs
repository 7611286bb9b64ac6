//! The owner of a cluster's server and folder: a shell process, and the two pipes to it.
//!
//! It runs as an ordinary user, because PostgreSQL refuses root, and holds nothing of this process but the pipes.
//! Once a [`Supervisor`] is dropped, server and folder are gone.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{ClusterError, end_of_log};
use crate::server::Server;

const SCRIPT: &str = include_str!("supervisor.sh");

/// Given to every server; what the caller asks for comes later on the command line and so wins.
const SETTINGS: [&str; 9] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    // Hundreds of tests run at the same time, each with a pool of its own.
    "max_connections=400",
    "max_prepared_transactions=20",
    "shared_buffers=128MB",
    // A crash of the machine may eat the data, a crash of the server (`restart_immediate`) may not: commits
    // still reach the operating system before they are confirmed.
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=on",
    "log_min_messages=warning",
];

/// Far more than `initdb` or a fast shutdown take on a busy machine; only a hang gets here.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// The shell process that owns the server and the folder, and the two pipes to it.
#[derive(Debug)]
pub(super) struct Supervisor {
    process: Child,
    /// `None` only while dropping: closing this end is what tells the supervisor to clean up.
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Returns with the folder, which holds a new cluster, or a copy of the one at the URL `primary`.
    pub(super) fn launch(
        server: &Server,
        primary: Option<&str>,
        settings: &[&str],
    ) -> Result<(Supervisor, PathBuf), ClusterError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "supervisor.sh"]).arg(&server.programs).arg(primary.unwrap_or_default());
        command.args(SETTINGS).args(settings);
        // Nothing of ours is handed down: whoever waits for the end of a test's output shall not wait for the
        // clean-up too. In a group of its own, an interrupt from the terminal does not reach it before us.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        command.current_dir("/");
        if is_root()? {
            let user = User::ordinary().ok_or(ClusterError::NoUser)?;
            command.uid(user.id).gid(user.group);
        }
        let mut process = command.spawn().map_err(ClusterError::Launch)?;

        let orders = process.stdin.take().expect("asked for a pipe above");
        let lines = BufReader::new(process.stdout.take().expect("asked for a pipe above")).lines();
        let (sender, answers) = mpsc::channel();
        // A thread only because a pipe cannot be read with a time limit; it ends with the supervisor.
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });

        let mut supervisor = Supervisor { process, orders: Some(orders), answers, reader: Some(reader) };
        let folder = PathBuf::from(supervisor.answer("make a folder")?);
        if supervisor.answer("create the cluster")? != "created 0" {
            return Err(ClusterError::Create { log: end_of_log(&folder), folder });
        }
        Ok((supervisor, folder))
    }

    /// Gives an order and waits for its answer; both are described in `supervisor.sh`.
    pub(super) fn ask(&mut self, order: &str) -> Result<String, ClusterError> {
        let pipe = self.orders.as_mut().expect("only `drop` takes it");
        writeln!(pipe, "{order}").map_err(|_| ClusterError::NoAnswer { order: order.to_owned() })?;
        self.answer(order)
    }

    fn answer(&mut self, order: &str) -> Result<String, ClusterError> {
        self.answers
            .recv_timeout(ANSWER_LIMIT)
            .map_err(|_| ClusterError::NoAnswer { order: order.to_owned() })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.orders.take());
        // Waits until server and folder are gone. There is nobody to tell if that fails.
        let _ = self.process.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

fn is_root() -> Result<bool, ClusterError> {
    let output = Command::new("id").arg("-u").output().map_err(ClusterError::Launch)?;
    Ok(output.stdout.trim_ascii() == b"0")
}

/// Somebody to run PostgreSQL as.
#[derive(Debug, PartialEq, Eq)]
struct User {
    id: u32,
    group: u32,
}

impl User {
    fn ordinary() -> Option<User> {
        let accounts = fs::read_to_string("/etc/passwd").ok()?;
        ["postgres", "nobody"].iter().find_map(|name| User::in_accounts(&accounts, name))
    }

    /// A line of `/etc/passwd` is `name:password:uid:gid:…`.
    fn in_accounts(accounts: &str, name: &str) -> Option<User> {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(str::parse);
        Some(User { id: numbers.next()?.ok()?, group: numbers.next()?.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let accounts = "postgres-old:x:7:7::/:/bin/sh\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n";

        assert_eq!(User::in_accounts(accounts, "postgres"), Some(User { id: 101, group: 104 }));
        assert_eq!(User::in_accounts(accounts, "nobody"), None);
    }
}
