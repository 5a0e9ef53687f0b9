"""What a controller is: its observation, its action, its architecture, and where it comes from."""

from __future__ import annotations

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nncontrol_prune.controllers import model
from nncontrol_prune.controllers.observations import (
    ObservationSpec,
    each_or_none,
    in_words,
    one_or_each,
    term_difference,
)

FORMAT_VERSION = 2
"""Version of the bundle format that this release writes, and the newest it reads."""
LARGEST_LIMIT = 1e30
"""Of an action: a policy is of float32, and deviations are measured by the range."""

WEIGHTS, POLICY, REFERENCE = "weights.safetensors", "policy.onnx", "reference.npz"
BUNDLE_FILES = (WEIGHTS, POLICY, REFERENCE)
"""Every file of a bundle beside its manifest."""

MAX_FILE_BYTES = 512 * 1024 * 1024
"""No file of a bundle may declare more than this."""

LONGEST_INPUT = 100
"""Characters of what was given up to which a message shows it."""

LONGEST_NAME = 100
NAME_PATTERN = rf"^[A-Za-z][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}$"

Activation = Literal["relu", "tanh", "elu", "silu", "gelu", "leaky_relu", "selu", "mish", "softplus", "sigmoid"]
Squash = Literal["tanh", "clip"]
"""How an output is brought into ±1 before it is scaled to the action's limits."""


Spec = model.Spec


def problem_of(error: ValidationError) -> str:
    """Return the first thing that is wrong: which key, what was given for it unless that is long, and what is allowed.

    Of several keys together it is the message alone, which names them.
    """
    problem = error.errors()[0]
    key, given = ".".join(map(str, problem["loc"])), repr(problem["input"])
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not key:
        return message
    shown = problem["type"] != "missing" and len(given) <= LONGEST_INPUT
    return f"{key} = {given}: {message}" if shown else f"{key}: {message}"


class ActionSpec(Spec):
    """The action vector: one entry a joint, in the order the actuators expect.

    What a joint is commanded is offset + scale * action: many policies give out how far to be from a default pose.
    """

    joints: Annotated[tuple[str, ...], Field(min_length=1)]
    lower: tuple[FiniteFloat, ...]
    """Limits of the action, and not of the command."""
    upper: tuple[FiniteFloat, ...]
    unit: str = ""
    """SI unit of the commands, such as `rad` or `N m`."""
    scale: float | tuple[float, ...] = 1.0
    """One number for all, or one for each joint; none is 0."""
    offset: tuple[float, ...] = ()
    """In `unit`: one number for each joint, or empty for none."""

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale of each joint."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.size

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offset of each joint."""
        return self.offset or (0.0,) * self.size

    @property
    def is_commanded(self) -> bool:
        """Whether the joints are commanded the action as it is."""
        return self.scale == 1.0 and not self.offset

    @property
    def conversion(self) -> str:
        """How commands follow from actions, in words."""
        if self.is_commanded:
            return "commands are the action"
        offset = f" + {in_words(self.offset)}" if self.offset else ""
        return f"commands are {in_words(self.scale)} · action{offset} {self.unit}".rstrip()

    # Both are brought into one form, so that specs that say the same are equal.
    @field_validator("scale", mode="before")
    @classmethod
    def _one_or_each(cls, value: Any, info: ValidationInfo) -> float | tuple[float, ...]:
        return one_or_each(value, len(info.data.get("joints", ())) or None)

    @field_validator("offset", mode="before")
    @classmethod
    def _each_or_none(cls, value: Any, info: ValidationInfo) -> tuple[float, ...]:
        return each_or_none(value, len(info.data.get("joints", ())) or None)

    @model_validator(mode="after")
    def _limits_match(self) -> ActionSpec:
        if not len(self.joints) == len(self.lower) == len(self.upper):
            raise ValueError(
                f"{len(self.joints)} joints need as many limits, "
                f"not {len(self.lower)} lower and {len(self.upper)} upper"
            )
        columns = (self.joints, self.lower, self.upper, self.scales, self.offsets)
        for joint, lower, upper, scale, offset in zip(*columns, strict=True):
            largest = max(abs(lower), abs(upper))
            if not lower < upper:
                raise ValueError(f"the lower limit of {joint!r} ({lower}) is not below the upper ({upper})")
            if largest > LARGEST_LIMIT:
                raise ValueError(f"a limit of {joint!r} ({lower}, {upper}) is beyond ±{LARGEST_LIMIT:g}")
            if scale == 0.0:
                raise ValueError(f"the action of {joint!r} has the scale 0, by which nothing is commanded")
            if not abs(offset) + abs(scale) * largest <= LARGEST_LIMIT:
                raise ValueError(f"commands of {joint!r} ({scale:g} · action + {offset:g}) reach ±{LARGEST_LIMIT:g}")
        return self

    def __str__(self) -> str:
        limits, unit = zip(self.joints, self.lower, self.upper, strict=True), self.unit if self.is_commanded else ""
        listed = ", ".join(f"{joint} in [{low:g}, {high:g}] {unit}".rstrip() for joint, low, high in limits)
        return listed if self.is_commanded else f"{listed}; {self.conversion}"

    @property
    def size(self) -> int:
        """Length of the action vector."""
        return len(self.joints)


class MlpArchitecture(Spec):
    """A multilayer perceptron from observation to action, in the plant's units.

    The observation is normalized, `clip((o - mean) * inverse_std, ±clip)`; then come the hidden layers; the
    output is squashed to ±1 (tanh, or clipping) and scaled to the action's limits.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...]
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    squash: Squash = "tanh"
    """How the output is brought into ±1 before it is scaled to the action's limits."""
    observation_clip: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Bound on the normalized observation; None for no bound."""

    def __str__(self) -> str:
        return f"mlp, hidden {list(self.hidden)}, {self.activation}, output {self.squash}"

    def tensor_shapes(self, observation_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the network."""
        shapes = _input_output_shapes(observation_size, action_size)
        widths = (observation_size, *self.hidden, action_size)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            shapes[f"layers.{index}.weight"] = (outputs, inputs)
            shapes[f"layers.{index}.bias"] = (outputs,)
        return shapes


def _for_a_generator(seed: int) -> int:
    # Not a bound of the field, which over ROS 2 would make a slider of it.
    if seed >= 2**63:
        raise ValueError(f"a seed of {seed} is more than torch takes, which is up to 2^63 - 1")
    return seed


Seed = Annotated[int, Field(ge=0), AfterValidator(_for_a_generator)]


class PlannerSpec(Spec):
    """How a `tdmpc` controller plans: model predictive path integral control with proposals of the policy.

    Each tick, `iterations` times: action sequences are drawn around a mean that is carried from tick to tick, and with
    the policy's own are rolled out over `horizon` steps of the model; the `elites` best make the next mean.
    """

    horizon: Annotated[int, Field(ge=1, le=100)] = 3
    """Steps that are planned ahead."""
    samples: Annotated[int, Field(ge=2, le=10_000)] = 24
    """Sequences drawn around the mean."""
    policy_samples: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Sequences that the policy proposes."""
    elites: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Sequences that make the next mean."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 2
    temperature: Annotated[FiniteFloat, Field(gt=0)] = 0.5
    """How much more the better elites count: weights are softmax(temperature * return)."""
    min_std: Annotated[FiniteFloat, Field(gt=0)] = 0.05
    """Least spread of the sequences, in action units of ±1."""
    max_std: Annotated[FiniteFloat, Field(gt=0)] = 2.0
    """Spread of the first iteration."""
    seed: Seed = 0
    """Of the noise, which is the same in every tick, so that the action follows from observation and mean alone."""

    @model_validator(mode="after")
    def _elites_are_samples(self) -> PlannerSpec:
        if self.elites > self.samples + self.policy_samples:
            raise ValueError(f"{self.elites} elites are more than the sequences they are chosen from")
        return self


Widths = tuple[Annotated[int, Field(ge=1, le=65_536)], ...]


TDMPC_PARTS = ("encoder", "dynamics", "reward", "policy", "q")
"""The components of a `tdmpc` controller."""


class TdMpcArchitecture(Spec):
    """A world model and a planner: TD-MPC2 (Hansen et al. 2024, arXiv 2310.16828), for state observations.

    Every hidden layer is linear, LayerNorm, Mish. The latent is made of simplices (SimNorm); reward and value are
    distributions over bins that are even in symlog space. Actions inside are in ±1.
    """

    kind: Literal["tdmpc"] = "tdmpc"
    encoder: Widths
    """Widths of the encoder's hidden layers, and so on."""
    dynamics: Widths
    reward: Widths
    policy: Widths
    q: Widths
    """Of each member of the ensemble of value functions."""
    latent: Annotated[int, Field(ge=1, le=65_536)]
    simplex: Annotated[int, Field(ge=1, le=1024)] = 8
    """Entries of one simplex of the latent."""
    q_members: Annotated[int, Field(ge=1, le=100)] = 2
    bins: Annotated[int, Field(ge=2, le=10_000)] = 51
    v_min: FiniteFloat = -10.0
    """First bin, as symlog of the value."""
    v_max: FiniteFloat = 10.0
    """Last bin."""
    log_std_min: FiniteFloat = -10.0
    log_std_max: FiniteFloat = 2.0
    discount: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.99
    observation_clip: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Bound on the normalized observation; None for no bound."""
    planner: PlannerSpec = PlannerSpec()

    @model_validator(mode="after")
    def _sizes_and_ranges_go_together(self) -> TdMpcArchitecture:
        if self.latent % self.simplex:
            raise ValueError(f"a latent of {self.latent} cannot be divided into simplices of {self.simplex}")
        for low, high in (("v_min", "v_max"), ("log_std_min", "log_std_max")):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low):g} is not below {high} {getattr(self, high):g}")
        return self

    def __str__(self) -> str:
        planner = self.planner
        hidden = ", ".join(f"{name} {list(getattr(self, name))}" for name in TDMPC_PARTS)
        return (
            f"tdmpc, latent {self.latent}, {hidden}, {self.q_members} q; plans {planner.horizon} steps, "
            f"{planner.iterations} times with {planner.samples} + {planner.policy_samples} sequences"
        )

    def layer_widths(self, observation_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
        """Return the widths, inputs first, of every stack of layers, by name."""
        joint = self.latent + action_size
        return {
            "encoder": (observation_size, *self.encoder, self.latent),
            "dynamics": (joint, *self.dynamics, self.latent),
            "reward": (joint, *self.reward, self.bins),
            "policy": (self.latent, *self.policy, 2 * action_size),
            **{f"q.{member}": (joint, *self.q, self.bins) for member in range(self.q_members)},
        }

    def tensor_shapes(self, observation_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the network."""
        shapes = _input_output_shapes(observation_size, action_size)
        for name, widths in self.layer_widths(observation_size, action_size).items():
            # Linear, LayerNorm and activation take three places each; heads end with a linear layer alone.
            for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
                shapes[f"{name}.{3 * index}.weight"] = (outputs, inputs)
                shapes[f"{name}.{3 * index}.bias"] = (outputs,)
                if index < len(widths) - 2 or name in ("encoder", "dynamics"):
                    shapes[f"{name}.{3 * index + 1}.weight"] = (outputs,)
                    shapes[f"{name}.{3 * index + 1}.bias"] = (outputs,)
        return shapes


def parameters_of(architecture: Architecture, observation_size: int, action_size: int) -> int:
    """Count the trainable parameters: all but what brings observations and actions into the network's units."""
    fixed = _input_output_shapes(observation_size, action_size)
    shapes = architecture.tensor_shapes(observation_size, action_size)
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in fixed)


def _input_output_shapes(observation_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
    return {
        "normalizer.mean": (observation_size,),
        "normalizer.inverse_std": (observation_size,),
        "output.center": (action_size,),
        "output.half_range": (action_size,),
    }


Architecture = Annotated[MlpArchitecture | TdMpcArchitecture, Field(discriminator="kind")]
"""Every architecture a bundle may hold."""


class Provenance(Spec):
    """How a pruned controller was made."""

    rollouts: str
    """Digest of the rollouts it was pruned from."""
    bags: tuple[str, ...] = ()
    """Identity of each bag that they are from, whole or in part."""
    transitions: Annotated[int, Field(ge=0)] | None = None
    """How many they were, the first ones of the bags; None where an older version did not say."""
    method: str
    """Optimizer of the pruning coefficients."""
    importance: str
    coefficients: dict[str, Annotated[FiniteFloat, Field(ge=0, le=1)]]
    """Pruning coefficient of each group: the share of its channels removed."""
    sparsity: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    """Share of the dense controller's parameters removed."""
    on_policy_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds of reconstruction with states that it, or one that differs from it in the ranking, got into itself."""
    distill_steps: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


def _known_file(name: str) -> str:
    if name not in BUNDLE_FILES:
        raise ValueError(f"{name!r} is not a file of a bundle; allowed are {', '.join(BUNDLE_FILES)}")
    return name


class FileEntry(Spec):
    """Size and digest of one file of a bundle."""

    bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Spec):
    """The `manifest.json` of a bundle. Its sha256 is the bundle's digest, since it holds those of all others."""

    format_version: Annotated[int, Field(ge=1, strict=True)] = FORMAT_VERSION
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    architecture: Architecture
    observation: ObservationSpec
    action: ActionSpec
    rate: Annotated[FiniteFloat, Field(gt=0, le=100_000)]
    """Control rate in Hz."""
    environment: str | None = None
    """The gymnasium environment it was trained for."""
    parameters: Annotated[int, Field(ge=1)]
    """Trainable parameters: weights and biases."""
    parent: str | None = None
    """`name@digest` of the controller it was pruned from; None for one that was imported or trained."""
    provenance: Provenance | None = None
    files: dict[Annotated[str, AfterValidator(_known_file)], FileEntry]

    @property
    def plans(self) -> bool:
        """Whether the controller plans: an action takes as long as many of a policy, and the plan is a state."""
        return isinstance(self.architecture, TdMpcArchitecture)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        missing = [name for name in BUNDLE_FILES if name not in self.files]
        if missing:
            raise ValueError(f"the file list lacks {', '.join(missing)}")
        if (self.parent is None) != (self.provenance is None):
            raise ValueError("parent and provenance come together: both for a pruned controller, neither for a dense")
        return self


def parse_reference(reference: str) -> tuple[str, str]:
    """Split `name@digest` into its parts; the digest may be shortened to 8 hexadecimal digits or more.

    Raises:
        ValueError: The text is no such reference.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_.-]*)@([0-9a-f]{8,64})", reference)
    if match is None:
        raise ValueError(f"{reference!r} is not of the form name@digest (digest: 8 to 64 hexadecimal digits)")
    return match[1], match[2]


def layout_difference(ours: Manifest, theirs: Manifest) -> str | None:
    """Return the first thing that keeps one controller from taking another's place in a loop; None if nothing does."""
    terms = itertools.zip_longest(ours.observation.terms, theirs.observation.terms)
    for number, (mine, their) in enumerate(terms, 1):
        if mine != their:
            found, wanted = (term and f"{term.name!r} ({term.size} {term.quantity})" for term in (mine, their))
            if mine and their and found == wanted:
                return f"its observation term {number}, {found}, has {term_difference(mine, their)}"
            return f"its observation term {number} is {found or 'missing'}, not {wanted or 'there at all'}"
    if ours.action != theirs.action:
        return f"it commands {ours.action}, not {theirs.action}"
    if ours.rate != theirs.rate:
        return f"its rate is {ours.rate:g} Hz, not {theirs.rate:g} Hz"
    return None
