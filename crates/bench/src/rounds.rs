//! Two contenders that take turns: the raw limit and Herald, and what their ratio was round by round.

use std::fmt;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::BoxError;

/// How long everything takes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Rounds of each case; the first one is thrown away.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Turns of each contender in a round.
    #[arg(long, default_value_t = 20)]
    turns: usize,
    /// How long a turn is: short, so that what else the machine does meets both alike.
    #[arg(long, default_value_t = 50)]
    turn_ms: u64,
}

/// Somebody who does the same thing again and again.
pub(crate) trait Caller: Send + 'static {
    fn call(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// One line of a table.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) database: &'static str,
    pub(crate) what: String,
    pub(crate) raw: Spread,
    pub(crate) herald: Spread,
    pub(crate) ratio: Spread,
}

/// The middle one of several figures, and the range in which they lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Plan {
    /// As [`Plan::compare`], where one call does so many things at once and a turn is one call.
    pub(crate) async fn compare_whole_runs<R: Caller, H: Caller>(
        &self,
        database: &'static str,
        what: String,
        things: u32,
        raw: Vec<R>,
        herald: Vec<H>,
    ) -> Result<Line, BoxError> {
        let one_call = Self { turns: 1, turn_ms: 0, ..*self };
        let line = one_call.take_turns(database, what, raw, herald).await?;
        let each = f64::from(things);
        let line = Line { raw: line.raw.times(each), herald: line.herald.times(each), ..line };
        eprintln!("{line}");
        Ok(line)
    }

    /// Lets the two take turns and compares them round by round.
    pub(crate) async fn compare<R: Caller, H: Caller>(
        &self,
        database: &'static str,
        what: String,
        raw: Vec<R>,
        herald: Vec<H>,
    ) -> Result<Line, BoxError> {
        let line = self.take_turns(database, what, raw, herald).await?;
        eprintln!("{line}");
        Ok(line)
    }

    async fn take_turns<R: Caller, H: Caller>(
        &self,
        database: &'static str,
        what: String,
        mut raw: Vec<R>,
        mut herald: Vec<H>,
    ) -> Result<Line, BoxError> {
        let turn = Duration::from_millis(self.turn_ms);
        let (mut raws, mut heralds) = (Vec::new(), Vec::new());
        for round in 0..=self.rounds.max(1) {
            let (mut of_raw, mut of_herald) = (Pace::default(), Pace::default());
            for turn_of_round in 0..self.turns {
                // The one who begins changes, so that neither always follows the other.
                if (round + turn_of_round) % 2 == 0 {
                    raw = of_raw.take_turn(raw, turn).await?;
                    herald = of_herald.take_turn(herald, turn).await?;
                } else {
                    herald = of_herald.take_turn(herald, turn).await?;
                    raw = of_raw.take_turn(raw, turn).await?;
                }
            }
            // The first round fills caches and prepares statements.
            if round > 0 {
                raws.push(of_raw.calls_per_second());
                heralds.push(of_herald.calls_per_second());
            }
        }
        let ratio = Spread::of(raws.iter().zip(&heralds).map(|(raw, herald)| herald / raw).collect());
        Ok(Line { database, what, raw: Spread::of(raws), herald: Spread::of(heralds), ratio })
    }
}

/// What one contender did in the turns of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    calls: u32,
    took: Duration,
}

impl Pace {
    /// Lets all callers work at the same time and gives them back.
    async fn take_turn<C: Caller>(&mut self, callers: Vec<C>, turn: Duration) -> Result<Vec<C>, BoxError> {
        let start = Instant::now();
        let mut working = JoinSet::new();
        for mut caller in callers {
            working.spawn(async move {
                let mut calls = 0;
                loop {
                    caller.call().await?;
                    calls += 1;
                    if start.elapsed() >= turn {
                        return Ok::<_, BoxError>((caller, calls));
                    }
                }
            });
        }
        let mut callers = Vec::new();
        for done in working.join_all().await {
            let (caller, calls) = done?;
            callers.push(caller);
            self.calls += calls;
        }
        self.took += start.elapsed();
        Ok(callers)
    }

    fn calls_per_second(&self) -> f64 {
        f64::from(self.calls) / self.took.as_secs_f64()
    }
}

impl Spread {
    fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, least: self.least * factor, most: self.most * factor }
    }

    fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self { median: figures[figures.len() / 2], least: figures[0], most: figures[figures.len() - 1] }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { database, what, raw, herald, ratio } = self;
        write!(
            f,
            "| {database} | {what} | {:.0} | {:.0} | **{:.2}** ({:.2}–{:.2}) |",
            raw.median, herald.median, ratio.median, ratio.least, ratio.most
        )
    }
}

/// Prints the lines as a table.
pub(crate) fn print_table(unit: &str, lines: &[Line]) {
    println!("| database | case | raw {unit} | Herald {unit} | ratio in a round: median (min–max) |");
    println!("|---|---|---:|---:|---|");
    for line in lines {
        println!("{line}");
    }
}
