"""What all commands have in common: options, help, errors, exit codes, Ctrl-C.

The function of a command takes `Settings`, does its work and returns a `Report`: nothing is printed
on stdout before the work is done, so with `--format json` it holds one document, whatever happens.
One that follows the log prints as it goes, JSON Lines then, and returns None.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn, TextIO

import click

from eventstore import EventStore, EventStoreError, Projection, open_store, pending_migrations
from eventstore.location import DEFAULT_PATH, ENVIRONMENT_VARIABLE
from projections import installed
from projections.cli.output import (
    CommandFailed,
    abandon,
    as_json,
    printable,
    printing,
    tell,
)
from projections.cli.progress import progress_of
from projections.rebuild import Progress

__all__ = [
    "COULD_NOT_RUN",
    "COUNT",
    "Command",
    "CommandFailed",
    "FilePath",
    "Group",
    "Known",
    "Report",
    "Settings",
    "confirm",
    "known",
    "projection_option",
    "require_migrated",
]

COULD_NOT_RUN: Final = 2
COUNT: Final = click.IntRange(0, 2**63 - 1)
"""A position, or how many: what a database can hold."""
_INTERRUPTED: Final = 128 + signal.SIGINT
_NOBODY_READS: Final = 141
"""As of a program that SIGPIPE ended, which Windows has not."""
_ALWAYS: Final = {
    COULD_NOT_RUN: "could not run: the message says why and what to do; or bad usage",
    _INTERRUPTED: "interrupted with Ctrl-C",
    _NOBODY_READS: "nobody reads its output any more",
}
"""Exit codes of every command."""


class Report(NamedTuple):
    """What a command did: as a document for programs, as lines for people, and its exit code."""

    document: Mapping[str, object]
    lines: Sequence[str]
    exit_code: int = 0


@dataclass(frozen=True)
class Settings:
    """What was said about the database and the output, to the command or to a group it is in."""

    db: str | None
    json: bool

    @contextmanager
    def store(
        self, *, dry_run: bool = False, repair: bool = True, create: bool = False
    ) -> Iterator[EventStore]:
        """The store. To open one migrates it, which a dry run must not.

        It must be there already, unless `create` says that it may be made.

        With `repair` it is opened whatever state its projections' tables are in.
        """
        if dry_run:
            require_migrated(self.db)
        store = open_store(self.db, installed.inline(), for_rebuild=repair, create=create)
        try:
            yield store
        finally:
            store.close()

    def progress(self, what: str, start: int = 0) -> AbstractContextManager[Progress]:
        """Tells on stderr how far work on the log has come."""
        return progress_of(what, start)


def require_migrated(target: str | None) -> None:
    """Asserts that a database can be opened without changing it.

    Raises:
        CommandFailed: its schema has to be migrated.
        StoreUnusable: it is no database of ours.
    """
    if pending_migrations(target)[1]:
        raise CommandFailed(
            "A dry run changes nothing, and this file's schema has to be migrated before it "
            "can be read. Run: adk-eventstore migrate"
        )


class Known(NamedTuple):
    """The projections whose code is here; optional ones are off until a database has them."""

    inline: tuple[Projection, ...]
    asynchronous: tuple[Projection, ...]
    optional: tuple[Projection, ...]

    @property
    def by_name(self) -> dict[str, Projection]:
        """All of them."""
        return {p.name: p for p in (*self.inline, *self.asynchronous, *self.optional)}

    def require(self, names: Sequence[str]) -> None:
        """Asserts that all names are known.

        Raises:
            CommandFailed: one is not.
        """
        for name in names:
            if name not in self.by_name:
                raise CommandFailed(
                    f"There is no projection {name!r} here. Known are: "
                    f"{', '.join(sorted(self.by_name))}. Others have to be installed first."
                )

    def chosen(
        self, store: EventStore, names: Sequence[str]
    ) -> tuple[tuple[Projection, ...], tuple[Projection, ...]]:
        """The inline and the asynchronous projections with these names; without names, all.

        Raises:
            CommandFailed: a name is not known.
        """
        if not names:
            return self.inline, installed.following(store)
        self.require(names)
        asynchronous = (*self.asynchronous, *self.optional)
        return (
            tuple(p for p in self.inline if p.name in names),
            tuple(p for p in asynchronous if p.name in names),
        )


def known() -> Known:
    """The projections whose code is here.

    Raises: as `installed.inline`.
    """
    inline, asynchronous = installed.inline(), installed.asynchronous()
    installed.distinct((*inline, *asynchronous))
    names = {p.name for p in asynchronous}
    return Known(inline, asynchronous, tuple(p for p in installed.OPTIONAL if p.name not in names))


def confirm(question: str, *, yes: bool) -> None:
    """Asks on the terminal, unless the answer was given on the command line.

    Raises:
        CommandFailed: the answer is no, or there is nobody to ask.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise CommandFailed("There is no terminal to ask for confirmation on. Pass --yes.")
    with printing(sys.stderr, "The question"):
        confirmed = click.confirm(question, err=True)
    if not confirmed:
        raise CommandFailed("Not confirmed: nothing was changed.")


projection_option = click.option(
    "--projection",
    "names",
    metavar="NAME",
    multiple=True,
    help="Only this projection, inline or asynchronous; may be given again. [default: all]",
)


class Command(click.Command):
    """A command whose function takes Settings and returns a Report.

    `example` and `exits` (exit codes and what they mean; those of every command are added) end its
    help. `interrupted` is what is said after Ctrl-C, None where that is how the command ends.
    """

    def __init__(
        self,
        *args: Any,
        example: str,
        exits: Mapping[int, str],
        interrupted: str | None = "Nothing is left half done.",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()
        self.example = example
        self.exits = {**exits, **_ALWAYS}
        self.interrupted = interrupted

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the example and the exit codes."""
        with formatter.section("Example"):
            formatter.write(f"{'':{formatter.current_indent}}{self.example}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in sorted(self.exits.items())])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the command line; help is printed here."""
        with _told(ctx, ""), printing(sys.stdout, "This"):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> None:
        """Runs the function and prints its report."""
        settings = _settings(ctx)
        if isinstance(sys.stdout, io.TextIOWrapper):  # which need not know every character
            sys.stdout.reconfigure(errors="backslashreplace")
        with _told(ctx, self.interrupted):
            with _interruptible():
                ctx.obj = settings
                report: Report | None = super().invoke(ctx)
            if report is not None:
                tell(as_json(report.document) if settings.json else "\n".join(report.lines))
                ctx.exit(report.exit_code)


class FilePath(click.Path):
    """The name of a file; one that no system has, with a NUL in it say, is refused in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Checks what was typed."""
        if "\0" in str(value):
            self.fail("a NUL is in no file's name", param, ctx)
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            self.fail(f"no file can be named {value!r}", param, ctx)
        return super().convert(value, param, ctx)


class Group(click.Group):
    """A group of commands. Any click command may be in it.

    What is said to the group with --db and --format holds for a command that has these options,
    unless it is told otherwise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the command line; help and the version are printed here."""
        with _told(ctx, ""), printing(sys.stdout, "This"):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that was named."""
        ctx.default_map = {name: _inherited(ctx, each) for name, each in self.commands.items()}
        with _told(ctx, ""):
            return super().invoke(ctx)


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--db"],
            metavar="PATH_OR_URL",
            help=f"The database. [default: ${ENVIRONMENT_VARIABLE}, else {DEFAULT_PATH}]",
            expose_value=False,
            callback=_remember,
        ),
        click.Option(
            ["--format"],
            type=click.Choice(["table", "json"]),
            help="Text for people, or one JSON document on stdout. [default: table]",
            expose_value=False,
            callback=_remember,
        ),
    ]


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    # A command's context shares it with its groups', and is parsed behind them.
    if value is not None:
        ctx.meta[f"{__name__}.{param.name}"] = value


def _inherited(ctx: click.Context, command: click.Command) -> dict[str, str]:
    """What was said to the group, as defaults of a command's own options."""
    said = {f"--{name}": ctx.meta.get(f"{__name__}.{name}") for name in ("db", "format")}
    return {
        str(param.name): value
        for param in command.params
        for option in param.opts
        if (value := said.get(option)) is not None
    }


def _settings(ctx: click.Context) -> Settings:
    return Settings(
        ctx.meta.get(f"{__name__}.db"), ctx.meta.get(f"{__name__}.format", "table") == "json"
    )


@contextmanager
def _told(ctx: click.Context, interrupted: str | None) -> Iterator[None]:
    """Turns whatever ends a command into a line on stderr and an exit code."""
    try:
        yield
    except click.exceptions.Exit:
        raise
    except click.ClickException as error:
        with _if_possible(sys.stderr):
            error.show()
        ctx.exit(error.exit_code)
    except BrokenPipeError:
        abandon(sys.stdout, sys.stderr)
        ctx.exit(_NOBODY_READS)
    except (KeyboardInterrupt, click.Abort):
        if interrupted is None:
            ctx.exit(_INTERRUPTED)
        _fail(ctx, "Interrupted", f"interrupted. {interrupted}".rstrip(), _INTERRUPTED)
    except EventStoreError as error:
        _fail(ctx, type(error).__name__, str(error), error.exit_code)
    except Exception as error:
        # Python's own exit code would be 1, which says that something was found.
        with _if_possible(sys.stderr):
            traceback.print_exc()
        _fail(ctx, type(error).__name__, "ended by a defect. Please report it.", COULD_NOT_RUN)


def _fail(ctx: click.Context, kind: str, message: str, code: int) -> NoReturn:
    with _if_possible(sys.stderr):
        # On one line: a path may have a line break in it, or what steers a terminal.
        click.echo(f"{ctx.command_path}: {printable(message, whole=True)}", err=True)
    if _settings(ctx).json:
        with _if_possible(sys.stdout):
            click.echo(as_json({"error": {"type": kind, "message": message}}))
    ctx.exit(code)


@contextmanager
def _if_possible(stream: TextIO) -> Iterator[None]:
    """Around what tells why a command ends: where nobody hears it, the exit code alone says it."""
    try:
        yield
    except OSError:
        abandon(stream)


@contextmanager
def _interruptible() -> Iterator[None]:
    """The first Ctrl-C ends the work in order; the second does not wait for that."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
