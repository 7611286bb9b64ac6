-- The effect ledger: what subscribers want done outside the database, planned in the transaction that decided it.

CREATE TABLE herald_effects (
    number           INTEGER PRIMARY KEY,
    -- Derived from the cause: planning it again changes nothing.
    id               BLOB NOT NULL UNIQUE,
    subscription_id  TEXT NOT NULL,
    kind             TEXT NOT NULL,
    destination      TEXT NOT NULL,
    -- By which the receiver may know a repetition.
    receiver_key     TEXT NOT NULL,
    body             TEXT NOT NULL,
    cause_id         BLOB NOT NULL,
    cause_position   INTEGER NOT NULL,
    correlation_id   TEXT,
    caused_at        TEXT NOT NULL,
    state            TEXT NOT NULL DEFAULT 'pending' CHECK (state IN
                       ('pending', 'sending', 'held', 'done', 'failed', 'unwanted', 'discarded')),
    -- By the log's clock.
    due_at           TEXT NOT NULL,
    -- Attempts that were started, and those among all tries that count against its retries.
    attempt          INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    failures         INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    -- What was last said of it.
    why              TEXT NOT NULL DEFAULT '',
    -- Why it is held, or will be if the attempt under way does not end it.
    hold             TEXT CHECK (hold IN ('in_doubt', 'removed', 'operator')),
    -- The attempt under way: whose it is, and until when by the database's clock.
    claim            BLOB,
    claimed_by       BLOB,
    claimed_at       TEXT,
    claimed_until    TEXT,
    changed_at       TEXT NOT NULL,
    -- Counts the changes of this row; each is a compare-and-set on it.
    revision         INTEGER NOT NULL DEFAULT 0,
    CHECK ((state = 'sending') = (claim IS NOT NULL)),
    CHECK ((claim IS NULL) = (claimed_by IS NULL)),
    CHECK ((claim IS NULL) = (claimed_at IS NULL)),
    CHECK ((claim IS NULL) = (claimed_until IS NULL)),
    CHECK (state <> 'held' OR hold IS NOT NULL),
    CHECK (hold IS NULL OR state IN ('held', 'sending'))
);
CREATE INDEX herald_effects_due ON herald_effects (subscription_id, kind, destination, due_at, number)
    WHERE state = 'pending';
CREATE INDEX herald_effects_sending ON herald_effects (claimed_until) WHERE state = 'sending';
CREATE INDEX herald_effects_open ON herald_effects (subscription_id, state, caused_at)
    WHERE state IN ('pending', 'sending', 'held');
CREATE INDEX herald_effects_state ON herald_effects (state, number);
CREATE INDEX herald_effects_destination ON herald_effects (destination, number);

-- Whose effects may be sent. Follows the status of the subscription in the same transaction.
CREATE TABLE herald_effect_owners (
    subscription_id  TEXT PRIMARY KEY,
    open             BOOLEAN NOT NULL,
    -- The kind whose last sending was blocked, and how often in a row: then one effect goes ahead of all others.
    blocked_kind     TEXT,
    blocked_times    INTEGER NOT NULL DEFAULT 0 CHECK (blocked_times >= 0)
);

-- What one subscription has to send to one destination, in order and one at a time. There while anything is.
CREATE TABLE herald_effect_lanes (
    subscription_id  TEXT NOT NULL,
    kind             TEXT NOT NULL,
    destination      TEXT NOT NULL,
    -- When to look at it next; never later than the first pending effect may be sent. Null: nothing is pending.
    next_at          TEXT,
    -- An attempt is under way.
    sending          BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (subscription_id, kind, destination)
);
CREATE INDEX herald_effect_lanes_next ON herald_effect_lanes (subscription_id, kind, next_at) WHERE NOT sending;

-- How fast a destination may be sent to, whoever sends. There only where it matters.
CREATE TABLE herald_effect_destinations (
    kind         TEXT NOT NULL,
    destination  TEXT NOT NULL,
    -- When the next sending is due at the steady pace; a burst may go ahead of it.
    paced_at     TEXT NOT NULL,
    -- The receiver asked to be left alone until then.
    not_before   TEXT NOT NULL,
    PRIMARY KEY (kind, destination)
);
CREATE INDEX herald_effect_destinations_past ON herald_effect_destinations (paced_at);

-- Each attempt and each change by hand.
CREATE TABLE herald_effect_history (
    number     INTEGER PRIMARY KEY,
    effect_id  BLOB NOT NULL,
    at         TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    what       TEXT NOT NULL,
    why        TEXT NOT NULL,
    who        TEXT NOT NULL
);
CREATE INDEX herald_effect_history_of ON herald_effect_history (effect_id, number);
