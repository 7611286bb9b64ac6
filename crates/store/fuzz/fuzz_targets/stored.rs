//! Whatever the log takes it gives back byte for byte, on SQLite; whatever it refuses is a typed error. How to run it
//! says checked.rs.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use store::{AppendError, Durability, ExpectedVersion, Options, Setup, Store, TableName};
use testkit::Hostile;
use tokio::runtime::Runtime;

/// A log in a temporary folder, for all inputs of this process.
static LOG: LazyLock<(Runtime, Store, tempfile::TempDir)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite:{}", folder.path().join("herald.db").display());
    let options = Options { durability: Durability::PowerCutMayLoseCommits, ..Options::default() };
    let setup = Setup { view: TableName::new("events").expect("a name"), test_clock: None };
    let store = runtime.block_on(async {
        let store = Store::open(&url, &options, &[store::MIGRATIONS]).await.expect("it opens");
        store.set_up(&setup).await.expect("it can be set up").0
    });
    (runtime, store, folder)
});

fuzz_target!(|bytes: &[u8]| {
    let input = Hostile::from_bytes(bytes);
    let Ok((stream, event)) = input.event() else { return };
    let (runtime, store, _) = &*LOG;
    runtime.block_on(async {
        let appended = match store.append(&stream, ExpectedVersion::Any, vec![event.clone()]).await {
            Ok(appended) => appended,
            Err(AppendError::Invalid { .. }) => return,
            Err(error) => panic!("{input:?}: {error:?}"),
        };
        let version = appended.version.expect("an event was appended").0;
        let stored = store.read_stream(&stream, version, 1).await.expect("it can be read");
        assert_eq!(stored[0].id, event.id);
        assert_eq!(stored[0].stream, stream);
        assert_eq!(stored[0].event_type, input.event_type);
        assert_eq!(stored[0].payload.as_str(), input.payload);
        assert_eq!(stored[0].metadata.as_str(), input.metadata);
        assert_eq!(stored[0].correlation_id, input.correlation_id);
    });
});
