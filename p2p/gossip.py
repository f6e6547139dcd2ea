"""The signed messages of a round to every member: gossipsub for speed, pull for certainty.

Implements the node's `Gossip` port on a host. What a message says is the validator's business.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12

from folkmoot.p2p.background import background
from folkmoot.p2p.compat import RepairedGossipSub, RepairedPubsub, running
from folkmoot.p2p.host import Host
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.messages import Intake, IntakeLimits
from folkmoot.p2p.pull import Puller, PullPace
from folkmoot.p2p.types import Decision, PeerId, Validator

__all__ = ["TOPIC", "GossipSettings", "Libp2pGossip", "open_gossip"]

log = logging.getLogger("folkmoot.p2p")

TOPIC = "/folkmoot/gossip/1"
MAX_RPC = (1 << 20) + (64 << 10)
"""Bytes of one pubsub frame; senders split at 1 MiB of content."""


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Gossip parameters; times in seconds."""

    degree: int = 8
    degree_low: int = 6
    degree_high: int = 12
    heartbeat: int = 1
    suspension: float = 60.0
    """How long a peer is kept out after `limits.offences` rejected messages."""
    limits: IntakeLimits = field(default_factory=IntakeLimits)
    pull: PullPace = field(default_factory=PullPace)


class Libp2pGossip:
    """The node's `Gossip` port over libp2p. Made by `open_gossip`.

    Own messages are not delivered to their publisher.
    """

    def __init__(self, pubsub: Any, intake: Intake) -> None:
        self._pubsub = pubsub
        self._intake = intake

    @property
    def rejected(self) -> Mapping[PeerId, int]:
        """Rejected messages by the peer that handed them over."""
        return self._intake.rejected

    @property
    def last_reason(self) -> Mapping[PeerId, str]:
        """Why the peer's last rejected message was rejected."""
        return self._intake.last_reason

    async def publish(self, scope: bytes, message: bytes) -> None:
        """Send to every member, now or by a later pull; a repetition is not sent again.

        Raises MessageTooLarge beyond MAX_MESSAGE bytes.
        """
        await trio.lowlevel.checkpoint()
        if not self._intake.publish(scope, message):
            return
        try:
            await self._pubsub.publish(TOPIC, message)
        except Exception as error:
            log.warning("gossip did not take a message, it is left to pull: %r", error)

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next message that passed validation, with the peer that sent it. Each message once."""
        return await self._intake.receive()

    def forget(self, scope: bytes) -> None:
        """Drop the kept messages of a scope that is over."""
        self._intake.forget(scope)


@asynccontextmanager
async def open_gossip(
    host: Host,
    validator: Validator,
    settings: GossipSettings | None = None,
    on_offender: Callable[[PeerId], None] | None = None,
) -> AsyncIterator[Libp2pGossip]:
    """Gossip with the members of the host's gate until the block ends.

    `validator` runs in trio's thread before a message is relayed: it must be quick. A peer that hands
    over too many rejected messages is kept out for `settings.suspension`, and `on_offender` is called.
    """
    settings = settings or GossipSettings()

    def suspend(peer: PeerId) -> None:
        log.warning(
            "%s is kept out for %g s: %s", peer_text(peer), settings.suspension, intake.last_reason.get(peer)
        )
        host.gate.suspend(peer, settings.suspension)
        if on_offender is not None:
            on_offender(peer)

    def blame(peer: ID, reason: str) -> None:
        intake.blame(PeerId(bytes(peer.to_bytes())), reason)

    def judge(forwarder: ID, message: Any) -> bool:
        if forwarder == pubsub.my_id:
            return True
        peer = PeerId(bytes(forwarder.to_bytes()))
        return host.gate.admits(peer) and intake.admit(peer, bytes(message.data)) is Decision.ACCEPT

    intake = Intake(host.peer_id, validator, suspend, settings.limits)
    router = _router(settings)
    pubsub = RepairedPubsub(
        host.basic,
        router,
        blame,
        strict_signing=True,
        max_inbound_rpc_size=MAX_RPC,
        max_subscriptions_per_rpc=16,
        max_subscriptions_per_peer=4,
        allowed_topics={TOPIC},
    )
    pubsub.set_topic_validator(TOPIC, judge, is_async_validator=False)
    puller = Puller(host, intake, settings.pull)
    async with running(pubsub), running(router):
        await pubsub.wait_until_ready()
        subscription = await pubsub.subscribe(TOPIC)
        async with background() as nursery:
            nursery.start_soon(_drain, subscription)
            nursery.start_soon(puller.run)
            for peer in host.connected:
                nursery.start_soon(pubsub.ensure_peer_stream, ID(bytes(peer)))
            yield Libp2pGossip(pubsub, intake)


def _router(settings: GossipSettings) -> RepairedGossipSub:
    return RepairedGossipSub(
        TOPIC,
        protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
        degree=settings.degree,
        degree_low=settings.degree_low,
        degree_high=settings.degree_high,
        heartbeat_interval=settings.heartbeat,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
        prune_back_off=2,
        unsubscribe_back_off=1,
    )


async def _drain(subscription: Any) -> None:
    """Empty the library's own delivery queue: the validator already took the messages."""
    async for _ in subscription:
        pass
