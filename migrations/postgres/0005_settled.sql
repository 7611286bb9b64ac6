-- What is settled, kept: the holes that were proven dead, the head up to which everything is settled, and a sign of
-- whether the server has crashed since.

-- Positions that no event will ever have: their appends were rolled back. Each hole stands here as one row.
CREATE TABLE herald_dead_ranges (
    lo         BIGINT PRIMARY KEY CHECK (lo > 0),
    hi         BIGINT NOT NULL CHECK (hi >= lo),
    proven_at  TIMESTAMPTZ NOT NULL
);

-- Every event at or below this position is visible, or never will be, and its hole stands above. Written after all
-- those events were committed, so whoever sees this row sees them: on a standby too, and after a crash.
CREATE TABLE herald_safe_head (
    singleton     INTEGER PRIMARY KEY CHECK (singleton = 1),
    position      BIGINT NOT NULL CHECK (position >= 0),
    published_at  TIMESTAMPTZ NOT NULL
);
INSERT INTO herald_safe_head (singleton, position, published_at) VALUES (1, 0, clock_timestamp());
-- Every reader asks for it, also one whose rights were given before there was such a table; it tells a number.
GRANT SELECT ON herald_safe_head TO PUBLIC;

-- Empties itself when the server crashes, and is empty on a standby that takes over: that is what UNLOGGED means.
CREATE UNLOGGED TABLE herald_server_run (
    singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
    id         UUID NOT NULL
);

-- The names in the functions mean this schema, and never a temporary table of whoever calls.
SELECT set_config('herald.search_path', current_setting('search_path'), true);
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- Names the run of the server, and says what is published there. As long as the name stays the same, nothing that was
-- visible has been lost. A crash can lose commits that were not synced, and a standby that takes over can lack some:
-- then positions are drawn again which a process has seen settled, and it must forget what it knew.
-- (A standby that crashes shows an earlier state for a while. It has no table that empties itself; but its statistics
-- are begun anew.)
CREATE FUNCTION herald_identify_server(OUT run text, OUT published bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT pg_is_in_recovery() THEN
        run := (SELECT id::text FROM herald_server_run);
        IF run IS NULL AND current_setting('transaction_read_only') = 'off' THEN
            INSERT INTO herald_server_run (singleton, id) VALUES (1, gen_random_uuid()) ON CONFLICT DO NOTHING;
            run := (SELECT id::text FROM herald_server_run);
        END IF;
    END IF;
    -- A dump that is restored elsewhere brings the row along, but neither this start nor this sequence.
    run := coalesce(run, (SELECT 'standby ' || extract(epoch FROM stats_reset)::text FROM pg_stat_archiver), 'standby')
               || ' ' || extract(epoch FROM pg_postmaster_start_time())::text
               || ' ' || coalesce(to_regclass('herald_positions')::oid::text, '');
    -- A log that was cut off may have a head that was published beyond its end: nothing there is settled.
    published := least(coalesce((SELECT position FROM herald_safe_head), 0),
                       coalesce((SELECT max(position) FROM herald_events), 0));
END
$$;
GRANT EXECUTE ON FUNCTION herald_identify_server() TO PUBLIC;

-- Records the holes up to a position that is known to be settled, and publishes it; answers what is published then.
-- Null if it was known of another run of the server: its events may be lost. At most 10,000 positions are gone through
-- in one call, so a caller goes on until nothing changes. Any number may call at once: one does it, the others see.
CREATE FUNCTION herald_publish_head(known bigint, of_run text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
DECLARE
    head    bigint;
    target  bigint;
    start   bigint;    -- up to here there is no hole, or it is recorded
BEGIN
    IF pg_is_in_recovery() OR of_run IS DISTINCT FROM (SELECT run FROM herald_identify_server()) THEN
        RETURN NULL;
    END IF;
    -- Who loses this in a crash loses nothing: it is published again.
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT position INTO head FROM herald_safe_head FOR UPDATE SKIP LOCKED;
    IF head IS NULL THEN
        RETURN (SELECT position FROM herald_safe_head);
    END IF;
    -- Nothing is dead above the highest event.
    target := least(known, head + 10000, coalesce((SELECT max(position) FROM herald_events), 0));
    IF target <= head THEN
        RETURN head;
    END IF;
    -- A hole in whose midst the last call has stopped is one with its rest.
    start := coalesce((SELECT last.lo - 1
                         FROM (SELECT lo, hi FROM herald_dead_ranges WHERE lo <= head ORDER BY lo DESC LIMIT 1) AS last
                        WHERE last.hi >= head), head);
    INSERT INTO herald_dead_ranges AS noted (lo, hi, proven_at)
    SELECT before + 1, place - 1, clock_timestamp()
      FROM (SELECT place, lag(place, 1, start) OVER (ORDER BY place) AS before
              FROM (SELECT position AS place FROM herald_events WHERE position > head AND position <= target
                    UNION ALL
                    SELECT target + 1) AS settled) AS step
     WHERE place > before + 1
    ON CONFLICT (lo) DO UPDATE SET hi = greatest(noted.hi, excluded.hi);
    UPDATE herald_safe_head SET position = target, published_at = clock_timestamp();
    RETURN target;
END
$$;
REVOKE ALL ON FUNCTION herald_publish_head(bigint, text) FROM PUBLIC;

SELECT set_config('search_path', current_setting('herald.search_path'), true);
