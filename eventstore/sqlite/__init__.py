"""The SQLite backend. Everything in it is reached through `eventstore.open_store`."""
