"""Wrappers within an environment, and what they leave as it is: what is read off the MuJoCo class inside holds then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

TRANSPARENT = (OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit)


def wrappers_of(env: gymnasium.Env[Any, Any]) -> Iterator[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """Yield the wrappers of an environment, the outermost first."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


def opaque_wrapper(env: gymnasium.Env[Any, Any]) -> str | None:
    """Return the name of a wrapper that may change observations, actions or steps; None if there is none such."""
    for wrapper in wrappers_of(env):
        kind = type(wrapper)
        reward_alone = (
            isinstance(wrapper, gymnasium.RewardWrapper)
            and kind.step is gymnasium.RewardWrapper.step
            and kind.reset is gymnasium.Wrapper.reset
        )
        if kind not in TRANSPARENT and not reward_alone:
            return kind.__name__
    return None
