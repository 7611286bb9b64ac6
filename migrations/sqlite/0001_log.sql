-- The log: its identity, its streams and its events. SQLite has one writer, so positions are drawn and
-- committed in one order and a hole cannot be seen; there is no function and no sequence.

CREATE TABLE herald_log (
    singleton   INTEGER PRIMARY KEY CHECK (singleton = 1),
    id          BLOB NOT NULL,
    created_at  TEXT NOT NULL,
    -- Set when the log was made in test mode; then this is the time, for every process.
    test_time   TEXT
);

CREATE TABLE herald_streams (
    stream   TEXT PRIMARY KEY,
    version  INTEGER NOT NULL CHECK (version >= 0)
) WITHOUT ROWID;

CREATE TABLE herald_events (
    position        INTEGER PRIMARY KEY CHECK (position > 0),
    stream          TEXT NOT NULL,
    version         INTEGER NOT NULL CHECK (version >= 0),
    type            TEXT NOT NULL,
    payload         TEXT NOT NULL,
    metadata        TEXT NOT NULL CHECK (json_type(metadata) = 'object'),
    id              BLOB NOT NULL UNIQUE,
    correlation_id  TEXT,
    causation_id    BLOB,
    recorded_at     TEXT NOT NULL,
    -- Which events came in one append: a repeated append must name all of them.
    append_index    INTEGER NOT NULL,
    append_size     INTEGER NOT NULL CHECK (append_index >= 0 AND append_index < append_size),
    UNIQUE (stream, version)
);
