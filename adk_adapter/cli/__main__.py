"""`python -m adk_adapter.cli`: the commands where their script is not installed."""

from adk_adapter.cli import main

main(prog_name="adk-eventstore")
