-- Where the log lives and has lived. The newest row is where it lives now; its number is the log's epoch, which
-- grows whenever the log was moved, restored or adopted somewhere else. Who finds the log at another place than
-- this one asks first whether the original still runs.
CREATE TABLE herald_log_places (
    -- The key lets only one of two programs that arrive at once write the next row.
    epoch  INTEGER PRIMARY KEY CHECK (epoch > 0),
    -- What tells this place from others, as JSON.
    place  TEXT NOT NULL,
    since  TEXT NOT NULL,
    why    TEXT NOT NULL,
    who    TEXT NOT NULL
);
