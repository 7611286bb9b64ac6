-- Streams that are closed: their events stay in the log, and nothing is appended to them any more.

-- The version of the event that closed it. From then on the row cannot move, which refuses every append.
ALTER TABLE herald_streams
    ADD COLUMN closed_version BIGINT,
    ADD CONSTRAINT herald_streams_closed_for_good CHECK (closed_version IS NULL OR closed_version = version);
CREATE INDEX herald_closed_streams ON herald_streams (stream) WHERE closed_version IS NOT NULL;

-- The event itself closes the stream, however it came into the log: appended, imported or restored.
SELECT set_config('herald.search_path', current_setting('search_path'), true);
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE FUNCTION herald_close_stream() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE herald_streams SET closed_version = NEW.version WHERE stream = NEW.stream;
    RETURN NULL;
END
$$;
CREATE TRIGGER herald_events_close AFTER INSERT ON herald_events
    FOR EACH ROW WHEN (NEW.type = '$closed') EXECUTE FUNCTION herald_close_stream();

SELECT set_config('search_path', current_setting('herald.search_path'), true);
