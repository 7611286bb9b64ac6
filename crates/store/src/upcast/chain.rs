//! Upcasters that work together: checked when they are put together, then asked for each event that is read.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::{MAX_PARTS, Part, Shape, UpcastError, Upcaster};
use crate::event::{Event, InvalidEvent, check_name};
use crate::filter::Filter;
use crate::guard::{BoxError, guarded};
use crate::schema_version::{self, FIRST};

/// The namespace of ids of further parts.
const PART_IDS: Uuid = Uuid::from_u128(0x2b64_91c7_53d8_5a0e_8f1d_77c0_16ae_940b);

/// Upcasters that fit together.
#[derive(Clone, Debug, Default)]
pub struct Upcasters {
    upcasters: Vec<Upcaster>,
    /// Who takes what, by type: the schema version and the place in the list.
    by_type: HashMap<String, Vec<(u32, usize)>>,
    /// The types that are taken in some version, in order.
    taken_types: Vec<String>,
    /// For each type that comes out at an end: the stored types, other than itself, that it may come from.
    sources: BTreeMap<String, BTreeSet<String>>,
}

/// Why upcasters cannot work together.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUpcasters {
    /// It would never be asked.
    #[error("upcaster {0:?} takes nothing; name a type and a schema version with takes")]
    TakesNothing(String),
    /// A type that no event can have.
    #[error("upcaster {upcaster:?} names a type that no event can have")]
    Type {
        /// The upcaster.
        upcaster: String,
        /// What is wrong with the type.
        #[source]
        source: InvalidEvent,
    },
    /// Schema versions begin with 1.
    #[error("upcaster {upcaster:?} names schema version 0 of {event_type}; the first one is {FIRST}")]
    SchemaVersion {
        /// The upcaster.
        upcaster: String,
        /// The type.
        event_type: String,
    },
    /// Nobody could say which of the two is meant.
    #[error("{what} is taken by upcaster {first:?} and by upcaster {second:?}; let one of them take it")]
    TakenTwice {
        /// Type and schema version.
        what: String,
        /// An upcaster.
        first: String,
        /// Another one, or the same once more.
        second: String,
    },
    /// What is given comes back to who gave it, and so on without an end.
    #[error("upcasters go round in a circle: {0}; let each give a newer schema version, or another type")]
    Circle(String),
}

impl Upcasters {
    /// Puts upcasters together, in whatever order.
    pub fn new(upcasters: impl IntoIterator<Item = Upcaster>) -> Result<Self, InvalidUpcasters> {
        let upcasters: Vec<Upcaster> = upcasters.into_iter().collect();
        let mut taken: BTreeMap<&Shape, &Upcaster> = BTreeMap::new();
        for upcaster in &upcasters {
            if upcaster.takes.is_empty() {
                return Err(InvalidUpcasters::TakesNothing(upcaster.name.clone()));
            }
            upcaster.takes.iter().chain(&upcaster.gives).try_for_each(|shape| check(upcaster, shape))?;
            for shape in &upcaster.takes {
                if let Some(first) = taken.insert(shape, upcaster) {
                    return Err(InvalidUpcasters::TakenTwice {
                        what: shape.to_string(),
                        first: first.name.clone(),
                        second: upcaster.name.clone(),
                    });
                }
            }
        }
        let mut ends = BTreeMap::new();
        for shape in taken.keys() {
            follow(&taken, shape, &mut Vec::new(), &mut ends)?;
        }
        let mut sources: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (shape, types) in &ends {
            for event_type in types.iter().filter(|event_type| **event_type != shape.event_type) {
                sources.entry((*event_type).to_owned()).or_default().insert(shape.event_type.clone());
            }
        }
        let taken_types: BTreeSet<String> = taken.keys().map(|shape| shape.event_type.clone()).collect();
        let mut by_type: HashMap<String, Vec<(u32, usize)>> = HashMap::new();
        for (index, upcaster) in upcasters.iter().enumerate() {
            for shape in &upcaster.takes {
                by_type.entry(shape.event_type.clone()).or_default().push((shape.schema_version, index));
            }
        }
        Ok(Self { by_type, taken_types: taken_types.into_iter().collect(), sources, upcasters })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.upcasters.is_empty()
    }

    /// The types of which some events are shown as something else, in order.
    pub(crate) fn taken_types(&self) -> &[String] {
        &self.taken_types
    }

    /// Whether events that this filter, of stored types, lets pass may be shown as something else.
    pub(crate) fn touch(&self, stored: &Filter) -> bool {
        stored.types.as_ref().is_none_or(|types| types.iter().any(|stored| self.by_type.contains_key(stored)))
    }

    /// The filter with the types that must be looked for in the log, so that all that is wanted is found; more may
    /// be found as well. A type is always looked for itself: some versions of it nobody takes.
    pub(crate) fn stored<'f>(&self, wanted: &'f Filter) -> Cow<'f, Filter> {
        let Some(types) = &wanted.types else { return Cow::Borrowed(wanted) };
        let sources: BTreeSet<&String> =
            types.iter().filter_map(|wanted| self.sources.get(wanted)).flatten().collect();
        let mut sources = sources.into_iter().filter(|source| !types.contains(source)).peekable();
        if sources.peek().is_none() {
            return Cow::Borrowed(wanted);
        }
        let mut stored = types.clone();
        stored.extend(sources.cloned());
        Cow::Owned(Filter { types: Some(stored), ..wanted.clone() })
    }

    /// Adds to `shown` what this stored event is today, in its order.
    pub(crate) fn upcast(&self, event: Event, shown: &mut Vec<Event>) -> Result<(), BoxError> {
        let most = shown.len() + MAX_PARTS;
        self.upcast_into(event, shown, most)
    }

    /// They form no circle, so this comes to an end.
    fn upcast_into(&self, event: Event, shown: &mut Vec<Event>, most: usize) -> Result<(), BoxError> {
        let Some((upcaster, schema_version)) = self.taker(&event)? else {
            if shown.len() == most {
                return Err(format!("it becomes more than {MAX_PARTS} events").into());
            }
            shown.push(event);
            return Ok(());
        };
        let failed = |source| UpcastError {
            upcaster: upcaster.name.clone(),
            event_type: event.event_type.clone(),
            schema_version,
            source,
        };
        let parts = guarded(|| (upcaster.work)(&event)).map_err(failed)?;
        for (index, part) in parts.into_iter().enumerate() {
            let part = upcaster.part(&event, schema_version, index, part).map_err(failed)?;
            self.upcast_into(part, shown, most)?;
        }
        Ok(())
    }

    fn taker(&self, event: &Event) -> Result<Option<(&Upcaster, u32)>, BoxError> {
        let Some(takers) = self.by_type.get(event.event_type.as_str()) else { return Ok(None) };
        let version = event.schema_version()?;
        let taker = takers.iter().find(|(taken, _)| *taken == version);
        Ok(taker.map(|(_, index)| (&self.upcasters[*index], version)))
    }
}

impl Upcaster {
    /// A part of the event, in its place.
    fn part(&self, of: &Event, schema_version: u32, index: usize, part: Part) -> Result<Event, BoxError> {
        let shape = Shape { event_type: part.event_type, schema_version: part.schema_version };
        if !self.gives.contains(&shape) {
            // Whoever asks for that type would not find it: the question was translated by what is declared.
            return Err(format!("it gave {shape}, which it does not declare with gives").into());
        }
        let metadata =
            schema_version::restated(part.metadata.as_ref().unwrap_or(&of.metadata), shape.schema_version)?;
        let (id, part_of) = match index {
            0 => (of.id, of.part_of),
            // With the form that was taken: the first part of a part has the same id as that part.
            _ => {
                let name = format!("{}\n{}\n{schema_version}\n{index}", of.id, of.event_type);
                (Uuid::new_v5(&PART_IDS, name.as_bytes()), Some(of.stored_id()))
            }
        };
        Ok(Event {
            event_type: shape.event_type,
            payload: part.payload,
            metadata,
            id,
            part_of,
            stream: of.stream.clone(),
            correlation_id: of.correlation_id.clone(),
            ..*of
        })
    }
}

fn check(upcaster: &Upcaster, shape: &Shape) -> Result<(), InvalidUpcasters> {
    let named = || upcaster.name.clone();
    check_name("event type", &shape.event_type)
        .map_err(|source| InvalidUpcasters::Type { upcaster: named(), source })?;
    if shape.schema_version < FIRST {
        let event_type = shape.event_type.clone();
        return Err(InvalidUpcasters::SchemaVersion { upcaster: named(), event_type });
    }
    Ok(())
}

/// Finds the types that come out at the end of a shape, and notes them for it and for all on the way.
fn follow<'u>(
    taken: &BTreeMap<&'u Shape, &'u Upcaster>,
    shape: &'u Shape,
    way: &mut Vec<&'u Shape>,
    ends: &mut BTreeMap<&'u Shape, BTreeSet<&'u str>>,
) -> Result<BTreeSet<&'u str>, InvalidUpcasters> {
    if let Some(types) = ends.get(shape) {
        return Ok(types.clone());
    }
    let Some(upcaster) = taken.get(shape) else { return Ok(BTreeSet::from([shape.event_type.as_str()])) };
    if let Some(begin) = way.iter().position(|passed| *passed == shape) {
        let circle: Vec<String> = way[begin..].iter().chain([&shape]).map(ToString::to_string).collect();
        return Err(InvalidUpcasters::Circle(circle.join(" → ")));
    }
    way.push(shape);
    let mut types = BTreeSet::new();
    for given in &upcaster.gives {
        types.extend(follow(taken, given, way, ends)?);
    }
    way.pop();
    ends.insert(shape, types.clone());
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Json;

    /// An upcaster that gives one part of each shape that it declares.
    fn step(name: &str, takes: &[(&str, u32)], gives: &[(&'static str, u32)]) -> Upcaster {
        let parts = gives.to_vec();
        let work = move |_: &Event| {
            Ok(parts.iter().map(|(name, version)| Part::new(*name, *version, Json::empty_object())).collect())
        };
        let mut upcaster = Upcaster::new(name, work);
        for (event_type, version) in takes {
            upcaster = upcaster.takes(*event_type, *version);
        }
        for (event_type, version) in gives {
            upcaster = upcaster.gives(*event_type, *version);
        }
        upcaster
    }

    fn stored(upcasters: &Upcasters, wanted: &[&str]) -> Vec<String> {
        let mut types = upcasters.stored(&Filter::all().types(wanted.iter().copied())).types.clone().unwrap();
        types.sort();
        types
    }

    fn event(event_type: &str, metadata: &str) -> Event {
        Event {
            position: crate::event::Position(7),
            stream: crate::stream_name::StreamName::new("s-1").unwrap(),
            version: crate::event::Version(3),
            event_type: event_type.to_owned(),
            payload: Json::empty_object(),
            metadata: Json::parse(metadata).unwrap(),
            id: Uuid::from_u128(5),
            part_of: None,
            correlation_id: Some("c".to_owned()),
            causation_id: Some(Uuid::from_u128(6)),
            recorded_at: crate::timestamp::Timestamp::from_micros(0),
        }
    }

    #[test]
    fn s16_a_question_for_types_goes_back_through_the_whole_chain() {
        let upcasters = Upcasters::new([
            step("last", &[("B", 2)], &[("C", 1), ("D", 1)]),
            step("first", &[("A", 1), ("A", 2)], &[("B", 2), ("A", 3)]),
            step("gone", &[("X", 1)], &[]),
        ])
        .unwrap();
        assert_eq!(stored(&upcasters, &["C"]), ["A", "B", "C"]);
        assert_eq!(stored(&upcasters, &["A"]), ["A"]);
        // B in version 2 never comes out, but in others it may.
        assert_eq!(stored(&upcasters, &["B"]), ["B"]);
        assert_eq!(stored(&upcasters, &["D", "A", "E"]), ["A", "B", "D", "E"]);
        assert_eq!(stored(&upcasters, &["X"]), ["X"]);
        assert_eq!(stored(&upcasters, &[]), Vec::<String>::new());
        assert!(upcasters.touch(&Filter::all()));
        assert!(upcasters.touch(&Filter::all().types(["E", "X"])));
        assert!(!upcasters.touch(&Filter::all().types(["E"])));
    }

    #[test]
    fn s16_what_makes_no_sense_is_refused_when_it_is_put_together() {
        let refused = |upcasters: Vec<Upcaster>| Upcasters::new(upcasters).unwrap_err().to_string();
        let cases = [
            (vec![step("a", &[], &[("A", 1)])], "upcaster \"a\" takes nothing"),
            (vec![step("a", &[("A", 0)], &[])], "names schema version 0 of A"),
            (vec![step("a", &[("A", 1)], &[("B", 0)])], "names schema version 0 of B"),
            (vec![step("a", &[("", 1)], &[])], "names a type that no event can have"),
            (
                vec![step("a", &[("A", 1), ("A", 1)], &[])],
                "A (schema version 1) is taken by upcaster \"a\" and",
            ),
            (
                vec![step("a", &[("A", 1)], &[]), step("b", &[("A", 1)], &[])],
                "by upcaster \"a\" and by upcaster \"b\"",
            ),
            (vec![step("a", &[("A", 1)], &[("A", 1)])], "A (schema version 1) → A (schema version 1)"),
            (
                vec![
                    step("a", &[("A", 1)], &[("B", 1), ("C", 1)]),
                    step("c", &[("C", 1)], &[("D", 1)]),
                    step("d", &[("D", 1)], &[("E", 1), ("C", 1)]),
                ],
                "C (schema version 1) → D (schema version 1) → C (schema version 1)",
            ),
        ];
        for (upcasters, said) in cases {
            let error = refused(upcasters);
            assert!(error.contains(said), "{error}");
        }
        // Two ways to one end are no circle.
        let diamond = [
            step("a", &[("A", 1)], &[("B", 1), ("C", 1)]),
            step("b", &[("B", 1)], &[("D", 1)]),
            step("c", &[("C", 1)], &[("D", 1)]),
        ];
        assert_eq!(stored(&Upcasters::new(diamond).unwrap(), &["D"]), ["A", "B", "C", "D"]);
    }

    #[test]
    fn s16_parts_keep_their_order_and_have_ids_of_their_own() {
        let upcasters = Upcasters::new([
            step("a", &[("A", 1)], &[("B", 1), ("C", 2)]),
            step("b", &[("B", 1)], &[("D", 1), ("E", 1)]),
            step("c", &[("C", 2)], &[("F", 1), ("G", 2)]),
        ])
        .unwrap();
        let read = || {
            let mut shown = Vec::new();
            upcasters.upcast(event("A", r#"{"by":"x"}"#), &mut shown).unwrap();
            shown
        };
        let shown = read();
        let types: Vec<&str> = shown.iter().map(|part| part.event_type.as_str()).collect();
        assert_eq!(types, ["D", "E", "F", "G"]);
        let ids: BTreeSet<Uuid> = shown.iter().map(|part| part.id).collect();
        assert_eq!((shown[0].id, ids.len()), (Uuid::from_u128(5), 4));
        assert!(shown.iter().all(|part| part.stored_id() == Uuid::from_u128(5)));
        assert!(shown.iter().all(|part| part.position.0 == 7 && part.version.0 == 3));
        assert_eq!(shown[1].metadata.as_str(), r#"{"by":"x"}"#);
        assert_eq!(
            (shown[3].metadata.as_str(), shown[3].schema_version()),
            (r#"{"by":"x","_schema_version":2}"#, Ok(2))
        );
        assert_eq!(shown, read());
        let mut other = Vec::new();
        upcasters.upcast(event("A", r#"{"_schema_version":2}"#), &mut other).unwrap();
        assert_eq!(other, [event("A", r#"{"_schema_version":2}"#)]);
    }

    #[test]
    fn s16_an_upcaster_that_fails_is_named() {
        let failing = |work: fn(&Event) -> Result<Vec<Part>, BoxError>| {
            let upcaster = Upcaster::new("broken", work).takes("A", 1).gives("B", 1);
            let upcasters = Upcasters::new([upcaster]).unwrap();
            let error = upcasters.upcast(event("A", "{}"), &mut Vec::new()).unwrap_err();
            crate::fault::messages(&*error).join(": ")
        };
        let named = "upcaster \"broken\" failed on type A, schema version 1: ";
        assert_eq!(failing(|_| Err("no price".into())), format!("{named}no price"));
        assert_eq!(failing(|_| panic!("ouch")), format!("{named}it panicked: ouch"));
        let undeclared = failing(|_| Ok(vec![Part::new("B", 2, Json::empty_object())]));
        assert_eq!(
            undeclared,
            format!("{named}it gave B (schema version 2), which it does not declare with gives")
        );
        let no_object =
            failing(|_| Ok(vec![Part::new("B", 1, Json::empty_object()).with_metadata(Json::of(&1)?)]));
        assert_eq!(no_object, format!("{named}not a JSON object"));
        let many = failing(|_| Ok(vec![Part::new("B", 1, Json::empty_object()); MAX_PARTS + 1]));
        assert_eq!(many, "it becomes more than 1000 events");
        let unreadable = Upcasters::new([step("a", &[("A", 1)], &[])]).unwrap();
        let error = unreadable.upcast(event("A", r#"{"_schema_version":"x"}"#), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("is \"x\", but a schema version is a whole number"), "{error}");
    }
}
