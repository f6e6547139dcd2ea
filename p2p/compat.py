"""Every repair of py-libp2p 0.8.1, and nothing else.

Each repair states its symptom and the condition under which it can go; tests/p2p/test_compat*.py hold,
for each, a test that fails without it. `harden()` applies those that replace library functions.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import ParseError
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux import yamux
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.transport.tcp import tcp

from folkmoot.p2p.background import background

__all__ = [
    "BoundedYamux",
    "RepairedGossipSub",
    "RepairedPubsub",
    "RepairedSwarm",
    "harden",
    "originals",
    "running",
]

log = logging.getLogger("folkmoot.p2p")

MAX_STREAMS = 512
"""Inbound streams that one connection may hold open."""
MAX_WINDOW = 4 << 20
"""Bytes that one stream may have on the way; the library's 16 MiB let a slow reader hold that many."""
MAX_UNREAD = 32 * MAX_WINDOW
"""Bytes that one connection may have buffered and unread."""
WRITE_PATIENCE = 60.0
"""Seconds that a writer waits for a reader that takes nothing."""
YAMUX_FRAME = 65_519
"""A Yamux frame, header included, that fits one Noise message (65,535 bytes with its 16 of MAC)."""
QUEUED_RPCS = 1_024
QUEUED_BYTES = 16 << 20

originals: dict[tuple[Any, str], Any] = {}
"""What `harden` replaced, by (owner, attribute)."""


def _replace(owner: Any, name: str, replacement: Any) -> None:
    if (owner, name) not in originals:
        originals[owner, name] = getattr(owner, name)
        setattr(owner, name, replacement)


def harden() -> None:
    """Apply the repairs that replace library functions and constants. Does nothing the second time."""
    _replace(SwarmConn, "_handle_muxed_stream", _handle_muxed_stream)
    _replace(swarm_connection, "logging", logging.getLogger("libp2p.network.connection"))
    _quiet()
    _replace(tcp, "_set_reuse_flags", _set_reuse_flags)
    _replace(yamux, "MAX_MESSAGE_SIZE", YAMUX_FRAME)
    _replace(yamux, "MAX_WINDOW_SIZE", MAX_WINDOW)
    _replace(yamux, "_yamux_release_on_read", _keep_credit)
    _replace(yamux.YamuxStream, "write", _write_patiently)
    _replace(pubsub_module, "RpcQueue", _LongRpcQueue)


def _quiet() -> None:
    """Leave logging to the program.

    Symptom: SwarmConn logs through the root logger's functions, which install a handler on standard
    error, and the library's own logger does not propagate, so its warnings are printed there as well.
    Until: the library logs through named loggers that propagate.
    """
    logger = logging.getLogger("libp2p")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


async def _handle_muxed_stream(self: Any, muxed_stream: Any) -> None:
    """Contain what a stream handler raises, and bound the streams of one connection.

    Symptom: any exception that leaves a handler, for instance on a malformed protobuf of a remote peer,
    ends the swarm and with it the host; and a peer may open streams without end.
    Until: the library contains handler errors and enforces a stream limit that admits what it says.
    """
    if len(self.streams) >= MAX_STREAMS or len(getattr(self.muxed_conn, "streams", ())) > 2 * MAX_STREAMS:
        await muxed_stream.reset()
        return
    try:
        await originals[SwarmConn, "_handle_muxed_stream"](self, muxed_stream)
    except Exception as error:
        log.info("a stream of %s ended with %r", self.muxed_conn.peer_id, error)
        with trio.move_on_after(1.0):
            await muxed_stream.reset()


def _set_reuse_flags(sock: Any) -> None:
    """Let a listening port belong to one process.

    Symptom: listeners set SO_REUSEPORT, so a second node on a busy port starts without an error and the
    kernel deals connections to either at random.
    Until: the library makes SO_REUSEPORT optional (it serves hole punching only).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _keep_credit() -> bool:
    """Return window credit in batches.

    Symptom: a window update for each partial read halves the throughput of a bulk stream.
    Until: the default of PY_YAMUX_RELEASE_ON_READ no longer costs throughput.
    """
    return False


async def _write_patiently(self: Any, data: bytes) -> None:
    """Wait WRITE_PATIENCE seconds for the reader instead of five.

    Symptom: a reader that is busy for five seconds breaks the transfer of an honest writer.
    Until: the library's write deadline can be set.
    """
    sent = 0
    while sent < len(data):
        async with self.rw_lock.write_lock(), self.window_lock:
            if self.send_closed or self.closed:
                raise MuxedStreamError("the stream is closed for sending")
            size = min(self.send_window, yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE, len(data) - sent)
            self.send_window -= max(size, 0)
        if size <= 0:
            await _window_opens(self)
            continue
        header = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, self.stream_id, size)
        await self.conn._write_frame(header + data[sent : sent + size])
        sent += size


async def _window_opens(stream: Any) -> None:
    with trio.move_on_after(WRITE_PATIENCE):
        while stream.send_window <= 0 and not stream.closed and not stream.send_closed:
            await trio.sleep(0.005)
        return
    raise MuxedStreamError(f"the reader took nothing for {WRITE_PATIENCE:g} s")


class _LongRpcQueue(RpcQueue):  # type: ignore[misc]
    """A queue to one peer for a burst, bounded in bytes as well.

    Symptom: an outbound queue of 32 drops messages in a burst; one bounded only in number holds a
    gigabyte for a peer that reads slowly.
    Until: its size and its bytes are parameters.
    """

    def __init__(self) -> None:
        super().__init__(max_size=QUEUED_RPCS)
        self._held = 0

    def push(self, rpc: Any, priority: bool = False) -> bool:
        size = rpc.ByteSize()
        if self._held + size > QUEUED_BYTES or not super().push(rpc, priority):
            return False
        self._held += size
        return True

    async def pop(self) -> Any:
        rpc = await super().pop()
        if rpc is not None:
            self._held -= rpc.ByteSize()
        return rpc


class BoundedYamux(yamux.Yamux):  # type: ignore[misc]
    """Close a connection whose peer ignores flow control.

    Symptom: a peer that writes past its window is only warned about; its bytes pile up in memory.
    Until: the library enforces the receive window.
    """

    async def _read_data_body(self, length: int) -> bytes:
        unread = sum(len(buffer) for buffer in self.stream_buffers.values())
        if unread + length > MAX_UNREAD:
            raise trio.TooSlowError(f"{unread} bytes unread and {length} more announced")
        return bytes(await super()._read_data_body(length))


class RepairedSwarm(Swarm):  # type: ignore[misc]
    """Free the place of an inbound connection when it ends, and dial nobody unasked.

    Symptoms: the auto-connector dials whoever is in the peer store, half the high watermark of them,
    even with a low watermark of nought; the handler of an inbound connection waits for the end of the
    swarm, so every connection ever accepted, refused ones included, keeps a place of the limit; a node of
    some months, or one that a stranger knocks at some hundred times, turns deaf.
    Until: the auto-connector can be switched off, and the inbound limiter is released when the connection
    closes.
    """

    async def run(self) -> None:
        self.auto_connector.start = trio.lowlevel.checkpoint
        await super().run()

    async def _handle_inbound_connection(self, read_write_closer: Any, maddr: Any) -> None:
        closed = trio.Event()
        try:
            muxed = await self.upgrade_inbound_raw_conn(RawConnection(read_write_closer, False), maddr)
            closed = muxed.event_closed
        except Exception as error:
            log.debug("refused an inbound connection: %r", error)
            closed.set()
        await closed.wait()


class _ContainedManager(TrioManager):  # type: ignore[misc]
    """Keep a service alive when one of its tasks fails.

    Symptom: an exception in any background task, for instance in the delivery of one malformed message
    or in one heartbeat, cancels the whole service; then the node is deaf or the host ends.
    Until: the library contains the failure of one task, at least where a remote peer can cause it.
    """

    def run_task(self, async_fn: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> None:
        if options.get("_internal"):
            super().run_task(async_fn, *args, **options)
            return

        async def contained() -> None:
            while True:
                try:
                    await async_fn(*args)
                    return
                except Exception as error:
                    log.info("%s: %s failed: %r", self._service, async_fn.__name__, error)
                    _cut_connection_of(async_fn)
                if not options.get("daemon"):
                    return
                await trio.sleep(0.5)

        super().run_task(contained, **options)


def _cut_connection_of(async_fn: Callable[..., Awaitable[Any]]) -> None:
    """Cut the connection whose own task failed: it would stay open and answer nothing."""
    owner = getattr(async_fn, "__self__", None)
    link = getattr(getattr(owner, "muxed_conn", owner), "link", None)
    if link is not None:
        link.cut()


@asynccontextmanager
async def running(service: Any) -> AsyncIterator[None]:
    """Run a library service in the background; the failure of one of its tasks does not end it."""
    async with background() as nursery:
        manager = _ContainedManager(service)
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.5):
                await manager.stop()


class RepairedPubsub(Pubsub):  # type: ignore[misc]
    """Sequence numbers that survive a restart, validation of every message, and a name for the culprit.

    Symptoms: sequence numbers start at whole seconds, so a restarted node repeats some and is ignored;
    the verdict on a message is cached by (author, sequence number) for longer than the duplicate filter
    remembers it, so a second message under the number of a valid one is relayed unvalidated; unsigned
    messages and malformed frames are dropped without telling anyone whose they were.
    Until: numbers start at nanoseconds, the cache's key covers the content, and malformed input reaches
    a callback.
    """

    def __init__(self, host: Any, router: Any, blame: Callable[[Any, str], None], **options: Any) -> None:
        super().__init__(host, router, validation_cache_ttl=-1, **options)
        self.counter = time.time_ns()
        self._blame = blame

    async def push_msg(self, msg_forwarder: Any, msg: Any) -> None:
        if msg_forwarder != self.my_id and not self._is_msg_seen(msg):
            try:
                signed = signature_validator(msg)
            except Exception:
                signed = False
            if not signed:
                self._blame(msg_forwarder, "a pubsub message without a valid signature of its author")
                return
        await super().push_msg(msg_forwarder, msg)

    async def continuously_read_stream(self, stream: Any) -> None:
        try:
            await super().continuously_read_stream(stream)
        except (DecodeError, ParseError, ValueError) as error:
            self._blame(stream.muxed_conn.peer_id, f"a malformed pubsub frame: {error}")
            await stream.reset()
            self._handle_dead_peer(stream.muxed_conn.peer_id)


class RepairedGossipSub(GossipSub):  # type: ignore[misc]
    """Gossip control messages cut to what the one topic needs.

    Symptom: control messages about invented topics, and lists of any length, grow tables that nothing
    empties; the peer lists of a PRUNE make the node dial addresses of a stranger's choice; a PRUNE with
    a huge back-off bars its sender from the mesh for ever.
    Until: the library bounds these tables and can ignore peer exchange.
    """

    MAX_IDS = 1_024
    MAX_ENTRIES = 16
    MAX_BACK_OFF = 60

    def __init__(self, topic: str, **options: Any) -> None:
        super().__init__(**options)
        self._topic = topic

    async def handle_rpc(self, rpc: Any, sender_peer_id: Any) -> None:
        control = rpc.control
        for name in ("ihave", "graft", "prune"):
            entries = [e for e in getattr(control, name) if e.topicID == self._topic]
            control.ClearField(name)
            getattr(control, name).extend(entries[: self.MAX_ENTRIES])
        for name in ("iwant", "idontwant"):
            del getattr(control, name)[self.MAX_ENTRIES :]
        for entry in (*control.ihave, *control.iwant, *control.idontwant):
            del entry.messageIDs[self.MAX_IDS :]
        for prune in control.prune:
            prune.ClearField("peers")
            prune.backoff = min(prune.backoff, self.MAX_BACK_OFF)
        rpc.ClearField("senderRecord")
        await super().handle_rpc(rpc, sender_peer_id)
