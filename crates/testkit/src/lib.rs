//! What the tests of this workspace stand on: real databases that come and go with the test process.
//!
//! Never part of a release: crates name it under `[dev-dependencies]` only. Who tests a subscriber begins with a
//! [`Stage`], [`TestDatabase`] and [`both`]; `docs/write-a-subscriber.md` shows how.

mod alarms;
mod cluster;
mod database;
mod deliveries;
mod hostile;
mod judge;
mod mail_server;
mod oracle;
mod proxy;
mod random;
mod server;
mod shared;
mod stage;
mod subscribers;
mod web_server;

pub use alarms::{Alarm, Alarms};
pub use cluster::{Cluster, ClusterError};
pub use database::{T0, TestDatabase};
pub use deliveries::{Planner, Receiver};
pub use hostile::{Hostile, Refused, why_not_storable};
pub use judge::{Prepared, Read, judge, judge_with, writers};
pub use mail_server::{MailServer, Moment, Reaction, ReceivedMail};
pub use oracle::{Acknowledged, Delivered, Findings, Table, WANTED, Wanted};
pub use proxy::{HeldAnswer, Proxy};
pub use random::Random;
pub use server::{NoServer, Server};
pub use shared::{own_postgres_or_left_out, postgres_or_left_out, program_or_left_out, shared_postgres_url};
pub use stage::Stage;
pub use subscribers::{Collector, Failing, Held, KillSwitch, Scene, Scripted, position, positions};
pub use web_server::{Request, Response, WebServer, as_slack};

/// Runs the examples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/write-a-subscriber.md")]
struct Guide;
