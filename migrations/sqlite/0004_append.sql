-- Appending changes on PostgreSQL only: there it is done by functions, which SQLite has not and does not need.
SELECT 1;
