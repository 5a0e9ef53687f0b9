"""What an environment says of its own observation: its attribute `observation_terms`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError

from nncontrol_prune.controllers.observations import ObservationTerm
from nncontrol_prune.controllers.specs import problem_of

STAMP = "stamp"
"""What no term may be called that is sent by its name, since each of those messages has a stamp."""


def terms_of(given: Any, *, size: int, joints: Collection[str], action_size: int) -> tuple[ObservationTerm, ...]:
    """Return what an environment observes, as it says itself.

    Args:
        given: The terms in their order, each an `ObservationTerm` or a mapping that makes one.
        size: n, of the observation.
        joints: The hinges and slides of its model that have a name.
        action_size: m.

    Raises:
        ValueError: That is not what it observes, or no terms at all; the message names the term and what is allowed.
    """
    if isinstance(given, (str, dict)) or not isinstance(given, Iterable):
        raise ValueError(f"allowed is a sequence of terms, which {type(given).__name__} is not")
    terms: list[ObservationTerm] = []
    for number, one in enumerate(given, 1):
        term = _term_of(number, one)
        taken = {STAMP, *(other.name for other in terms)}
        if term.name in taken:
            raise ValueError(f"term {number} is called {term.name!r}, which is taken; allowed is any other name")
        _check(term, joints, action_size)
        terms.append(term)
    total = sum(term.size for term in terms)
    if total != size:
        sizes = " + ".join(f"{term.name} {term.size}" for term in terms) or "no terms"
        raise ValueError(f"their sizes ({sizes}) add up to {total}, and the observation has {size} entries")
    return tuple(terms)


def _term_of(number: int, given: Any) -> ObservationTerm:
    try:
        return ObservationTerm.model_validate(given)
    except ValidationError as error:
        name = given.get("name") if isinstance(given, dict) else None
        raise ValueError(f"term {number}{f' ({name!r})' if name else ''}: {problem_of(error)}") from error


def _check(term: ObservationTerm, joints: Collection[str], action_size: int) -> None:
    """Check that a plant can tell a term.

    Raises:
        ValueError: It cannot.
    """
    unknown = [joint for joint in term.joints if joint not in joints]
    if unknown:
        raise ValueError(
            f"term {term.name!r} names {', '.join(map(repr, unknown))}; the model's hinges and slides with a name are "
            f"{', '.join(joints) or 'none'}"
        )
    if term.quantity == "previous_action" and term.width != action_size:
        raise ValueError(f"term {term.name!r} has {term.width} values a tick, and the action before has {action_size}")
