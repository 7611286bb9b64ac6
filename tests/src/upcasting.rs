//! Upcasting (S-16, PROOPH-21): old events are read as if they had been written today, however they are asked for.

use store::{
    AppendError, BoxError, Direction, DomainEvent, Event, ExpectedVersion, Filter, InvalidEvent, Json,
    Matcher, NewEvent, Operator, Part, Position, ReadError, Setup, Store, TableName, Upcaster, Upcasters,
    Version,
};
use testkit::{Random, both};

use crate::filters::{backwards, fill, forwards};
use crate::given::{event, stream};

/// A type without old forms, and of a shop that moved from one event to two: `Moved` was split into `Left` and
/// `Arrived`, and then arrivals got another form. `Noise` is not wanted any more.
pub(crate) const STORED: [&str; 4] = ["Kept", "Moved", "Noise", "Arrived"];

pub(crate) fn shop() -> Upcasters {
    let arrivals = Upcaster::new("arrivals have a place", |event| {
        let mut payload: serde_json::Value = event.payload.to()?;
        payload["place"] = "Berlin".into();
        let metadata = event.metadata.with_field("tenant", &Json::of(&"acme")?)?;
        Ok(vec![Part::new("Arrived", 2, Json::of(&payload)?).with_metadata(metadata)])
    });
    let moves = Upcaster::new("a move is two things", |event| {
        let part = |name| Part::new(name, 1, event.payload.clone());
        Ok(vec![part("Left"), part("Arrived")])
    });
    let noise = Upcaster::new("noise is over", |_| Ok(Vec::new()));
    Upcasters::new([
        arrivals.takes("Arrived", 1).gives("Arrived", 2),
        moves.takes("Moved", 1).gives("Left", 1).gives("Arrived", 1),
        noise.takes("Noise", 1),
    ])
    .unwrap()
}

/// What the shop makes of a stored event, said without upcasters: type, place and tenant.
fn today(stored: &Event) -> Vec<(i64, &'static str, bool)> {
    let position = stored.position.0;
    match stored.event_type.as_str() {
        "Kept" => vec![(position, "Kept", false)],
        "Moved" => vec![(position, "Left", false), (position, "Arrived", true)],
        "Arrived" => vec![(position, "Arrived", true)],
        _ => Vec::new(),
    }
}

fn seen(event: &Event) -> (i64, String, bool) {
    let has_place = event.payload.as_str().contains("Berlin");
    assert_eq!(has_place, event.metadata.as_str().contains("acme"), "{event:?}");
    (event.position.0, event.event_type.clone(), has_place)
}

fn all_seen(events: &[Event]) -> Vec<(i64, String, bool)> {
    events.iter().map(seen).collect()
}

async fn append(store: &Store, name: &str, types: &[&str]) {
    let events = types.iter().map(|name| NewEvent { event_type: (*name).to_owned(), ..event(1) }).collect();
    store.append(&stream(name), ExpectedVersion::Any, events).await.unwrap();
}

/// Poison that cannot be read: `Poison` fails.
fn with_poison() -> Upcasters {
    let work = |_: &Event| -> Result<Vec<Part>, BoxError> { Err("no such bottle".into()) };
    Upcasters::new([Upcaster::new("antidote", work).takes("Poison", 1).gives("Cured", 1)]).unwrap()
}

/// The second form of prices.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct PriceWasSet {
    pub(crate) cents: u32,
    pub(crate) currency: String,
}

impl DomainEvent for PriceWasSet {
    const TYPE: &'static str = "Shop:PriceWasSet";
    const SCHEMA_VERSION: u32 = 2;
}

pub(crate) fn currency() -> Upcasters {
    let work = |event: &Event| {
        let mut price: serde_json::Value = event.payload.to()?;
        price["currency"] = "EUR".into();
        Ok(vec![Part::new("Shop:PriceWasSet", 2, Json::of(&price)?)])
    };
    let upcaster = Upcaster::new("prices have a currency", work);
    Upcasters::new([upcaster.takes("Shop:PriceWasSet", 1).gives("Shop:PriceWasSet", 2)]).unwrap()
}

/// Whether an event made of a stored one is wanted: the stored one, the type, and whether it has place and tenant.
type Oracle = fn(&Event, &str, bool) -> bool;

fn questions() -> Vec<(Filter, Oracle)> {
    let is_arrival = Matcher::new().property("type", Operator::Equals, "Arrived").unwrap();
    let of_acme = Matcher::new().metadata("tenant", Operator::Equals, "acme").unwrap();
    let by_nobody = Matcher::new().metadata("by", Operator::Equals, "nobody").unwrap();
    vec![
        (Filter::all(), |_, _, _| true),
        (Filter::all().types(["Arrived"]), |_, name, _| name == "Arrived"),
        (Filter::all().types(["Left", "Kept"]), |_, name, _| name == "Left" || name == "Kept"),
        (Filter::all().types(["Moved", "Noise"]), |_, _, _| false),
        (Filter::all().types(["Left"]).category("shop"), |of, name, _| {
            name == "Left" && of.stream.category() == "shop"
        }),
        (Filter::all().category("shop"), |of, _, _| of.stream.category() == "shop"),
        (Filter::all().stream(stream("shop-1")), |of, _, _| of.stream == stream("shop-1")),
        (Filter::all().stream(stream("shop-2")).types(["Arrived"]), |of, name, _| {
            of.stream == stream("shop-2") && name == "Arrived"
        }),
        (Filter::all().matching(is_arrival), |_, name, _| name == "Arrived"),
        (Filter::all().category("other").matching(of_acme), |of, _, place| {
            of.stream.category() == "other" && place
        }),
        (Filter::all().matching(by_nobody), |_, _, _| false),
    ]
}

both! {
    /// S-16: whatever is asked for, and in pages of whatever size: all of it, each event once, no split one cut.
    async fn s16_pages_of_any_size_make_up_the_whole(database: TestDatabase) {
        let mut random = Random::new();
        let raw = database.store().await;
        for _ in 0..25 {
            let count = 1 + random.below(3);
            let types: Vec<&str> = (0..count).map(|_| STORED[random.below(4) as usize]).collect();
            append(&raw, ["shop-1", "shop-2", "other-1"][random.below(3) as usize], &types).await;
        }
        let store = raw.clone().with_upcasters(shop());
        let stored = forwards(&raw, &Filter::all(), 1_000).await;
        let head = raw.head().await.unwrap().position;
        for (filter, oracle) in questions() {
            let mut wanted = Vec::new();
            for event in &stored {
                let parts = today(event).into_iter().filter(|(_, name, place)| oracle(event, name, *place));
                wanted.extend(parts.map(|(position, name, place)| (position, name.to_owned(), place)));
            }
            for limit in [1, 2, 3, 5, 7, 50, 1_000] {
                let said = format!("{filter:?} in pages of {limit}");
                assert_eq!(all_seen(&forwards(&store, &filter, limit).await), wanted, "{said}");
                let mut back = all_seen(&backwards(&store, &filter, limit).await);
                back.reverse();
                assert_eq!(back, wanted, "{said}, backwards");
            }
            assert_eq!(store.count(&filter, head).await.unwrap(), wanted.len() as u64, "{filter:?}");
        }
    }

    /// S-16: a page is longer than its limit only by the rest of the event that it ends with.
    async fn s16_a_split_event_is_whole_in_its_page(database: TestDatabase) {
        let store = database.store().await.with_upcasters(shop());
        append(&store, "shop-1", &["Kept", "Moved", "Moved", "Noise", "Kept", "Noise"]).await;
        let read = async |after, limit| {
            let page = store.read(&Filter::all(), Position(after), limit).await.unwrap();
            let positions: Vec<i64> = page.events.iter().map(|event| event.position.0).collect();
            (positions, page.scanned_to.0, page.is_end)
        };
        assert_eq!(read(0, 2).await, (vec![1, 2, 2], 2, false));
        assert_eq!(read(1, 1).await, (vec![2, 2], 2, false));
        assert_eq!(read(2, 3).await, (vec![3, 3, 5], 5, false));
        assert_eq!(read(3, 1).await, (vec![], 4, false));
        assert_eq!(read(5, 1).await, (vec![], 6, false));
        assert_eq!(read(6, 1).await, (vec![], 6, true));
        let types = ["Left", "Arrived", "Kept"];
        let page = store.read_backwards(&Filter::all().types(types), Some(Position(5)), 2).await.unwrap();
        let names: Vec<_> = page.events.iter().map(|event| (event.position.0, event.event_type.as_str())).collect();
        assert_eq!(names, [(3, "Arrived"), (3, "Left")]);
        assert_eq!(page.scanned_to, Position(3));
    }

    /// S-16: a stream is read through upcasters in every way, and its version is that of what is stored.
    async fn s16_a_stream_is_read_as_it_is_today(database: TestDatabase) {
        let store = database.store().await.with_upcasters(shop());
        append(&store, "shop-1", &["Moved", "Kept", "Moved", "Noise", "Noise"]).await;
        let name = stream("shop-1");
        let names = |events: &[Event]| -> Vec<String> {
            events.iter().map(|event| format!("{}{}", event.version, &event.event_type[..1])).collect()
        };
        let mut tx = store.begin().await.unwrap();
        for limit in 1..=7 {
            let (mut seen, mut seen_inside, mut seen_back) = (Vec::new(), Vec::new(), Vec::new());
            let (mut next, mut last) = (Some(Version(0)), None);
            while let Some(from) = next {
                let page = store.read_stream(&name, from.0, limit).await.unwrap();
                let inside = store.read_stream_in(&mut tx, &name, from.0, limit).await.unwrap();
                assert_eq!((page.next, page.scanned_to), (inside.next, inside.scanned_to));
                assert!(page.len() <= limit + 1);
                seen.extend(names(&page));
                seen_inside.extend(names(&inside));
                (next, last) = (page.next, page.scanned_to.or(last));
            }
            assert_eq!(seen, ["0L", "0A", "1K", "2L", "2A"], "{limit}");
            assert_eq!((seen_inside, last), (seen.clone(), Some(Version(4))));
            let mut before = None;
            loop {
                let page = store.read_stream_backwards(&name, before, limit).await.unwrap();
                seen_back.extend(names(&page));
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
            seen_back.reverse();
            assert_eq!(seen_back, seen, "{limit}");
        }
        tx.rollback().await;
        let raw = store.without_upcasters().read_stream(&name, 0, 10).await.unwrap();
        assert_eq!(names(&raw), ["0M", "1K", "2M", "3N", "4N"]);
    }

    /// S-16: one wanted event behind thousands of which nothing is shown is found by one call, even for a page of one.
    async fn s16_what_became_nothing_is_passed_in_great_steps(database: TestDatabase) {
        let raw = database.store().await;
        fill(&raw, 30_000, 30_000).await;
        let last = Upcaster::new("only the last", |event: &Event| {
            let is_last = event.position == Position(29_999);
            Ok(if is_last { vec![Part::new("last", 1, Json::empty_object())] } else { Vec::new() })
        });
        let upcasters = Upcasters::new([last.takes("common", 1).gives("last", 1)]).unwrap();
        let store = raw.with_upcasters(upcasters);
        let page = store.read(&Filter::all().types(["last"]), Position::START, 1).await.unwrap();
        assert_eq!((page.events.len(), page.events[0].position), (1, Position(29_999)));
    }

    /// S-16: the parts of a split event have ids of their own, the same at each reading and in each way to read.
    async fn s16_parts_can_be_told_apart(database: TestDatabase) {
        let store = database.store().await.with_upcasters(shop());
        append(&store, "shop-1", &["Moved"]).await;
        let page = store.read(&Filter::all(), Position::START, 10).await.unwrap();
        let [left, arrived] = page.events.as_slice() else { panic!("{page:?}") };
        let stored = store.without_upcasters().read_stream(&stream("shop-1"), 0, 1).await.unwrap();
        assert_eq!((left.id, left.part_of), (stored[0].id, None));
        assert_ne!(arrived.id, stored[0].id);
        assert_eq!((arrived.part_of, arrived.stored_id()), (Some(stored[0].id), stored[0].id));
        let arrivals = store.read(&Filter::all().types(["Arrived"]), Position::START, 10).await.unwrap();
        assert_eq!(arrivals.events, std::slice::from_ref(arrived));
        // The log has the one event only.
        assert_eq!(store.find(stored[0].id).await.unwrap(), Some(Position(1)));
        assert_eq!(store.find(arrived.id).await.unwrap(), None);
        assert_eq!(store.statistics(9).await.unwrap().events, 1);
    }

    /// S-16: a question for types walks the index of types, translated through two steps.
    async fn s16_few_are_found_through_two_steps_by_an_index(database: TestDatabase) {
        let raw = database.store().await;
        fill(&raw, 30_000, 300).await;
        let first = Upcaster::new("first", |_| Ok(vec![Part::new("middle", 1, Json::empty_object())]));
        let second = Upcaster::new("second", |_| Ok(vec![Part::new("final", 1, Json::empty_object())]));
        let chain = [first.takes("rare-3", 1).gives("middle", 1), second.takes("middle", 1).gives("final", 1)];
        let store = raw.clone().with_upcasters(Upcasters::new(chain).unwrap());
        let wanted = Filter::all().types(["final"]);
        for direction in [Direction::Forwards, Direction::Backwards] {
            let plan = store.explain(&wanted, direction, Position(15_000), 1_000).await.unwrap();
            assert!(plan.contains("herald_events_type"), "{plan}");
            assert!(!plan.contains("Seq Scan on herald_events") && !plan.contains("SCAN herald_events"), "{plan}");
            assert!(!plan.contains("SCAN e"), "{plan}");
        }
        let found = forwards(&store, &wanted, 3).await;
        assert_eq!(found.len(), 10);
        assert!(found.iter().all(|event| event.event_type == "final"));
        assert_eq!(store.count(&wanted, Position(30_000)).await.unwrap(), 10);
        assert_eq!(forwards(&raw, &wanted, 3).await.len(), 0);
    }

    /// S-16: what cannot be upcast is an error that names position and type, behind all that stands before it; who
    /// does not ask for it never meets it.
    async fn s16_a_failing_upcaster_is_an_error_at_its_place(database: TestDatabase) {
        let store = database.store().await.with_upcasters(with_poison());
        append(&store, "shop-1", &["Kept", "Kept", "Poison", "Kept"]).await;
        let said = |error: ReadError| {
            assert!(matches!(error, ReadError::BadRow { position: Position(3), .. }), "{error:?}");
            store::messages(&error).join(": ")
        };
        let sentence = "the event at position 3 cannot be read: \
                        upcaster \"antidote\" failed on type Poison, schema version 1: no such bottle";
        for filter in [Filter::all(), Filter::all().stream(stream("shop-1")), Filter::all().types(["Kept", "Cured"])] {
            let page = store.read(&filter, Position::START, 10).await.unwrap();
            assert_eq!((page.events.len(), page.scanned_to), (2, Position(2)), "{filter:?}");
            assert_eq!(said(store.read(&filter, page.scanned_to, 10).await.unwrap_err()), sentence);
            assert_eq!(store.read(&filter, Position(3), 10).await.unwrap().events.len(), 1);
        }
        let page = store.read_stream(&stream("shop-1"), 0, 10).await.unwrap();
        assert_eq!((page.len(), page.next), (2, Some(Version(2))));
        assert_eq!(said(store.read_stream(&stream("shop-1"), 2, 10).await.unwrap_err()), sentence);
        let page = store.read_backwards(&Filter::all(), None, 10).await.unwrap();
        assert_eq!((page.events.len(), page.scanned_to), (1, Position(4)));
        assert_eq!(said(store.read_backwards(&Filter::all(), Some(Position(4)), 10).await.unwrap_err()), sentence);
        assert_eq!(forwards(&store, &Filter::all().types(["Kept"]), 1).await.len(), 3);
    }

    /// S-16: by schema version, which stands in the metadata; a new form is written with it and read as it is.
    async fn s16_old_and_new_forms_of_a_type_are_read_as_one(database: TestDatabase) {
        let store = database.store().await.with_upcasters(currency());
        let old = NewEvent::new("Shop:PriceWasSet", Json::parse(r#"{"cents":500}"#).unwrap());
        let price = PriceWasSet { cents: 700, currency: "CHF".to_owned() };
        let new = NewEvent::of(&price).unwrap();
        let newer = NewEvent::new("Shop:PriceWasSet", Json::empty_object()).with_schema_version(3).unwrap();
        store.append(&stream("shop-1"), ExpectedVersion::Any, vec![old, new, newer]).await.unwrap();

        let events = store.read_stream(&stream("shop-1"), 0, 10).await.unwrap();

        let prices: Vec<_> = events.iter().map(|event| event.decode::<PriceWasSet>().unwrap()).collect();
        assert_eq!(prices[0].as_ref().unwrap(), &PriceWasSet { cents: 500, currency: "EUR".to_owned() });
        assert_eq!(prices[1].as_ref().unwrap(), &price);
        let error = store::messages(prices[2].as_ref().unwrap_err()).join(": ");
        assert_eq!(
            error,
            "the payload of position 3 is no Shop:PriceWasSet: it has schema version 3 and this program knows 2; use \
             the newer program"
        );
        let raw = store.without_upcasters().read_stream(&stream("shop-1"), 0, 10).await.unwrap();
        assert_eq!(raw[0].payload.as_str(), r#"{"cents":500}"#);
        assert_eq!(raw[1].metadata.as_str(), r#"{"_schema_version":2}"#);
    }

    /// S-16: metadata that state a schema version which is none are refused before any SQL.
    async fn s16_a_schema_version_that_is_none_is_refused(database: TestDatabase) {
        let store = database.store().await;
        for version in ["0", "\"2\"", "1.5", "null"] {
            let metadata = Json::parse(format!(r#"{{"_schema_version":{version}}}"#)).unwrap();
            let refused = store
                .append(&stream("shop-1"), ExpectedVersion::Any, vec![NewEvent { metadata, ..event(1) }])
                .await
                .unwrap_err();
            let AppendError::Invalid { source: InvalidEvent::SchemaVersion(source), .. } = &refused else {
                panic!("{refused:?}")
            };
            assert!(source.to_string().contains(&format!("is {version},")), "{source}");
        }
    }

    /// S-16: the handle that setting up answers with reads through the same upcasters.
    async fn s16_upcasters_stay_with_the_handle(database: TestDatabase) {
        let setup = Setup { view: TableName::new("acme_notifications_events").unwrap(), test_clock: None };
        let (store, _) = database.open().await.with_upcasters(shop()).set_up(&setup).await.unwrap();
        append(&store, "shop-1", &["Moved"]).await;
        let later = store.clone();
        assert_eq!(forwards(&later, &Filter::all(), 10).await.len(), 2);
        assert_eq!(forwards(&later.with_upcasters(Upcasters::default()), &Filter::all(), 10).await.len(), 1);
    }

    /// PROOPH-21: one upcaster for single events, which become several or none, or get more metadata, on load.
    async fn prooph21_an_event_gets_metadata_on_load(database: TestDatabase) {
        let raw = database.store().await;
        append(&raw, "user-1", &["user-registered", "noise"]).await;
        let adding = Upcaster::new("add a key", |event| {
            let metadata = event.metadata.with_field("key", &Json::of(&"value")?)?;
            Ok(vec![Part::new(&event.event_type, 2, event.payload.clone()).with_metadata(metadata)])
        });
        let none = Upcaster::new("no noise", |_| Ok(Vec::new())).takes("noise", 1);
        let adding = adding.takes("user-registered", 1).gives("user-registered", 2);
        let store = raw.clone().with_upcasters(Upcasters::new([none, adding]).unwrap());

        let events = store.read_stream(&stream("user-1"), 0, 10).await.unwrap();

        assert_eq!(events.len(), 1);
        assert_eq!(events[0].metadata.field("key").unwrap().as_str(), "\"value\"");
        assert_eq!(events[0].payload.as_str(), r#"{"number":1}"#);
        let stored = raw.read_stream(&stream("user-1"), 0, 10).await.unwrap();
        assert_eq!((stored.len(), stored[0].metadata.as_str()), (2, "{}"));
    }
}
