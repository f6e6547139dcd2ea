"""Members on loopback for the tests of hosts and gossip."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest

from folkmoot.p2p.connections import Pace
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import Host, HostSettings, open_host

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
BRISK = HostSettings(pace=Pace(first_redial=0.05, last_redial=0.5, ping_interval=0.2, silence_limit=1.0))


def seed_of(number: int) -> bytes:
    return bytes([number + 1]) * 32


@asynccontextmanager
async def _open_members(count: int, settings: HostSettings = BRISK) -> AsyncIterator[list[Host]]:
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(open_host(seed_of(number), LOOPBACK, MemberGate(), settings))
            for number in range(count)
        ]
        everybody = {host.peer_id: host.addresses for host in hosts}
        for host in hosts:
            host.gate.update(everybody)
        yield hosts


@pytest.fixture
def open_members() -> Callable[..., AbstractAsyncContextManager[list[Host]]]:
    """`async with open_members(n) as hosts`: n hosts that admit and dial each other."""
    return _open_members
