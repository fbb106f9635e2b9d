"""What the demo prints: a conversation as it goes, state side by side, and a table of times."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

TARGETS = {"create": 2.0, "get": 5.0, "append": 3.0}
State = Mapping[str, Any]
SCOPES = ("session", "user", "app")

console = Console(highlight=False)


def heading(text: str) -> None:
    """Prints the title of a part of the story."""
    console.print(f"\n[bold]{text}[/]\n")


def passed(claim: str) -> None:
    """Prints something that was found to be true."""
    console.print(_two_columns(Text("ok", style="green"), Text(claim), width=2))


def verbatim(text: str) -> None:
    """Prints text that somebody may want to copy: not wrapped, not styled."""
    console.print(text, markup=False, soft_wrap=True)


def show_event(event: Mapping[str, Any]) -> None:
    """Prints who said or did what."""
    if message := event.get("error_message"):
        _say(event["author"], f"fails: {message}", "red")
    for part in event.get("content", {}).get("parts", ()):
        if call := part.get("function_call"):
            arguments = ", ".join(f"{k}={json.dumps(v)}" for k, v in call.get("args", {}).items())
            _say(event["author"], f"calls {call['name']}({arguments})", "cyan")
        elif response := part.get("function_response"):
            _say(response["name"], shorten(response.get("response", {}), 150), "dim")
        elif text := part.get("text"):
            _say(event["author"], text, "bold" if event["author"] == "user" else "")


def show_states(earlier: tuple[str, State], later: tuple[str, State]) -> None:
    """Prints two states, each with what to call it, next to each other and scope by scope."""
    table = Table("scope", "key", earlier[0], later[0])
    keys = earlier[1].keys() | later[1].keys()
    for key in sorted(keys, key=lambda key: (SCOPES.index(by_scope(key)[0]), key)):
        before, after = (
            shorten(state[key], 100) if key in state else "" for state in (earlier[1], later[1])
        )
        same = key in earlier[1] and key in later[1] and earlier[1][key] == later[1][key]
        table.add_row(*by_scope(key), Text(before), Text("the same" if same else after))
    console.print(table)


def show_times(times: Mapping[str, Sequence[float]]) -> None:
    """Prints how long the operations took, against what they may take."""
    table = Table("operation")
    for column in ("count", "median ms", "max ms", "target ms", "median in target"):
        table.add_column(column, justify="right")
    for operation, target in TARGETS.items():
        taken = times[operation]
        middle = median(taken)
        within = "yes" if middle <= target else "NO"
        figures = (f"{middle:.2f}", f"{max(taken):.2f}", f"{target:.0f}")
        table.add_row(operation, str(len(taken)), *figures, within)
    console.print(table)


def by_scope(key: str) -> tuple[str, str]:
    """Splits ADK's name of a state key into its scope and the name there."""
    scope, colon, name = key.partition(":")
    return (scope, name) if colon and scope in SCOPES else ("session", key)


def shorten(value: Any, length: int) -> str:
    """A value as JSON, cut to a length."""
    text = json.dumps(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _say(who: str, what: str, style: str) -> None:
    console.print(_two_columns(Text(who, style=style), Text(what, style=style), width=14))


def _two_columns(left: Text, right: Text, width: int) -> Table:
    """So that what does not fit on one line goes on below its beginning."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=width)
    table.add_column()
    table.add_row(left, right)
    return table
