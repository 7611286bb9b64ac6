-- Events that a subscription could not handle and set aside, and those that stand behind them.

-- How many of them are open, and what share of the traffic of late they are: on the row, so that a unit of a
-- subscription that has none asks nothing, and a unit that planned on other numbers is refused.
ALTER TABLE herald_subscriptions
    ADD COLUMN dead_letters         BIGINT NOT NULL DEFAULT 0 CHECK (dead_letters >= 0),
    ADD COLUMN recent_events        BIGINT NOT NULL DEFAULT 0 CHECK (recent_events >= 0),
    ADD COLUMN recent_dead_letters  BIGINT NOT NULL DEFAULT 0 CHECK (recent_dead_letters >= 0),
    -- When it first failed at the failing position.
    ADD COLUMN failing_since        TIMESTAMPTZ;

CREATE TABLE herald_dead_letters (
    subscription_id  TEXT COLLATE "C" NOT NULL,
    position         BIGINT NOT NULL CHECK (position > 0),
    event_id         UUID NOT NULL,
    event_type       TEXT COLLATE "C" NOT NULL,
    stream           TEXT COLLATE "C" NOT NULL,
    -- Events of one key are handled in order: while one of them is here, later ones come here as well.
    key              TEXT COLLATE "C" NOT NULL,
    parked_at        TIMESTAMPTZ NOT NULL,
    -- 'failed': it was tried. 'behind': it was not, because a letter of its key was here before it.
    reason           TEXT NOT NULL CHECK (reason IN ('failed', 'behind')),
    parked_behind    BIGINT,
    -- The messages, outermost first, as a JSON array.
    error            TEXT,
    attempts         INTEGER NOT NULL CHECK (attempts >= 0),
    first_failed_at  TIMESTAMPTZ,
    last_failed_at   TIMESTAMPTZ,
    PRIMARY KEY (subscription_id, position),
    CHECK ((reason = 'behind') = (attempts = 0)),
    CHECK (reason <> 'behind' OR (parked_behind IS NOT NULL AND parked_behind < position)),
    CHECK ((error IS NOT NULL) = (reason = 'failed')),
    CHECK ((first_failed_at IS NOT NULL) = (reason = 'failed')),
    CHECK ((last_failed_at IS NOT NULL) = (reason = 'failed'))
);
CREATE INDEX herald_dead_letters_key ON herald_dead_letters (subscription_id, key, position);
