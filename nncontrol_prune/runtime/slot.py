"""The slot: where the loop holds its controller, and how another one gets there.

A controller is *staged* outside the loop: loaded, checked, warmed up. Between two ticks the loop *swaps* it in,
which is one assignment. It is then on *probation*; a fault in that time brings back the last controller that passed
its own (*rollback*), otherwise it is *committed* and the store remembers it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.specs import Manifest, layout_difference
from nncontrol_prune.runtime.store import BundleStore, SlotRecord, StoreError


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


@dataclass(frozen=True)
class _Staged:
    bundle: Bundle
    reason: str
    rollback: bool
    """Back to a controller that passed its probation before; it needs no second one."""


@dataclass(frozen=True)
class _Commit:
    reference: str
    rollback: bool


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
        ControllerError: The first controller cannot be loaded, or may not be staged.
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
        self._staging = threading.Lock()
        self._staged: _Staged | None = None
        self._active = bundle
        self._policy = bundle.policy
        self._proven = bundle
        self._retired: list[Bundle] = []  # freed outside the loop, where it takes nobody's time
        self._probation_left = 0
        self._due: _Commit | None = _Commit(bundle.reference, rollback=False)
        self.swaps = 0
        """How many times the controller changed; identifies the active one in logs."""
        self.events: list[SwapEvent] = []

    @property
    def active(self) -> Bundle:
        """The controller that runs."""
        return self._active

    @property
    def on_probation(self) -> bool:
        """Whether the active controller may still be taken back by a fault."""
        return self._probation_left > 0

    def stage(self, reference: str) -> str:
        """Load and check a controller from the store; the loop takes it before its next tick.

        Returns:
            Its full `name@digest`.

        Raises:
            ControllerError: It is not in the store, damaged, not accepted by the gate, or does not fit the loop.
        """
        return self._stage(reference, "swap", rollback=False)

    def rollback(self) -> str:
        """Stage the controller before the current one; on probation, the last that passed its own.

        Raises:
            StagingError: There is none.
            ControllerError: It cannot be staged.
        """
        record = self._store.slot(self._slot)
        if self.on_probation:
            previous = self._proven.reference
        elif record is not None and record.history:
            previous = record.history[-1]
        else:
            raise StagingError("there is no earlier controller to roll back to")
        return self._stage(previous, "rollback on request", rollback=True)

    def _stage(self, reference: str, reason: str, *, rollback: bool) -> str:
        with self._staging:
            bundle = self._store.load(reference)
            self._store.check_accepted(bundle, allow_offline=self._allow_offline)
            check_interchangeable(bundle.manifest, self._active.manifest)
            if bundle.digest == self._active.digest:
                raise StagingError(f"{short(bundle.reference)} is active already")
            self._staged = _Staged(bundle, reason, rollback)
            return bundle.reference

    def swap_if_staged(self, tick: int) -> None:
        """Make a staged controller the active one; called by the loop between two ticks."""
        staged = self._staged
        if staged is None:
            return
        self._activate(staged.bundle, staged.reason, tick)
        if staged.rollback:
            self._pass_probation(rollback=True)
        else:
            self._probation_left = self._probation_ticks
        if self._staged is staged:  # another one may have been staged in the meantime
            self._staged = None

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
        self._probation_left -= 1
        if self._probation_left == 0:
            self._pass_probation(rollback=False)

    def commit_if_due(self) -> None:
        """Write the active controller to the store once its probation is over; not for the loop's thread.

        Raises:
            OSError: It cannot be written; the next call tries again.
        """
        self._retired.clear()
        due = self._due
        if due is None:
            return
        record = self._store.slot(self._slot)
        if due.rollback and record is not None and record.history and record.history[-1] == due.reference:
            # Drop the one in between, so that the next rollback goes further back and not forth again.
            self._store.write_slot(self._slot, SlotRecord(current=due.reference, history=record.history[:-1]))
        else:
            self._store.commit(self._slot, due.reference)
        if self._due is due:
            self._due = None

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

    def _pass_probation(self, *, rollback: bool) -> None:
        self._retired.append(self._proven)
        self._probation_left = 0
        self._proven = self._active
        self._due = _Commit(self._active.reference, rollback)


def check_interchangeable(candidate: Manifest, active: Manifest) -> None:
    """Check that a controller can take the place of another in a loop.

    Raises:
        StagingError: Their observation, action or rate differ; the message names the first difference.
    """
    difference = layout_difference(candidate, active)
    if difference is not None:
        raise StagingError(f"{candidate.name} cannot take the place of {active.name}: {difference}")


def initial_reference(store: BundleStore, slot: str) -> str:
    """Return the controller a slot ran last.

    Raises:
        StoreError: It never ran one.
    """
    record = store.slot(slot)
    if record is None:
        raise StoreError(f"slot {slot} of the store {store.root} has no current controller; name one")
    return record.current
