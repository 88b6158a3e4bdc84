-- Run by psql once, when the database is first made: the roles of docs/sql.md, and a login in each
-- that the stack uses. Nothing of it logs in as the superuser. MARCO_ROLE_PREFIX is "marco" here.
\getenv owner_password OWNER_PASSWORD
\getenv app_password APP_PASSWORD
\getenv auditor_password AUDITOR_PASSWORD

CREATE ROLE marco_owner NOLOGIN;
CREATE ROLE marco_app NOLOGIN;
CREATE ROLE marco_auditor NOLOGIN;
CREATE ROLE marco_auditor_all NOLOGIN IN ROLE marco_auditor;

-- `marco migrate` makes the tables, and gives the roles their rights.
CREATE ROLE marco_migrator LOGIN PASSWORD :'owner_password' IN ROLE marco_owner;
-- Producers, workers and the scheduler.
CREATE ROLE marco_worker LOGIN PASSWORD :'app_password' IN ROLE marco_app;
-- The console: reads all tenants, changes nothing.
CREATE ROLE marco_reader LOGIN PASSWORD :'auditor_password' IN ROLE marco_auditor_all;

-- The owner of the database owns its schema public.
ALTER DATABASE :"DBNAME" OWNER TO marco_owner;
