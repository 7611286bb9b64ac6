-- What a subscription was set up as, and timers that end the process which fires them.

-- What decides what a subscriber makes of the log, as JSON (`definition_record.rs`): a change of the code without a new
-- id is told by it. Null: not set up yet, or set up by a program that did not keep it.
ALTER TABLE herald_subscriptions ADD COLUMN definition TEXT;

-- The unit was one of timers: the number of the first of them. (Its position says nothing then.)
ALTER TABLE herald_unit_markers ADD COLUMN timer_number INTEGER;
