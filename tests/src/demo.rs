//! `herald demo`: tells its story, ends by itself, and leaves nothing behind, however it ends.

use std::process::{Command, Stdio};

use crate::program::{Said, binary};

/// The demo with a folder of its own for what it makes.
fn demo(folder: &tempfile::TempDir) -> Command {
    let mut demo = Command::new(binary());
    // Neither is for the demo, which brings its own database.
    demo.env("HERALD_DATABASE", "nonsense").env("TMPDIR", folder.path()).arg("demo").stdin(Stdio::null());
    demo
}

/// The daemons that work on a database in this folder.
fn daemons(folder: &tempfile::TempDir) -> usize {
    let mark = format!("HERALD_DATABASE=sqlite:{}", folder.path().display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let environments = processes.filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environments.filter(|environment| String::from_utf8_lossy(environment).contains(&mark)).count()
}

#[track_caller]
fn nothing_is_left(folder: &tempfile::TempDir) {
    assert_eq!(daemons(folder), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_shows_the_failure_the_retry_and_the_recovery() {
    let folder = tempfile::tempdir().unwrap();
    let said: Said = demo(&folder).output().unwrap().into();
    let story = said.ok();
    for scene in [
        "* The first message (id: ",
        " was acknowledged.",
        "error       no such table: acme_notifications_inbox",
        "retry 1 of 5",
        "attempt 2 of 5",
        "inbox_1: was error, is active",
        "* A message that cannot be shown yet (id: ",
    ] {
        assert!(story.contains(scene), "{scene:?} is missing in {story}");
    }
    let mut last_words = story.lines().rev();
    let inbox = last_words.find(|line| line.starts_with("inbox_1 ")).unwrap();
    let columns: Vec<&str> = inbox.split_whitespace().collect();
    assert_eq!(columns[..4], ["inbox_1", "projector", "active", "idle"], "{story}");
    nothing_is_left(&folder);
}

#[test]
fn a_demo_that_is_ended_cleans_up() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130), ("-HUP", 129)] {
        let folder = tempfile::tempdir().unwrap();
        let mut running = demo(&folder).stdout(Stdio::piped()).spawn().unwrap();
        // It is in the middle of its story once it has said something that a command answered.
        let mut story = std::io::BufReader::new(running.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("Sent notification") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut story, &mut line).unwrap() > 0, "it ended early");
        }
        let id = running.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert_eq!(running.wait().unwrap().code(), Some(code));
        nothing_is_left(&folder);
    }
}

#[test]
fn a_demo_that_nobody_reads_to_the_end_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = demo(&folder).stdout(Stdio::piped()).spawn().unwrap();
    drop(demo.stdout.take());
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    nothing_is_left(&folder);
}
