"""Alembic's entry point: run the migrations on the connection that it was given."""

from alembic import context

from lag_integrations.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
