-- What reads need: an index for each way to ask, names that compare byte by byte, metadata kept as written.
-- (The view over the events is dropped before and made again after the migrations: it pins the column types.)

ALTER TABLE herald_streams ALTER COLUMN stream TYPE TEXT COLLATE "C";
-- Metadata is text, as the payload: JSONB changes what was written (order, repeated keys, numbers), and an export
-- would not be exact. Questions about it parse it with `metadata::json`.
ALTER TABLE herald_events
    ALTER COLUMN stream TYPE TEXT COLLATE "C",
    ALTER COLUMN type TYPE TEXT COLLATE "C",
    ALTER COLUMN metadata TYPE TEXT USING metadata::text;

CREATE INDEX herald_events_type ON herald_events (type, position);
-- The category is the text before the first dash; who reads by category writes this very expression.
CREATE INDEX herald_events_category ON herald_events (split_part(stream, '-', 1), position);
CREATE INDEX herald_events_correlation ON herald_events (correlation_id, position)
    WHERE correlation_id IS NOT NULL;
CREATE INDEX herald_streams_category ON herald_streams (split_part(stream, '-', 1), stream);

-- What people note about a stream, one document each; never part of the log.
CREATE TABLE herald_stream_metadata (
    stream      TEXT COLLATE "C" PRIMARY KEY,
    metadata    TEXT NOT NULL,
    changed_at  TIMESTAMPTZ NOT NULL
);

-- The log only grows. Who must break that rule, for a law or a repair, has to switch this off first.
CREATE FUNCTION herald_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed or deleted: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER herald_events_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON herald_events
    FOR EACH STATEMENT EXECUTE FUNCTION herald_refuse_change();
