-- Whose process a worker is, so that one that was killed is known to be gone before its silence says so. Null: it is of
-- a program that does not say so.
ALTER TABLE herald_workers ADD COLUMN runner TEXT;
