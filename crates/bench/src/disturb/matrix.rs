//! The whole matrix, printed as a table.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use testkit::{Cluster, ClusterError, TestDatabase};

use super::{ChildProgram, Disturbance, Place, Plan, run};
use crate::{BoxError, DURABLE};

const HEAD: &str = "\
| database | disturbance | appends by | appenders | appends/s | events | lost / twice / out of order / not ascending \
| acknowledged and missing / rolled back and there | feed: delay p50 / p99 / max ms | filtered: delay p50 / p99 / max ms \
| calls repeated |
|---|---|---|---:|---:|---:|---|---|---|---|---:|";
/// What is no fault of a stranger's stays far below this.
const DELAY_BOUND: Duration = Duration::from_secs(1);
/// Whoever is not there by then waits for somebody who does not go.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(20);

/// What of the matrix is run, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// How many appenders, one cell for each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64])]
    appenders: Vec<usize>,
    /// For how long the appenders of a cell append.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Only the disturbances whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Only 8 appenders, 2 seconds each.
    #[arg(long)]
    short: bool,
    /// Writes the table into this file too.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

/// Runs the matrix on both databases and prints the table; says whether all was well.
pub async fn measure(arguments: &Arguments) -> Result<bool, BoxError> {
    let child = ChildProgram(std::env::current_exe()?);
    let cluster = match Cluster::start_with(&DURABLE) {
        Ok(cluster) => Some(cluster),
        Err(ClusterError::NoServer(error)) => {
            eprintln!("PostgreSQL is left out: could not {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut table = vec![HEAD.to_owned()];
    let mut all_is_well = true;
    println!("{HEAD}");
    for cluster in cluster.as_ref().map(Some).into_iter().chain([None]) {
        for plan in arguments.plans() {
            if !plan.disturbance.is_for(cluster.is_some()) {
                continue;
            }
            let database = match cluster {
                Some(cluster) => TestDatabase::schema_in(&cluster.url("postgres")).await,
                None => TestDatabase::sqlite(),
            };
            let outcome = run(&plan, &Place { database, cluster, child: &child }).await?;
            println!("{outcome}");
            table.push(outcome.to_string());
            for violation in outcome.violations() {
                all_is_well = false;
                eprintln!("VIOLATION, {}: {violation}", plan.disturbance.name());
            }
        }
    }
    if let Some(file) = &arguments.markdown {
        let mut file = std::fs::File::create(file)?;
        writeln!(file, "{}", table.join("\n"))?;
    }
    Ok(all_is_well)
}

impl Arguments {
    fn plans(&self) -> Vec<Plan> {
        let wanted = self.only.as_deref().unwrap_or_default();
        let disturbances =
            Disturbance::ALL.into_iter().filter(|disturbance| disturbance.name().contains(wanted));
        let appenders = if self.short { &[8][..] } else { &self.appenders };
        let span = Duration::from_secs_f64(if self.short { 2.0 } else { self.seconds });
        let mut plans = Vec::new();
        for disturbance in disturbances {
            for way in disturbance.ways() {
                for appenders in appenders {
                    plans.push(Plan {
                        disturbance,
                        way: *way,
                        appenders: *appenders,
                        span,
                        think: think(*appenders),
                        delay_bound: DELAY_BOUND,
                        catch_up_limit: CATCH_UP_LIMIT,
                    });
                }
            }
        }
        plans
    }
}

/// Not as fast as possible: a reader that is only too slow would show as one that waits.
fn think(appenders: usize) -> Duration {
    Duration::from_millis(if appenders > 16 { 15 } else { 1 })
}
