//! Imports of files that somebody made up or changed, with checksums that are right (S-24): nothing gets into a log
//! that an append would not take.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{ImportError, MAX_PAYLOAD_BYTES, Position, Store};
use testkit::{TestDatabase, both};

use crate::exchange::{append_many, export, import, quiet};
use crate::given::all_events;

/// The file with changed lines, and checks that are right again.
fn forged(text: &str, mut change: impl FnMut(usize, &mut Value)) -> String {
    let (mut forged, mut lines, mut hash) = (String::new(), 0, Sha256::new());
    for (number, line) in text.lines().enumerate() {
        let mut value: Value = serde_json::from_str(line).unwrap();
        for kind in ["check", "end"] {
            if let Some(check) = value.get_mut(kind) {
                let sum = hash.clone().finalize();
                check["sha256"] = sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
                check["lines"] = lines.to_string().into();
            }
        }
        change(number + 1, &mut value);
        let line = format!("{value}\n");
        if number > 0 {
            hash.update(&line);
            lines += 1;
        }
        forged.push_str(&line);
    }
    forged
}

/// The file with one field of one event changed.
fn with(text: &str, line: usize, field: &str, value: &Value) -> String {
    forged(text, |number, item| {
        if number == line {
            item["event"][field] = value.clone();
        }
    })
}

async fn exported(events: u32) -> (Store, TestDatabase, String) {
    let source = TestDatabase::sqlite();
    let store = source.store().await;
    append_many(&store, events).await;
    let text = export(&store, 0).await;
    assert_eq!(forged(&text, |_, _| {}), text);
    (store, source, text)
}

both! {
    async fn s24_an_import_takes_what_an_append_takes_and_nothing_else(database: TestDatabase) {
        let (store, _source, text) = exported(5).await;
        let copy = database.store().await;
        let large = format!("\"{}\"", "x".repeat(MAX_PAYLOAD_BYTES));
        let huge = "x".repeat(4 * MAX_PAYLOAD_BYTES);
        for (line, field, value, says) in [
            (2, "stream", json!("$all"), "the stream $all belongs to the log"),
            (2, "stream", json!("a\n"), "the stream in line 2 cannot be stored"),
            (3, "type", json!(""), "the event in line 3 cannot be stored: the event type"),
            (3, "correlation_id", json!("a\u{7}"), "the event in line 3 cannot be stored: the correlation id"),
            (3, "payload", json!("{]"), "the payload in line 3 cannot be stored: not valid JSON"),
            (3, "payload", json!("\"\\u0000\""), "the payload in line 3 cannot be stored: contains the escape"),
            (3, "payload", json!("[".repeat(65) + &"]".repeat(65)), "nested deeper"),
            (3, "payload", json!(large), "the event in line 3 cannot be stored: the payload has"),
            (3, "payload", json!(huge), "line 3 is damaged: it is longer than any line"),
            (3, "payload", json!({}), "line 3 is damaged: not a line of an export"),
            (3, "metadata", json!("[]"), "the metadata cannot be stored: not a JSON object"),
            (3, "metadata", json!("{\"a\":1,\"a\":2}"), "the metadata has the field \"a\" twice"),
            (3, "id", json!("nobody"), "line 3 is damaged"),
            (3, "recorded_at", json!("tomorrow"), "line 3 is damaged"),
            (3, "surplus", json!(1), "line 3 is damaged"),
            (3, "position", json!("1"), "line 3 is damaged: its position is out of order"),
            (3, "position", json!(2), "line 3 is damaged"),
            (6, "position", json!("6"), "line 6 is damaged: its position is out of order"),
            (6, "version", json!("7"), "line 6, version 7 of many-0, does not follow what the log has: version 4"),
            (2, "version", json!("1"), "line 3, version 1 of many-0, does not follow what the log has: version 2"),
            (2, "version", json!("-1"), "cannot be"),
            (2, "append_size", json!(9), "line 3, version 1 of many-0, does not follow what the log has: its append"),
            (2, "append_index", json!(1), "line 3, version 1 of many-0, does not follow what the log has: its append"),
            (2, "append_index", json!(-1), "cannot be"),
            (2, "append_size", json!(100_000), "100000 events in one append"),
        ] {
            let refused = import(&copy, &with(&text, line, field, &value)).await.unwrap_err();
            let words = store::messages(&refused).join(": ");
            assert!(words.contains(says), "{field} {value:.80}: {words}");
            assert_eq!(all_events(&copy).await, []);
        }
        let late = forged(&text, |_, item| {
            if let Some(event) = item.get_mut("event") {
                let version: i64 = event["version"].as_str().unwrap().parse().unwrap();
                event["version"] = (version + 1).to_string().into();
            }
        });
        let refused = import(&copy, &late).await.unwrap_err().to_string();
        assert!(refused.contains("line 2, version 1 of many-0, does not follow what the log has: version 0"), "{refused}");
        let first = all_events(&store).await[0].id;
        let twice = with(&text, 4, "id", &json!(first));
        assert!(import(&copy, &twice).await.unwrap_err().to_string().contains("line 4 is damaged: its event id"));
        // Whatever was tried, the log is as it was, and takes the true file.
        import(&copy, &text).await.unwrap();
        assert_eq!(all_events(&copy).await, all_events(&store).await);
    }

    /// What is in the log is asked, as a later chunk must follow an earlier one.
    async fn s23_a_chunk_must_follow_what_the_log_has(database: TestDatabase) {
        let (store, _source, text) = exported(2_200).await;
        let last = text.lines().count();
        // Of an append of a hundred: version 200 of its stream.
        let line = 2_003;
        assert!(text.lines().nth(line - 1).unwrap().contains("\"append_index\":0"));
        let first = all_events(&store).await[0].id;
        let shifted = forged(&text, |number, item| {
            if (line..line + 100).contains(&number) {
                let version: i64 = item["event"]["version"].as_str().unwrap().parse().unwrap();
                item["event"]["version"] = (version + 1).to_string().into();
            }
        });
        let cut = forged(&text, |number, item| {
            if (line..line + 100).contains(&number) {
                let index = item["event"]["append_index"].as_i64().unwrap();
                item["event"]["append_index"] = (index + 1).into();
                item["event"]["append_size"] = 101.into();
            }
        });
        for (text, says) in [
            (shifted, "line 2003, version 201 of many-600, does not follow what the log has: version 200 should come"),
            (cut, "line 2003, version 200 of many-600, does not follow what the log has: its append is not whole"),
            (with(&text, line + 5, "id", &json!(first)), "in line 2008 is in the log already, at position 1"),
            (forged(&text, |number, item| if number == last { item["end"]["events"] = "7".into() }), "the counts"),
            (format!("{text}{{}}\n"), "stands behind the end"),
        ] {
            let copy = match database.is_postgres() {
                true => TestDatabase::postgres("s23_a_chunk_must_follow").await,
                false => Some(TestDatabase::sqlite()),
            };
            let Some(target) = copy else { return };
            let copy = target.store().await;
            let refused = import(&copy, &text).await.unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
            let written = all_events(&copy).await.len();
            assert!(written == 2_000 || (written == 2_200 && !says.contains("line")), "{written}: {refused}");
        }
    }

    async fn s23_what_is_no_export_is_said_to_be_none(database: TestDatabase) {
        let (_store, _source, text) = exported(3).await;
        let copy = database.store().await;
        let newer = text.replacen("herald.export/1", "herald.export/2", 1);
        let backwards = text.replacen("\"after\":\"0\"", "\"after\":\"9\"", 1);
        let without_check: String = text.lines().filter(|line| !line.contains("\"check\"")).map(|line| format!("{line}\n")).collect();
        for (text, says) in [
            ("", "it has no first line"),
            ("no line break", "it has no first line"),
            ("PGDMP\n", "it does not begin like one"),
            (newer.as_str(), "it is in the format herald.export/2, this program reads herald.export/1"),
            (backwards.as_str(), "the positions in it cannot be"),
            (without_check.as_str(), "it does not belong here"),
            (&text[..text.len() - 1], "ends after line 5"),
        ] {
            let refused = import(&copy, text).await.unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
            assert_eq!(copy.find(uuid::Uuid::nil()).await.unwrap(), None);
        }
        let closed = database.open().await;
        closed.close().await;
        let refused = closed.import(text.as_bytes(), store::ImportMode::Write, quiet).await.unwrap_err();
        assert!(matches!(refused, ImportError::Database(_)), "{refused}");
    }
}

/// S-25: an event that cannot be read is named; none is passed over.
#[tokio::test]
async fn s25_an_export_names_the_row_that_cannot_be_read() {
    let (store, _source, _) = exported(30).await;
    store.database().execute("DROP TRIGGER herald_events_never_change", ()).await.unwrap();
    let harm =
        "UPDATE herald_events SET payload = x'ff00', recorded_at = 'yesterday' WHERE position IN (17, 20)";
    store.database().execute(harm, ()).await.unwrap();

    let refused = store.export(Vec::new(), Position::START, quiet).await.unwrap_err();

    assert!(refused.to_string().contains("the event at position 17 cannot be read"), "{refused}");
}
