//! Wake-up (S-15): whoever waits learns of an append at once, in this process and in others.

use std::time::{Duration, Instant};

use store::{Append, ExpectedVersion, Store, Wake};
use testkit::both;
use tokio::sync::oneshot;

use crate::given::{all_events, event, stream};

/// What a reader would wait without a hint.
const POLL: Duration = Duration::from_secs(10);
/// Far above what a hint takes on a busy machine, and far below the poll.
const SOON: Duration = Duration::from_secs(4);

async fn woken_soon(wake: &mut Wake) {
    let start = Instant::now();
    wake.wait(POLL).await;
    assert!(start.elapsed() < SOON, "woken after {:?}", start.elapsed());
}

async fn append(store: &Store) {
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
}

both! {
    async fn s15_an_append_of_another_process_is_heard(database: TestDatabase) {
        let (writer, reader) = (database.store().await, database.open().await);
        let mut wake = reader.wake();
        wake.arm();
        let (stop, stopped) = oneshot::channel::<()>();
        let listening = tokio::spawn({
            let reader = reader.clone();
            async move { reader.listen(async { drop(stopped.await) }).await }
        });
        // The first hint says that from now on nothing is missed.
        woken_soon(&mut wake).await;

        for appends in 1..=3 {
            wake.arm();
            // Looked at in between: nothing new.
            assert_eq!(all_events(&reader).await.len(), appends - 1);
            append(&writer).await;
            woken_soon(&mut wake).await;
            // A hint may be late and belong to what was seen before: it is a hint.
            while all_events(&reader).await.len() < appends {
                woken_soon(&mut wake).await;
            }
        }

        stop.send(()).unwrap();
        listening.await.unwrap();
    }

    async fn s15_a_waiting_task_of_this_process_is_woken(database: TestDatabase) {
        let store = database.store().await;
        let mut wake = store.wake();
        let waiting = tokio::spawn(async move {
            woken_soon(&mut wake).await;
            wake
        });
        append(&store).await;
        let mut wake = waiting.await.unwrap();

        wake.arm();
        let mut tx = store.begin().await.unwrap();
        let appends =
            vec![Append { stream: stream("a-1"), expected: ExpectedVersion::Any, events: vec![event(1)] }];
        store.append_all(&mut tx, appends.clone()).await.unwrap();
        tx.commit().await.unwrap();
        woken_soon(&mut wake).await;

        // Readers may have stood before the positions that this leaves empty.
        wake.arm();
        let mut tx = store.begin().await.unwrap();
        store.append_all(&mut tx, vec![Append { events: vec![event(2)], ..appends[0].clone() }]).await.unwrap();
        tx.rollback().await;
        woken_soon(&mut wake).await;

        wake.arm();
        store.announce();
        woken_soon(&mut wake).await;
    }

    /// A command that ends right after its append is heard by those who stay.
    async fn s15_the_last_append_before_a_close_is_heard(database: TestDatabase) {
        let (writer, reader) = (database.store().await, database.open().await);
        let mut wake = reader.wake();
        wake.arm();
        let (stop, stopped) = oneshot::channel::<()>();
        let listening = tokio::spawn({
            let reader = reader.clone();
            async move { reader.listen(async { drop(stopped.await) }).await }
        });
        woken_soon(&mut wake).await;

        wake.arm();
        append(&writer).await;
        writer.close().await;
        woken_soon(&mut wake).await;

        stop.send(()).unwrap();
        listening.await.unwrap();
    }
}
