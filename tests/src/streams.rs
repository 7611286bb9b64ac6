//! Streams by name (S-14, S-14a): lists in pages, what a stream holds, what is noted about it.

use std::time::{Duration, Instant};

use store::{
    Connection, ExpectedVersion, InvalidEvent, Json, ListedStream, MAX_METADATA_BYTES, NewEvent, Position,
    Store, StreamList, StreamMetadataError, SummaryError, Version,
};
use testkit::{Random, T0, both};

use crate::given::{event, stream};

/// On a machine that has other things to do: reading all of the 100,000 takes longer than this.
const MILLISECONDS: Duration = Duration::from_millis(40);

const NAMES: [&str; 20] = [
    "-x",
    "-",
    "A-1",
    "Z",
    "a",
    "a!1",
    "a-",
    "a-1",
    "a-1-2",
    "a-10",
    "a-2",
    "a1-1",
    "aa-1",
    "ab",
    "user",
    "user-1",
    "users-1",
    "ä-1",
    "a\u{e000}-1",
    "\u{10ffff}\u{10ffff}-1",
];

/// All pages of a list, each of this length.
async fn listed(store: &Store, mut wanted: StreamList, page: usize) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let listed = store.streams(&wanted, page).await.unwrap();
        let Some(last) = listed.last() else { return names };
        assert!(listed.len() <= page);
        wanted.after = Some(last.name.to_string());
        names.extend(listed.into_iter().map(|listed| listed.name.to_string()));
    }
}

async fn categories(store: &Store, prefix: &str, page: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let listed = store.categories(prefix, names.last().map(String::as_str), page).await.unwrap();
        assert!(listed.len() <= page);
        if listed.is_empty() {
            return names;
        }
        names.extend(listed);
    }
}

/// 10,000 categories of ten streams each, past the append.
async fn fill(store: &Store) {
    let mut tx = store.begin().await.unwrap();
    let insert = match tx.connection() {
        Connection::Sqlite(_) => {
            "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 99999)
             INSERT INTO herald_streams (stream, version) SELECT printf('c%05d-%d', n % 10000, n / 10000), n FROM n"
        }
        Connection::Postgres(_) => {
            "INSERT INTO herald_streams (stream, version)
             SELECT 'c' || lpad((n % 10000)::text, 5, '0') || '-' || (n / 10000), n FROM generate_series(0, 99999) AS n"
        }
    };
    tx.execute(insert, ()).await.unwrap();
    tx.commit().await.unwrap();
}

/// The best of some tries: the machine may have been busy in between.
async fn fastest<T>(mut run: impl AsyncFnMut() -> T) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        run().await;
        best = best.min(start.elapsed());
    }
    best
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

both! {
    async fn s14_streams_are_listed_in_the_order_of_bytes(database: TestDatabase) {
        let store = database.store().await;
        let mut random = Random::new();
        let mut names = NAMES.map(str::to_owned).to_vec();
        for _ in 0..60 {
            let name: String = (0..=random.below(4)).map(|_| ['a', 'b', '-', 'ü', '~'][random.below(5) as usize]).collect();
            names.push(name);
        }
        for name in &names {
            store.append(&stream(name), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        }
        names.sort_unstable();
        names.dedup();
        let category = |name: &str| stream(name).category().to_owned();
        let mut all_categories: Vec<String> = names.iter().map(|name| category(name)).collect();
        all_categories.sort_unstable();
        all_categories.dedup();

        for prefix in ["", "a", "a-", "a-1", "aa", "u", "user", "ä", "\u{10ffff}", "-", "none", "a\nb", "\0"] {
            for page in [1, 7, 1_000] {
                let begins = |name: &&String| name.starts_with(prefix);
                let wanted: Vec<_> = names.iter().filter(begins).cloned().collect();
                let list = StreamList { prefix: prefix.to_owned(), ..StreamList::default() };
                assert_eq!(listed(&store, list.clone(), page).await, wanted, "{prefix:?} {page}");

                let wanted: Vec<_> = all_categories.iter().filter(begins).cloned().collect();
                assert_eq!(categories(&store, prefix, page).await, wanted, "{prefix:?} {page}");

                for of in ["", "a", "user", "none", "a\nb"] {
                    let in_it = |name: &&String| begins(name) && category(name) == of;
                    let wanted: Vec<_> = names.iter().filter(in_it).cloned().collect();
                    let list = StreamList { category: Some(of.to_owned()), ..list.clone() };
                    assert_eq!(listed(&store, list, page).await, wanted, "{prefix:?} {of:?} {page}");
                }
            }
        }
        // After a name that there is not, before the prefix, behind all; and what no name can be.
        let list = |prefix: &str, after: &str| StreamList { prefix: prefix.to_owned(), after: Some(after.to_owned()), category: None };
        let wanted = |from: &str| names.iter().filter(|name| name.as_str() > from).cloned().collect::<Vec<_>>();
        assert_eq!(listed(&store, list("", "a-1~"), 9).await, wanted("a-1~"));
        assert_eq!(listed(&store, list("user", "a"), 9).await, ["user", "user-1", "users-1"]);
        assert_eq!(listed(&store, list("a", "b"), 9).await, Vec::<String>::new());
        assert_eq!(listed(&store, list("", "a\0"), 9).await, wanted("a\0"));
        assert_eq!(listed(&store, list("", "a\n"), 9).await, wanted("a\n"));
        assert!(store.streams(&StreamList::default(), 0).await.unwrap().is_empty());
        assert!(store.categories("", None, 0).await.unwrap().is_empty());
    }

    async fn s14_a_list_shows_the_version(database: TestDatabase) {
        let store = database.store().await;
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1), event(2)]).await.unwrap();
        let listed = store.streams(&StreamList::default(), 10).await.unwrap();
        assert_eq!(listed, [ListedStream { name: stream("a-1"), version: Version(1) }]);
    }

    async fn s14_lists_are_fast_whatever_there_is(database: TestDatabase) {
        let store = database.store().await;
        fill(&store).await;
        let all = StreamList::default();
        let of = |category: &str| StreamList { category: Some(category.to_owned()), ..all.clone() };
        let with = |prefix: &str| StreamList { prefix: prefix.to_owned(), ..all.clone() };
        let lists = [
            (all.clone(), "herald_streams_pkey", 100),
            (StreamList { after: Some("c05000-3".to_owned()), ..all.clone() }, "herald_streams_pkey", 100),
            (with("c09999"), "herald_streams_pkey", 10),
            (with("c0999"), "herald_streams_pkey", 100),
            (with("nothing"), "herald_streams_pkey", 0),
            (of("c05000"), "herald_streams_category", 10),
            (of("nothing"), "herald_streams_category", 0),
            (StreamList { after: Some("c05000-3".to_owned()), ..of("c05000") }, "herald_streams_category", 6),
        ];
        for is_analysed in [false, true] {
            if is_analysed {
                store.database().execute("ANALYZE", ()).await.unwrap();
            }
            for (list, index, count) in &lists {
                let plan = store.explain_streams(list, 100).await.unwrap();
                let index = if !database.is_postgres() && *index == "herald_streams_pkey" { "PRIMARY KEY" } else { index };
                let said = format!("{list:?} {is_analysed}\n{plan}");
                assert!(plan.contains(index) && !plan.contains("Seq Scan") && !plan.contains("SCAN herald_streams"), "{said}");
                assert_eq!(store.streams(list, 100).await.unwrap().len(), *count, "{list:?}");
                let took = fastest(async || store.streams(list, 100).await.unwrap()).await;
                assert!(took < MILLISECONDS, "{took:?} {said}");
            }
            for (prefix, after, count) in [("", None, 100), ("", Some("c05000"), 100), ("c0999", None, 10)] {
                let plan = store.explain_categories(prefix, after, 100).await.unwrap();
                let said = format!("{prefix:?} {after:?} {is_analysed}\n{plan}");
                assert!(plan.contains("herald_streams_category") && !plan.contains("Seq Scan") && !plan.contains("SCAN herald_streams"), "{said}");
                assert_eq!(store.categories(prefix, after, 100).await.unwrap().len(), count);
                let took = fastest(async || store.categories(prefix, after, 100).await.unwrap()).await;
                assert!(took < MILLISECONDS, "{took:?} {said}");
            }
        }
        assert_eq!(categories(&store, "", 10_000).await.len(), 10_000);
    }

    async fn s14_a_stream_is_summed_up(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        for number in 0..5 {
            let new = NewEvent { correlation_id: Some("c 1".to_owned()), ..event(number) };
            store.append(&stream("user-1"), ExpectedVersion::Any, vec![new, event(100 + number)]).await.unwrap();
            store.append(&stream("order-1"), ExpectedVersion::Any, vec![event(number)]).await.unwrap();
        }
        let summary = async |name: &str, last| store.stream_summary(&stream(name), last).await.unwrap();

        let user = summary("user-1", 3).await.unwrap();
        assert_eq!((user.events, user.version, user.first.position), (10, Some(Version(9)), Position(1)));
        let last: Vec<_> = user.last.iter().map(|event| event.position.0).collect();
        assert_eq!((last, user.first.recorded_at), (vec![14, 13, 11], T0));
        assert_eq!(summary("user-1", 0).await.unwrap().last, []);
        for (name, events, first, last) in
            [("$all", 15, 1, 15), ("$category-order", 5, 3, 15), ("$correlation-c 1", 5, 1, 13)]
        {
            let special = summary(name, 1).await.unwrap();
            assert_eq!((special.events, special.version), (events, None), "{name}");
            assert_eq!((special.first.position.0, special.last[0].position.0), (first, last), "{name}");
        }
        for nothing in ["user", "$category-use", "$correlation-c"] {
            assert_eq!(summary(nothing, 1).await, None, "{nothing}");
        }
        let error = store.stream_summary(&stream("$what"), 1).await.unwrap_err();
        assert!(matches!(error, SummaryError::UnknownSpecialStream(_)), "{error}");
    }

    async fn s14a_a_stream_has_a_document_of_metadata(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let user = stream("user-1");
        store.append(&user, ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        assert_eq!(store.stream_metadata(&user).await.unwrap(), None);
        store.set_stream_metadata(&user, None).await.unwrap();

        let document = json("{ \"owner\" : \"ü\",\n \"n\":1.0, \"a\":{} }");
        store.set_stream_metadata(&user, Some(&document)).await.unwrap();
        let noted = store.stream_metadata(&user).await.unwrap().unwrap();
        assert_eq!((noted.document.as_str(), noted.changed_at), (document.as_str(), T0));

        let later = T0.plus(Duration::from_secs(1));
        store.clock().set(later).await.unwrap();
        database.open().await.set_stream_metadata(&user, Some(&json("{}"))).await.unwrap();
        let noted = store.stream_metadata(&user).await.unwrap().unwrap();
        assert_eq!((noted.document.as_str(), noted.changed_at), ("{}", later));

        store.set_stream_metadata(&user, None).await.unwrap();
        assert_eq!(store.stream_metadata(&user).await.unwrap(), None);
    }

    async fn s14a_what_cannot_be_noted_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let (user, nobody) = (stream("user-1"), stream("user-2"));
        store.append(&user, ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        let small = json("{}");

        for document in [None, Some(&small)] {
            let error = store.set_stream_metadata(&nobody, document).await.unwrap_err();
            assert!(matches!(&error, StreamMetadataError::NoSuchStream(name) if *name == nobody), "{error}");
            let error = store.set_stream_metadata(&stream("$all"), document).await.unwrap_err();
            assert!(matches!(error, StreamMetadataError::ReservedStream(_)), "{error}");
        }
        assert!(matches!(store.stream_metadata(&nobody).await, Err(StreamMetadataError::NoSuchStream(_))));
        assert!(matches!(store.stream_metadata(&stream("$all")).await, Err(StreamMetadataError::ReservedStream(_))));
        let large = |bytes: usize| json(&format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8)));
        for (document, why) in [
            (json("[]"), "not a JSON object"),
            (json("{\"a\":1,\"a\":2}"), "the field \"a\" twice"),
            (large(MAX_METADATA_BYTES + 1), "at most 16384 are allowed"),
        ] {
            let error = store.set_stream_metadata(&user, Some(&document)).await.unwrap_err();
            assert!(store::messages(&error).join(": ").contains(why), "{error:?}");
            let StreamMetadataError::Invalid { source, .. } = error else { panic!("{error}") };
            assert!(!matches!(source, InvalidEvent::ReservedStream(_)));
        }
        assert_eq!(store.stream_metadata(&user).await.unwrap(), None);
        store.set_stream_metadata(&user, Some(&large(MAX_METADATA_BYTES))).await.unwrap();
    }
}
