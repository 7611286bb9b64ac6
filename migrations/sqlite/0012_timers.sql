-- Durable timers: what a handler wants to be called for at an instant, set in the transaction that decided it.

CREATE TABLE herald_timers (
    -- Never used twice: what was set again under its key is another timer.
    number           INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription_id  TEXT NOT NULL,
    key              TEXT NOT NULL,
    -- Derived from what set it. Ids of what it brings about are derived from this one.
    id               BLOB NOT NULL,
    due_at           TEXT NOT NULL,
    payload          TEXT NOT NULL,
    cause_id         BLOB NOT NULL,
    cause_position   INTEGER NOT NULL,
    correlation_id   TEXT,
    caused_at        TEXT NOT NULL,
    -- When it may be tried: when it is due, and later after a failure. Null: it failed for good and is held.
    try_at           TEXT,
    -- Given when it was first seen due. Those with a smaller number go first …
    turn             INTEGER CHECK (turn > 0),
    -- … and it waits until the subscription has moved past what was the head then.
    barrier          INTEGER CHECK (barrier >= 0),
    attempt          INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    -- The messages of its last failure, outermost first, as a JSON array.
    error            TEXT,
    UNIQUE (subscription_id, key),
    CHECK ((turn IS NULL) = (barrier IS NULL)),
    CHECK ((error IS NULL) = (attempt = 0)),
    CHECK (try_at IS NOT NULL OR attempt > 0)
);
CREATE INDEX herald_timers_try ON herald_timers (subscription_id, try_at);
CREATE INDEX herald_timers_turn ON herald_timers (subscription_id, turn, due_at, number);
