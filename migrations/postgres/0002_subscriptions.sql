-- Who has read how far, and in what state: the subscription engine's own tables.

CREATE TABLE herald_subscriptions (
    id                TEXT PRIMARY KEY,
    -- The program whose code it is: only that program may detach it.
    program           TEXT NOT NULL,
    "group"           TEXT NOT NULL,
    run_mode          TEXT NOT NULL CHECK (run_mode IN ('from_beginning', 'from_now', 'once')),
    status            TEXT NOT NULL CHECK (status IN
                        ('new', 'booting', 'active', 'paused', 'finished', 'detached', 'error')),
    -- What it goes on as when it leaves one of the three states that are no state of work.
    resume            TEXT CHECK (resume IN ('new', 'booting', 'active', 'finished')),
    -- Everything up to here is handled; null before the first event.
    position          BIGINT CHECK (position >= 0),
    error             TEXT,
    attempt           INTEGER NOT NULL CHECK (attempt >= 0),
    failing_position  BIGINT,
    next_retry_at     TIMESTAMPTZ,
    -- The tables to drop when it is torn down, so that this works without its code.
    clean_up          TEXT NOT NULL,
    created_at        TIMESTAMPTZ NOT NULL,
    changed_at        TIMESTAMPTZ NOT NULL,
    CHECK ((resume IS NOT NULL) = (status IN ('paused', 'detached', 'error'))),
    CHECK ((error IS NOT NULL) = (status = 'error')),
    CHECK (next_retry_at IS NULL OR status = 'error')
) WITH (fillfactor = 70);

CREATE TABLE herald_subscription_history (
    number           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id  TEXT NOT NULL,
    at               TIMESTAMPTZ NOT NULL,
    -- Null: it came into being. 'removed' as an end: it is gone.
    from_status      TEXT,
    to_status        TEXT NOT NULL,
    position         BIGINT,
    why              TEXT NOT NULL,
    who              TEXT NOT NULL
);
CREATE INDEX herald_subscription_history_of ON herald_subscription_history (subscription_id, number);

-- The workers that run now: what they know, and when they last showed progress. Never used for ownership.
CREATE TABLE herald_workers (
    id                UUID PRIMARY KEY,
    program           TEXT NOT NULL,
    build             TEXT NOT NULL,
    subscriber_ids    TEXT NOT NULL,
    -- Which of them it moves: {"ids": […] or null, "groups": […] or null}.
    criteria          TEXT NOT NULL,
    last_progress_at  TIMESTAMPTZ NOT NULL
);
