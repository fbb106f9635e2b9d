-- Asynchronous projections: how far each has come, and the event that stopped it. An inline one has
-- no checkpoint, for its rows are always at the head. The table's name is for dropping a projection
-- whose code is gone; until now every table had its projection's name.
ALTER TABLE projections ADD COLUMN table_name TEXT NOT NULL DEFAULT '';
ALTER TABLE projections ADD COLUMN checkpoint INTEGER;
ALTER TABLE projections ADD COLUMN failed_at INTEGER;
ALTER TABLE projections ADD COLUMN failure TEXT;

UPDATE projections SET table_name = name;
