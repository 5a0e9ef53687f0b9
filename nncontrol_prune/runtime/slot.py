"""The slot: where the loop holds its controller, and how another one gets there.

A controller is *staged* outside the loop: loaded, checked, warmed up. Between two ticks the loop *swaps* it in,
which is one assignment. It is then on *probation*; a fault in that time brings back the last controller that passed
its own (*rollback*), otherwise it is *committed* and the store remembers it.

A rollback on request gives up what is staged or on probation: the last controller that passed its probation goes on.
Where there is nothing to give up, it leads to the one before that. So it makes no difference whether the loop has taken
a controller already when its rollback is asked for, nor whether the store has been written.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import Manifest, layout_difference
from nncontrol_prune.runtime.store import HISTORY_LENGTH, BundleStore, SlotRecord, StoreError

PATIENCE, LONGEST_PATIENCE = 0.5, 30.0
"""Seconds from a first failure to write to the store to the next attempt, and at the most from one to the next."""


class StagingError(ControllerError):
    """A controller cannot be staged; the message says why. The active one goes on."""


class SwapEvent(BaseModel):
    """One change of the active controller."""

    swaps: int
    """How many swaps there were, this one included."""
    reference: str
    """`name@digest` of the controller that became active."""
    reason: str
    """Why: `swap` or `rollback`, and for whom or what."""
    tick: int
    """The tick that carried it out."""
    duration: float
    """What it added to that tick, in seconds."""


Line = tuple[str, ...]
"""The controllers that passed their probation and were not rolled back, newest last."""


@dataclass(frozen=True)
class _Staged:
    number: int
    """Counts what was staged."""
    bundle: Bundle
    reason: str
    back_to: Line | None = None
    """For a rollback, the slot's line once it is carried out: that controller needs no second probation."""


class ControllerSlot:
    """Holds the active controller of one loop.

    The methods that stage may be called from any thread; `swap_if_staged` and `act` belong to the loop.

    Args:
        store: Where bundles and verdicts are; every controller comes through it.
        reference: `name@digest` of the controller to start with.
        slot: The slot's name in the store.
        probation: How long a new controller must run without a fault before it is committed, in seconds.
        allow_offline: Whether a pruned controller may run that was accepted on rollouts alone.

    Raises:
        ControllerError: The first controller cannot be loaded, or may not be staged; another loop has the slot; or
            its record is damaged.
    """

    def __init__(
        self,
        store: BundleStore,
        reference: str,
        *,
        slot: str = "nn_controller",
        probation: float = 2.0,
        allow_offline: bool = False,
    ) -> None:
        self._store = store
        self._slot = slot
        self._allow_offline = allow_offline
        bundle = store.load(reference)
        store.check_accepted(bundle, allow_offline=allow_offline)
        self._probation_ticks = max(1, round(probation * bundle.manifest.rate))
        with contextlib.ExitStack() as held:
            held.enter_context(store.held_slot(slot))
            record = store.slot(slot)
            self._held = held.pop_all()  # until `close`
        # Each of these has one writer, and is replaced whole: so the loop needs no lock to read or write them.
        self._written: Line = () if record is None else (*record.history, record.current)
        self._line = _longer(self._written, bundle.reference)
        self._staging = threading.Lock()
        self._staged: _Staged | None = None
        self._taken = 0  # number of what was staged and is swapped in
        self._active = bundle
        self._policy = bundle.policy
        self._proven = bundle
        self._retired: list[Bundle] = []  # freed outside the loop, where it takes nobody's time
        self._probation_left = 0
        self.swaps = 0
        """How many times the controller changed; identifies the active one in logs."""
        self.events: list[SwapEvent] = []
        self.problem: str | None = None
        """Why the store does not know what the slot runs; None if it does, or soon will."""
        self._next_attempt, self._patience = -math.inf, PATIENCE

    def close(self) -> None:
        """Let another loop have the slot; the end of the process does the same."""
        self._held.close()

    @property
    def active(self) -> Bundle:
        """The controller that runs."""
        return self._active

    @property
    def on_probation(self) -> bool:
        """Whether the active controller may still be taken back by a fault."""
        return self._probation_left > 0

    @property
    def waiting(self) -> bool:
        """Whether what was staged last is still to be swapped in."""
        return self._waiting() is not None

    def stage(self, reference: str) -> str:
        """Load and check a controller from the store; the loop takes it, and not what waits, before its next tick.

        Returns:
            Its full `name@digest`.

        Raises:
            ControllerError: It is not in the store, damaged, not accepted by the gate, or does not fit the loop.
        """
        with self._staging:
            bundle = self._load(reference)
            # In this order: the loop may be about to take what waits, and nothing else changes what is active.
            if not self.waiting and bundle.digest == self._active.digest:
                raise StagingError(f"{short(bundle.reference)} is active already")
            self._put(bundle, "swap")
            return bundle.reference

    def rollback(self) -> str:
        """Go back: give up what is staged or on probation, or else stage the controller before the current one.

        Returns:
            The `name@digest` of the controller that runs then; it may be active already.

        Raises:
            StagingError: There is none.
            ControllerError: It cannot be staged.
        """
        with self._staging:
            # In this order: the loop extends the line before it calls what is staged taken.
            staged, active = self._waiting(), self._active.reference
            line = self._line
            if staged is not None and staged.back_to is not None:
                line = staged.back_to[:-1]  # a rollback is under way, and this one goes on from there
            elif staged is None and active == line[-1]:
                line = line[:-1]
            if not line:
                raise StagingError("there is no earlier controller to roll back to")
            proven = self._proven
            bundle = proven if proven.reference == line[-1] else self._load(line[-1])
            # Also where it is active: dropping what is staged would be too late if the loop is just taking it.
            self._put(bundle, "rollback on request", line)
            return bundle.reference

    def _load(self, reference: str) -> Bundle:
        bundle = self._store.load(reference)
        self._store.check_accepted(bundle, allow_offline=self._allow_offline)
        check_interchangeable(bundle.manifest, self._active.manifest)
        return bundle

    def _put(self, bundle: Bundle, reason: str, back_to: Line | None = None) -> None:
        number = 1 if self._staged is None else self._staged.number + 1
        self._staged = _Staged(number, bundle, reason, back_to)

    def _waiting(self) -> _Staged | None:
        """Return what is staged and not swapped in yet."""
        staged = self._staged
        return None if staged is None or staged.number == self._taken else staged

    def swap_if_staged(self, tick: int) -> None:
        """Make a staged controller the active one; called by the loop between two ticks."""
        staged = self._waiting()
        if staged is None:
            return
        swap = staged.bundle.digest != self._active.digest
        if swap:
            self._activate(staged.bundle, staged.reason, tick)
        if staged.back_to is not None:
            self._pass_probation(staged.back_to)
        elif swap:
            self._probation_left = self._probation_ticks
        self._taken = staged.number

    def act(self, observation: NDArray[np.float64], action: NDArray[np.float64]) -> None:
        """Compute the action (m,) for an observation (n,), in place."""
        self._policy.act(observation, action)

    def advance(self) -> None:
        """Go on to the next tick: the action computed last was sent."""
        self._policy.advance()

    def tick_passed(self, tick: int, healthy: bool) -> None:
        """Count down the probation, or end it by a rollback if the controller was at fault.

        Called by the loop after each tick in which the controller acted on a new observation.
        """
        if self._probation_left == 0:
            return
        if not healthy:
            self._probation_left = 0
            self._activate(self._proven, "rollback: a fault during probation", tick)
            return
        if self._probation_left == 1:
            self._pass_probation(_longer(self._line, self._active.reference))
        else:
            self._probation_left -= 1

    def commit_if_due(self) -> None:
        """Write the active controller to the store once its probation is over; not for the loop's thread.

        Where it cannot be written, `problem` says so, and later calls try again, ever more rarely.
        """
        self._retired.clear()
        line = self._line
        if line != self._written:
            if time.monotonic() < self._next_attempt:
                return
            try:
                self._store.write_slot(self._slot, SlotRecord(current=line[-1], history=line[:-1]))
            except StoreError as error:
                self.problem = f"{error}; it does not know that slot {self._slot} runs {short(line[-1])}"
                self._next_attempt = time.monotonic() + self._patience
                self._patience = min(2 * self._patience, LONGEST_PATIENCE)
                return
            self._written = line
        self.problem, self._next_attempt, self._patience = None, -math.inf, PATIENCE

    def _activate(self, bundle: Bundle, reason: str, tick: int) -> None:
        start = time.perf_counter()
        self._retired.append(self._active)
        self._active = bundle
        bundle.policy.take_over(self._policy)
        self._policy = bundle.policy
        self.swaps += 1
        duration = time.perf_counter() - start
        self.events.append(
            SwapEvent.model_construct(
                swaps=self.swaps, reference=bundle.reference, reason=reason, tick=tick, duration=duration
            )
        )

    def _pass_probation(self, line: Line) -> None:
        self._line = line  # what a rollback on request goes by, so it comes first
        self._retired.append(self._proven)
        self._proven = self._active
        self._probation_left = 0


def _longer(line: Line, reference: str) -> Line:
    """Return a line with a controller that passed its probation; as long as a slot's record may be."""
    return line if line[-1:] == (reference,) else (*line, reference)[-HISTORY_LENGTH - 1 :]


def check_interchangeable(candidate: Manifest, active: Manifest) -> None:
    """Check that a controller can take the place of another in a loop.

    Raises:
        StagingError: Their observation, action or rate differ; the message names the first difference.
    """
    difference = layout_difference(candidate, active)
    if difference is not None:
        raise StagingError(f"{candidate.name} cannot take the place of {active.name}: {difference}")
