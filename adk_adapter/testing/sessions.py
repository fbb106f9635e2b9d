"""Creating, loading, listing and deleting sessions, and the state of users."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.adk.events import Event

from adk_adapter._adk import AlreadyExistsError, SessionNotFoundError, StaleSessionError
from adk_adapter.testing.support import (
    KEYS,
    PADDING,
    PAST,
    RICH,
    Contract,
    Sessions,
    event_ids,
    make_content,
)

__all__ = ["CreateContract", "DeleteContract", "GetContract", "ListContract", "UserStateContract"]


class CreateContract(Contract):
    """create_session."""

    async def test_create_returns_the_session(self, sessions: Sessions) -> None:
        """1.2 create_session returns id, owner and time, and no events."""
        before = time.time()
        session = await sessions.create("s")
        assert (session.id, session.app_name, session.user_id) == ("s", "app", "user")
        assert (session.events, session.state) == ([], {})
        assert before - 1e-3 <= session.last_update_time <= time.time() + 1e-3

    async def test_create_equals_get(self, sessions: Sessions) -> None:
        """1.2 get_session right after create_session returns an equal session, marker included."""
        session = await sessions.create("s", {"k": [1, {"n": None}], "app:a": 2, "user:u": 3})
        assert await sessions.get("s") == session

    @pytest.mark.parametrize(
        "blank", [None, "", " \t", "\N{EM SPACE}"], ids=["none", "empty", "ascii", "unicode"]
    )
    async def test_create_generates_an_id(self, sessions: Sessions, blank: str | None) -> None:
        """1.2 create_session without an id, or with a blank one, generates one."""
        first, second = await sessions.create(blank), await sessions.create(blank)
        assert first.id != second.id
        assert first.id.strip() == first.id != ""
        assert await sessions.get(first.id) == first

    async def test_create_strips_the_id(self, sessions: Sessions) -> None:
        """1.2 create_session strips the id, of Unicode whitespace too."""
        assert (await sessions.create(f"{PADDING}a b{PADDING}")).id == "a b"
        assert (await sessions.load("a b")).id == "a b"

    @pytest.mark.parametrize(("app", "user"), [(" app ", " user "), ("", "")])
    async def test_create_takes_names_as_they_are(
        self, sessions: Sessions, app: str, user: str
    ) -> None:
        """1.2 App names and user ids are not stripped, and may be empty."""
        session = await sessions.of(app=app, user=user).create("s", {"user:k": 1})
        assert (session.app_name, session.user_id) == (app, user)
        assert await sessions.get("s") is await sessions.of(app=app).get("s") is None
        assert await sessions.of(app=app, user=user).get("s") == session

    @pytest.mark.parametrize("again", ["taken", f"{PADDING}taken "], ids=["same", "padded"])
    async def test_create_refuses_an_existing_id(self, sessions: Sessions, again: str) -> None:
        """1.2 create_session raises AlreadyExistsError, which names the id."""
        await sessions.create("taken")
        with pytest.raises(AlreadyExistsError, match="taken"):
            await sessions.create(again)

    async def test_a_refused_create_writes_nothing(self, sessions: Sessions) -> None:
        """1.2 A refused create_session leaves session, app and user state alone."""
        session = await sessions.create("s", {"k": 1, "app:a": 1, "user:u": 1})
        with pytest.raises(AlreadyExistsError):
            await sessions.create("s", {"k": 2, "app:a": 2, "user:u": 2, "app:new": 2})
        assert await sessions.get("s") == session

    async def test_an_id_is_scoped_to_app_and_user(self, sessions: Sessions) -> None:
        """1.2 The same id under another app or user is another session."""
        names = (("app", "user"), ("app", "x"), ("x", "user"), ("x/y:z", "x"), ("x", "y:z/x"))
        owners = [sessions.of(app=app, user=user) for app, user in names]
        created = [await owner.create("s", {"k": n}) for n, owner in enumerate(owners)]
        assert [await owner.get("s") for owner in owners] == created

    @pytest.mark.parametrize(("key", "owner"), KEYS)
    async def test_scopes(self, sessions: Sessions, key: str, owner: str) -> None:
        """1.2 `app:` keys are the app's, `user:` keys the user's in the app, `temp:` nobody's.

        Only the first prefix is cut, and exactly; what is left may be empty, and None is a value.
        """
        state: dict[str, Any] = {key: None}
        own = {} if owner == "nobody" else state
        assert (await sessions.create("s", state)).state == (await sessions.load()).state == own
        assert (await sessions.create("t")).state == (state if owner in ("app", "user") else {})
        assert (await sessions.of(user="x").create("s")).state == (state if owner == "app" else {})
        assert (await sessions.of(app="x").create("s")).state == {}
        users = {key.removeprefix("user:"): None} if owner == "user" else {}
        assert await sessions.user_state() == users

    async def test_create_updates_shared_keys(self, sessions: Sessions) -> None:
        """1.2 create_session updates shared keys one by one, and returns them all."""
        await sessions.create("s", {"app:a": 1, "app:b": 1, "user:u": 1, "user:v": 1})
        session = await sessions.create("t", {"app:b": 2, "user:v": 2})
        assert session.state == {"app:a": 1, "app:b": 2, "user:u": 1, "user:v": 2}
        assert (await sessions.load("s")).state == session.state

    async def test_create_returns_what_is_stored(self, sessions: Sessions) -> None:
        """1.2 create_session returns values as they will be loaded: as plain JSON data."""
        session = await sessions.create("s", {key: rich for key, (rich, _) in RICH.items()})
        assert session.state == {key: plain for key, (_, plain) in RICH.items()}
        assert (await sessions.load("s")).state == session.state

    async def test_create_copies_what_it_is_given(self, sessions: Sessions) -> None:
        """1.3 Changing a dict after it was passed to create_session changes nothing stored."""
        given: dict[str, Any] = {"k": [1], "app:a": [1], "user:u": [1]}
        await sessions.create("s", given)
        for value in given.values():
            value.append(2)
        given["new"] = 1
        assert (await sessions.load("s")).state == {"k": [1], "app:a": [1], "user:u": [1]}


class GetContract(Contract):
    """get_session."""

    async def test_get_of_unknown_ids(self, sessions: Sessions) -> None:
        """1.3 get_session returns None for an unknown app, user or id, '' and None included."""
        await sessions.create("s")
        for unknown in ("t", "S", "", " ", None):
            assert await sessions.get(unknown) is None
        assert await sessions.of(user="x").get("s") is await sessions.of(app="x").get("s") is None

    async def test_get_strips_the_id(self, sessions: Sessions) -> None:
        """1.3 get_session strips the id."""
        session = await sessions.create("s")
        assert await sessions.get(f"{PADDING}s{PADDING}") == session

    async def test_what_is_returned_are_copies(self, sessions: Sessions) -> None:
        """1.3 Changing what create, get and list returned changes nothing stored."""
        created = await sessions.create("s", {"k": [1], "app:a": [1], "user:u": [1]})
        await sessions.append(await sessions.load(), content=make_content("hello"))
        before = await sessions.load()
        for session in (created, await sessions.load(), *await sessions.listed()):
            for value in session.state.values():
                value.append(2)
            session.state["new"] = 1
            for event in session.events:
                event.content = None
            session.events.append(Event())
        assert await sessions.get("s") == before

    @pytest.mark.parametrize(
        ("count", "expected"), [(None, "12345"), (0, ""), (1, "5"), (2, "45"), (9, "12345")]
    )
    async def test_num_recent_events(
        self, sessions: Sessions, count: int | None, expected: str
    ) -> None:
        """1.3 num_recent_events loads the last events, 0 none, None all of them."""
        await sessions.create_conversation()
        assert event_ids(await sessions.load(num_recent_events=count)) == list(expected)

    @pytest.mark.parametrize(
        ("since", "expected"),
        [
            *((None, "12345"), (0.0, "12345"), (-1.0, "12345")),
            *((PAST + 2.5, "345"), (PAST + 3, "345"), (PAST + 6, "")),
        ],
    )
    async def test_after_timestamp(
        self, sessions: Sessions, since: float | None, expected: str
    ) -> None:
        """1.3 after_timestamp is inclusive; None, 0.0 and negative ones load all events."""
        await sessions.create_conversation()
        assert event_ids(await sessions.load(after_timestamp=since)) == list(expected)

    @pytest.mark.parametrize(
        ("count", "since", "expected"), [(2, 2, "45"), (3, 4, "45"), (0, 2, ""), (2, 6, "")]
    )
    async def test_both_filters(
        self, sessions: Sessions, count: int, since: float, expected: str
    ) -> None:
        """1.3 num_recent_events and after_timestamp both hold when both are given."""
        await sessions.create_conversation()
        session = await sessions.load(num_recent_events=count, after_timestamp=PAST + since)
        assert event_ids(session) == list(expected)

    @pytest.mark.parametrize(
        "config",
        [{"num_recent_events": 0}, {"num_recent_events": 1}, {"after_timestamp": PAST + 4}],
        ids=["none", "last", "since"],
    )
    async def test_a_filtered_session_is_whole(
        self, sessions: Sessions, config: dict[str, Any]
    ) -> None:
        """1.3 Filters leave state, time and marker alone: the session can be appended to."""
        whole = await sessions.create_conversation()
        session = await sessions.load(**config)
        assert session.model_copy(update={"events": whole.events}) == whole
        await sessions.append(session, {"k": "new"}, id="6", timestamp=PAST + 6)
        stored = await sessions.load()
        assert (event_ids(stored), stored.state) == (list("123456"), {"k": "new"})


class ListContract(Contract):
    """list_sessions."""

    async def test_list_of_unknown_names(self, sessions: Sessions) -> None:
        """1.4 list_sessions of an unknown app or user is empty."""
        await sessions.create("s")
        assert (
            await sessions.of(user="x").listed()
            == await sessions.of(app="x").listed_for_all()
            == []
        )

    async def test_list_equals_get(self, sessions: Sessions) -> None:
        """1.4 Each equals what get_session returns, merged state and marker too, without events."""
        for name, user in (("s", "user"), ("t", "user"), ("s", "x")):
            live = await sessions.of(user=user).create(name, {"k": 1, "app:a": name, "user:u": 3})
            await sessions.append(live, {"n": name})
        for session in await sessions.listed_for_all():
            stored = await sessions.of(user=session.user_id).load(session.id)
            assert len(stored.events) == 1
            assert session == stored.model_copy(update={"events": []})

    async def test_list_by_user(self, sessions: Sessions) -> None:
        """1.4 user_id=None lists all users of the app, and '' is a user like any other."""
        for user, app in (("user", "app"), ("", "app"), ("user", "x")):
            await sessions.of(user=user, app=app).create("s")
        assert {session.user_id for session in await sessions.listed_for_all()} == {"", "user"}
        for user in ("", "user"):
            assert [s.user_id for s in await sessions.of(user=user).listed()] == [user]
        response = await sessions.service.list_sessions(app_name="app")
        assert response.sessions == await sessions.listed_for_all()

    async def test_list_order(self, sessions: Sessions) -> None:
        """1.4 Sessions come by last_update_time, user and id, so the last changed is the last."""
        for user, name, seconds in (("b", "s", 2), ("a", "t", 2), ("b", "a", 2), ("z", "z", 1)):
            live = await sessions.of(user=user).create(name)
            await sessions.append(live, timestamp=PAST + seconds)
        order = [f"{session.user_id}/{session.id}" for session in await sessions.listed_for_all()]
        assert order == ["z/z", "a/t", "b/a", "b/s"]
        assert [session.id for session in await sessions.of(user="b").listed()] == ["a", "s"]

    async def test_a_listed_session_can_be_appended_to(self, sessions: Sessions) -> None:
        """1.4 append_event accepts a session that list_sessions returned."""
        await sessions.create_conversation()
        (session,) = await sessions.listed()
        await sessions.append(session, id="6", timestamp=PAST + 6)
        assert event_ids(await sessions.load()) == list("123456")


class DeleteContract(Contract):
    """delete_session."""

    @pytest.mark.parametrize("name", ["s", f"{PADDING}s{PADDING}"], ids=["same", "padded"])
    async def test_delete_removes_the_session(self, sessions: Sessions, name: str) -> None:
        """1.5 A deleted session is neither loaded nor listed; the id is stripped."""
        await sessions.create_conversation()
        await sessions.delete(name)
        assert await sessions.get("s") is None
        assert await sessions.listed() == []

    async def test_delete_is_idempotent(self, sessions: Sessions) -> None:
        """1.5 Deleting what is not there, or twice, does nothing."""
        await sessions.delete("s")
        await sessions.create("s")
        for name in ("s", "s", ""):
            await sessions.delete(name)

    async def test_delete_is_scoped(self, sessions: Sessions) -> None:
        """1.5 delete_session leaves the same id of other users and apps, and other ids, alone."""
        kept = [await owner.create("s") for owner in (sessions.of(user="x"), sessions.of(app="x"))]
        kept.append(await sessions.create("t"))
        await sessions.create("s")
        await sessions.delete("s")
        for session in kept:
            owner = sessions.of(app=session.app_name, user=session.user_id)
            assert await owner.get(session.id) == session

    async def test_delete_keeps_shared_keys(self, sessions: Sessions) -> None:
        """1.5 `app:` and `user:` keys outlive the session that set them."""
        live = await sessions.create("s", {"app:a": 1, "user:u": 1})
        await sessions.append(live, {"app:b": 2, "user:v": 2})
        await sessions.delete("s")
        assert await sessions.user_state() == {"u": 1, "v": 2}
        expected = {"app:a": 1, "app:b": 2, "user:u": 1, "user:v": 2}
        assert (await sessions.create("t")).state == expected

    async def test_a_deleted_id_starts_empty(self, sessions: Sessions) -> None:
        """1.5 A deleted id can be created again, empty, and take events with the old ids."""
        await sessions.create_conversation()
        await sessions.delete("s")
        live = await sessions.create("s")
        assert (live.events, live.state) == ([], {})
        assert await sessions.get("s") == live
        await sessions.append(live, {"n": 1}, id="1", timestamp=PAST + 9)
        assert await sessions.get("s") == live

    async def test_append_after_delete(self, sessions: Sessions) -> None:
        """1.5 Appending to a deleted session raises SessionNotFoundError, never resurrects it."""
        live = await sessions.create_conversation()
        await sessions.delete("s")
        with pytest.raises(SessionNotFoundError):
            await sessions.append(live, {"k": 1, "app:a": 1, "user:u": 1})
        assert await sessions.get("s") is None
        assert await sessions.listed() == []
        assert (await sessions.create("s")).state == {}

    @pytest.mark.parametrize("seconds", [1, 0], ids=["later", "same"])
    async def test_an_old_object_cannot_write_into_the_new_session(
        self, sessions: Sessions, seconds: int
    ) -> None:
        """1.5 A session object from before the deletion is refused, at the same length too."""
        old = await sessions.create("s")
        await sessions.append(old, timestamp=PAST)
        await sessions.delete("s")
        new = await sessions.create("s")
        await sessions.append(new, timestamp=PAST + seconds)
        with pytest.raises((StaleSessionError, SessionNotFoundError)):
            await sessions.append(old, {"k": 1}, timestamp=PAST + 2)
        assert await sessions.get("s") == new


class UserStateContract(Contract):
    """get_user_state."""

    async def test_user_state_is_empty_at_first(self, sessions: Sessions) -> None:
        """1.6 get_user_state is {} without a session, and without `user:` keys."""
        assert await sessions.user_state() == {}
        await sessions.create("s", {"k": 1, "app:a": 1})
        assert await sessions.user_state() == {}

    async def test_user_state_has_raw_keys(self, sessions: Sessions) -> None:
        """1.6 get_user_state returns the user's keys without prefix, appended ones too."""
        live = await sessions.create("s", {"user:u": 1, "user:n": None, "k": 1, "app:a": 1})
        await sessions.append(live, {"user:v": 2, "user:": 3, "m": 1})
        assert await sessions.user_state() == {"u": 1, "n": None, "v": 2, "": 3}

    async def test_user_state_is_scoped(self, sessions: Sessions) -> None:
        """1.6 get_user_state knows one user in one app."""
        owners = [sessions, sessions.of(user="x"), sessions.of(app="x")]
        for n, owner in enumerate(owners):
            await owner.create("s", {"user:u": n})
        assert [await owner.user_state() for owner in owners] == [{"u": 0}, {"u": 1}, {"u": 2}]

    async def test_user_state_is_a_copy(self, sessions: Sessions) -> None:
        """1.6 Changing what get_user_state returned changes nothing stored."""
        await sessions.create("s", {"user:u": [1]})
        state = await sessions.user_state()
        state["u"].append(2)
        state["new"] = 1
        assert await sessions.user_state() == {"u": [1]}
