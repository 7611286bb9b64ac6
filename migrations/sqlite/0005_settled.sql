-- Positions that no event will ever have. On SQLite no append leaves any: they come with a log that was imported.
-- (PostgreSQL has two tables more, of what is settled; on SQLite everything that is visible is.)
CREATE TABLE herald_dead_ranges (
    lo         INTEGER PRIMARY KEY CHECK (lo > 0),
    hi         INTEGER NOT NULL CHECK (hi >= lo),
    proven_at  TEXT NOT NULL
);
