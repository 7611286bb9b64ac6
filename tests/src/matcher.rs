//! The metadata matcher (S-13, PROOPH-06, PROOPH-16): the same table of cases gives the same answer on both databases,
//! and what the database leaves out is never what `matches` would have taken.

use store::{
    Event, ExpectedVersion, Filter, Json, MatchScalar, MatchValue, Matcher, NewEvent, Operator, Position,
    Store, Version,
};
use testkit::{Random, T0, both};
use uuid::Uuid;

use crate::given::{all_events, event, stream};

use Operator::{
    Equals, GreaterThan, GreaterThanEquals, In, LowerThan, LowerThanEquals, NotEquals, NotIn, Regex,
};

/// One event for each document, past the append: as a table from elsewhere may hold it.
async fn given(store: &Store, documents: &[&str]) {
    let mut tx = store.begin().await.unwrap();
    for (version, document) in (0_i64..).zip(documents) {
        let insert =
            "INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, recorded_at,
                                                 append_index, append_size)
                      VALUES ($1, 'a-1', $2, 'given', '{}', $3, $4, $5, 0, 1)";
        let id = Uuid::now_v7();
        tx.execute(insert, (version + 1, version, (*document).to_owned(), id, T0)).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// The versions of the events that are found.
async fn found(store: &Store, matcher: &Matcher) -> Vec<i64> {
    let filter = Filter::all().matching(matcher.clone());
    let page = store.read(&filter, Position::START, 1_000).await.unwrap();
    assert!(page.is_end);
    let mut backwards = store.read_backwards(&filter, None, 1_000).await.unwrap().events;
    backwards.reverse();
    assert_eq!(page.events, backwards);
    page.events.iter().map(|event| event.version.0).collect()
}

both! {
    async fn s13_one_table_of_cases(database: TestDatabase) {
        let store = database.store().await;
        given(&store, &[
            r#"{}"#,                                        // 0
            r#"{"f":null}"#,                                // 1
            r#"{"f":{"f":"a"}}"#,                           // 2
            r#"{"f":["a",10]}"#,                            // 3
            r#"{"f":"a"}"#,                                 // 4
            r#"{"f":"b"}"#,                                 // 5
            r#"{"f":"ü😀"}"#,                               // 6
            "{\"f\":\"\\u00fc\\ud83d\\ude00\"}",            // 7: the same, written otherwise
            r#"{"f":10}"#,                                  // 8
            r#"{"f":9}"#,                                   // 9
            r#"{"f":"10"}"#,                                // 10
            r#"{"f":1e1}"#,                                 // 11
            r#"{"f":10.5}"#,                                // 12
            r#"{"f":1e400000}"#,                            // 13
            r#"{"f":true}"#,                                // 14
            r#"{"f":"true"}"#,                              // 15
            r#"{"f":false}"#,                               // 16
            r#"{"f":""}"#,                                  // 17
            "{ \"\\u0066\" : \"a\" }",                      // 18: the name with an escape
            r#"{"g":"a"}"#,                                 // 19
            r#"{"f":-9223372036854775808}"#,                // 20
            r#"{"f":9223372036854775808}"#,                 // 21
            r#"{"f":"a\"b\\c\nd"}"#,                        // 22
        ]).await;
        let text = |text: &str| MatchValue::from(text);
        let scalars = vec![8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22];
        let cases: Vec<(Operator, MatchValue, Vec<i64>)> = vec![
            (Equals, text("a"), vec![4, 18]),
            (Equals, text("ü😀"), vec![6, 7]),
            (Equals, text(""), vec![17]),
            (Equals, text("10"), vec![8, 10]),
            (Equals, text("true"), vec![14, 15]),
            (Equals, text("a\"b\\c\nd"), vec![22]),
            (Equals, 10.into(), vec![8, 10, 11]),
            (Equals, i64::MIN.into(), vec![20]),
            (Equals, i64::MAX.into(), vec![]),
            (Equals, true.into(), vec![14, 15]),
            (Equals, false.into(), vec![16]),
            (NotEquals, text("a"), [vec![5, 6, 7], scalars.iter().copied().filter(|n| *n != 18).collect()].concat()),
            (NotEquals, 10.into(), vec![4, 5, 6, 7, 9, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22]),
            (NotEquals, true.into(), vec![4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 20, 21, 22]),
            (GreaterThan, 9.into(), vec![8, 10, 11, 12, 13, 21]),
            (GreaterThan, 10.into(), vec![12, 13, 21]),
            (GreaterThanEquals, 10.into(), vec![8, 10, 11, 12, 13, 21]),
            (LowerThan, 10.into(), vec![9, 20]),
            (LowerThanEquals, 10.into(), vec![8, 9, 10, 11, 20]),
            (GreaterThan, text("9"), vec![4, 5, 6, 7, 14, 15, 16, 18, 21, 22]),
            (LowerThan, text("10"), vec![17, 20]),
            (GreaterThanEquals, text("true"), vec![6, 7, 14, 15]),
            (LowerThanEquals, text("a"), vec![4, 8, 9, 10, 11, 12, 13, 17, 18, 20, 21]),
            (In, ["a", "b"].into(), vec![4, 5, 18]),
            (In, Vec::<&str>::new().into(), vec![]),
            (
                In,
                vec![MatchScalar::from("b"), MatchScalar::from(9), MatchScalar::from(false)].into(),
                vec![5, 9, 16],
            ),
            (NotIn, ["a", "b"].into(), [vec![6, 7], scalars.iter().copied().filter(|n| *n != 18).collect()].concat()),
            (NotIn, Vec::<i64>::new().into(), [vec![4, 5, 6, 7], scalars].concat()),
            (Regex, text("^[ab]$"), vec![4, 5, 18]),
            (Regex, text("(?i)^TRUE$"), vec![14, 15]),
            (Regex, text("^\\p{L}\\p{So}$"), vec![6, 7]),
            (Regex, text("^1"), vec![8, 10, 11, 12, 13]),
        ];
        let events = all_events(&store).await;
        for (operator, value, versions) in cases {
            let matcher = Matcher::new().metadata("f", operator, value.clone()).unwrap();
            let matched: Vec<i64> =
                events.iter().filter(|event| matcher.matches(event)).map(|event| event.version.0).collect();
            assert_eq!(matched, versions, "{operator} {value:?}");
            assert_eq!(found(&store, &matcher).await, versions, "{operator} {value:?}");
        }
    }

    async fn s13_names_of_fields_are_never_read_as_anything_else(database: TestDatabase) {
        let store = database.store().await;
        let names = [
            "a\"b", "a.b", "$x", "$", "'; DROP TABLE herald_events; --", "", " ", "%", "_", "\\", "[0]", "a[0]", "#",
            "ü", "f'", "$1", "?1", "\u{7f}", "\n", "metadata", "😀",
        ];
        for (number, name) in (0..).zip(names) {
            let metadata = Json::of(&serde_json::json!({ name: "yes", "b": "yes" })).unwrap();
            store.append(&stream("a-1"), ExpectedVersion::Any, vec![NewEvent { metadata, ..event(number) }]).await.unwrap();
        }
        for (version, name) in (0..).zip(names) {
            let matcher = Matcher::new().metadata(name, Equals, "yes").unwrap();
            assert_eq!(found(&store, &matcher).await, [version], "{name:?}");
        }
    }

    async fn s13_properties_and_conditions_joined_by_and(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        for number in 0..6 {
            let event_type = if number % 2 == 0 { "even" } else { "odd" }.to_owned();
            let metadata = Json::of(&serde_json::json!({ "number": number, "by": "me" })).unwrap();
            let to = if number < 4 { "a-1" } else { "b-1" };
            let new = NewEvent { event_type, metadata, ..event(number) };
            store.append(&stream(to), ExpectedVersion::Any, vec![new]).await.unwrap();
        }
        let all = all_events(&store).await;
        let positions = async |matcher: Matcher| {
            let filter = Filter::all().matching(matcher);
            let page = store.read(&filter, Position::START, 100).await.unwrap();
            page.events.iter().map(|event| event.position.0).collect::<Vec<_>>()
        };
        let property = |name: &str, operator, value: MatchValue| Matcher::new().property(name, operator, value).unwrap();

        assert_eq!(positions(property("type", Equals, "odd".into())).await, [2, 4, 6]);
        assert_eq!(positions(property("event_name", NotIn, ["odd"].into())).await, [1, 3, 5]);
        assert_eq!(positions(property("stream", Equals, "b-1".into())).await, [5, 6]);
        assert_eq!(positions(property("version", GreaterThanEquals, 2.into())).await, [3, 4]);
        assert_eq!(positions(property("id", Equals, all[3].id.to_string().into())).await, [4]);
        assert_eq!(positions(property("created_at", Regex, "^2026-01-01T00:00:00\\.000000Z$".into())).await.len(), 6);
        assert_eq!(positions(property("recorded_at", LowerThan, "2026".into())).await, Vec::<i64>::new());

        // Immutable and chained: each step is a matcher of its own.
        let first = Matcher::new().metadata("by", Equals, "me").unwrap();
        let second = first.clone().metadata("number", GreaterThan, 1).unwrap();
        let third = second.clone().property("type", Equals, "even").unwrap();
        assert_eq!(positions(first).await, [1, 2, 3, 4, 5, 6]);
        assert_eq!(positions(second).await, [3, 4, 5, 6]);
        assert_eq!(positions(third.clone()).await, [3, 5]);

        // With a page of one and beside the other filters.
        let filter = Filter::all().matching(third.clone()).types(["even", "odd"]).category("a");
        let page = store.read(&filter, Position::START, 1).await.unwrap();
        assert_eq!((page.events.len(), page.events[0].position, page.scanned_to), (1, Position(3), Position(3)));
        let filter = Filter::all().matching(third).stream(stream("b-1"));
        let page = store.read(&filter, Position::START, 10).await.unwrap();
        assert_eq!(page.events.iter().map(|event| event.version).collect::<Vec<_>>(), [Version(0)]);
        assert_eq!(store.count(&filter, Position(6)).await.unwrap(), 1);
    }

    async fn s13_what_the_database_finds_is_what_matches(database: TestDatabase) {
        let store = database.store().await;
        let mut random = Random::new();
        let atoms = [
            "null", "true", "false", "\"true\"", "0", "-0", "1", "1.0", "10", "9", "1e1", "1E400", "-5", "\"10\"", "\"9\"",
            "\"a\"", "\"A\"", "\"\\u0061\"", "\"a b\"", "\"\"", "\"\\\"\"", "\"\\\\\"", "\"ü\"", "[]", "{\"k\":\"a\"}",
            "[\"a\"]", "\"null\"", "9223372036854775807", "0.1", "\"-5\"",
        ];
        let names = ["k", "K", "a", "kk", "ü", "a b", "k\\\"", "\\u006b"];
        let pick = |random: &mut Random, count: usize| usize::try_from(random.below(count as u64)).unwrap();
        let mut documents = Vec::new();
        for _ in 0..200 {
            let mut fields: Vec<(String, &str)> = Vec::new();
            for _ in 0..random.below(4) {
                let name = format!("\"{}\"", names[pick(&mut random, names.len())]);
                let decoded: String = serde_json::from_str(&name).unwrap();
                if fields.iter().all(|(known, _)| serde_json::from_str::<String>(known).unwrap() != decoded) {
                    fields.push((name, atoms[pick(&mut random, atoms.len())]));
                }
            }
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            documents.push(format!("{{{}}}", fields.join(" , ")));
        }
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        given(&store, &documents).await;
        let events: Vec<Event> = all_events(&store).await;
        let scalars: Vec<MatchScalar> = vec![
            "a".into(), "A".into(), "10".into(), "9".into(), "true".into(), "".into(), "\"".into(), "\\".into(), "ü".into(),
            "null".into(), "a b".into(), "1.0".into(), "-5".into(), 10.into(), 1.into(), 0.into(), (-5).into(),
            i64::MAX.into(), true.into(), false.into(),
        ];
        for _ in 0..150 {
            let mut matcher = Matcher::new();
            for _ in 0..=random.below(2) {
                let operators = [
                    Equals, NotEquals, GreaterThan, GreaterThanEquals, LowerThan, LowerThanEquals, In, NotIn, Regex,
                ];
                let operator = operators[pick(&mut random, operators.len())];
                let scalar = scalars[pick(&mut random, scalars.len())].clone();
                let value: MatchValue = match operator {
                    In | NotIn => vec![scalar, scalars[pick(&mut random, scalars.len())].clone()].into(),
                    Regex => ["^a", "[0-9]", "^$", "e"][pick(&mut random, 4)].into(),
                    _ => scalar.into(),
                };
                let name = ["k", "K", "a", "ü", "k\"", "x"][pick(&mut random, 6)];
                matcher = matcher.metadata(name, operator, value).unwrap();
            }
            let wanted: Vec<i64> =
                events.iter().filter(|event| matcher.matches(event)).map(|event| event.version.0).collect();
            assert_eq!(found(&store, &matcher).await, wanted, "{matcher:?}");
        }
    }
}
