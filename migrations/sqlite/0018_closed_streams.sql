-- Streams that are closed: their events stay in the log, and nothing is appended to them any more.

-- The version of the event that closed it. From then on the row cannot move, which refuses every append.
ALTER TABLE herald_streams ADD COLUMN closed_version INTEGER
    CONSTRAINT herald_streams_closed_for_good CHECK (closed_version IS NULL OR closed_version = version);
CREATE INDEX herald_closed_streams ON herald_streams (stream) WHERE closed_version IS NOT NULL;

-- The event itself closes the stream, however it came into the log: appended, imported or restored.
CREATE TRIGGER herald_events_close AFTER INSERT ON herald_events WHEN NEW.type = '$closed'
BEGIN UPDATE herald_streams SET closed_version = NEW.version WHERE stream = NEW.stream; END;
