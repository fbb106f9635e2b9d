"""The network between a service and its server: a TCP relay that can be cut, and can fall silent.

It needs no rights, and works where there are no network namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Relay", "certificate", "relay"]

_CHUNK: Final = 65_536
_SETTLING_S: Final = 0.02
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
_GSS_REQUEST: Final = struct.pack("!ii", 8, 80877104)


class Relay:
    """Passes bytes on between clients and a server. Made by `relay`.

    The methods may be called from any thread; they return when it is done.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._server = "", 0
        self.port = 0
        self.seen = 0
        """How many connections there were."""
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self._requests.set()
        self._answers.set()
        self._down = False
        self._pairs: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        # All there were, for in the end none may wait for a farewell, or for its turn.
        self._transports: list[asyncio.BaseTransport] = []

    def url(self, url: str) -> str:
        """A URL of the server, with this way to it."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()

    def lead_to(self, url: str) -> None:
        """From now on new connections reach the server of another URL."""
        parts = urlsplit(url)
        self._server = parts.hostname or "127.0.0.1", parts.port or 5432

    def cut(self, *, down: bool = False) -> None:
        """Resets all connections. With `down` new ones are reset as well, until `restore`."""
        self._call(self._cut, down)

    def silence(self, *, answers_only: bool = False) -> None:
        """Nothing passes any more and nobody is told, until `restore`.

        With `answers_only` the server still gets what is sent to it, so it does what it is asked.
        """
        self._call(self._silence, answers_only)

    def restore(self) -> None:
        """All is well for new connections; those that were silent are reset."""
        self._call(self._restore)

    def _call(self, function: object, *arguments: bool) -> None:
        done = threading.Event()

        def run() -> None:
            function(*arguments)  # type: ignore[operator]
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def _cut(self, down: bool) -> None:
        self._down = down
        for writers in self._pairs.values():
            for writer in writers:
                _reset(writer)

    def _silence(self, answers_only: bool) -> None:
        self._answers.clear()
        if not answers_only:
            self._requests.clear()

    def _restore(self) -> None:
        silent = not self._answers.is_set()
        if silent:
            self._cut(down=False)
        self._down = False
        self._requests.set()
        self._answers.set()

    def _accepting(self) -> asyncio.Protocol:
        transports = self._transports

        class Accepting(asyncio.StreamReaderProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transports.append(transport)
                super().connection_made(transport)

        return Accepting(asyncio.StreamReader(), self._accept)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.seen += 1
        self._pairs[task] = (writer,)
        try:
            if self._down:
                _reset(writer)
                return
            first = b"" if self._tls is None else await self._encrypted(reader, writer)
            to_server = await asyncio.open_connection(*self._server)
            self._transports.append(to_server[1].transport)
            self._pairs[task] = (writer, to_server[1])
            to_server[1].write(first)
            requests = asyncio.create_task(self._pass(reader, to_server[1], self._requests))
            answers = asyncio.create_task(self._pass(to_server[0], writer, self._answers))
            await asyncio.wait([requests, answers], return_when=asyncio.FIRST_COMPLETED)
            for direction in requests, answers:
                direction.cancel()
            await asyncio.gather(requests, answers, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is gone, or the client, or the relay itself ends
        finally:
            for end in self._pairs.pop(task):
                end.close()

    async def _encrypted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Answers a client that asks for TLS, as a server with a certificate would."""
        first = await reader.readexactly(8)
        while first == _GSS_REQUEST:
            writer.write(b"N")
            first = await reader.readexactly(8)
        if first != _SSL_REQUEST:
            raise OSError("a client that does not ask for TLS")
        writer.write(b"S")
        assert self._tls is not None
        await writer.start_tls(self._tls)
        return b""

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, open_: asyncio.Event
    ) -> None:
        while data := await source.read(_CHUNK):
            await open_.wait()
            target.write(data)
            await target.drain()
        await open_.wait()  # the end is not told either

    async def _serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        server = await self._loop.create_server(self._accepting, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await end.wait()
        # A server that is closed drops what it accepted a moment before, and leaves it open. So it
        # stops accepting first, and what was accepted comes to `_accept`.
        for listening in server.sockets:
            self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(_SETTLING_S)
        server.close()
        self._cut(down=True)
        for task in list(self._pairs):
            task.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)
        for transport in self._transports:
            transport.abort()  # type: ignore[attr-defined]
        await asyncio.sleep(_SETTLING_S)


@contextmanager
def relay(url: str, *, tls: ssl.SSLContext | None = None) -> Iterator[Relay]:
    """A way to the server of a URL, for as long as the block lasts.

    With `tls` it speaks TLS to clients, and refuses those that do not; not to the server.
    """
    made = Relay(tls)
    made.lead_to(url)
    ready, end = threading.Event(), asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: made._loop) as runner:
            runner.run(made._serve(ready, end))

    thread = threading.Thread(target=run, name="relay")
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        made._loop.call_soon_threadsafe(end.set)
        thread.join()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a machine does that has lost it: without a word of farewell."""
    held = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def certificate(folder: Path, host: str = "localhost") -> tuple[Path, Path]:
    """Makes a certificate for a host and 127.0.0.1, signed by itself. Returns it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
