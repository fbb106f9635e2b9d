"""Examples of agents that keep their sessions in an event store."""
