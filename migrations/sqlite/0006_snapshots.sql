-- States of aggregates, so that a long stream need not be read from its beginning. Everything here can be deleted
-- at any time: it is made anew from the events.

CREATE TABLE herald_snapshots (
    stream         TEXT NOT NULL,
    -- The state after the event of this version …
    version        INTEGER NOT NULL CHECK (version >= 0),
    -- … which has this id. After a restore another event may stand there; then this is the state of a lost one.
    event_id       BLOB NOT NULL,
    id             BLOB NOT NULL UNIQUE,
    -- In which form the state is, and of which rules: the aggregate's own number.
    schema_number  INTEGER NOT NULL CHECK (schema_number >= 0),
    state          TEXT NOT NULL CHECK (length(CAST(state AS BLOB)) <= 16777216),
    taken_at       TEXT NOT NULL,
    PRIMARY KEY (stream, version)
);
