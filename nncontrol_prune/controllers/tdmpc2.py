"""Importer for checkpoints of the official TD-MPC2 code, github.com/nicklashansen/tdmpc2. Nothing in one is executed.

A checkpoint is `torch.save({"model": state_dict})`. Of the state dictionary there are two layouts, which differ in the
ensemble of value functions alone: until 2024 its tensors are numbered (`_Qs.params.0`), since then they are named
(`_Qs.params.0.weight`), and what the code keeps for training comes along: targets (`_target_Qs…`), copies without
gradient (`_detach_Qs…`), tensors without contents (`….module.…`), and notes of tensordict (`….__batch_size`).

Sizes follow from the tensors. What a checkpoint does not tell is in the arguments of `import_tdmpc2`, which default to
what the official configuration has.

The imported networks compute what the official ones do without dropout, which is off in evaluation (in the code of
the old layout it stays on in the value functions, which `eval()` did not reach). The planner differs in what chance
does:

- The official one draws anew in every tick and takes the first action of one elite, chosen by chance; ours has the
  same noise in every tick and takes the elites' weighted mean, so that an action follows from observation and plan.
- The value at the end of a sequence is officially that of a drawn action, by the mean of two members drawn from the
  ensemble; ours is that of the policy's mean action, by the mean of all members.
- Official `num_samples` count the policy's proposals, the `samples` of a `PlannerSpec` do not: 512 are 488 and 24.

Without these differences both arrive at the same plan. The actions are in ±1, and scaled to the environment's limits
here. So they were by the official wrapper of dm_control, not by that of gymnasium's MuJoCo tasks, whose limits are ±1.

A checkpoint with a termination head (`_termination`, of episodic tasks) is refused: the official planner stops counting
rewards where that head predicts the end of the episode, and one that goes on counting is another controller. So are
checkpoints for pixels and for several tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from nncontrol_prune.controllers.actors import check_numbers
from nncontrol_prune.controllers.checkpoints import MAX_ARCHIVE_BYTES, check_tensor, load_tensors, naming
from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.specs import ActionSpec, PlannerSpec, TdMpcArchitecture, problem_of
from nncontrol_prune.controllers.tdmpc import TdMpc

SUPPORTED = "supported are TD-MPC2 models of one task with state observations"

_PREFIXES = {
    "encoder": "_encoder.state.",
    "dynamics": "_dynamics.",
    "reward": "_reward.",
    "policy": "_pi.",
    "q": "_Qs.params.",
}
"""How the names of a component's tensors begin in a checkpoint; the number of the layer follows."""

_NUMBERED = ("weight", "bias", "ln.weight", "ln.bias")
"""The tensors of one layer of the ensemble, in the order in which the old layout numbers them."""

_UNUSED = re.compile(r"_(detach|target)_Qs|_Qs\.(module\.|params\.__)|log_std_")
"""Names of what is no weight of the networks that act."""

_VARIANTS = (
    (re.compile(r"_task_emb|_action_masks"), "it is a multitask model"),
    (re.compile(r"_encoder\.rgb\."), "it observes pixels"),
    (
        re.compile(r"_termination\."),
        "it has a termination head, which its planner needs and a tdmpc controller does not have: "
        "without it the planner would count rewards past the end of an episode",
    ),
)


def official_planner(action_size: int, **changes: float) -> PlannerSpec:
    """Return the planner of the official configuration, with changes to its settings.

    Args:
        action_size: Length of the action vector; with many actions it plans more often.
        changes: Fields of a `PlannerSpec`.

    Raises:
        ImportFailedError: A change is not allowed.
    """
    official = {
        "horizon": 3,
        "samples": 488,
        "policy_samples": 24,
        "elites": 64,
        "iterations": 8 if action_size >= 20 else 6,
        "temperature": 0.5,
        "min_std": 0.05,
        "max_std": 2.0,
    }
    try:
        return PlannerSpec.model_validate({**official, **changes})
    except ValidationError as error:
        raise ImportFailedError(f"the planner cannot be as asked: {problem_of(error)}") from error


def official_discount(episode_length: int) -> float:
    """Return the discount that the official code trains with, given the steps of an episode."""
    fraction = episode_length / 5
    return min(max((fraction - 1) / fraction, 0.95), 0.995)


def import_tdmpc2(
    path: Path,
    observation_size: int,
    action: ActionSpec,
    *,
    planner: PlannerSpec | None = None,
    simplex: int = 8,
    v_min: float = -10.0,
    v_max: float = 10.0,
    log_std_min: float = -10.0,
    log_std_max: float = 2.0,
    discount: float = 0.99,
) -> TdMpc:
    """Read the world model, policy and value functions of a checkpoint saved by the official code's `agent.save()`.

    Args:
        path: The checkpoint, for one task with state observations.
        observation_size: Length of the environment's observation vector.
        action: The environment's action vector. The model acts in ±1, which is scaled to these limits.
        planner: How to plan; by default as the official configuration does.
        simplex: Entries of one simplex of the latent (`simnorm_dim`).
        v_min: First bin of reward and value, in symlog space (`vmin`).
        v_max: Last bin (`vmax`).
        log_std_min: Least logarithm of the policy's spread, for files of the old layout; newer ones tell it.
        log_std_max: The greatest, likewise.
        discount: Of the rewards that are planned for; by default what the official code has for the DeepMind Control
            Suite (500 steps an episode) and for gymnasium's MuJoCo tasks; `official_discount` has it for others.

    Raises:
        ImportFailedError: The file is damaged, unsafe or not supported, or does not fit the environment; the message
            names the file, the reason, and what is allowed or what to do next.
    """
    with naming(path):
        values = _read(path)
        tensors = _named_tensors(values)
        layers = {component: _layer_shapes(tensors, prefix) for component, prefix in _PREFIXES.items()}
        # The policy gives mean and spread of each action.
        check_numbers(layers["encoder"][0][1], layers["policy"][-1][0] // 2, observation_size, action)
        bounds = _log_std_bounds(values) or (log_std_min, log_std_max)
        _check_heads(layers["encoder"][-1][0], simplex, layers["reward"][-1][0])
        architecture = _architecture(
            **{component: tuple(outputs for outputs, _ in shapes[:-1]) for component, shapes in layers.items()},
            latent=layers["encoder"][-1][0],
            simplex=simplex,
            q_members=len(tensors["_Qs.params.0.weight"]),
            bins=layers["reward"][-1][0],
            v_min=v_min,
            v_max=v_max,
            log_std_min=bounds[0],
            log_std_max=bounds[1],
            discount=discount,
            planner=planner or official_planner(action.size),
        )
        weights = _weights(tensors, architecture, observation_size, action.size)
    module = TdMpc.for_action(architecture, observation_size, action)
    module.load_state_dict({**module.state_dict(), **weights})
    return module.eval()


def _read(path: Path) -> dict[str, Any]:
    """Return the state dictionary of a checkpoint."""
    with refusing("it cannot be read"):
        size = path.stat().st_size
        if size > MAX_ARCHIVE_BYTES:
            raise ImportFailedError(f"it has {size} bytes, allowed are {MAX_ARCHIVE_BYTES}")
        content = path.read_bytes()
    values = load_tensors(content, "it")
    # The official code, too, takes the state dictionary alone.
    model = values.get("model", values)
    if not isinstance(model, Mapping) or not any(str(name).startswith("_dynamics.") for name in model):
        raise ImportFailedError(f"it is no checkpoint that TD-MPC2's agent.save() wrote; {SUPPORTED}")
    return {str(name): value for name, value in model.items()}


def _named_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under the names of the new layout, and refuse what another variant has."""
    for pattern, reason in _VARIANTS:
        if any(pattern.match(name) for name in values):
            raise ImportFailedError(f"{reason}; {SUPPORTED}")
    tensors = {}
    for name, value in values.items():
        if _UNUSED.match(name):
            continue
        check_tensor(value, name)
        numbered = re.fullmatch(r"_Qs\.params\.(\d{1,4})", name)
        if numbered:
            layer, kind = divmod(int(numbered[1]), len(_NUMBERED))
            tensors[f"_Qs.params.{layer}.{_NUMBERED[kind]}"] = value
        else:
            tensors[name] = value
    return tensors


def _layer_shapes(tensors: Mapping[str, Tensor], prefix: str) -> list[tuple[int, int]]:
    """Return outputs and inputs of a component's layers."""
    found = {name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)}
    shapes = []
    for index in range(max(len(found), 1)):
        name = f"{prefix}{index}.weight"
        if name not in tensors:
            raise ImportFailedError(f"it has no {name}; {SUPPORTED}")
        shape = tuple(tensors[name].shape)
        if len(shape) != (3 if prefix == _PREFIXES["q"] else 2) or 0 in shape:
            raise ImportFailedError(f"{name} has shape {shape}, which fits no layer; {SUPPORTED}")
        shapes.append((shape[-2], shape[-1]))
    return shapes


def _check_heads(latent: int, simplex: int, bins: int) -> None:
    if simplex < 1 or latent % simplex:
        raise ImportFailedError(
            f"its latent of {latent} cannot be divided into simplices of {simplex}; "
            "give the simnorm_dim it was trained with"
        )
    if bins < 2:
        raise ImportFailedError(f"it predicts rewards by {bins} number, supported are distributions over bins")


def _log_std_bounds(values: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the bounds of the policy's logarithmic spread; None if the file does not tell."""
    if "log_std_min" not in values or "log_std_dif" not in values:
        return None
    with refusing("log_std_min and log_std_dif are not numbers"):
        low, difference = float(values["log_std_min"]), float(values["log_std_dif"])
    return low, low + difference


def _architecture(**values: Any) -> TdMpcArchitecture:
    try:
        return TdMpcArchitecture.model_validate(values)
    except ValidationError as error:
        raise ImportFailedError(f"it makes no tdmpc controller: {problem_of(error)}") from error


def _weights(
    tensors: Mapping[str, Tensor], architecture: TdMpcArchitecture, observation_size: int, action_size: int
) -> dict[str, Tensor]:
    """Return the weights by the names they have in a `TdMpc`; refuse missing, superfluous and misshapen ones."""
    weights, used = {}, set()
    for name, shape in architecture.tensor_shapes(observation_size, action_size).items():
        if name.startswith(("normalizer.", "output.")):  # fixed: the official model takes observations as they are
            continue
        component, *member, place, kind = name.split(".")
        layer, norm = divmod(int(place), 3)
        official = f"{_PREFIXES[component]}{layer}.{'ln.' if norm else ''}{kind}"
        expected = (architecture.q_members, *shape) if member else shape
        if official not in tensors:
            raise ImportFailedError(f"it has no {official}; {SUPPORTED}")
        tensor = tensors[official]
        if tensor.shape != expected:
            raise ImportFailedError(f"{official} has shape {tuple(tensor.shape)}, beside the other layers {expected}")
        weights[name] = tensor[int(member[0])] if member else tensor
        used.add(official)
    for official in tensors:
        if official not in used:
            raise ImportFailedError(f"{official} belongs to no model that can be imported; {SUPPORTED}")
    return weights
