//! The program as a user has it: the built binary, its commands, its daemon.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use testkit::TestDatabase;

/// The built `herald`.
pub(crate) fn binary() -> PathBuf {
    beside_the_tests("herald")
}

/// A built program of the workspace, beside the tests in the target folder.
pub(crate) fn beside_the_tests(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(|deps| deps.parent()).unwrap();
    let binary = folder.join(name);
    assert!(
        binary.exists(),
        "{} is missing: run `cargo build --workspace` first (tests/run does)",
        binary.display()
    );
    binary
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
        }
    }
}

impl Said {
    /// It went well; what it said on stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// It ended with this code and one clear sentence, not with a panic or a backtrace.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        let said = format!("{}{}", self.stdout, self.stderr);
        for trace in ["panicked", "RUST_BACKTRACE", "stack backtrace", "Error {", "Some("] {
            assert!(!said.contains(trace), "{said}");
        }
        self
    }

    /// As JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

/// A command of the program on a database, without anything of this process's settings.
pub(crate) fn command(url: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(binary());
    for name in
        ["HERALD_DATABASE__PASSWORD_FILE", "HERALD_TEST_MODE", "HERALD_LOG", "PGPASSWORD", "PGPASSFILE"]
    {
        command.env_remove(name);
    }
    command.env("HERALD_DATABASE", url).args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command of the program.
pub(crate) fn herald(database: &TestDatabase, arguments: &[&str]) -> Said {
    command(database.url(), arguments).output().unwrap().into()
}

/// As [`herald`], with these settings in its environment.
pub(crate) fn herald_with(database: &TestDatabase, settings: &[(&str, &str)], arguments: &[&str]) -> Said {
    command(database.url(), arguments).envs(settings.iter().copied()).output().unwrap().into()
}

/// A running `herald worker`; killed when the test ends.
#[derive(Debug)]
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start(database: &TestDatabase, arguments: &[&str]) -> Self {
        Self::start_with(database, &[], arguments)
    }

    /// With these settings in its environment.
    pub(crate) fn start_with(database: &TestDatabase, settings: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut worker = command(database.url(), ["worker"]);
        worker.envs(settings.iter().copied()).args(arguments);
        Self(worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command again and again until what it says is as it should be: the only way to wait for another
/// process through its public door.
#[track_caller]
pub(crate) fn until(database: &TestDatabase, arguments: &[&str], holds: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let said = herald(database, arguments);
        if said.code == Some(0) && holds(&said.stdout) {
            return said.stdout;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {arguments:?}: {said:?}");
    }
}
