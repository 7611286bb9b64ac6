//! A network that vanishes: packets are dropped in both directions, and no side is told.
//!
//! All of it happens in a network of its own (`unshare --net`), in which this program runs once more: the server
//! listens there, the one worker reaches it by an address of its own, and a rule of the kernel drops whatever comes or
//! goes by that address.

use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{Cluster, TestDatabase};
use tokio::time::{Instant, timeout};

use super::child::micros;
use super::{Scene, print, since};
use crate::BoxError;
use crate::disturb::ChildProgram;

/// Set where this program runs in a network of its own.
const INSIDE: &str = "HERALD_BENCH_NETWORK_OF_ITS_OWN";
/// The way of the worker whose network vanishes.
const ITS_ADDRESS: &str = "127.0.0.3";
/// Less than this is asked for.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn measure(child: &ChildProgram, rounds: usize) -> Result<(), BoxError> {
    if std::env::var_os(INSIDE).is_none() {
        return run_inside(child, rounds);
    }
    tool("ip", &["link", "set", "lo", "up"])?;
    tool("nft", &["add table inet fire"])?;
    tool("nft", &["add chain inet fire in { type filter hook input priority 0; }"])?;
    let cluster = Cluster::start_with(&["listen_addresses=*"])?;
    let (mut server, mut client, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
        let mut scene = Scene::set(&database, child).await?;
        let second = scene.start("second", &[]).await?;
        let near = scene.url.clone();
        scene.url = near.replace("127.0.0.1", ITS_ADDRESS);
        let mut first = scene.start("first", &["--hold", "--probe"]).await?;
        let position = scene.have_it_hold(&mut first).await?;
        let vanished = micros();
        for address in ["daddr", "saddr"] {
            tool("nft", &[&format!("add rule inet fire in ip {address} {ITS_ADDRESS} drop")])?;
        }
        let since_then = Instant::now();
        let noticed = async {
            first.says("gone").await?;
            Ok::<_, BoxError>(since_then.elapsed())
        };
        let (noticed, handled) = tokio::join!(noticed, scene.until_handled(position));
        client.push(noticed?);
        server.push(since(vanished, handled?.3));
        tool("nft", &["flush chain inet fire in"])?;
        let returned = Instant::now();
        timeout(super::PATIENCE, first.says("back")).await??;
        back.push(returned.elapsed());
        first.kill().await?;
        second.kill().await?;
        scene.store.close().await;
    }
    println!("| database | what | p50 ms | max ms |\n|---|---|---:|---:|");
    let worst = server.iter().chain(&client).max().copied().unwrap_or_default();
    print("PostgreSQL", "network vanished: until another worker has handled its event", server);
    print("PostgreSQL", "network vanished: until its worker knows", client);
    print("PostgreSQL", "network back: until its worker is there again", back);
    if worst > LIMIT { Err(format!("{worst:?} is more than {LIMIT:?}").into()) } else { Ok(()) }
}

fn run_inside(child: &ChildProgram, rounds: usize) -> Result<(), BoxError> {
    let rounds = rounds.to_string();
    let mut command = Command::new("unshare");
    command.arg("--net").arg(&child.0).args(["takeover", "--vanish", "--rounds", &rounds]).env(INSIDE, "1");
    let status = command.status().map_err(|error| format!("could not run unshare: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("in a network of its own it ended with {status}; it needs root, `unshare`, `ip` and `nft`")
        .into())
}

fn tool(program: &str, arguments: &[&str]) -> Result<(), BoxError> {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} {arguments:?} ended with {status}").into()),
        Err(error) => Err(format!("could not run {program}: {error}").into()),
    }
}
