//! Contenders that take turns: raw limits and Herald, and what the last of them was beside each other one, round by
//! round.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::BoxError;

/// How long everything takes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Rounds of each case; the first one is thrown away.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Turns of each contender in a round.
    #[arg(long, default_value_t = 12)]
    turns: usize,
    /// How long a turn is: short, so that what else the machine does meets both alike.
    #[arg(long, default_value_t = 50)]
    turn_ms: u64,
}

/// Somebody who does the same thing again and again.
#[async_trait]
pub(crate) trait Caller: Send + 'static {
    async fn call(&mut self) -> Result<Done, BoxError>;
}

/// What a call did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// How many events it was about.
    events: usize,
    /// How long that took, where it is not the time of the whole call.
    took: Option<Duration>,
}

impl Done {
    pub(crate) fn events(events: usize) -> Self {
        Self { events, took: None }
    }

    pub(crate) fn events_after(events: usize, took: Duration) -> Self {
        Self { events, took: Some(took) }
    }

    pub(crate) fn count(self) -> usize {
        self.events
    }

    pub(crate) fn event_after(took: Duration) -> Self {
        Self { events: 1, took: Some(took) }
    }
}

/// One who takes turns with others: all its callers work at the same time.
pub(crate) struct Contender {
    name: String,
    callers: Vec<Box<dyn Caller>>,
}

impl Contender {
    pub(crate) fn new<C: Caller>(name: impl Into<String>, callers: impl IntoIterator<Item = C>) -> Self {
        let boxed = |caller| Box::new(caller) as Box<dyn Caller>;
        Self { name: name.into(), callers: callers.into_iter().map(boxed).collect() }
    }

    /// With one caller.
    pub(crate) fn boxed(name: impl Into<String>, caller: Box<dyn Caller>) -> Self {
        Self { name: name.into(), callers: vec![caller] }
    }
}

/// One line of a table.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    database: &'static str,
    case: String,
    contender: String,
    per_second: Spread,
    p50: Duration,
    p99: Duration,
    /// What the last contender did in the same round, as a multiple of this; none for the last one itself.
    last: Option<Spread>,
}

/// The middle one of several figures, and the range in which they lie.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Plan {
    /// The same where one call takes long: one a round.
    pub(crate) fn of_whole_runs(self) -> Self {
        Self { turns: 1, turn_ms: 0, ..self }
    }

    /// How many turns each contender has, with the round that is thrown away.
    pub(crate) fn runs(&self) -> usize {
        (self.rounds.max(1) + 1) * self.turns
    }

    /// Lets the contenders take turns; the last one is compared with each of the others, round by round.
    pub(crate) async fn compare(
        &self,
        database: &'static str,
        case: &str,
        mut contenders: Vec<Contender>,
    ) -> Result<Vec<Line>, BoxError> {
        let turn = Duration::from_millis(self.turn_ms);
        let mut paces = vec![Vec::new(); contenders.len()];
        for round in 0..=self.rounds.max(1) {
            let mut of_round = vec![Pace::default(); contenders.len()];
            for turn_of_round in 0..self.turns {
                // The one who begins changes, so that nobody always follows the same other one.
                for place in 0..contenders.len() {
                    let index = (round + turn_of_round + place) % contenders.len();
                    of_round[index].take_turn(&mut contenders[index].callers, turn).await?;
                }
            }
            // The first round fills caches and prepares statements.
            if round > 0 {
                for (all, pace) in paces.iter_mut().zip(of_round) {
                    all.push(pace);
                }
            }
        }
        let speeds: Vec<Vec<f64>> =
            paces.iter().map(|paces| paces.iter().map(Pace::events_per_second).collect()).collect();
        let mut lines = Vec::new();
        for (index, contender) in contenders.iter().enumerate() {
            let beside = (index + 1 < contenders.len()).then(|| {
                let pairs = speeds[index].iter().zip(&speeds[speeds.len() - 1]);
                Spread::of(pairs.map(|(this, last)| last / this).collect())
            });
            let mut took: Vec<Duration> = paces[index].iter().flat_map(|pace| &pace.took).copied().collect();
            took.sort_unstable();
            let line = Line {
                database,
                case: case.to_owned(),
                contender: contender.name.clone(),
                per_second: Spread::of(speeds[index].clone()),
                p50: took[took.len() / 2],
                p99: took[took.len() * 99 / 100],
                last: beside,
            };
            eprintln!("{}", line.with_speed());
            lines.push(line);
        }
        Ok(lines)
    }
}

/// What one contender did in the turns of a round.
#[derive(Clone, Debug, Default)]
struct Pace {
    events: usize,
    lasted: Duration,
    took: Vec<Duration>,
}

impl Pace {
    /// Lets all callers work at the same time.
    async fn take_turn(
        &mut self,
        callers: &mut Vec<Box<dyn Caller>>,
        turn: Duration,
    ) -> Result<(), BoxError> {
        let start = Instant::now();
        let mut working = JoinSet::new();
        for mut caller in callers.drain(..) {
            working.spawn(async move {
                let (mut events, mut took, mut uncounted) = (0, Vec::new(), Duration::ZERO);
                loop {
                    let before = Instant::now();
                    let done = caller.call().await?;
                    events += done.events;
                    let elapsed = before.elapsed();
                    took.push(done.took.unwrap_or(elapsed));
                    uncounted += elapsed.saturating_sub(done.took.unwrap_or(elapsed));
                    if start.elapsed() >= turn {
                        return Ok::<_, BoxError>((caller, events, took, uncounted));
                    }
                }
            });
        }
        // What all of them did beside the thing itself.
        let mut beside = Duration::MAX;
        for done in working.join_all().await {
            let (caller, events, took, uncounted) = done?;
            beside = beside.min(uncounted);
            callers.push(caller);
            self.events += events;
            self.took.extend(took);
        }
        self.lasted += start.elapsed().saturating_sub(beside);
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a speed is rounded when it is shown")]
    fn events_per_second(&self) -> f64 {
        self.events as f64 / self.lasted.as_secs_f64()
    }
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self { median: figures[figures.len() / 2], least: figures[0], most: figures[figures.len() - 1] }
    }
}

/// `1234567` as people read it.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn milliseconds(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1_000.0;
    match ms {
        ..10.0 => format!("{ms:.2}"),
        ..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

impl Line {
    fn with_speed(&self) -> String {
        let Self { database, case, contender, per_second, .. } = self;
        let (median, least, most) = (per_second.median, per_second.least, per_second.most);
        let (median, least, most) = (thousands(median), thousands(least), thousands(most));
        let (p50, p99, last) = (milliseconds(self.p50), milliseconds(self.p99), Beside(self.last));
        format!("| {database} | {case} | {contender} | {median} ({least}–{most}) | {p50} | {p99} | {last} |")
    }

    fn with_times(&self) -> String {
        let Self { database, case, contender, .. } = self;
        let (p50, p99) = (milliseconds(self.p50), milliseconds(self.p99));
        format!("| {database} | {case} | {contender} | {p50} | {p99} |")
    }
}

/// How the last column is shown.
struct Beside(Option<Spread>);

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Spread { median, least, most }) => write!(f, "**{median:.2}** ({least:.2}–{most:.2})"),
            None => f.write_str("–"),
        }
    }
}

/// Prints the lines as a table; `beside` says what the last column compares.
pub(crate) fn print_table(beside: &str, lines: &[Line]) {
    println!(
        "| database | case | who | events/s: median (min–max) | p50 ms | p99 ms | {beside}, in a round: median (min–max) |"
    );
    println!("|---|---|---|---:|---:|---:|---|");
    for line in lines {
        println!("{}", line.with_speed());
    }
}

/// Prints only how long calls took.
pub(crate) fn print_times(lines: &[Line]) {
    println!("| database | case | who | p50 ms | p99 ms |");
    println!("|---|---|---|---:|---:|");
    for line in lines {
        println!("{}", line.with_times());
    }
}
