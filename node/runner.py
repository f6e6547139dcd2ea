"""One task at one peer: follow the chain, play the open round with the state machine, adopt what was decided.

This is the driver of `protocol/machine.py`. All waiting and all effects of a round are here.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from folkmoot.aggregation import encode, needed_exponents
from folkmoot.contracts.types import (
    Commitment,
    Digest,
    DirectCommitment,
    DirectReveal,
    LedgerError,
    LedgerRefused,
    Membership,
    RoundFinalized,
    RoundState,
    TaskStatus,
)
from folkmoot.node.archive import blobs_of
from folkmoot.node.conclude import Outcome, RoundInputs, conclude, update_context
from folkmoot.node.evaluation import Evaluator
from folkmoot.node.history import History, Standing
from folkmoot.node.journal import JournalUnwritable
from folkmoot.node.model import ModelMalformed, read_model
from folkmoot.node.protocol import canonical, messages
from folkmoot.node.protocol.admission import Verdict
from folkmoot.node.protocol.events import (
    Accuse,
    Action,
    Conclude,
    Concluded,
    Event,
    Fetch,
    Fetched,
    Heard,
    Posted,
    PostedKey,
    Ready,
    Refused,
    RoundTerms,
    Say,
    Submit,
    Tick,
)
from folkmoot.node.protocol.machine import Round
from folkmoot.node.protocol.messages import Body, Signed
from folkmoot.node.record import Accused, PhaseEntered, Trained, Trouble
from folkmoot.node.services import Services
from folkmoot.node.specification import document_cid
from folkmoot.node.trainer import Config, TrainerError, run_fit
from folkmoot.node.validator import OpenRound, scope_of
from folkmoot.p2p.types import BlobError, BlobTooLarge, BlobUnavailable, Cid, InvalidCid, PeerId
from folkmoot.privacy.sealing import key_hash, seal


class TaskRunner:
    """Plays every round of one task until it is complete or closed."""

    def __init__(self, services: Services, task: int) -> None:
        self._services = services
        self._task = task
        self._history = History(services, task)
        self._evaluator = Evaluator(services, task)
        self._said: dict[int, list[Signed[Body]]] = {}
        self._inbox: trio.MemorySendChannel[Event] | None = None
        self._round = 0
        self._kick = trio.Event()
        self._censored = False

    # --- what the peer hands in ---------------------------------------------------------------------------

    def hear(self, message: Signed[Body]) -> None:
        """A validated message of this task. It is kept, since the gossip brings no message twice."""
        self.keep(message)
        _, round_ = messages.task_and_round(message.body)
        if round_ == self._round and self._inbox is not None:
            self._inbox.send_nowait(Heard(message))

    def keep(self, message: Signed[Body]) -> None:
        """Remember what was said in a round that is open or may open again."""
        _, round_ = messages.task_and_round(message.body)
        if round_ >= self._round - 1:
            self._said.setdefault(round_, []).append(message)

    def chain_changed(self, event: RoundFinalized | None = None) -> None:
        """The chain said something about this task; look again."""
        if event is not None:
            self._history.finalized(event)
        self._kick.set()

    def posted(self, event: DirectCommitment | DirectReveal) -> None:
        """A commitment or reveal went through the contract."""
        place = event.commitment if isinstance(event, DirectCommitment) else event
        if place.round == self._round and self._inbox is not None:
            self._inbox.send_nowait(self._from_chain(event))

    def _from_chain(self, event: DirectCommitment | DirectReveal) -> Event:
        if isinstance(event, DirectReveal):
            return PostedKey(event.member, event.key)
        body = event.commitment
        return Posted(
            Signed(body, event.signature, messages.signing_digest(self._services.signer.domain, body))
        )

    # --- the task -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the task is complete or closed, or the surrounding nursery is cancelled.

        Raises TaskUnsound, in a group; JournalCorrupt likewise.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._history.archive.run)
            nursery.start_soon(self._evaluator.run)
            standing = await self._history.catch_up()
            while not self._over(standing):
                self._evaluator.add(standing)
                standing = await self._play(standing)
            self._services.validator.close_task(self._task)
            self._said.clear()
            self._evaluator.add(standing)
            await self._evaluator.idle()
            await self._history.archive.idle()
            nursery.cancel_scope.cancel()

    def _over(self, standing: Standing) -> bool:
        return standing.status is not TaskStatus.OPEN or standing.state.round >= standing.specification.rounds

    async def _play(self, standing: Standing) -> Standing:
        """Take part in the open round, if this node has a seat, until the chain says that it is over.

        Returns the standing after it.
        """
        state, membership = standing.state, standing.membership
        self._enter(state.round)
        self._services.validator.open_round(self._task, OpenRound(state.round, membership))
        me = self._seat(membership)
        if me is None:
            await self._wait_for_next(state)
            return await self._history.catch_up()
        send, receive = trio.open_memory_channel[Event](math.inf)  # the validator bounds what comes in
        self._inbox = send
        game = _Game(self, self._services, standing, me, send)
        for message in self._said.get(state.round, ()):
            send.send_nowait(Heard(message))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_over, state, nursery.cancel_scope)
                nursery.start_soon(self._post_backlog, state)
                await game.play(nursery, receive, post=self._censored)
        finally:
            self._inbox = None
        self._history.remember(game.outcomes)
        after = await self._history.catch_up()
        self._censored = _left_out(after, me if game.committed else None)
        self._unpin_what_was_not_needed(game, standing, after)
        return after

    def _enter(self, round_: int) -> None:
        """Forget what was said before the last round, which may open again when the chain undoes blocks."""
        self._round = round_
        for gone in [number for number in self._said if number < round_ - 1]:
            del self._said[gone]
        if round_ > 1:
            self._services.gossip.forget(scope_of(self._task, round_ - 2))

    def _unpin_what_was_not_needed(self, game: _Game, before: Standing, after: Standing) -> None:
        """Let go of late updates and of results of attempts that came to nothing."""
        if after.last is None or after.state.round != before.state.round + 1:
            return
        manifest = document_cid(canonical.digest(after.last.encode()))
        needed = {before.base, manifest, *blobs_of(after.last)}
        self._history.archive.unpin(game.pinned - needed)

    async def _stop_when_over(self, state: RoundState, scope: trio.CancelScope) -> None:
        await self._wait_for_next(state)
        scope.cancel()

    async def _wait_for_next(self, state: RoundState) -> None:
        """Return when the chain is past this state, or has another one in its place."""
        while True:
            with trio.move_on_after(self._services.pace.poll * 10):
                await self._kick.wait()
            self._kick = trio.Event()
            try:
                task = await self._services.blocking(self._services.ledger.task, self._task)
                latest = await self._services.blocking(self._services.ledger.round_state, self._task)
            except LedgerError as error:
                self._trouble(str(error))
                await trio.sleep(self._services.pace.retry)
                continue
            if task.status is not TaskStatus.OPEN or replace(latest, direct=0) != replace(state, direct=0):
                return

    async def _post_backlog(self, state: RoundState) -> None:
        """Direct commitments and reveals that were made before this node came."""
        ledger, blocking = self._services.ledger, self._services.blocking
        while True:
            try:
                commitments = await blocking(ledger.direct_commitments, self._task, state.round)
                reveals = await blocking(ledger.direct_reveals, self._task, state.round)
            except LedgerError as error:
                self._trouble(str(error))
                await trio.sleep(self._services.pace.retry)
                continue
            for event in (*commitments, *reveals):
                self.posted(event)
            return

    def _seat(self, membership: Membership) -> int | None:
        for record in membership.signers:
            if record.signer == self._services.signer_address:
                return record.index
        return None

    def _trouble(self, what: str) -> None:
        self._services.observe(Trouble(self._services.clock(), what))


def _left_out(standing: Standing, committed_as: int | None) -> bool:
    """Whether the last round counted a member as late that had committed in time."""
    last = standing.last
    return last is not None and (committed_as, Verdict.LATE) in last.verdicts


class _Game:
    """One round: the state machine and the tasks that carry out its actions."""

    def __init__(
        self,
        runner: TaskRunner,
        services: Services,
        standing: Standing,
        me: int,
        inbox: trio.MemorySendChannel[Event],
    ) -> None:
        state, specification = standing.state, standing.specification
        self.outcomes: dict[Digest, Outcome] = {}
        self.pinned: set[Cid] = set()
        self.committed = False
        self._runner = runner
        self._services = services
        self._standing = standing
        self._me = me
        self._inbox = inbox
        self._post = False
        self._machine = Round(
            RoundTerms(
                state.task,
                state.round,
                standing.membership,
                me,
                state.previous,
                state.opened_at,
                specification.commit_window,
                specification.reveal_window,
                specification.attempt_window,
                services.pace.stagger,
            )
        )
        self._shown: tuple[str, int] | None = None

    async def play(
        self, nursery: trio.Nursery, receive: trio.MemoryReceiveChannel[Event], *, post: bool
    ) -> None:
        """Feed the machine and carry out its actions until cancelled."""
        self._post = post
        clock = self._services.clock
        nursery.start_soon(self._train)
        waiting: deque[Event] = deque([Tick()])
        while True:
            if not waiting:
                wait = self._machine.wake_at - clock()
                event: Event = Tick()
                with trio.move_on_after(max(0.0, min(wait, 3600.0))):
                    event = await receive.receive()
                waiting.append(event)
            actions = self._machine.handle(waiting.popleft(), clock())
            self._show_phase()
            for action in actions:
                waiting.extend(await self._perform(action, nursery))

    async def _perform(self, action: Action, nursery: trio.Nursery) -> Sequence[Event]:
        match action:
            case Say(body):
                return await self._say(body, nursery)
            case Fetch(commitment):
                nursery.start_soon(self._fetch, commitment)
            case Conclude():
                nursery.start_soon(self._conclude, action)
            case Submit():
                nursery.start_soon(self._submit, action)
            case Accuse(member, offence, detail, evidence):
                state = self._standing.state
                proof = tuple(message.encode().hex() for message in evidence)
                self._services.observe(
                    Accused(
                        self._services.clock(), state.task, state.round, member, offence.value, detail, proof
                    )
                )
        return ()

    async def _say(self, body: Body, nursery: trio.Nursery) -> Sequence[Event]:
        """Sign and send. What the disk does not let the journal take is said as soon as it does."""
        signer = self._services.signer
        try:
            message: Signed[Body] = await self._services.blocking(signer.sign_once, body)
        except JournalUnwritable as error:
            self._trouble(str(error))
            nursery.start_soon(self._say_later, body, nursery)
            return ()
        return await self._send(message, nursery)

    async def _say_later(self, body: Body, nursery: trio.Nursery) -> None:
        await trio.sleep(self._services.pace.retry)
        for event in await self._say(body, nursery):
            await self._inbox.send(event)

    async def _send(self, message: Signed[Body], nursery: trio.Nursery) -> Sequence[Event]:
        services, state = self._services, self._standing.state
        await services.gossip.publish(scope_of(state.task, state.round), message.encode())
        match message.body:
            case Commitment():
                self.committed = True
                if self._post:
                    post = functools.partial(services.ledger.commit_direct, message.body, message.signature)
                    nursery.start_soon(self._post_directly, post)
            case messages.Reveal(task, round_, member, _, key) if self._post:
                post = functools.partial(services.ledger.reveal_direct, task, round_, member, key)
                nursery.start_soon(self._post_directly, post)
        self._runner.keep(message)
        return (Heard(message),)

    async def _post_directly(self, post: functools.partial[str]) -> None:
        """The way out of censorship: the contract takes the commitment where the gossip was cut."""
        while True:
            try:
                await self._services.blocking(post)
                return
            except LedgerRefused as error:
                self._trouble(f"posting directly: {error}")
                return
            except LedgerError as error:
                self._trouble(f"posting directly: {error}")
                await trio.sleep(self._services.pace.retry)

    # --- training and committing --------------------------------------------------------------------------

    async def _train(self) -> None:
        """Train, put the update on the lattice, seal it, store it; or resend what was committed before."""
        state = self._standing.state
        key = self._services.signer.update_key(state.task, state.round)
        started = self._services.clock()
        try:
            kept = await self._services.blocking(
                self._services.signer.recall_slot, "commitment", (state.task, state.round)
            )
            if kept is not None:
                await self._inbox.send(Ready(kept.body, key))
                return
            with self._folder() as folder:
                examples, exponents, metrics = await self._services.training(self._make_update, Path(folder))
                cid = await self._services.blobs.put(Path(folder) / "sealed")
            self._pin(cid)
        except (TrainerError, ModelMalformed, BlobError, OSError, JournalUnwritable) as error:
            self._trouble(f"no update in round {state.round}: {error}")
            return
        finished = self._services.clock()
        self._services.observe(
            Trained(finished, state.task, state.round, examples, finished - started, metrics)
        )
        commitment = Commitment(
            state.task,
            state.round,
            self._standing.membership.epoch,
            self._me,
            cid,
            Digest(key_hash(key)),
            examples,
            bytes(exponent & 0xFF for exponent in exponents),
        )
        await self._inbox.send(Ready(commitment, key))

    def _make_update(self, folder: Path) -> tuple[int, tuple[int, ...], dict[str, float]]:
        standing, state = self._standing, self._standing.state
        specification = standing.specification
        base = read_model(standing.base_path, specification.layout)
        config: Config = {
            **dict(specification.fit),
            "task": state.task,
            "round": state.round,
            "member": self._me,
        }
        fitted = run_fit(self._services.trainer, base, specification.layout, config)
        delta = fitted.weights - base
        try:
            encoded = encode(delta, specification.layout, standing.lattice)
            exponents = needed_exponents(delta, specification.layout, standing.lattice.bits)
        except Exception as error:
            raise TrainerError(f"the trained weights are no update: {error}") from error
        (folder / "update").write_bytes(encoded)
        context = update_context(self._services.signer.domain, state.task, state.round, self._me)
        key = self._services.signer.update_key(state.task, state.round)
        seal(folder / "update", folder / "sealed", key, context)
        return fitted.examples, exponents, fitted.metrics

    # --- what the machine asks for ------------------------------------------------------------------------

    async def _fetch(self, commitment: Signed[Commitment]) -> None:
        """Get a ciphertext, from its author first, until it is here or the round is over."""
        body = commitment.body
        providers = self._author(body)
        limit = self._standing.specification.ciphertext_size
        while True:
            try:
                await self._services.blobs.fetch(Cid(body.cid), limit, providers)
                self._pin(Cid(body.cid))
                await self._inbox.send(Fetched(commitment.digest))
                return
            except (BlobTooLarge, InvalidCid) as error:
                self._trouble(f"update of member {body.member}: {error}")
                return
            except BlobUnavailable:
                await trio.sleep(self._services.pace.retry / 4)
            except (BlobError, OSError) as error:
                self._trouble(f"update of member {body.member}: {error}")
                await trio.sleep(self._services.pace.retry)

    async def _conclude(self, action: Conclude) -> None:
        """Compute the result of a proposal. A disk that refuses is tried again until the round is over."""
        number = self._standing.state.round
        while True:
            try:
                outcome = await self._compute(action)
                break
            except (ModelMalformed, BlobError, OSError) as error:
                self._trouble(f"round {number} could not be computed: {error}")
            await trio.sleep(self._services.pace.retry)
        self.outcomes[outcome.result.manifest] = outcome
        await self._inbox.send(Concluded(action.proposal.body.attempt, outcome.result))

    async def _compute(self, action: Conclude) -> Outcome:
        """Raises ModelMalformed, BlobError, OSError."""
        standing, state = self._standing, self._standing.state
        blobs = self._services.blobs
        ciphertexts = [await self._ciphertext(commitment.body) for commitment in action.commitments]
        inputs = RoundInputs(
            self._services.signer.domain,
            standing.specification,
            standing.membership,
            state.task,
            state.round,
            state.previous,
            standing.base,
            standing.base_path,
            standing.lattice,
            action.proposal,
            action.votes,
            action.admission,
            action.commitments,
            action.keys,
            tuple(ciphertexts),
        )
        with self._folder() as folder:
            outcome: Outcome = await self._services.blocking(
                conclude, inputs, Path(folder), self._services.arithmetic
            )
            self._pin(await blobs.put(outcome.model_path))
            self._pin(await blobs.put(outcome.keyring_path))
            self._pin(await blobs.put_document(outcome.manifest_bytes))
        return outcome

    async def _ciphertext(self, commitment: Commitment) -> Path:
        """Where a sealed update lies that was fetched before."""
        limit = self._standing.specification.ciphertext_size
        return await self._services.blobs.fetch(Cid(commitment.cid), limit, self._author(commitment))

    def _author(self, commitment: Commitment) -> list[PeerId]:
        return [PeerId(self._standing.membership.records[commitment.member].peer_id)]

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        """For files on their way. A thread that was given up may still write there when it goes."""
        return tempfile.TemporaryDirectory(dir=self._services.workspace, ignore_cleanup_errors=True)

    def _pin(self, cid: Cid) -> None:
        self._services.blobs.pin(cid)
        self.pinned.add(cid)

    async def _submit(self, action: Submit) -> None:
        """Send the result until the chain has one for this round."""
        scores = self.outcomes[action.result.manifest].scores
        send = functools.partial(
            self._services.ledger.finalize, action.result, dict(action.signatures), scores
        )
        while True:
            try:
                await self._services.blocking(send)
                self._runner.chain_changed()
                return
            except LedgerRefused as error:
                if error.reason in ("RoundAlreadyFinalized", "TaskNotOpen"):
                    self._runner.chain_changed()
                    return
                if error.reason != "TooEarly":
                    self._trouble(f"the result of round {action.result.round}: {error}")
                    await self._inbox.send(Refused(action.result.attempt))
                    return
                await trio.sleep(self._services.pace.poll)
            except LedgerError as error:
                self._trouble(str(error))
                await trio.sleep(self._services.pace.retry)

    def _show_phase(self) -> None:
        shown = (self._machine.phase.value, self._machine.attempt)
        if shown != self._shown:
            self._shown = shown
            state, deadline = self._standing.state, self._machine.wake_at
            self._services.observe(
                PhaseEntered(
                    self._services.clock(),
                    state.task,
                    state.round,
                    shown[1],
                    shown[0],
                    None if math.isinf(deadline) else deadline,
                )
            )

    def _trouble(self, what: str) -> None:
        self._services.observe(Trouble(self._services.clock(), what))
