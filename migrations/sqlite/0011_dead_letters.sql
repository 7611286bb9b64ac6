-- Events that a subscription could not handle and set aside, and those that stand behind them.

-- How many of them are open, and what share of the traffic of late they are: on the row, so that a unit of a
-- subscription that has none asks nothing, and a unit that planned on other numbers is refused.
ALTER TABLE herald_subscriptions ADD COLUMN dead_letters INTEGER NOT NULL DEFAULT 0 CHECK (dead_letters >= 0);
ALTER TABLE herald_subscriptions ADD COLUMN recent_events INTEGER NOT NULL DEFAULT 0 CHECK (recent_events >= 0);
ALTER TABLE herald_subscriptions ADD COLUMN recent_dead_letters INTEGER NOT NULL DEFAULT 0
    CHECK (recent_dead_letters >= 0);
-- When it first failed at the failing position.
ALTER TABLE herald_subscriptions ADD COLUMN failing_since TEXT;

CREATE TABLE herald_dead_letters (
    subscription_id  TEXT NOT NULL,
    position         INTEGER NOT NULL CHECK (position > 0),
    event_id         BLOB NOT NULL,
    event_type       TEXT NOT NULL,
    stream           TEXT NOT NULL,
    -- Events of one key are handled in order: while one of them is here, later ones come here as well.
    key              TEXT NOT NULL,
    parked_at        TEXT NOT NULL,
    -- 'failed': it was tried. 'behind': it was not, because a letter of its key was here before it.
    reason           TEXT NOT NULL CHECK (reason IN ('failed', 'behind')),
    parked_behind    INTEGER,
    -- The messages, outermost first, as a JSON array.
    error            TEXT,
    attempts         INTEGER NOT NULL CHECK (attempts >= 0),
    first_failed_at  TEXT,
    last_failed_at   TEXT,
    PRIMARY KEY (subscription_id, position),
    CHECK ((reason = 'behind') = (attempts = 0)),
    CHECK (reason <> 'behind' OR (parked_behind IS NOT NULL AND parked_behind < position)),
    CHECK ((error IS NOT NULL) = (reason = 'failed')),
    CHECK ((first_failed_at IS NOT NULL) = (reason = 'failed')),
    CHECK ((last_failed_at IS NOT NULL) = (reason = 'failed'))
) WITHOUT ROWID;
CREATE INDEX herald_dead_letters_key ON herald_dead_letters (subscription_id, key, position);
