"""What Alembic runs around the migrations: they join the transaction of `upgrade`."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
