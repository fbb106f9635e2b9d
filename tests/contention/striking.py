"""Lets a signal's handler raise at any chosen point of this package's code, deterministically.

CPython runs signal handlers in the main thread, between two bytecodes: after a call has returned,
where a function begins, and where a loop jumps back. `struck` counts exactly these points in the
package's own files, and raises at the n-th, as a handler would.
"""

from __future__ import annotations

import dis
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["struck"]

_FILES: Final = (
    "/eventstore/sqlite/engine.py", "/eventstore/sqlite/gate.py", "/eventstore/requests.py",
    "/eventstore/sqlite/requests.py", "/eventstore/sqlite/store.py",
    "/eventstore/sqlite/transaction.py", "/eventstore/sqlite/writer.py",
    "/eventstore/_collection.py", "/eventstore/_platform.py", "/adk_adapter/flights.py",
    "/adk_adapter/service.py", "/adk_adapter/session.py",
)  # fmt: skip
_VISITS: Final = 2
"""How often one place is struck: the same again, a hundred requests later, shows nothing new."""


@cache
def _points(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions before which a handler may run."""
    points = set()
    before = ""
    for instruction in dis.get_instructions(code):
        if before.startswith(("CALL", "RESUME")):
            points.add(instruction.offset)
        if instruction.opname == "JUMP_BACKWARD" and isinstance(instruction.argval, int):
            points.add(instruction.argval)
        before = instruction.opname
    return frozenset(points)


def struck(
    function: Callable[[], Any], point: int, raised: type[BaseException]
) -> tuple[str | None, BaseException | None]:
    """Runs a function in whose course a handler raises at the given point.

    Returns where that was, None when the point was not reached, and what the function raised.
    """
    left = point
    where: str | None = None
    visits: Counter[tuple[CodeType, int]] = Counter()

    def in_frame(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left, where
        if event == "opcode" and where is None and frame.f_lasti in _points(frame.f_code):
            place = frame.f_code, frame.f_lasti
            visits[place] += 1
            left -= visits[place] <= _VISITS
            if left < 0:
                where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                raise raised
        return in_frame

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if where is None and any(part in frame.f_code.co_filename for part in _FILES):
            frame.f_trace_opcodes = True
            return in_frame
        return None

    sys.settrace(trace)
    try:
        function()
    except BaseException as error:
        return where, error
    else:
        return where, None
    finally:
        sys.settrace(None)
