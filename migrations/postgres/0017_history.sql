-- How far the history of a projector goes that was set back, and to which life of a subscription a marked unit belongs.

-- What stands up to here it has handled before. Null: it was never set back; then all of booting is history.
ALTER TABLE herald_subscriptions ADD COLUMN history_to BIGINT CHECK (history_to >= 0);

-- When the state of the row last changed that the unit began with. Null: of a program that does not say so.
ALTER TABLE herald_unit_markers ADD COLUMN row_changed_at TIMESTAMPTZ;
