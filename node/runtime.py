"""A node as a process: opens home, chain, store, host and gossip, and runs the peer between them.

The only module that knows every room at once.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import trio

from folkmoot.contracts import eip712
from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.contracts.types import LedgerError, Membership, Role
from folkmoot.node.conclude import Arithmetic
from folkmoot.node.home import Home
from folkmoot.node.identity import Identity
from folkmoot.node.journal import open_journal
from folkmoot.node.peer import Peer
from folkmoot.node.ports import BlobStore, Gossip
from folkmoot.node.protocol.events import Offence
from folkmoot.node.record import Accused, Evaluated, Record, RecordFile, RoundApplied, Trouble
from folkmoot.node.services import Limits, Pace, Services, in_thread
from folkmoot.node.settings import Config
from folkmoot.node.signing import Signer
from folkmoot.node.status import StatusFile
from folkmoot.node.trainer import Config as FitConfig
from folkmoot.node.trainer import Trainer, TrainerError, Weights, load_trainer
from folkmoot.node.update_keys import UpdateKeys, keys_folder
from folkmoot.node.validator import MessageValidator
from folkmoot.p2p.bitswap import serving_bitswap
from folkmoot.p2p.fetching import FetchSettings
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.gossip import open_gossip
from folkmoot.p2p.host import Host, open_host
from folkmoot.p2p.identity import peer_id_from_text
from folkmoot.p2p.kubo import KuboBlobStore
from folkmoot.p2p.network_blobs import NetworkBlobStore
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import BlobError, PeerId

LOG = logging.getLogger("folkmoot")

WrapGossip = Callable[[Gossip, Signer], Gossip]


OpenLedger = Callable[[bytes], EthereumLedger]
"""Opens the ledger for a signer's key."""


def _as_it_is(gossip: Gossip, signer: Signer) -> Gossip:
    return gossip


async def run_node(
    home: Home,
    config: Config,
    identity: Identity,
    open_ledger: OpenLedger,
    *,
    wrap_gossip: WrapGossip = _as_it_is,
) -> None:
    """Run until SIGTERM or SIGINT. `wrap_gossip` lets an experiment stand between node and network.

    Raises what the parts raise when they cannot start: HomeBusy, JournalCorrupt, LedgerUnreachable,
    NoContracts, AddressInUse, StoreInUse, TrainerError.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        with ExitStack() as stack:
            await _Node(home, config, identity, open_ledger, stack).run(wrap_gossip)
        nursery.cancel_scope.cancel()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


class _Node:
    """The parts of one process, opened in the order in which they can fail."""

    def __init__(
        self, home: Home, config: Config, identity: Identity, open_ledger: OpenLedger, stack: ExitStack
    ) -> None:
        self._home = home
        self._config = config
        self._identity = identity
        self._open_ledger = open_ledger
        self._stack = stack
        self._gate = MemberGate()
        self._members: Membership | None = None
        self._host: Host | None = None

    async def run(self, wrap_gossip: WrapGossip) -> None:
        home, config, identity = self._home, self._config, self._identity
        ledger: EthereumLedger = await in_thread(self._open_ledger, identity.signer_key)
        domain = ledger.domain
        journal = self._stack.enter_context(open_journal(home, eip712.domain_separator(domain)))
        signer = Signer(domain, identity.signer_key, identity.box_private_key, journal)
        store = DiskStore(config.store.path, config.store.capacity)
        self._stack.callback(store.close)
        trainer = await in_thread(_trainer, config)
        records = RecordFile(home.records)
        self._stack.callback(records.close)
        status = StatusFile(home, config.node.name, PeerId(identity.peer_id), identity.signer)
        config.node.work.mkdir(parents=True, exist_ok=True)
        workspace = self._stack.enter_context(tempfile.TemporaryDirectory(dir=config.node.work))

        def observe(record: Record) -> None:
            records(record)
            status.take(record)
            _tell(record)

        self._observe = observe
        async with AsyncExitStack() as network:
            self._admit(await in_thread(ledger.membership), await in_thread(ledger.addresses))
            host = await network.enter_async_context(
                open_host(identity.libp2p_seed, config.network.listen, self._gate)
            )
            self._host = host
            LOG.info("%s listens at %s", config.node.name, ", ".join(host.addresses))
            blobs = self._blobs(host, store)
            await network.enter_async_context(serving_bitswap(host, store))
            validator = MessageValidator(domain, self._on_garbage)
            gossip = await network.enter_async_context(open_gossip(host, validator))
            services = Services(
                signer=signer,
                signer_address=identity.signer,
                ledger=ledger,
                gossip=wrap_gossip(gossip, signer),
                blobs=blobs,
                keys=UpdateKeys(keys_folder(config.store.path)),
                trainer=trainer,
                validator=validator,
                workspace=Path(workspace),
                observe=observe,
                clock=time.time,
                arithmetic=Arithmetic("auto", config.limits.threads),
                pace=Pace(poll=config.chain.poll_seconds, fetch=config.limits.fetch_seconds),
                limits=Limits(config.limits.update, config.limits.model, config.store.keep_rounds),
                traffic=lambda: (host.traffic.sent, host.traffic.received),
            )
            peer = Peer(services, self._admit, config.task.join)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(status.write_forever, lambda: sorted(host.connected), self._members_now)
                nursery.start_soon(self._announce, ledger)
                nursery.start_soon(self._empty_outbox, blobs)
                await peer.run()

    def _blobs(self, host: Host, store: DiskStore) -> BlobStore:
        """Blobs straight between members; through a Kubo daemon where the configuration names one."""
        patience = self._config.limits.fetch_seconds
        direct = NetworkBlobStore(host, store, FetchSettings(patience=patience))
        kubo = self._config.store.kubo
        if kubo is None:
            return direct
        return KuboBlobStore(store, _multiaddr(kubo), patience)

    def _admit(self, membership: Membership, addresses: dict[int, tuple[str, ...]]) -> None:
        """Open the gate to every member and auditor but oneself, and close it to everybody else."""
        self._members = membership
        known = {
            PeerId(record.peer_id): addresses.get(record.index, ())
            for record in membership.records
            if record.role is not Role.NONE and record.peer_id != self._identity.peer_id
        }
        for peer, address in _static_peers(self._config.network.peers).items():
            if peer in known:
                known[peer] = (*known[peer], *address)
        self._gate.update(known)

    def _members_now(self) -> Membership | None:
        return self._members

    async def _announce(self, ledger: EthereumLedger) -> None:
        """Put this node's addresses on the chain when they differ from what is there."""
        network = self._config.network
        assert self._host is not None
        mine = tuple(network.announce) or self._host.addresses
        while network.publish_address:
            seat = self._seat()
            try:
                if seat is None:
                    return
                if (await in_thread(ledger.addresses)).get(seat) != mine:
                    await in_thread(ledger.announce, seat, mine)
                return
            except LedgerError as error:
                self._observe(Trouble(time.time(), f"announcing this node's addresses: {error}"))
                await trio.sleep(10.0)

    async def _empty_outbox(self, blobs: BlobStore) -> None:
        """Put what commands left in the outbox into the blob store, pinned."""
        while True:
            for path in sorted(self._home.outbox.glob("[!.]*")):
                try:
                    if path.suffix == ".document":
                        cid = await blobs.put_document(path.read_bytes())
                    else:
                        cid = await blobs.put(path)
                    blobs.pin(cid)
                    path.unlink()
                except (BlobError, OSError) as error:
                    self._observe(Trouble(time.time(), f"the outbox: {error}"))
            await trio.sleep(1.0)

    def _seat(self) -> int | None:
        assert self._members is not None
        for record in self._members.signers:
            if record.signer == self._identity.signer:
                return record.index
        return None

    def _on_garbage(self, peer: PeerId, why: str) -> None:
        if self._members is None:
            return
        for record in self._members.records:
            if record.peer_id == peer:
                self._observe(Accused(time.time(), 0, -1, record.index, Offence.GARBAGE.value, why, ()))


def _multiaddr(url: str) -> str:
    """The multiaddress of an HTTP address, as the Kubo client takes it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns"
    return f"/{kind}/{host}/tcp/{parts.port or 5001}/{parts.scheme}"


def _tell(record: Record) -> None:
    """What an operator should read in the log."""
    match record:
        case RoundApplied():
            LOG.info("round %d of task %d: %s %s", record.round, record.task, record.outcome, record.model)
        case Evaluated():
            what = "the genesis model" if record.round < 0 else f"the model of round {record.round}"
            LOG.info("%s of task %d: %s", what, record.task, record.metrics)
        case Accused():
            LOG.warning("member %d: %s, %s", record.member, record.offence, record.detail)
        case Trouble():
            LOG.warning("%s", record.what)


class _NoTrainer:
    """Stands in where the configuration names no trainer: the node votes and attests but never trains."""

    def initial_weights(self) -> dict[str, object]:
        raise TrainerError("this node has no trainer: set [trainer] factory")

    def fit(self, weights: Weights, config: FitConfig) -> tuple[Weights, int, dict[str, float]]:
        raise TrainerError("this node has no trainer: set [trainer] factory")

    def evaluate(self, weights: Weights, config: FitConfig) -> tuple[float, int, dict[str, float]]:
        raise TrainerError("this node has no trainer: set [trainer] factory")


def _trainer(config: Config) -> Trainer:
    if not config.trainer.factory:
        return _NoTrainer()  # type: ignore[return-value]
    return load_trainer(config.trainer.factory, config.trainer.options)


def _static_peers(addresses: tuple[str, ...]) -> dict[PeerId, tuple[str, ...]]:
    """Configured addresses by the peer id that they end in."""
    found: dict[PeerId, tuple[str, ...]] = {}
    for address in addresses:
        peer = peer_id_from_text(address.rpartition("/p2p/")[2])
        found[peer] = (*found.get(peer, ()), address)
    return found
