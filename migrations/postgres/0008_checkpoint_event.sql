-- A checkpoint keeps, beside its position, the event that it stands at: a log that lost its tail and grew again has
-- all the positions and other events.

ALTER TABLE herald_subscriptions
    -- The event at the position, or the last one before it; null before the first event.
    ADD COLUMN position_event_id UUID,
    -- The position for which that was written down. Another one than `position` if a program moved it that does not
    -- know these columns yet: then there is nothing to compare.
    ADD COLUMN position_event_at BIGINT;

UPDATE herald_subscriptions
   SET position_event_at = position,
       position_event_id = (SELECT id FROM herald_events
                             WHERE herald_events.position <= herald_subscriptions.position
                             ORDER BY herald_events.position DESC LIMIT 1);
