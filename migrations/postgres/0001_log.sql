-- The log: its identity, its streams, its events, and the one way to append to it.

CREATE TABLE herald_log (
    singleton   INTEGER PRIMARY KEY CHECK (singleton = 1),
    id          UUID NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    -- Set when the log was made in test mode; then this is the time, for every process.
    test_time   TIMESTAMPTZ
);

CREATE TABLE herald_streams (
    stream   TEXT PRIMARY KEY,
    version  BIGINT NOT NULL CHECK (version >= 0)
) WITH (fillfactor = 70);

-- Positions must be drawn in the order of time: CACHE 1, checked again when a program starts.
CREATE SEQUENCE herald_positions AS BIGINT CACHE 1 NO CYCLE;

CREATE TABLE herald_events (
    -- No default: only herald_append may give one out.
    position        BIGINT PRIMARY KEY CHECK (position > 0),
    stream          TEXT NOT NULL,
    version         BIGINT NOT NULL CHECK (version >= 0),
    type            TEXT NOT NULL,
    payload         TEXT NOT NULL,
    metadata        JSONB NOT NULL,
    id              UUID NOT NULL UNIQUE,
    correlation_id  TEXT,
    causation_id    UUID,
    recorded_at     TIMESTAMPTZ NOT NULL,
    -- Which events came in one append: a repeated append must name all of them.
    append_index    INTEGER NOT NULL,
    append_size     INTEGER NOT NULL CHECK (append_index >= 0 AND append_index < append_size),
    UNIQUE (stream, version)
);

-- There are two functions to append with. In both an expected version of 0 or more means exactly that, -1 no
-- stream, -2 any, -3 an existing stream, and the outcome of an append is one of
--   appended   with the stream's new version and the position of its last event
--   conflict   with the stream's version (null: no stream); nothing was written for it
--   known      some of its event ids are in the log already; nothing was written for it
--
-- The order of steps is the proof that no reader skips an event: first the stream rows, where an append may
-- wait; then the shared advisory lock; then positions are drawn and rows inserted; nothing comes between
-- that and the commit. A reader that meets a hole waits for those who held the lock, and for nobody else.
--
-- Sessions keep the plans of these statements. One made while the tables are empty would read them from end
-- to end once they are not, so that is switched off (and the compiler with it, which the price put on such a
-- reading would call).

-- One append in a transaction of its own. Its ids are not looked up where the stream is as expected: one that is
-- known breaks the unique index then, and the caller asks what it was.
CREATE FUNCTION herald_append_one(
    to_stream text, expected bigint,
    ids uuid[], types text[], payloads text[], metadata text[], correlations text[], causations uuid[],
    OUT outcome text, OUT stream_version bigint, OUT last_position bigint
) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    size     integer := cardinality(ids);
    reached  bigint;
BEGIN
    IF expected >= 0 THEN
        UPDATE herald_streams SET version = version + size
         WHERE stream = to_stream AND version = expected RETURNING version INTO reached;
    ELSIF expected = -1 THEN
        INSERT INTO herald_streams (stream, version) VALUES (to_stream, size - 1)
            ON CONFLICT (stream) DO NOTHING RETURNING version INTO reached;
    ELSIF expected = -2 THEN
        INSERT INTO herald_streams AS s (stream, version) VALUES (to_stream, size - 1)
            ON CONFLICT (stream) DO UPDATE SET version = s.version + size RETURNING s.version INTO reached;
    ELSE
        UPDATE herald_streams SET version = version + size
         WHERE stream = to_stream RETURNING version INTO reached;
    END IF;

    IF reached IS NULL THEN
        IF EXISTS (SELECT FROM herald_events WHERE id = ANY (ids)) THEN
            outcome := 'known';
        ELSE
            outcome := 'conflict';
            stream_version := (SELECT version FROM herald_streams WHERE stream = to_stream);
        END IF;
        RETURN;
    END IF;

    PERFORM pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer);
    IF size = 1 THEN
        INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                   causation_id, recorded_at, append_index, append_size)
        VALUES (nextval('herald_positions'), to_stream, reached, types[1], payloads[1],
                metadata[1]::jsonb, ids[1], correlations[1], causations[1],
                coalesce((SELECT test_time FROM herald_log), clock_timestamp()), 0, 1)
        RETURNING position INTO last_position;
    ELSE
        WITH written AS (
            INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                       causation_id, recorded_at, append_index, append_size)
            SELECT nextval('herald_positions'), to_stream, reached - size + e.number, e.type, e.payload,
                   e.metadata::jsonb, e.id, e.correlation, e.causation,
                   coalesce((SELECT test_time FROM herald_log), clock_timestamp()), e.number - 1, size
              FROM unnest(ids, types, payloads, metadata, correlations, causations) WITH ORDINALITY
                   AS e(id, type, payload, metadata, correlation, causation, number)
             ORDER BY e.number
            RETURNING position)
        SELECT max(position) INTO last_position FROM written;
    END IF;
    outcome := 'appended';
    stream_version := reached;
END
$$;

-- Appends to several streams inside somebody's transaction, sorted by the caller. Answers one row for each; a single
-- conflict keeps all the others from being written too, and the caller rolls back.
CREATE FUNCTION herald_append(
    streams text[], expected bigint[], sizes integer[],
    ids uuid[], types text[], payloads text[], metadata text[], correlations text[], causations uuid[]
) RETURNS TABLE (outcome text, stream_version bigint, last_position bigint)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    appends    integer := cardinality(streams);
    events     integer := cardinality(ids);
    first      integer := 1;    -- where the events of this append begin
    size       integer;
    reached    bigint;          -- the stream's version after this append
    outcomes   text[];
    versions   bigint[];        -- per append
    of_event   integer[];       -- per event: which append it belongs to; null for one that is not written
    event_ver  bigint[];        -- per event: its version
    index_in   integer[];       -- per event: its place in its append
    drawn      bigint[];
    at         integer := 0;
BEGIN
    FOR i IN 1..appends LOOP
        size := sizes[i];
        reached := NULL;
        IF expected[i] >= 0 THEN
            UPDATE herald_streams SET version = version + size
             WHERE stream = streams[i] AND version = expected[i] RETURNING version INTO reached;
        ELSIF expected[i] = -1 THEN
            INSERT INTO herald_streams (stream, version) VALUES (streams[i], size - 1)
                ON CONFLICT (stream) DO NOTHING RETURNING version INTO reached;
        ELSIF expected[i] = -2 THEN
            INSERT INTO herald_streams AS s (stream, version) VALUES (streams[i], size - 1)
                ON CONFLICT (stream) DO UPDATE SET version = s.version + size RETURNING s.version INTO reached;
        ELSE
            UPDATE herald_streams SET version = version + size
             WHERE stream = streams[i] RETURNING version INTO reached;
        END IF;

        IF EXISTS (SELECT FROM herald_events WHERE id = ANY (ids[first : first + size - 1])) THEN
            IF reached = size - 1 THEN
                DELETE FROM herald_streams WHERE stream = streams[i];
            ELSIF reached IS NOT NULL THEN
                UPDATE herald_streams SET version = version - size WHERE stream = streams[i];
            END IF;
            outcomes[i] := 'known';
            reached := NULL;
        ELSIF reached IS NULL THEN
            outcomes[i] := 'conflict';
            versions[i] := (SELECT version FROM herald_streams WHERE stream = streams[i]);
        ELSE
            outcomes[i] := 'appended';
            versions[i] := reached;
        END IF;

        IF events > 1 THEN
            FOR k IN 0..size - 1 LOOP
                of_event[first + k] := CASE WHEN reached IS NULL THEN NULL ELSE i END;
                event_ver[first + k] := reached - size + 1 + k;
                index_in[first + k] := k;
            END LOOP;
        END IF;
        first := first + size;
    END LOOP;

    IF 'appended' = ANY (outcomes) AND NOT 'conflict' = ANY (outcomes) THEN
        PERFORM pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer);
        IF events = 1 THEN
            INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                       causation_id, recorded_at, append_index, append_size)
            VALUES (nextval('herald_positions'), streams[1], versions[1], types[1], payloads[1],
                    metadata[1]::jsonb, ids[1], correlations[1], causations[1],
                    coalesce((SELECT test_time FROM herald_log), clock_timestamp()), 0, 1)
            RETURNING ARRAY[position] INTO drawn;
        ELSE
            WITH written AS (
                INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                           causation_id, recorded_at, append_index, append_size)
                SELECT nextval('herald_positions'), streams[e.append], e.version, e.type, e.payload,
                       e.metadata::jsonb, e.id, e.correlation, e.causation,
                       coalesce((SELECT test_time FROM herald_log), clock_timestamp()),
                       e.index_in_append, sizes[e.append]
                  FROM (SELECT *
                          FROM unnest(of_event, event_ver, index_in, ids, types, payloads, metadata,
                                      correlations, causations) WITH ORDINALITY
                               AS u(append, version, index_in_append, id, type, payload, metadata,
                                    correlation, causation, ordinality)
                         WHERE u.append IS NOT NULL
                         ORDER BY u.ordinality) e
                RETURNING position)
            SELECT array_agg(position ORDER BY position) INTO drawn FROM written;
        END IF;
    END IF;

    FOR i IN 1..appends LOOP
        outcome := outcomes[i];
        stream_version := versions[i];
        last_position := NULL;
        IF outcome = 'appended' AND drawn IS NOT NULL THEN
            at := at + sizes[i];
            last_position := drawn[at];
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
