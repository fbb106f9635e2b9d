"""`python -m projections.cli`: the commands where their scripts are not installed."""

from projections.cli import main

main(prog_name="adk-eventstore")
