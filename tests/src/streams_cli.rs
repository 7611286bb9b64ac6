//! `herald streams`, and the flags of `herald events list`: what people ask of names and of metadata.

use store::{ExpectedVersion, Json, NewEvent, Store};
use testkit::{TestDatabase, both};

use crate::given::{event, stream};
use crate::program::herald;

/// Six streams; the metadata of each event names a tenant and a number.
async fn six_streams(database: &TestDatabase) -> Store {
    let store = database.store().await;
    for (number, name) in (0..).zip(["order-1", "user-1", "user-2", "user-3", "users-1", "audit"]) {
        let tenant = if number % 2 == 0 { "acme" } else { "umbrella" };
        let metadata = Json::of(&serde_json::json!({ "tenant": tenant, "n": number })).unwrap();
        let new = NewEvent { metadata, correlation_id: Some(format!("c{number}")), ..event(number) };
        store.append(&stream(name), ExpectedVersion::Any, vec![new, event(100)]).await.unwrap();
    }
    store
}

fn listed(database: &TestDatabase, arguments: &[&str]) -> Vec<String> {
    let all = [&["streams"], arguments, &["-o", "plain", "--no-header"]].concat();
    herald(database, &all).ok().lines().map(str::to_owned).collect()
}

/// The positions that `events list` shows.
fn events(database: &TestDatabase, arguments: &[&str]) -> Vec<u32> {
    let all = [&["events", "list", "-o", "plain", "--no-header"], arguments].concat();
    let said = herald(database, &all).ok();
    said.lines().map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect()
}

both! {
    async fn s14_streams_and_categories_are_listed_in_pages(database: TestDatabase) {
        six_streams(&database).await;
        assert_eq!(listed(&database, &["list", "--category", "user"]), ["user-1\t2\t1", "user-2\t2\t1", "user-3\t2\t1"]);
        assert_eq!(listed(&database, &["list", "--prefix", "user", "--after", "user-2"]), ["user-3\t2\t1", "users-1\t2\t1"]);
        assert_eq!(listed(&database, &["list", "--prefix", "nothing"]), Vec::<String>::new());
        assert_eq!(listed(&database, &["categories"]), ["audit", "order", "user", "users"]);
        assert_eq!(listed(&database, &["categories", "--prefix", "u", "--after", "user"]), ["users"]);

        let said = herald(&database, &["streams", "list", "--limit", "2"]);
        assert!(said.stderr.contains("add --after 'order-1'"), "{said:?}");
        let page = herald(&database, &["streams", "list", "--limit", "2", "-o", "json"]).json();
        let first = serde_json::json!({ "stream": "audit", "version": "1", "events": "2" });
        assert_eq!((&page["data"][0], &page["next"]), (&first, &"order-1".into()));
        let page = herald(&database, &["streams", "list", "--after", "user-2", "-o", "json"]).json();
        assert_eq!((page["data"].as_array().unwrap().len(), &page["next"]), (2, &serde_json::Value::Null));
    }

    async fn s14_a_stream_is_shown(database: TestDatabase) {
        six_streams(&database).await;
        let said = herald(&database, &["streams", "show", "user-2", "-n", "1"]).ok();
        assert!(said.contains("events      2\nversion     1\nfirst       "), "{said}");
        assert!(said.contains("at position 5\nlast        ") && said.contains("at position 6\nmetadata    -\n"), "{said}");
        let shown = herald(&database, &["streams", "show", "$category-user", "-o", "json"]).json();
        assert_eq!((&shown["data"]["events"], &shown["data"]["version"]), (&"6".into(), &serde_json::Value::Null));
        assert_eq!(shown["data"]["last"][0]["position"], "8");

        let said = herald(&database, &["streams", "show", "user"]).fails(3);
        assert!(said.stderr.contains("there is no stream user"), "{said:?}");
        herald(&database, &["streams", "show", "$what"]).fails(2);
    }

    async fn s14a_what_is_noted_about_a_stream(database: TestDatabase) {
        six_streams(&database).await;
        let metadata = |more: &[&str]| herald(&database, &[&["streams", "metadata"], more].concat());
        assert_eq!(metadata(&["user-1"]).ok(), "");
        assert_eq!(metadata(&["user-1", "--set", "{\"owner\":\n1}"]).ok(), "Noted about user-1.\n");
        assert_eq!(metadata(&["user-1"]).ok(), "{\"owner\": 1}\n");
        let shown = herald(&database, &["streams", "show", "user-1", "-o", "json"]).json();
        assert_eq!(shown["data"]["metadata"]["owner"], 1);
        let cleared = metadata(&["user-1", "--clear", "-o", "json"]).json();
        assert_eq!(cleared["data"], serde_json::json!({ "stream": "user-1", "metadata": null, "changed_at": null }));

        for (wrong, code, says) in [
            (&["nobody", "--set", "{}"][..], 3, "there is no stream nobody"),
            (&["nobody"], 3, "there is no stream nobody"),
            (&["$all", "--set", "{}"], 2, "$all stands for many streams"),
            (&["user-1", "--set", "[]"], 2, "not a JSON object"),
            (&["user-1", "--set", "{"], 2, "not valid JSON"),
            (&["user-1", "--set", "{}", "--clear"], 2, "cannot be used with"),
        ] {
            let said = metadata(wrong).fails(code);
            assert!(said.stderr.contains(says), "{said:?}");
        }
    }

    async fn s13_events_are_listed_by_what_holds_of_them(database: TestDatabase) {
        six_streams(&database).await;
        for (arguments, positions) in [
            (&["--category", "user"][..], &[3, 4, 5, 6, 7, 8][..]),
            (&["--stream", "$category-users"], &[9, 10]),
            (&["--correlation-id", "c2"], &[5]),
            (&["--where", "meta.tenant = acme"], &[1, 5, 9]),
            (&["--where", "meta.tenant EQUALS acme", "--category", "user"], &[5]),
            (&["--where", "meta.tenant != acme"], &[3, 7, 11]),
            (&["--where", "meta.n > 1", "--where", "meta.n<=3"], &[5, 7]),
            (&["--where", "meta.n >= 4"], &[9, 11]),
            (&["--where", "meta.n < 1"], &[1]),
            (&["--where", "meta.n in 1,3"], &[3, 7]),
            (&["--where", "meta.n nin [1,3]"], &[1, 5, 9, 11]),
            (&["--where", "stream regex ^users?-1$", "--where", "version = 0"], &[3, 9]),
            (&["--where", "meta.tenant = acme", "--reverse"], &[9, 5, 1]),
            (&["--where", "meta.nothing != acme"], &[]),
        ] {
            assert_eq!(events(&database, arguments), positions, "{arguments:?}");
        }
    }

    /// `next` leads on, and is absent where nothing follows.
    async fn c06_a_list_of_events_says_where_it_goes_on(database: TestDatabase) {
        six_streams(&database).await;
        for (order, flag, positions) in [
            (&[][..], "--after", ["1", "3", "5", "7", "9", "11"]),
            (&["--reverse"], "--before", ["11", "9", "7", "5", "3", "1"]),
        ] {
            let (mut from, mut seen) = (None::<String>, Vec::new());
            loop {
                let begin = from.as_ref().map_or(vec![], |from| vec![flag, from.as_str()]);
                let page = [&["events", "list", "-o", "json", "--limit", "5", "--where", "meta.n >= 0"], order, &begin].concat();
                let page = herald(&database, &page).json();
                for row in page["data"].as_array().unwrap() {
                    seen.push(row["position"].as_str().unwrap().to_owned());
                }
                let Some(next) = page["next"].as_str() else { break };
                from = Some(next.to_owned());
            }
            assert_eq!(seen, positions);
        }
        let said = herald(&database, &["events", "list", "--limit", "5"]);
        assert!(said.stderr.contains("There may be more: add --after 5."), "{said:?}");
        let said = herald(&database, &["events", "list", "--reverse", "--limit", "5"]);
        assert!(said.stderr.contains("There may be more: add --before 8."), "{said:?}");
        assert_eq!(herald(&database, &["events", "list"]).stderr, "");
    }
}
