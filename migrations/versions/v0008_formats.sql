-- Links carry the number of their format; those that are there are of the first. No default
-- stays: each new link states its own.

ALTER TABLE chain ADD format smallint DEFAULT 1 NOT NULL;
ALTER TABLE chain ALTER format DROP DEFAULT;
