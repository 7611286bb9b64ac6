-- How subscriptions get on: when each last moved, what keeps one from moving though nobody failed, and which units
-- are under way that may end their process. All times are the database's.

-- When its position last changed. Null: not since this column is there.
ALTER TABLE herald_subscriptions ADD COLUMN moved_at TEXT;
-- When a worker began: who has only just begun is not late.
ALTER TABLE herald_workers ADD COLUMN started_at TEXT;

-- Something passing is in the way of a subscription. There as long as its worker meets it.
CREATE TABLE herald_subscription_stalls (
    subscription_id  TEXT PRIMARY KEY,
    why              TEXT NOT NULL,
    since            TEXT NOT NULL,
    -- When it was last met.
    met_at           TEXT NOT NULL
);

-- A unit that is watched because one before it may have ended its process: written before it begins, gone with
-- whatever it comes to.
CREATE TABLE herald_unit_markers (
    subscription_id  TEXT PRIMARY KEY,
    -- The first event of the unit, and how many it has.
    position         INTEGER NOT NULL,
    events           INTEGER NOT NULL CHECK (events > 0),
    -- Who runs it: nobody else may take it for dead as long as this one lives.
    runner           TEXT NOT NULL,
    marked_at        TEXT NOT NULL
);
