-- Appending for many at once, with the rights of the log's owner. (0001 says what the answers mean and why the order
-- of steps is what it is: stream rows, then the lock, then positions and rows, then nothing.)
--
-- A role that appends needs EXECUTE on the two functions and no right to write the tables or to draw a position: a
-- position that is drawn without the lock could be skipped by a reader. GRANT EXECUTE to those who may append.

-- The names in the functions mean this schema, and never a temporary table of whoever calls.
SELECT set_config('herald.search_path', current_setting('search_path'), true);
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- One append in a transaction of its own. Where a certain version was expected and found, ids are not looked up: one
-- that is known breaks the unique index then, and the caller asks what it was. Where the stream says nothing about the
-- past (any, existing stream) they are, so that a repetition draws no position.
CREATE OR REPLACE FUNCTION herald_append_one(
    to_stream text, expected bigint,
    ids uuid[], types text[], payloads text[], metadata text[], correlations text[], causations uuid[],
    OUT outcome text, OUT stream_version bigint, OUT last_position bigint
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
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

    IF reached IS NULL OR expected < -1 THEN
        IF EXISTS (SELECT FROM herald_events WHERE id = ANY (ids)) THEN
            IF reached = size - 1 THEN
                DELETE FROM herald_streams WHERE stream = to_stream;
            ELSIF reached IS NOT NULL THEN
                UPDATE herald_streams SET version = version - size WHERE stream = to_stream;
            END IF;
            outcome := 'known';
            RETURN;
        ELSIF reached IS NULL THEN
            outcome := 'conflict';
            stream_version := (SELECT version FROM herald_streams WHERE stream = to_stream);
            RETURN;
        END IF;
    END IF;

    PERFORM pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer);
    IF size = 1 THEN
        INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                   causation_id, recorded_at, append_index, append_size)
        VALUES (nextval('herald_positions'), to_stream, reached, types[1], payloads[1],
                metadata[1], ids[1], correlations[1], causations[1],
                coalesce((SELECT test_time FROM herald_log), clock_timestamp()), 0, 1)
        RETURNING position INTO last_position;
    ELSE
        WITH written AS (
            INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                       causation_id, recorded_at, append_index, append_size)
            SELECT nextval('herald_positions'), to_stream, reached - size + e.number, e.type, e.payload,
                   e.metadata, e.id, e.correlation, e.causation,
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

-- Several appends, sorted by the caller; answers one row for each. Inside somebody's transaction (all or none) a single
-- conflict keeps all the others from being written too, and the caller rolls back. As a group of strangers, a
-- transaction of its own, each has its own fate; a known id that shows only in the unique index fails them all, and
-- the caller repeats them one by one.
DROP FUNCTION herald_append(text[], bigint[], integer[], uuid[], text[], text[], text[], text[], uuid[]);
CREATE FUNCTION herald_append(
    streams text[], expected bigint[], sizes integer[],
    ids uuid[], types text[], payloads text[], metadata text[], correlations text[], causations uuid[],
    all_or_none boolean DEFAULT true
) RETURNS TABLE (outcome text, stream_version bigint, last_position bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
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

        IF (reached IS NULL OR all_or_none OR expected[i] < -1)
           AND EXISTS (SELECT FROM herald_events WHERE id = ANY (ids[first : first + size - 1]))
        THEN
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

    IF 'appended' = ANY (outcomes) AND NOT (all_or_none AND 'conflict' = ANY (outcomes)) THEN
        PERFORM pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer);
        IF events = 1 THEN
            INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                       causation_id, recorded_at, append_index, append_size)
            VALUES (nextval('herald_positions'), streams[1], versions[1], types[1], payloads[1],
                    metadata[1], ids[1], correlations[1], causations[1],
                    coalesce((SELECT test_time FROM herald_log), clock_timestamp()), 0, 1)
            RETURNING ARRAY[position] INTO drawn;
        ELSE
            WITH written AS (
                INSERT INTO herald_events (position, stream, version, type, payload, metadata, id, correlation_id,
                                           causation_id, recorded_at, append_index, append_size)
                SELECT nextval('herald_positions'), streams[e.append], e.version, e.type, e.payload,
                       e.metadata, e.id, e.correlation, e.causation,
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

REVOKE ALL ON FUNCTION
    herald_append_one(text, bigint, uuid[], text[], text[], text[], text[], uuid[]),
    herald_append(text[], bigint[], integer[], uuid[], text[], text[], text[], text[], uuid[], boolean)
FROM PUBLIC;

SELECT set_config('search_path', current_setting('herald.search_path'), true);
