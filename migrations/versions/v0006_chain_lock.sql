-- The table that is locked to append to the chain: only the app and the owner may lock it.

CREATE TABLE chain_lock (id integer CONSTRAINT pk_chain_lock PRIMARY KEY);
