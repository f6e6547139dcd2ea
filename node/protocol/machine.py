"""One round of one task as a state machine (DESIGN section 4): events and the time go in, actions come out.

No I/O, no clock, no randomness, no keys. Here stand the phases and their deadlines; `testimony.py` keeps
what was heard. The driver in `runner.py` signs, sends, fetches and computes what the actions ask for, and
feeds back what it hears. The same machine runs in the node and in the simulator.
"""

from __future__ import annotations

import math

from folkmoot.contracts.types import Commitment, RoundResult
from folkmoot.node.protocol import admission
from folkmoot.node.protocol.admission import Admission, InvalidProposal
from folkmoot.node.protocol.events import (
    Action,
    Conclude,
    Concluded,
    Event,
    Fetched,
    Heard,
    Offence,
    Phase,
    Posted,
    PostedKey,
    Ready,
    Refused,
    RoundTerms,
    Say,
    Submit,
    Tick,
)
from folkmoot.node.protocol.messages import (
    Attestation,
    Body,
    Proposal,
    Reveal,
    Signed,
    Vote,
)
from folkmoot.node.protocol.testimony import Testimony

MAX_ATTEMPTS = 64
"""Attempts of one round that a member keeps messages of, ahead of its own."""


class Round:
    """The state of one round at one member. Feed `handle`; do what it returns; call again by `wake_at`."""

    def __init__(self, terms: RoundTerms) -> None:
        self.terms = terms
        self.phase = Phase.TRAIN
        self.attempt = 0
        self.wake_at = terms.opened_at + terms.commit_window
        self._seats = terms.membership.signers
        self._testimony = Testimony(terms)
        self._mine: Ready | None = None
        self._revealed = False
        self._reveal_ends = math.inf
        self._attempt_started = math.inf
        self._quorum_of_votes_at = math.inf
        self._proposed: set[int] = set()
        self._dismissed: set[int] = set()
        self._admitted: dict[int, tuple[tuple[Signed[Vote], ...], Admission]] = {}
        self._concluding: set[int] = set()
        self._quorum_at = math.inf
        self._quorum_attempt: int | None = None
        self._submitted: set[int] = set()
        self._refused: set[int] = set()
        self._out: list[Action] = []

    # --- the interface ------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time `now` (Unix seconds) and return what is to be done, in order."""
        self._out = []
        match event:
            case Ready():
                self._ready(event, now)
            case Heard(message):
                self._hear(message, now)
            case Posted(message):
                self._posted(message)
            case PostedKey(member, key):
                self._testimony.take_key(member, key)
            case Fetched(digest):
                self._testimony.take_ciphertext(digest)
            case Concluded(attempt, result):
                self._concluded(attempt, result)
            case Refused(attempt):
                self._refused.add(attempt)
                self._quorum_attempt, self._quorum_at = None, math.inf
                self._start_attempt(max(self.attempt, attempt) + 1, now)
            case Tick():
                pass
        while self._advance(now):
            pass
        self._set_wake()
        return self._out

    @property
    def verdict_so_far(self) -> dict[int, str]:
        """For status displays: what this member knows of each member's update."""
        return {record.index: self._testimony.standing(record.index) for record in self._seats}

    # --- taking events in ---------------------------------------------------------------------------------

    def _ready(self, event: Ready, now: float) -> None:
        if self._mine is not None:
            return
        self._mine = event
        if self.phase is Phase.TRAIN and now < self._window_ends():
            self.phase = Phase.COMMIT
            self._out.append(Say(event.commitment))
        self._reveal_mine()

    def _hear(self, message: Signed[Body], now: float) -> None:
        self._out += self._testimony.take(message, self.attempt + MAX_ATTEMPTS)
        if isinstance(message.body, Commitment):
            if self.phase in (Phase.TRAIN, Phase.COMMIT) and now <= self._window_ends():
                self._testimony.note_in_time(message)  # type: ignore[arg-type]
            self._reveal_mine()

    def _posted(self, message: Signed[Commitment]) -> None:
        self._out += self._testimony.take(message, self.attempt + MAX_ATTEMPTS)
        self._testimony.note_in_time(message)
        self._reveal_mine()

    def _reveal_mine(self) -> None:
        """Give this member's key away once commitments are closed, if its commitment was ever sent.

        After a restart the commitment comes back from the others; one that was never sent stays unopened.
        """
        if self._mine is None or self._revealed or self.phase in (Phase.TRAIN, Phase.COMMIT):
            return
        for message in self._testimony.commitments_of(self.terms.me):
            if message.body == self._mine.commitment:
                self._revealed = True
                place = (self.terms.task, self.terms.round, self.terms.me)
                self._out.append(Say(Reveal(*place, message.digest, self._mine.key)))
                return

    def _concluded(self, attempt: int, result: RoundResult) -> None:
        self._out.append(Say(Attestation(self.terms.me, result)))
        self._out += self._testimony.take_result(attempt, result)

    # --- moving on ----------------------------------------------------------------------------------------

    def _advance(self, now: float) -> bool:
        """Make one step if one is due; True when something changed."""
        match self.phase:
            case Phase.TRAIN | Phase.COMMIT:
                return self._close_commits(now)
            case Phase.REVEAL:
                return self._close_reveals(now)
            case Phase.VOTE | Phase.ATTEST:
                return self._decide(now)
            case Phase.FINALIZE:
                return self._submit_in_turn(now)

    def _close_commits(self, now: float) -> bool:
        if not self._testimony.all_committed and now < self._window_ends():
            return False
        self.phase = Phase.REVEAL
        self._reveal_ends = now + self.terms.reveal_window
        self._reveal_mine()
        return True

    def _close_reveals(self, now: float) -> bool:
        if self._testimony.awaits_reveals and now < self._reveal_ends:
            return False
        self._start_attempt(0, now)
        return True

    def _start_attempt(self, attempt: int, now: float) -> None:
        self.attempt = attempt
        self.phase = Phase.VOTE
        self._attempt_started = now
        self._quorum_of_votes_at = math.inf
        self._testimony.learn_what_was_in_time()
        self._out.append(Say(self._testimony.vote(attempt)))

    def _decide(self, now: float) -> bool:
        if self._find_quorum(now):
            return True
        ahead = self._testimony.attempt_of_others()
        if ahead > self.attempt or now >= self._attempt_ends():
            # Others may end an attempt a little earlier and pull this member along.
            if now >= self._attempt_ends() - self._grace():
                self._blame_silence()
            self._start_attempt(max(ahead, self.attempt + 1), now)
            return True
        self._propose_in_turn(now)
        proposals = self._testimony.proposals
        for attempt in sorted(proposals.keys() - self._dismissed - self._concluding, reverse=True):
            self._examine_proposal(proposals[attempt])
        return False

    def _propose_in_turn(self, now: float) -> None:
        attempt = self.attempt
        if self._turn(attempt) != self.terms.me or attempt in self._proposed:
            return
        votes = self._testimony.votes(attempt)
        if len(votes) < self.terms.membership.quorum:
            self._quorum_of_votes_at = math.inf
            return
        self._quorum_of_votes_at = min(self._quorum_of_votes_at, now)
        if len(votes) == len(self._seats) or now >= self._quorum_of_votes_at + self._grace():
            named = tuple(vote.name for vote in admission.choose_votes(votes))
            if len(named) < self.terms.membership.quorum:
                self._quorum_of_votes_at = math.inf
                return
            self._proposed.add(attempt)
            terms = self.terms
            self._out.append(
                Say(Proposal(terms.task, terms.round, attempt, terms.membership.epoch, terms.me, named))
            )

    def _examine_proposal(self, proposal: Signed[Proposal]) -> None:
        """Ask for what a proposal admits; conclude once all of it is held.

        Proposals of earlier attempts count too: a member that was alone for long is far ahead of the others
        and would never meet them at one attempt. The chain keeps whichever result comes first.
        """
        attempt = proposal.body.attempt
        found = self._admit(proposal)
        if found is None:
            return
        votes, admitted = found
        if attempt == self.attempt:
            self.phase = Phase.ATTEST
        self._out += self._testimony.request(admitted.admitted)
        updates = self._testimony.updates(admitted.admitted)
        if updates is None:
            return
        self._concluding.add(attempt)
        self._out.append(Conclude(proposal, votes, admitted, *updates))

    def _admit(self, proposal: Signed[Proposal]) -> tuple[tuple[Signed[Vote], ...], Admission] | None:
        """The votes of a proposal and what they admit, worked out once; None while it cannot be."""
        attempt, named = proposal.body.attempt, proposal.body.votes
        if attempt in self._admitted or attempt > self.attempt:
            return self._admitted.get(attempt)
        votes = self._testimony.votes_named(named)
        if votes is None:
            return None
        try:
            admission.check_proposal(proposal.body, votes, self.terms.membership)
        except InvalidProposal as error:
            self._dismissed.add(attempt)
            turn, offence = proposal.body.proposer, Offence.INVALID_PROPOSAL
            self._out += self._testimony.accuse(turn, offence, attempt, str(error), proposal)
            return None
        admitted = admission.admit([vote.body for vote in votes], self.terms.membership)
        self._admitted[attempt] = votes, admitted
        return votes, admitted

    def _find_quorum(self, now: float) -> bool:
        for attempt in self._testimony.agreed():
            if attempt not in self._refused:
                self._quorum_attempt, self._quorum_at = attempt, now
                self.phase = Phase.FINALIZE
                return True
        return False

    def _submit_in_turn(self, now: float) -> bool:
        attempt = self._quorum_attempt
        assert attempt is not None
        if attempt in self._submitted or now < self._my_turn_to_submit():
            return False
        self._submitted.add(attempt)
        signatures = self._testimony.signatures(attempt)[: self.terms.membership.quorum]
        self._out.append(Submit(self._testimony.result(attempt), signatures))
        return True

    # --- small questions ----------------------------------------------------------------------------------

    def _turn(self, attempt: int) -> int:
        return admission.proposer(self.terms.task, self.terms.round, attempt, self.terms.membership)

    def _blame_silence(self) -> None:
        """Accuse the proposer of this attempt if a quorum of votes was there to propose from."""
        turn, attempt = self._turn(self.attempt), self.attempt
        could = self._testimony.voters(attempt) >= self.terms.membership.quorum
        if could and attempt not in self._testimony.proposals and turn != self.terms.me:
            self._out += self._testimony.accuse(turn, Offence.SILENT_PROPOSER, attempt, f"attempt {attempt}")

    def _window_ends(self) -> float:
        return self.terms.opened_at + self.terms.commit_window

    def _attempt_ends(self) -> float:
        return self._attempt_started + self.terms.attempt_window * (1 << min(self.attempt, 4))

    def _grace(self) -> float:
        """Seconds that a proposer waits for the last votes once it has a quorum."""
        return self.terms.attempt_window / 8

    def _my_turn_to_submit(self) -> float:
        order = [record.index for record in self._seats]
        assert self._quorum_attempt is not None
        first = order.index(self._turn(self._quorum_attempt))
        rank = (order.index(self.terms.me) - first) % len(order)
        return self._quorum_at + rank * self.terms.stagger

    def _set_wake(self) -> None:
        match self.phase:
            case Phase.TRAIN | Phase.COMMIT:
                self.wake_at = self._window_ends()
            case Phase.REVEAL:
                self.wake_at = self._reveal_ends
            case Phase.VOTE | Phase.ATTEST:
                self.wake_at = self._attempt_ends()
                if self._turn(self.attempt) == self.terms.me and self.attempt not in self._proposed:
                    self.wake_at = min(self.wake_at, self._quorum_of_votes_at + self._grace())
            case Phase.FINALIZE:
                done = self._quorum_attempt in self._submitted
                self.wake_at = math.inf if done else self._my_turn_to_submit()
