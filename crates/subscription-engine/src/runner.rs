//! Whether the process that wrote something down is still there.
//!
//! The kernel of this machine knows its processes: that is a proof. On PostgreSQL the session that wrote something down
//! is known to the server as well, from wherever one looks; that it is gone tells much, but a process outlives a session,
//! so nothing is decided by it. What cannot be proved is not claimed.

use std::path::Path;
use std::sync::OnceLock;

use store::{Database, DatabaseKind};
use uuid::Uuid;

/// Whether a runner is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Lives,
    Gone,
    CannotTell,
}

/// This process, for as long as it runs.
pub(crate) fn this_process() -> Uuid {
    static ID: OnceLock<Uuid> = OnceLock::new();
    *ID.get_or_init(Uuid::now_v7)
}

/// What this process writes down of itself where its end must be proved.
pub(crate) fn this_process_here() -> String {
    format!("{} {}", this_process(), in_this_system("self").unwrap_or_default())
}

/// What it writes down where others only want to know how it seems. On PostgreSQL the statement adds its session.
pub(crate) fn this_runner(database: &Database) -> String {
    match database.kind() {
        DatabaseKind::Postgres => this_process().to_string(),
        DatabaseKind::Sqlite => this_process_here(),
    }
}

/// What tells a process of this machine, in this boot and this container, from every other one: none where there is
/// no /proc.
fn in_this_system(process: &str) -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let stat = read(&format!("/proc/{process}/stat"))?;
    // The name in parentheses may contain anything.
    let (process, rest) = (stat.split(' ').next()?, stat.rsplit_once(')')?.1);
    let mut rest = rest.split_whitespace();
    let (state, started) = (rest.next()?, rest.nth(18)?);
    // A process that has ended and whose parent has not asked for it yet is there no more.
    let started = if matches!(state, "Z" | "X") { "ended" } else { started };
    Some(format!("{} {} {process} {started}", boot.trim(), namespace.display()))
}

/// Whether the process that says this of itself is there.
pub(crate) fn life_in_this_system(runner: &str) -> Life {
    let mut words = runner.split(' ');
    let (Some(boot), Some(namespace), Some(process)) = (words.nth(1), words.next(), words.next()) else {
        return Life::CannotTell;
    };
    let Some(here) = in_this_system("self") else { return Life::CannotTell };
    if !here.starts_with(&format!("{boot} {namespace} ")) {
        // Another container, or this machine before it was started anew: its processes cannot be seen from here.
        return Life::CannotTell;
    }
    let Some(there) = in_this_system(process) else {
        let is_there = Path::new("/proc").join(process).exists();
        return if is_there { Life::CannotTell } else { Life::Gone };
    };
    if runner.ends_with(&format!(" {there}")) { Life::Lives } else { Life::Gone }
}

/// Whether the runner of [`this_runner`] seems to be there.
pub(crate) async fn life(database: &Database, runner: &str) -> sqlx::Result<Life> {
    if database.kind() == DatabaseKind::Sqlite {
        return Ok(life_in_this_system(runner));
    }
    if !runner.contains(' ') {
        return Ok(Life::CannotTell);
    }
    let sql = "SELECT COUNT(*) FROM pg_stat_activity
                WHERE $1 LIKE '% ' || pid || ' %'
                  AND (backend_start IS NULL OR $1 LIKE '% ' || pid || ' ' || extract(epoch FROM backend_start)::text)";
    let row: Option<(i64,)> = database.fetch_optional(sql, (runner,)).await?;
    Ok(if row.is_some_and(|row| row.0 > 0) { Life::Lives } else { Life::Gone })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e34_this_process_lives_and_one_that_has_ended_does_not() {
        let here = in_this_system("self").unwrap();
        assert_eq!(life_in_this_system(&format!("{} {here}", this_process())), Life::Lives);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let there = in_this_system(&child.id().to_string()).unwrap();
        child.wait().unwrap();
        assert_eq!(life_in_this_system(&format!("{} {there}", Uuid::now_v7())), Life::Gone);
    }

    #[test]
    fn e62_a_process_that_was_killed_and_not_yet_asked_for_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let there = in_this_system(&child.id().to_string()).unwrap();
        let runner = format!("{} {there}", Uuid::now_v7());
        assert_eq!(life_in_this_system(&runner), Life::Lives);
        child.kill().unwrap();
        while life_in_this_system(&runner) == Life::Lives {
            std::thread::yield_now();
        }
        assert_eq!(life_in_this_system(&runner), Life::Gone);
        child.wait().unwrap();
    }

    #[test]
    fn e34_of_another_machine_nothing_can_be_told() {
        let elsewhere = format!("{} another-boot pid:[1] 1 1", Uuid::now_v7());
        assert_eq!(life_in_this_system(&elsewhere), Life::CannotTell);
        assert_eq!(life_in_this_system(&Uuid::now_v7().to_string()), Life::CannotTell);
    }
}
