-- What reads need: an index for each way to ask. (Names compare byte by byte and metadata is text here already.)

CREATE INDEX herald_events_type ON herald_events (type, position);
-- The category is the text before the first dash; who reads by category writes this very expression.
CREATE INDEX herald_events_category ON herald_events (substr(stream, 1, instr(stream || '-', '-') - 1), position);
CREATE INDEX herald_events_correlation ON herald_events (correlation_id, position)
    WHERE correlation_id IS NOT NULL;
CREATE INDEX herald_streams_category ON herald_streams (substr(stream, 1, instr(stream || '-', '-') - 1), stream);

-- What people note about a stream, one document each; never part of the log.
CREATE TABLE herald_stream_metadata (
    stream      TEXT PRIMARY KEY,
    metadata    TEXT NOT NULL,
    changed_at  TEXT NOT NULL
) WITHOUT ROWID;

-- The log only grows. Who must break that rule, for a law or a repair, has to drop these first.
CREATE TRIGGER herald_events_never_change BEFORE UPDATE ON herald_events
BEGIN SELECT RAISE(ABORT, 'events are never changed or deleted: UPDATE on herald_events is refused'); END;
CREATE TRIGGER herald_events_never_go BEFORE DELETE ON herald_events
BEGIN SELECT RAISE(ABORT, 'events are never changed or deleted: DELETE on herald_events is refused'); END;
