//! Steering by hand what no failure and no worker changes: where a projector stands, and what the row says of the code.
//!
//! Each is one transaction under the row's claim, with a line of history that says who and why.

use store::Position;

use crate::dead_letters;
use crate::definition_record::DefinitionRecord;
use crate::engine::{Criteria, Engine, EngineError, Outcome, Report, refuse_inside_unit};
use crate::lifecycle::no_code;
use crate::markers;
use crate::poison::Letters;
use crate::records;
use crate::subscriber::{Definition, Kind};
use crate::subscription::{Resume, State, Subscription, Transition, next};

fn refused(why: impl Into<String>) -> Outcome {
    Outcome::Refused { why: why.into() }
}

/// Where a person saw a projector stand, and where it is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placing {
    /// It stood here when that was decided.
    pub seen_at: Position,
    /// What comes after this position is handled next.
    pub to: Position,
}

impl Placing {
    /// Whether what was decided is still what is done to one that stands here now: set back it handles again what it
    /// has handled, and moved forward it passes over nothing that was not seen.
    fn still_holds_at(&self, stands: Position) -> bool {
        if self.to < self.seen_at { self.to < stands } else { (self.seen_at..self.to).contains(&stands) }
    }
}

impl Engine {
    /// Puts a projector somewhere else: back, so that events come once more, or forward, so that some never come. What
    /// comes once more plans nothing, because it has been planned before; what comes for the first time after that does.
    /// Refused for anything but a projector, because actions would be repeated; and where it has moved meanwhile so
    /// that this would be something else than what was decided.
    pub async fn rewind(&self, id: &str, placing: Placing, reason: &str) -> Result<Outcome, EngineError> {
        refuse_inside_unit()?;
        let position = placing.to;
        let head = self.store().head().await?.position;
        if position < Position::START || position > head {
            return Ok(refused(format!("the log has positions up to {head}, not {position}")));
        }
        // From a place that is not its own nobody can tell what comes once more.
        if let Some(bad) = self.bad_checkpoint_of(id).await? {
            return Ok(refused(bad.to_string()));
        }
        let now = self.clock().now().await?;
        let (mut tx, seen, _) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(outcome),
        };
        let from = seen.read_from();
        let state = match self.registered(id) {
            None => Err(no_code(&seen)),
            Some(registered) if registered.definition.kind != Kind::Projector => Err(refused(format!(
                "{id} is no projector: only projectors can be put somewhere else, actions would be repeated"
            ))),
            Some(_) if position == from => Err(refused(format!("it stands at {position} already"))),
            Some(_) if !placing.still_holds_at(from) => Err(refused(format!(
                "it stood at {} when that was decided and stands at {from} now; look again",
                placing.seen_at
            ))),
            Some(_) => {
                next(&seen.state, Transition::Place).map_err(|impossible| refused(impossible.to_string()))
            }
        };
        let state = match state {
            Ok(state) => state,
            Err(outcome) => {
                tx.rollback().await;
                return Ok(outcome);
            }
        };
        let letters = dead_letters::forget(&mut tx, id, position).await?;
        markers::forget_all(&mut tx, id).await?;
        let status = seen.state.status();
        // Before its state may change: that of a failure while it booted says the same as booting.
        let seen = if position < from { seen.with_history() } else { seen };
        let mut subscription = Subscription { state, ..seen.without_attempts() };
        subscription.position = Some(position);
        subscription.letters = match subscription.letters.open.saturating_sub(letters) {
            0 => Letters::default(),
            open => Letters { open, ..subscription.letters },
        };
        subscription.changed_at = now;
        let what = if position < from { "set back" } else { "moved forward" };
        let forgot =
            if letters > 0 { format!(", which forgot {letters} dead letters") } else { String::new() };
        let why = format!("{what} from position {from} to {position}{forgot}: {reason}");
        records::save(&mut tx, &subscription, status, &why, self.who()).await?;
        tx.commit().await?;
        self.store().announce();
        tracing::warn!(subscription = id, position = position.0, "{id} was {why}");
        Ok(Outcome::Placed { from, to: position, status: subscription.state.status(), letters })
    }

    /// Brings the group, the run mode and the tables to drop from the code to the rows, and nothing else. Asked for, a
    /// changed definition is accepted as well: what was made of the events so far is right, or right enough.
    pub async fn refresh(
        &self,
        criteria: &Criteria,
        accepts_definition: bool,
        reason: &str,
    ) -> Result<Report, EngineError> {
        let mut report = Report::new();
        for subscription in self.select(criteria).await? {
            let outcome = self.refresh_one(&subscription.id, accepts_definition, reason).await?;
            report.push((subscription.id, outcome));
        }
        Ok(report)
    }

    async fn refresh_one(
        &self,
        id: &str,
        accepts_definition: bool,
        reason: &str,
    ) -> Result<Outcome, EngineError> {
        let now = self.clock().now().await?;
        let (mut tx, seen, _) = match self.begin_claimed(id).await? {
            Ok(claimed) => claimed,
            Err(outcome) => return Ok(outcome),
        };
        let Some(registered) = self.registered(id) else {
            tx.rollback().await;
            return Ok(no_code(&seen));
        };
        let mut subscription = as_its_code(&registered.definition, &seen);
        if !accepts_definition {
            subscription.definition.clone_from(&seen.definition);
        }
        let changes = changes(&seen, &subscription);
        if changes.is_empty() {
            tx.rollback().await;
            return Ok(Outcome::Refreshed { changes });
        }
        records::save_definition(&mut tx, &subscription).await?;
        let line = format!("{reason} ({})", changes.join("; "));
        records::note(&mut tx, &subscription, now, &[line], self.who()).await?;
        tx.commit().await?;
        self.store().announce();
        Ok(Outcome::Refreshed { changes })
    }
}

/// The row as its code would have it.
fn as_its_code(definition: &Definition, seen: &Subscription) -> Subscription {
    let is_set_up = seen.state.resume() != Resume::New;
    Subscription {
        group: definition.group.clone(),
        run_mode: definition.run_mode,
        clean_up: definition.table_names().unwrap_or_default(),
        definition: is_set_up.then(|| DefinitionRecord::of(definition)),
        ..seen.clone()
    }
}

/// What the code says otherwise than the row, in words; nothing while that is not known.
pub(crate) fn changes_of_code(definition: &Definition, seen: &Subscription) -> Vec<String> {
    let mut code = as_its_code(definition, seen);
    if seen.definition.is_none() {
        code.definition = None;
    }
    changes(seen, &code)
}

/// What is different, in words.
fn changes(from: &Subscription, to: &Subscription) -> Vec<String> {
    let mut changes = Vec::new();
    if from.group != to.group {
        changes.push(format!("the group was {}, is {}", from.group, to.group));
    }
    if from.run_mode != to.run_mode {
        changes.push(format!("the run mode was {}, is {}", from.run_mode, to.run_mode));
    }
    // A row that is not set up yet has no tables, whatever it says.
    if from.clean_up != to.clean_up && to.state != State::New {
        let names = |of: &Subscription| {
            of.clean_up.iter().map(|table| table.as_str().to_owned()).collect::<Vec<_>>().join(", ")
        };
        changes.push(format!("the tables to drop were [{}], are [{}]", names(from), names(to)));
    }
    match (&from.definition, &to.definition) {
        (Some(from), Some(to)) => changes.extend(to.differences_from(from)),
        (None, Some(_)) => changes.push("what it was set up as is written down".to_owned()),
        (_, None) => {}
    }
    changes
}
