"""The contract of ADK's session services, as tests that take any of them.

    from adk_adapter.testing import SessionServiceContract

    class TestMyService(SessionServiceContract):
        @pytest.fixture
        def service(self, tmp_path):
            return MyService(tmp_path / "sessions.db")

Every test names its point, and the part of the contract it belongs to: 1.1 calling, 1.2 creation,
1.3 loading, 1.4 listing, 1.5 deletion, 1.6 user state, 1.7 appending, 1.8 flushing and event
loops, 3 values, 4 order and time, 5 concurrency, 6 the revision a service may leave in
`session._storage_update_marker`.

The tests are coroutines: run them with pytest-asyncio in auto mode, or mark the class. For readable
failures call `pytest.register_assert_rewrite("adk_adapter.testing")` in a conftest.py first.
"""

from __future__ import annotations

from adk_adapter.testing.concurrency import ConcurrencyContract
from adk_adapter.testing.events import (
    AppendContract,
    LiveSessionContract,
    RetryContract,
    StalenessContract,
)
from adk_adapter.testing.sessions import (
    CreateContract,
    DeleteContract,
    GetContract,
    ListContract,
    UserStateContract,
)
from adk_adapter.testing.support import FULL_EVENT, Contract, Deviation
from adk_adapter.testing.values import OrderContract, ValueContract

__all__ = [
    "FULL_EVENT",
    "AppendContract",
    "ConcurrencyContract",
    "Contract",
    "CreateContract",
    "DeleteContract",
    "Deviation",
    "GetContract",
    "ListContract",
    "LiveSessionContract",
    "OrderContract",
    "RetryContract",
    "SessionServiceContract",
    "StalenessContract",
    "UserStateContract",
    "ValueContract",
]


class SessionServiceContract(
    CreateContract,
    GetContract,
    ListContract,
    DeleteContract,
    UserStateContract,
    AppendContract,
    LiveSessionContract,
    RetryContract,
    StalenessContract,
    ValueContract,
    OrderContract,
):
    """The whole contract but for concurrency: what is done one call after another."""
