"""ONNX files of MLPs: the imported network acts as the module did that was exported, and nothing else is accepted."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nncontrol_prune.controllers import onnx_graphs, onnx_policies, onnx_values
from nncontrol_prune.controllers.bundle import load_bundle
from nncontrol_prune.controllers.errors import ImportFailedError
from nncontrol_prune.controllers.mlp import ACTIVATIONS
from nncontrol_prune.controllers.onnx_policies import ImportedPolicy, import_onnx
from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.resources import shipped_controllers

ACTION = ActionSpec(joints=("slide", "hinge"), lower=(-1.0, 0.25), upper=(3.0, 0.75))
LOWER, UPPER = torch.tensor(ACTION.lower), torch.tensor(ACTION.upper)
UNIT = ActionSpec(joints=("slide", "hinge"), lower=(-1.0, -1.0), upper=(1.0, 1.0))
MEAN, STD = torch.tensor([3.0, -1.0, 0.0, 100.0, 0.5]), torch.tensor([0.5, 2.0, 1.0, 30.0, 0.01])


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Any:
        return self.function(inputs)


class Acting(nn.Module):
    """A policy of Stable-Baselines3, which is asked for its action with options."""

    def __init__(self, policy: nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.policy, self.options = policy, options

    def forward(self, observations: Tensor) -> Any:
        return self.policy(observations, **self.options)


def mlp(
    activation: Callable[[], nn.Module] = nn.ELU, *, inputs: int = 5, outputs: int = 2, hidden: Sequence[int] = (16, 8)
) -> nn.Sequential:
    """Return a network whose actions are spread over the limits and beyond."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    last = nn.Linear(inputs, outputs)
    with torch.no_grad():
        last.weight.mul_(3.0)
    return nn.Sequential(*layers, last).requires_grad_(False)


def exported(
    path: Path,
    module: nn.Module | Callable[[Tensor], Any],
    *,
    example: Tensor | None = None,
    outputs: Sequence[str] = ("action",),
    opset: int = 20,
    free: bool = True,
    newer: bool = False,
) -> Path:
    """Write what torch's older exporter, or the newer one, makes of a module or function."""
    module = module if isinstance(module, nn.Module) else Function(module)
    example = torch.zeros(1, 5) if example is None else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            dynamo=newer,
            opset_version=opset,
            input_names=["obs"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("obs", *outputs)} if free else None,
            verbose=False,
        )
    return path


def graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, Any] | None = None,
    *,
    inputs: dict[str, Sequence[Any]] | None = None,
    outputs: dict[str, Sequence[Any]] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 21,
) -> Path:
    """Write a graph; arrays become its weights as they are."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, kind, s) for n, s in (inputs or {"obs": ("batch", 5)}).items()],
        [helper.make_tensor_value_info(n, kind, s) for n, s in (outputs or {"action": ("batch", 2)}).items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (tensors or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), name=f"/{output}/{kind}", **attributes)


def weights(seed: int = 0, kind: Any = np.float32) -> dict[str, Any]:
    """Weights (inputs, outputs) and biases of 5 × 16 × 2."""
    rng = np.random.default_rng(seed)
    shapes = {"w0": (5, 16), "b0": (16,), "w1": (16, 2), "b1": (2,)}
    return {name: rng.normal(0.0, 0.4, shape).astype(kind) for name, shape in shapes.items()}


TWO_LAYERS = [
    node("MatMul", "obs w0", "m0"),
    node("Add", "m0 b0", "h0"),
    node("Tanh", "h0", "a0"),
    node("MatMul", "a0 w1", "m1"),
    node("Add", "m1 b1", "action"),
]


def two_layers(observations: Tensor, tensors: dict[str, Any] | None = None) -> Tensor:
    w = {name: torch.from_numpy(np.asarray(a, np.float32)) for name, a in (tensors or weights()).items()}
    return torch.tanh(observations @ w["w0"] + w["b0"]) @ w["w1"] + w["b1"]


def check_same(
    policy: ImportedPolicy, wanted: Callable[[Tensor], Tensor], *, around: tuple[Tensor, Tensor] | None = None
) -> None:
    """Check that a policy acts as a function, which is clipped to the action's limits here."""
    generator = torch.Generator().manual_seed(1)
    mean, std = around or (torch.zeros(5), torch.ones(5))
    observations = mean + 3.0 * std * torch.randn(300, 5, generator=generator)
    limits = torch.tensor(policy.action.lower), torch.tensor(policy.action.upper)
    with torch.no_grad():
        actions, expected = policy.module(observations), wanted(observations).clamp(*limits)
        torch.testing.assert_close(actions, expected, atol=1e-5, rtol=0)
    spread = (actions > limits[0] + 0.01) & (actions < limits[1] - 0.01)
    assert spread.float().mean() > 0.05, "nearly all actions are clipped, which says nothing"


def refused(path: Path, message: str, action: ActionSpec = ACTION, **options: Any) -> None:
    with pytest.raises(ImportFailedError, match=f"{path.name}: .*{message}"):
        import_onnx(path, 5, action, **options)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("opset", [11, 17, 20])
def test_every_activation_is_found_out(tmp_path: Path, name: str, opset: int) -> None:
    actor = mlp(ACTIVATIONS[name])
    policy = import_onnx(exported(tmp_path / "p.onnx", actor, opset=opset), 5, ACTION)
    architecture = policy.module.architecture
    assert (architecture.hidden, architecture.activation, architecture.squash) == ((16, 8), name, "clip")
    check_same(policy, actor)


@pytest.mark.parametrize("free", [True, False])
def test_files_of_the_newer_exporter_are_read(tmp_path: Path, free: bool) -> None:
    pytest.importorskip("onnxscript", reason="PyTorch's newer exporter takes it")
    actor = mlp(nn.GELU)

    def function(observations: Tensor) -> Tensor:
        normalized = ((observations - MEAN) / torch.sqrt(STD**2 + 1e-8)).clamp(-1.5, 1.5)
        return LOWER + (UPPER - LOWER) * (torch.tanh(actor(normalized)) + 1.0) / 2.0

    path = exported(tmp_path / "p.onnx", function, newer=True, free=free, example=torch.zeros(1 + free, 5))
    assert (tmp_path / "p.onnx.data").exists()  # where that exporter keeps the weights
    policy = import_onnx(path, 5, ACTION)
    architecture = policy.module.architecture
    assert (architecture.hidden, architecture.activation, architecture.squash) == ((16, 8), "gelu", "tanh")
    check_same(policy, function, around=(MEAN, STD))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", lambda x: x * torch.sigmoid(x)),
        ("silu", lambda x: x / (1.0 + torch.exp(-x))),
        ("gelu", lambda x: (0.5 * x) * (1.0 + torch.erf(x / math.sqrt(2.0)))),
        ("gelu", lambda x: x * (torch.erf(x * math.sqrt(0.5)) * 0.5 + 0.5)),
        ("relu", lambda x: torch.maximum(x, torch.zeros(1))),
        ("relu", lambda x: x.clamp(min=0.0)),
        ("relu", lambda x: (x + x.abs()) / 2.0),
        ("relu", lambda x: x * (x > 0.0)),
        ("relu", lambda x: torch.where((x < 0.0) | (x < -1.0), torch.zeros(1), x)),
        ("relu", lambda x: (x + x * torch.sign(x)) / 2.0),
        ("leaky_relu", lambda x: torch.maximum(x, 0.01 * x)),
        ("elu", lambda x: torch.where(x > 0.0, x, torch.exp(x) - 1.0)),
        ("elu", nn.functional.celu),
        ("tanh", lambda x: 2.0 - 3.0 * torch.tanh(0.5 * x - 1.0)),
        ("leaky_relu", nn.PReLU(num_parameters=1, init=0.01)),
        ("softplus", nn.Softplus(beta=2.0)),
        ("mish", lambda x: x * torch.tanh(nn.functional.softplus(x))),
        ("softplus", lambda x: x.clamp(min=0.0) + torch.log(1.0 + torch.exp(-x.abs()))),
        ("sigmoid", lambda x: 1.0 / (1.0 + torch.exp(-x))),
    ],
)
def test_activation_is_known_by_what_it_does(tmp_path: Path, name: str, function: Any) -> None:
    actor = mlp(lambda: Function(function))
    policy = import_onnx(exported(tmp_path / "p.onnx", actor), 5, ACTION)
    assert policy.module.architecture.activation == name
    check_same(policy, actor)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        # Older exporters write it as what it is made of.
        (nn.GELU(approximate="tanh"), "approximates gelu by tanh, which is another function|Tanh.*is no activation"),
        (lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))), "Tanh.*is no activation known"),
        (nn.ELU(alpha=1.01), r"Elu.* is no activation known here; allowed are relu, tanh, elu"),
        (nn.LeakyReLU(0.02), r"LeakyRelu.* is no activation known here"),
        (nn.ReLU6(), "Clip.* is no activation known here"),
        (nn.Hardswish(), r"HardSwish.* is no activation known here"),
        (nn.Softsign(), r"is no activation known here"),
    ],
)
def test_other_functions_are_no_activations(tmp_path: Path, function: Any, message: str) -> None:
    module = function if isinstance(function, nn.Module) else Function(function)
    refused(exported(tmp_path / "p.onnx", mlp(lambda: module)), message)


def test_approximate_gelu_node_is_refused(tmp_path: Path) -> None:
    nodes = [n if n.op_type != "Tanh" else node("Gelu", "h0", "a0", approximate="tanh") for n in TWO_LAYERS]
    refused(graph(tmp_path / "p.onnx", nodes, weights()), r"\(Gelu\): it approximates gelu by tanh")


def test_hidden_layers_need_one_activation(tmp_path: Path) -> None:
    actor = mlp()
    actor[3] = nn.Tanh()
    message = r"hidden layers have elu \(node '/1/Elu' \(Elu\)\), tanh \(.*\); an mlp controller has one for all"
    refused(exported(tmp_path / "p.onnx", actor), message)


@pytest.mark.parametrize(
    ("before", "clip"),
    [
        (lambda o: (o - MEAN) / (STD + 1e-2), None),
        (lambda o: ((o - MEAN) / torch.sqrt(STD**2 + 1e-8)).clamp(-1.5, 1.5), 1.5),
        (lambda o: 2.0 * ((o - MEAN) * (1.0 / STD)).clamp(-1.5, 1.5) - 0.3, 1.5),
        (lambda o: (-(o - MEAN) / STD).clamp(-1.5, 1.5), 1.5),
        (lambda o: (MEAN - o) / STD, None),
        (lambda o: torch.minimum(torch.maximum((o - MEAN) / STD, torch.tensor(-1.0)), torch.tensor(2.0)), 1.0),
        (lambda o: o.clamp(MEAN - STD, MEAN + 2.0 * STD) / STD - MEAN / STD, 1.0),
        (lambda o: ((o - MEAN) / STD).clamp(-5.0, 5.0).clamp(-1.5, 9.0), 1.0),
        (lambda o: ((o - MEAN) / STD * torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]) + 0.7).clamp(-0.5, 0.5), 0.5),
        (lambda o: torch.cat([(o[:, :3] - MEAN[:3]) / STD[:3], o[:, 3:] * 0.01], dim=-1), None),
        (lambda o: torch.flip((o - MEAN) / STD, (-1,)), None),
        (lambda o: (o - MEAN)[:, [0, 1, 1, 4]] / STD[[0, 1, 1, 4]], None),
    ],
)
def test_normalization_is_taken_over(tmp_path: Path, before: Callable[[Tensor], Tensor], clip: float | None) -> None:
    actor = mlp(inputs=before(torch.zeros(1, 5)).shape[1])
    policy = import_onnx(exported(tmp_path / "p.onnx", lambda o: actor(before(o))), 5, ACTION)
    assert policy.module.architecture.observation_clip == clip
    check_same(policy, lambda o: actor(before(o)), around=(MEAN, STD))


def test_normalization_of_an_mlp_stays_one(tmp_path: Path) -> None:
    actor = mlp()
    policy = import_onnx(exported(tmp_path / "p.onnx", lambda o: actor((o - MEAN) / STD)), 5, ACTION)
    torch.testing.assert_close(policy.module.normalizer.mean, MEAN)
    torch.testing.assert_close(policy.module.normalizer.inverse_std, 1.0 / STD)
    torch.testing.assert_close(policy.module.layers[0].weight, actor[0].weight)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (lambda o: o.clamp(min=0.0), "clips some entries on one side"),
        (torch.tanh, r"before its first layer there is more than a normalization \(.*Tanh"),
        (lambda o: torch.cat([o, o**2], dim=-1), "before its first layer there is more than a normalization"),
        (
            lambda o: nn.functional.layer_norm(o, (5,)),
            r"LayerNormalization\) is not supported; allowed are",
        ),
    ],
)
def test_what_no_normalization_does_is_refused(tmp_path: Path, before: Any, message: str) -> None:
    actor = mlp(inputs=before(torch.zeros(1, 5)).shape[1])
    refused(exported(tmp_path / "p.onnx", lambda o: actor(before(o))), message)


@pytest.mark.parametrize(
    ("after", "squash"),
    [
        (lambda a: a.clamp(LOWER, UPPER), "clip"),
        (lambda a: a.clamp(-100.0, 100.0), "clip"),
        (lambda a: 0.25 * a + 0.5, "clip"),
        (lambda a: (0.25 * a.clamp(-100.0, 100.0) + 0.5).clamp(LOWER, UPPER), "clip"),
        (lambda a: torch.minimum(torch.maximum(a, LOWER), UPPER), "clip"),
        (lambda a: LOWER + (UPPER - LOWER) * (torch.tanh(a) + 1.0) / 2.0, "tanh"),
        (lambda a: (LOWER + UPPER) / 2.0 - torch.tanh(0.5 * a + 0.1) * (UPPER - LOWER) / 2.0, "tanh"),
        (lambda a: (LOWER + 0.5 * (torch.tanh(a) + 1.0) * (UPPER - LOWER)).clamp(LOWER, UPPER), "tanh"),
        (lambda a: LOWER + (UPPER - LOWER) * torch.sigmoid(a), "tanh"),
        (lambda a: UPPER - (UPPER - LOWER) * torch.sigmoid(1.0 - 3.0 * a), "tanh"),
    ],
)
def test_output_is_clipped_or_squashed_to_the_limits(
    tmp_path: Path, after: Callable[[Tensor], Tensor], squash: str
) -> None:
    actor = mlp(nn.ReLU)

    def function(observations: Tensor) -> Tensor:
        return after(actor(observations))

    policy = import_onnx(exported(tmp_path / "p.onnx", function), 5, ACTION)
    assert policy.module.architecture.squash == squash
    check_same(policy, function)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (torch.tanh, r"squashes its output by tanh to \[-1, 1\], \[-1, 1\], .*limits are \[-1, 3\], \[0.25, 0.75\]"),
        (lambda a: a.clamp(-1.0, 1.0), r"clips its output to \[-1, 1\], \[-1, 1\], .*limits are \[-1, 3\]"),
        (
            lambda a: 2.0 * torch.sigmoid(a) - 3.0,
            r"squashes its output by sigmoid to \[-3, -1\], .*limits are \[-1, 3\]",
        ),
        (torch.atan, "Atan.* computes after the last layer is not known here; allowed are Clip, Tanh or Sigmoid"),
        (
            lambda a: torch.softmax(a, -1),
            r"\(Softmax\) is not supported; allowed are linear layers \(Gemm, MatMul, Einsum\), the",
        ),
        (torch.relu, r"clips its output to \[0, inf\]"),
    ],
)
def test_output_within_other_limits_is_refused(tmp_path: Path, after: Any, message: str) -> None:
    actor = mlp()
    refused(exported(tmp_path / "p.onnx", lambda o: after(actor(o))), message)


def test_layers_without_activation_between_them_become_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = (5, 7, 16, 4, 3, 2)
    first, second, third, fourth, last = (nn.Linear(*pair).requires_grad_(False) for pair in itertools.pairwise(sizes))

    def function(observations: Tensor) -> Tensor:
        hidden = torch.tanh(second(2.0 * first(observations) - 1.0))
        return last(fourth(third(hidden)[:, [2, 0, 1, 3]] * 3.0))

    policy = import_onnx(exported(tmp_path / "p.onnx", function), 5, ACTION)
    assert policy.module.architecture.hidden == (16,)
    check_same(policy, function)
    linear = import_onnx(exported(tmp_path / "linear.onnx", nn.Linear(5, 2)), 5, ACTION)
    assert linear.module.architecture.hidden == ()


def test_bookkeeping_of_the_batch_changes_nothing(tmp_path: Path) -> None:
    actor = mlp(nn.SiLU)

    def function(observations: Tensor) -> Tensor:
        hidden = actor[1](actor[0](observations.reshape(observations.shape[0], -1)))
        hidden = nn.functional.dropout(hidden, 0.5, training=False).flatten(1).unsqueeze(1).to(torch.float64)
        hidden = hidden.to(torch.float32).squeeze(1)
        return actor[4](actor[3](actor[2](hidden))).view(-1, 2)

    check_same(import_onnx(exported(tmp_path / "p.onnx", function), 5, ACTION), actor)
    alone = exported(tmp_path / "one.onnx", actor, example=torch.zeros(5), free=False)
    check_same(import_onnx(alone, 5, ACTION), actor)
    fixed = exported(tmp_path / "fixed.onnx", actor, free=False)
    check_same(import_onnx(fixed, 5, ACTION), actor)
    column = exported(tmp_path / "column.onnx", lambda o: actor[4](actor[3](actor[2](
        actor[1]((actor[0].weight @ o.unsqueeze(-1)).squeeze(-1) + actor[0].bias)))))  # fmt: skip
    check_same(import_onnx(column, 5, ACTION), actor)


def test_batch_norm_is_folded(tmp_path: Path) -> None:
    actor = mlp(nn.Tanh)
    norm, hidden = nn.BatchNorm1d(5), nn.BatchNorm1d(16)
    for module in (norm, hidden):
        for tensor in (module.running_mean, module.bias):
            tensor.data.uniform_(-1.0, 1.0)
        module.running_var.uniform_(0.5, 2.0)
        module.weight.data.uniform_(-1.0, 2.0)
    whole = nn.Sequential(norm, actor[0], actor[1], hidden, actor[2], actor[3], actor[4]).eval()
    policy = import_onnx(exported(tmp_path / "p.onnx", whole), 5, ACTION)
    assert policy.module.architecture.hidden == (16, 8)
    check_same(policy, whole)


GEMM = [
    node("Gemm", "obs w0 b0", "h0", alpha=0.5, beta=2.0),
    node("Tanh", "h0", "a0"),
    node("Gemm", "a0 w1t b1", "action", transB=1),
]


def test_layers_are_read_in_every_form(tmp_path: Path) -> None:
    tensors = weights()
    check_same(import_onnx(graph(tmp_path / "matmul.onnx", TWO_LAYERS, tensors), 5, ACTION), two_layers)
    halved = {**tensors, "w0": 2.0 * tensors["w0"], "b0": tensors["b0"] / 2.0, "w1t": tensors["w1"].T.copy()}
    check_same(import_onnx(graph(tmp_path / "gemm.onnx", GEMM, halved), 5, ACTION), two_layers)
    left = [
        node("Transpose", "w0", "w0t", perm=[1, 0]),
        node("MatMul", "w0t obs", "m0"),
        *TWO_LAYERS[1:],
    ]
    path = graph(tmp_path / "left.onnx", left, tensors, inputs={"obs": (5,)}, outputs={"action": (2,)})
    check_same(import_onnx(path, 5, ACTION), two_layers)


def test_weights_may_be_constant_nodes_and_of_other_precision(tmp_path: Path) -> None:
    tensors = weights()
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in tensors.items()
    ]
    check_same(import_onnx(graph(tmp_path / "p.onnx", constants + TWO_LAYERS), 5, ACTION), two_layers)
    double = graph(tmp_path / "d.onnx", TWO_LAYERS, weights(kind=np.float64), kind=TensorProto.DOUBLE)
    check_same(import_onnx(double, 5, ACTION), lambda o: two_layers(o, weights(kind=np.float64)))
    huge = {**weights(kind=np.float64), "b1": np.array([1e200, 0.0])}
    refused(graph(tmp_path / "l.onnx", TWO_LAYERS, huge, kind=TensorProto.DOUBLE), "become too large for float32")
    half = {f"{name}_half": array for name, array in weights(kind=np.float16).items()}
    casts = [node("Cast", name, name.removesuffix("_half"), to=TensorProto.FLOAT) for name in half]
    path = graph(tmp_path / "h.onnx", casts + TWO_LAYERS, half)
    check_same(import_onnx(path, 5, ACTION), lambda o: two_layers(o, weights(kind=np.float16)))


def test_constants_may_be_cast_to_what_the_network_computes_in(tmp_path: Path) -> None:
    """As torch's newer exporter writes clamp()."""
    nodes = [
        node("CastLike", "one obs", "high"),
        node("Neg", "high", "low"),
        node("CastLike", "obs b0", "same"),
        node("Clip", "same low high", "clipped"),
        node("MatMul", "clipped w0", "m0"),
        *TWO_LAYERS[1:],
    ]
    policy = import_onnx(graph(tmp_path / "p.onnx", nodes, {**weights(), "one": np.array(1, np.int64)}), 5, ACTION)
    assert policy.module.architecture.observation_clip == 1.0
    check_same(policy, lambda o: two_layers(o.clamp(-1.0, 1.0)))
    nodes[2] = node("CastLike", "obs one", "same")
    path = graph(tmp_path / "i.onnx", nodes, {**weights(), "one": np.array(1, np.int64)})
    refused(path, r"\(CastLike\): it turns what the network computes into int64")


def test_weights_may_lie_in_a_file_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's newer exporter writes them."""
    tensors = weights()
    content = b"".join(array.tobytes() for array in tensors.values())
    path = graph(tmp_path / "p.onnx", TWO_LAYERS, tensors)
    model, offset = onnx.load(path), 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        place = {"location": "p.onnx.data", "offset": str(offset), "length": str(size)}
        external(tensor, place)
        offset += size
    path.write_bytes(model.SerializeToString())
    refused(path, "tensor 'w0' lies in 'p.onnx.data', which is not there; put it beside")
    (tmp_path / "p.onnx.data").write_bytes(content)
    check_same(import_onnx(path, 5, ACTION), two_layers)
    with monkeypatch.context() as patched:
        patched.setattr(onnx_graphs, "MAX_ARCHIVE_BYTES", path.stat().st_size + len(content) - 1)
        refused(path, r"it and the files beside it have more than \d+ bytes")
    (tmp_path / "p.onnx.data").write_bytes(content[:-1])
    refused(path, "tensor 'b1' lies beyond the end of 'p.onnx.data'")


def external(tensor: TensorProto, place: dict[str, str]) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "sub/secret", "link", "..", "", ".", "a\\b"])
def test_no_file_elsewhere_is_followed(tmp_path: Path, location: str) -> None:
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    for secret in (tmp_path / "secret", directory / "sub" / "secret", directory / "a\\b"):
        secret.write_bytes(bytes(4096))
    (directory / "link").symlink_to(tmp_path / "secret")
    path = graph(directory / "p.onnx", TWO_LAYERS, weights())
    model = onnx.load(path)
    external(model.graph.initializer[0], {"location": location})
    path.write_bytes(model.SerializeToString())
    refused(path, "allowed are files beside it that are no links")


def test_constant_node_in_another_file_is_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(weights()["w0"], "inside")
    external(tensor, {"location": "p.onnx.data"})
    (tmp_path / "p.onnx.data").write_bytes(bytes(4096))
    nodes = [helper.make_node("Constant", [], ["w0"], value=tensor), *TWO_LAYERS]
    tensors = weights()
    del tensors["w0"]
    refused(graph(tmp_path / "p.onnx", nodes, tensors), "tensor 'inside' lies in another file")


def test_output_that_can_be_the_action_is_taken(tmp_path: Path) -> None:
    names = ("action", "log_std", "value", "latent")
    mean, spread, latent = mlp(), mlp(nn.Tanh), mlp(outputs=3)

    def heads(observations: Tensor) -> tuple[Tensor, ...]:
        return mean(observations), spread(observations), mean(observations).sum(-1), latent(observations)

    def only(observations: Tensor) -> tuple[Tensor, ...]:
        found = heads(observations)
        return found[0], torch.zeros(2) + 0.5, found[2], nn.functional.layer_norm(found[3], (3,))

    check_same(import_onnx(exported(tmp_path / "p.onnx", only, outputs=names), 5, ACTION), mean)
    two = exported(tmp_path / "two.onnx", heads, outputs=names)
    refused(two, "its outputs action, log_std all fit the action; name the action with --output")
    check_same(import_onnx(two, 5, ACTION, output="log_std"), spread)
    refused(two, r"no output 'actions'; --output may name action \(any, 2\), log_std", output="actions")
    refused(two, "commands 3 numbers, the environment has 2", output="latent")
    constant = exported(tmp_path / "c.onnx", only, outputs=names)
    refused(constant, "its output log_std does not depend on any input", output="log_std")
    other = ActionSpec(joints=tuple("abcd"), lower=(-1.0,) * 4, upper=(1.0,) * 4)
    refused(two, "no output gives 4 actions for 5 observations", other)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_exports_of_stable_baselines3_are_read(tmp_path: Path, algorithm: str) -> None:
    """As its documentation exports them; SAC asks for the shape of a sample that it does not draw."""
    sb3 = pytest.importorskip("stable_baselines3")
    space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    env = gym.Env()
    env.observation_space, env.action_space = space, gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    model = getattr(sb3, algorithm)("MlpPolicy", env, seed=0, device="cpu")
    policy = model.policy if algorithm == "PPO" else model.policy.actor
    for parameter in policy.parameters():
        parameter.requires_grad_(False).mul_(2.0)
    deterministic = {} if algorithm == "TD3" else {"deterministic": True}
    outputs = ("actions", "values", "log_prob")[: 3 if algorithm == "PPO" else 1]
    path = exported(tmp_path / "p.onnx", Acting(policy, deterministic), outputs=outputs, opset=17, free=False)
    imported = import_onnx(path, 5, UNIT)
    assert imported.module.architecture.squash == ("clip" if algorithm == "PPO" else "tanh")
    check_same(imported, lambda o: torch.from_numpy(model.predict(o.numpy(), deterministic=True)[0]))


def test_mean_may_be_a_part_of_the_last_layer(tmp_path: Path) -> None:
    """As in exports of Brax: the other half is the spread of the exploration."""
    actor = mlp(nn.SiLU, outputs=4)
    path = exported(tmp_path / "p.onnx", lambda o: torch.tanh(torch.chunk(actor(o), 2, -1)[0]))
    policy = import_onnx(path, 5, UNIT)
    assert policy.module.architecture.squash == "tanh"
    check_same(policy, lambda o: torch.tanh(actor(o)[:, :2]))


def test_further_inputs_are_refused_where_they_reach_the_action(tmp_path: Path) -> None:
    more = [*TWO_LAYERS[:-1], node("Add", "m1 b1", "plain"), node("Add", "plain goal", "action")]
    two = {"obs": ("batch", 5), "goal": ("batch", 2)}
    refused(
        graph(tmp_path / "p.onnx", more, weights(), inputs=two), "inputs obs, goal all reach the action, allowed is"
    )
    recurrent = [n if n.op_type != "Tanh" else node("Add", "h0 h_in", "a0") for n in TWO_LAYERS]
    state = {"obs": ("batch", 5), "h_in": ("batch", 16)}
    path = graph(tmp_path / "r.onnx", recurrent, weights(), inputs=state)
    refused(path, "inputs obs, h_in make it recurrent; recurrent policies are not supported")
    outputs = {"action": ("batch", 2), "joint_pos": ("batch", 2)}
    motion = [*TWO_LAYERS, node("Mul", "time_step time_step", "joint_pos")]
    inputs = {"obs": ("batch", 5), "time_step": ("batch", 2)}
    policy = import_onnx(graph(tmp_path / "m.onnx", motion, weights(), inputs=inputs, outputs=outputs), 5, ACTION)
    assert policy.notes == ("the action does not depend on the file's inputs time_step, which are left out",)
    check_same(policy, two_layers)


def test_recurrent_network_is_refused(tmp_path: Path) -> None:
    gru, head = nn.GRU(5, 8).requires_grad_(False), nn.Linear(8, 2).requires_grad_(False)
    path = exported(tmp_path / "p.onnx", lambda o: head(gru(o)[0]), example=torch.zeros(1, 5), free=False)
    refused(path, r"\(GRU\) makes it recurrent; recurrent policies are not supported")


def test_metadata_is_told_and_not_applied(tmp_path: Path) -> None:
    path = graph(tmp_path / "p.onnx", TWO_LAYERS, weights())
    model = onnx.load(path)
    helper.set_model_props(model, {"joint_names": "a,b", "action_scale": "0.5"})
    path.write_bytes(model.SerializeToString())
    policy = import_onnx(path, 5, ACTION)
    (note,) = policy.notes
    assert "(joint_names, action_scale), and nothing of it is applied: the environment has to have" in note
    check_same(policy, two_layers)


def _without(name: str) -> dict[str, Any]:
    return {key: array for key, array in weights().items() if key != name}


def _in_place_of(kind: str, *others: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The two layers with other nodes in place of the one of a kind between them."""
    return [new for old in TWO_LAYERS for new in (others if old.op_type == kind else (old,))]


def _nan(name: str) -> dict[str, Any]:
    tensors = weights()
    tensors[name].flat[1] = np.nan
    return tensors


@pytest.mark.parametrize(
    ("nodes", "tensors", "options", "message"),
    [
        (TWO_LAYERS, _nan("w0"), {}, r"node '/m0/MatMul' \(MatMul\): tensor 'w0' holds NaN or infinite values"),
        (TWO_LAYERS, _nan("b1"), {}, r"node '/action/Add' \(Add\): tensor 'b1' holds NaN"),
        (TWO_LAYERS, _without("b0"), {}, "takes 'b0', which nothing before it gives out"),
        (TWO_LAYERS, {**weights(), "w1": np.ones((7, 2), np.float32)}, {}, "takes 7 numbers and is given 16"),
        (TWO_LAYERS, weights(), {"inputs": {"obs": ("batch", 4)}}, "observes 4 numbers, the environment has 5"),
        (TWO_LAYERS, weights(), {"inputs": {"obs": (1, 3, 8, 8)}}, r"shape \(1, 3, 8, 8\), allowed are \(batch, 5\)"),
        (TWO_LAYERS, weights(), {"inputs": {"obs": (4096, 5)}}, r"shape \(4096, 5\), allowed are .*free or 1"),
        (TWO_LAYERS, weights(), {"kind": TensorProto.FLOAT16}, "input obs is float16, allowed are float and double"),
        (TWO_LAYERS, weights(), {"kind": TensorProto.INT64}, "input obs is int64"),
        (
            _in_place_of("Tanh", node("Cast", "h0", "c0", to=TensorProto.FLOAT16), node("Tanh", "c0", "a0")),
            weights(),
            {},
            r"\(Cast\): it turns what the network computes into float16",
        ),
        (_in_place_of("Tanh", node("Div", "h0 zero", "a0")), {**weights(), "zero": np.zeros(16, np.float32)}, {},
         "it divides by zero"),
        (_in_place_of("Tanh", node("Mul", "h0 h0", "a0")), weights(), {}, "Mul.* is no activation known here"),
        (_in_place_of("Tanh", node("MatMul", "h0 w0", "a0")), weights(), {}, "takes 5 numbers and is given 16"),
        (_in_place_of("Tanh", node("Dropout", "h0 r t", "a0")),
         {**weights(), "r": np.float32(0.5), "t": np.array(True)}, {}, "exported for training; export the"),
        (_in_place_of("Tanh", node("ReduceMean", "h0", "m", keepdims=1), node("Sub", "h0 m", "a0")), weights(), {},
         r"\(ReduceMean\): what it takes depends on the observation, and has to be constant; allowed are linear"),
        (_in_place_of("Tanh", node("Elu", "h0", "a0", depth=1)), weights(), {}, "cannot be read .Unrecognized attr"),
        (_in_place_of("Tanh", node("Gelu", "h0", "a0")), weights(), {"opset": 19}, "No Op registered for Gelu"),
        (_in_place_of("Tanh", node("Einsum", "h0 w1", "a0", equation="bi,io->b")), weights(), {},
         r"by a constant matrix, by 'bi,io->bo' or 'bi,oi->bo'"),
        (_in_place_of("Tanh", node("Gather", "w1 h0", "a0")), weights(), {}, "'h0' depends on the observation"),
        (_in_place_of("Tanh", node("Reshape", "h0 s", "a0")), {**weights(), "s": np.array([3, 5])}, {},
         r"node '/a0/Reshape' \(Reshape\) cannot be read \(cannot reshape"),
        (_in_place_of("Tanh", node("Elu", "h0", "a0", alpha="one")), weights(), {},
         r"node '/a0/Elu' \(Elu\) cannot be read \(Mismatched attribute type"),
        ([*TWO_LAYERS[:2], node("MatMul", "h0 h0", "action")], weights(), {}, "by a constant matrix"),
        ([node("Tanh", "obs", "action")], {}, {"outputs": {"action": ("batch", 5)}}, "there is no linear layer"),
        ([node("Identity", "b1", "action")], weights(), {}, "its output action does not depend on any input"),
        ([node("Identity", "obs", "other")], {}, {}, "its output action does not depend on any input"),
        ([], {}, {}, "it is not an ONNX file, or its graph is empty"),
    ],
)  # fmt: skip
def test_graph_of_no_such_mlp_is_refused(
    tmp_path: Path, nodes: Any, tensors: Any, options: dict[str, Any], message: str
) -> None:
    refused(graph(tmp_path / "p.onnx", nodes, tensors, **options), message)


def test_deep_functions_are_evaluated_in_time_that_grows_with_their_nodes(tmp_path: Path) -> None:
    """Each takes the one before twice."""
    chain = [node("Mul", f"h{k} h{k}", f"h{k + 1}") for k in range(60)]
    nodes = _in_place_of("Tanh", *chain, node("Identity", "h60", "a0"))
    refused(graph(tmp_path / "p.onnx", nodes, weights()), "is no activation known here")


def test_damaged_file_is_refused_in_a_sentence_or_read(tmp_path: Path) -> None:
    content = graph(tmp_path / "p.onnx", TWO_LAYERS, weights()).read_bytes()
    rng = np.random.default_rng(0)
    damaged = tmp_path / "damaged.onnx"
    refusals = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[rng.integers(len(content))] = rng.integers(256)
        damaged.write_bytes(changed)
        try:
            import_onnx(damaged, 5, ACTION)
        except ImportFailedError:
            refusals += 1
    assert 20 < refusals < 200


def test_skip_connections_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second, last = (nn.Linear(*sizes).requires_grad_(False) for sizes in ((5, 8), (8, 8), (8, 2)))

    def function(observations: Tensor) -> Tensor:
        hidden = torch.relu(first(observations))
        return last(torch.relu(second(hidden)) + hidden)

    refused(exported(tmp_path / "p.onnx", function), r"\(Add\): it mixes what comes from different layers")


def test_nodes_of_other_domains_and_functions_are_refused(tmp_path: Path) -> None:
    path = graph(tmp_path / "p.onnx", TWO_LAYERS, weights())
    model = onnx.load(path)
    model.graph.node[2].domain = "com.example"
    path.write_bytes(model.SerializeToString())
    refused(path, r"\(com.example::Tanh\) is not supported")
    made = helper.make_function(
        "own", "Mine", ["x"], ["y"], [helper.make_node("Tanh", ["x"], ["y"])], [helper.make_opsetid("", 21)]
    )
    model.functions.append(made)
    path.write_bytes(model.SerializeToString())
    refused(path, r"functions of its own \(Mine\); inline them with onnx.inliner")


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "nothing.onnx", "it cannot be read .*No such file")
    refused(tmp_path, "it cannot be read")
    text = tmp_path / "text.onnx"
    text.write_text("nothing of the kind")
    refused(text, "it is not an ONNX file")
    checkpoint = tmp_path / "p.pt"
    torch.save(mlp().state_dict(), checkpoint)
    refused(checkpoint, "it is not an ONNX file")
    path = exported(tmp_path / "p.onnx", mlp())
    monkeypatch.setattr(onnx_graphs, "MAX_ARCHIVE_BYTES", 100)
    refused(path, r"it has \d+ bytes, allowed are 100")


def test_constants_that_would_become_huge_are_refused(tmp_path: Path) -> None:
    nodes = [node("Add", "big wide", "sum"), node("MatMul", "sum w1", "x"), *TWO_LAYERS]
    tensors = {**weights(), "big": np.ones((100_000, 1), np.float32), "wide": np.ones((1, 100_000), np.float32)}
    nodes += [node("Add", "action x", "out")]
    path = graph(tmp_path / "p.onnx", nodes, tensors, outputs={"out": ("batch", 2)})
    refused(path, r"it makes a tensor of shape \(100000, 100000\), allowed are")
    nodes = [node("Expand", "b0 far", "sum"), *TWO_LAYERS, node("Add", "action sum", "out")]
    tensors = {**weights(), "far": np.array([10**9, 10**9, 16])}
    path = graph(tmp_path / "p.onnx", nodes, tensors, outputs={"out": ("batch", 2)})
    refused(path, r"it makes a tensor of shape \(1000000000, 1000000000, 16\)")


@pytest.mark.parametrize(
    ("nodes", "tensors"),
    [
        ([node("ConstantOfShape", "size", "big")], {"size": [2**13, 2**14]}),
        ([node("ConstantOfShape", "size", "big")], {"size": [2**40, 0]}),
        ([node("Tile", "b0 size", "big")], {"size": [2**23]}),
        ([node("Tile", "b0 size", "big")], {"size": [2**62]}),
        ([node("Tile", "obs size", "big")], {"size": [1, 2**25]}),
        ([node("Expand", "obs size", "big")], {"size": [2**25, 1]}),
        ([node("Range", "zero far one", "big")], {"zero": 0, "far": 10**12, "one": 1}),
        ([node("Range", "zero one small", "big")], {"zero": 0.0, "one": 1.0, "small": 1e-12}),
        ([node("Gather", "row many", "big")], {"row": np.ones((1, 2**14)), "many": np.zeros(2**13, np.int64)}),
        ([node("MatMul", "column row", "big")], {"column": np.ones((2**14, 1)), "row": np.ones((1, 2**13))}),
        ([node("ConstantOfShape", "size", "big")], {"size": np.ones(2000, np.int64)}),
        ([node("EyeLike", "wide", "big"), node("Greater", "column wide", "big2")],
         {"column": np.ones((2**14, 1)), "wide": np.ones((1, 2**13))}),
    ],
)  # fmt: skip
def test_sizes_are_checked_before_anything_is_evaluated(
    tmp_path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, Any]
) -> None:
    last = node("Add", f"action {nodes[-1].output[0]}", "out")
    path = graph(tmp_path / "p.onnx", [*nodes, *TWO_LAYERS, last], {**weights(), **tensors}, outputs={"out": (1, 2)})
    told = (
        "makes a tensor of shape .*, allowed are 67108864 entries",
        "overflow|too big",  # in older versions of onnx it is numpy that says so
        "how large 'big' will be is not known",
    )
    refused(path, "|".join(told))


def test_many_tensors_together_are_refused_as_one_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fills = [node("ConstantOfShape", "size", f"c{k}") for k in range(20)]
    joined = node("Concat", " ".join(f"c{k}" for k in range(20)), "all", axis=0)
    last = node("Add", "action all", "out")
    tensors = {**weights(), "size": np.array([1000])}
    path = graph(tmp_path / "p.onnx", [*fills, joined, *TWO_LAYERS, last], tensors, outputs={"out": (1, 2)})
    monkeypatch.setattr(onnx_graphs, "MAX_ENTRIES", 15_500)
    refused(path, r"node '/c15/ConstantOfShape' .* and those before it make more than 15500 entries")


def test_functions_of_too_many_entries_are_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = _in_place_of("Tanh", node("Tile", "h0 wide", "t0"), node("Tanh", "t0", "a0"))
    tensors = {**weights(), "wide": np.array([1, 10]), "w1": np.ones((160, 2), np.float32)}
    path = graph(tmp_path / "p.onnx", nodes, tensors)
    import_onnx(path, 5, ACTION)
    monkeypatch.setattr(onnx_values, "MAX_ENTRIES", 20_000)
    refused(path, r"it makes a tensor of shape \(161, 1, 160\), allowed are 20000")


EMPTY = helper.make_graph([], "empty", [], [])


@pytest.mark.parametrize(
    "between",
    [
        node("RandomNormalLike", "h0", "a0"),
        node("Bernoulli", "h0", "a0"),
        node("If", "yes h0", "a0", then_branch=EMPTY, else_branch=EMPTY),
        node("Loop", "n yes h0", "a0", body=EMPTY),
        node("Scan", "h0", "a0", body=EMPTY, num_scan_inputs=1),
        node("SequenceConstruct", "h0 h0", "a0"),
    ],
)
def test_what_is_random_or_runs_graphs_is_refused(tmp_path: Path, between: onnx.NodeProto) -> None:
    tensors = {**weights(), "yes": np.array(True), "n": np.array(1)}
    path = graph(tmp_path / "p.onnx", _in_place_of("Tanh", between), tensors)
    refused(path, rf"\({between.op_type}\) is not supported; allowed are linear layers")
    hidden = node("Tanh", "h0", "a0")
    hidden.attribute.append(helper.make_attribute("body", EMPTY))
    refused(graph(tmp_path / "a.onnx", _in_place_of("Tanh", hidden), tensors), r"\(Tanh\) cannot be read \(")


def test_file_without_version_of_its_operators_is_refused(tmp_path: Path) -> None:
    path = graph(tmp_path / "p.onnx", TWO_LAYERS, weights())
    model = onnx.load(path)
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())
    refused(path, "it does not say which version of ONNX's operators it uses")


@pytest.mark.parametrize(
    ("opset", "nodes", "tensors"),
    [
        (11, [node("Unsqueeze", "h0", "u", axes=[0]), node("Tanh", "u", "t"),
              node("Squeeze", "t", "a0", axes=[0])], {}),
        (13, [node("Unsqueeze", "h0 ax", "u"), node("Tanh", "u", "t"), node("Squeeze", "t ax", "a0")], {"ax": [0]}),
        (11, [node("Split", "h0", "l r", axis=1, split=[10, 6]), node("Concat", "l r", "c", axis=1),
              node("Tanh", "c", "a0")], {}),
        (13, [node("Split", "h0 s", "l r", axis=1), node("Concat", "l r", "c", axis=1), node("Tanh", "c", "a0")],
         {"s": [10, 6]}),
        (18, [node("Split", "h0", "x y z", axis=-1, num_outputs=3), node("Concat", "x y z", "c", axis=-1),
              node("Tanh", "c", "a0")], {}),
        (9, [node("Slice", "h0", "l", axes=[1], starts=[0], ends=[9]),
             node("Slice", "h0", "r", axes=[1], starts=[9], ends=[2**63 - 1]),
             node("Concat", "l r", "c", axis=1), node("Tanh", "c", "a0")], {}),
        (13, [node("Slice", "h0 last first ax back", "f"), node("Tanh", "f", "t"),
              node("Slice", "t last first ax back", "a0")],
         {"last": [-1], "first": [-(2**63)], "ax": [1], "back": [-1]}),
        (13, [node("Reshape", "h0 s", "q"), node("Transpose", "q", "q2", perm=[0, 2, 1]),
              node("Transpose", "q2", "q3", perm=[0, 2, 1]), node("Flatten", "q3", "f"), node("Tanh", "f", "a0")],
         {"s": [0, 4, -1]}),
        (13, [node("GatherND", "h0 all", "f"), node("Reshape", "f s", "q"), node("Tanh", "q", "a0")],
         {"all": [[0, k] for k in range(16)], "s": [1, -1]}),
        (13, [node("Expand", "h0 s", "e"), node("Tanh", "e", "t"), node("Gather", "t zero", "a0", axis=0)],
         {"s": [3, 1, 16], "zero": 2}),
    ],
)  # fmt: skip
def test_entries_are_moved_as_the_files_operator_set_says(
    tmp_path: Path, opset: int, nodes: list[onnx.NodeProto], tensors: dict[str, Any]
) -> None:
    path = graph(tmp_path / "p.onnx", _in_place_of("Tanh", *nodes), {**weights(), **tensors}, opset=opset)
    policy = import_onnx(path, 5, ACTION)
    assert (policy.module.architecture.hidden, policy.module.architecture.activation) == ((16,), "tanh")
    check_same(policy, two_layers)


@pytest.mark.parametrize(
    ("opset", "clip", "tensors"),
    [
        (8, node("Clip", "obs", "x", min=-1.5, max=1.5), {}),
        (11, node("Clip", "obs low high", "x"), {"low": np.float32(-1.5), "high": np.float32(1.5)}),
    ],
)
def test_clip_takes_its_bounds_as_the_files_operator_set_says(
    tmp_path: Path, opset: int, clip: onnx.NodeProto, tensors: dict[str, Any]
) -> None:
    nodes = [clip, node("MatMul", "x w0", "m0"), *TWO_LAYERS[1:]]
    policy = import_onnx(graph(tmp_path / "p.onnx", nodes, {**weights(), **tensors}, opset=opset), 5, ACTION)
    assert policy.module.architecture.observation_clip == 1.5
    check_same(policy, lambda o: two_layers(o.clamp(-1.5, 1.5)))


def test_relu_as_a_threshold(tmp_path: Path) -> None:
    path = graph(tmp_path / "p.onnx", _in_place_of("Tanh", node("ThresholdedRelu", "h0", "a0", alpha=0.0)), weights())
    assert import_onnx(path, 5, ACTION).module.architecture.activation == "relu"


@pytest.mark.parametrize(
    ("name", "nodes", "tensors"),
    [
        ("w0", [node("ReduceL2", "v", "norm", axes=[0]), node("Div", "v norm", "unit"), node("Mul", "unit norm", "w0")],
         {"v": weights()["w0"]}),  # as weight normalization is exported
        ("w0", [node("EyeLike", "square", "eye"), node("MatMul", "v eye", "w0")],
         {"v": weights()["w0"], "square": np.zeros((16, 16), np.float32)}),
        ("w0", [node("Concat", "top low", "w0", axis=0)], {"top": weights()["w0"][:2], "low": weights()["w0"][2:]}),
        ("b0", [node("Range", "zero n one", "order"), node("Gather", "b order", "b0")],
         {"b": weights()["b0"], "zero": 0, "n": 16, "one": 1}),
        ("b0", [node("Shape", "b", "s"), node("ReduceProd", "s", "p", keepdims=1), node("ConstantOfShape", "p", "z"),
                node("Add", "b z", "b0")], {"b": weights()["b0"]}),
        ("b0", [node("Split", "pair", "b0 rest", axis=0)], {"pair": np.tile(weights()["b0"], 2)}),
    ],
)  # fmt: skip
def test_weights_may_be_computed_from_constants(
    tmp_path: Path, name: str, nodes: list[onnx.NodeProto], tensors: dict[str, Any]
) -> None:
    path = graph(tmp_path / "p.onnx", [*nodes, *TWO_LAYERS], {**_without(name), **tensors}, opset=13)
    check_same(import_onnx(path, 5, ACTION), two_layers)


def test_layers_written_as_sums_of_products(tmp_path: Path) -> None:
    nodes = [
        node("Einsum", "obs w0", "m0", equation="bi,io->bo"),
        *TWO_LAYERS[1:3],
        node("Einsum", "a0 w1t", "m1", equation="n k, j k -> n j"),
        TWO_LAYERS[-1],
    ]
    tensors = {**weights(), "w1t": weights()["w1"].T.copy()}
    check_same(import_onnx(graph(tmp_path / "p.onnx", nodes, tensors), 5, ACTION), two_layers)


def test_policy_that_acts_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(tmp_path / "p.onnx", mlp())
    policy = import_onnx(path, 5, ACTION)
    policy.check(np.zeros((3, 5)))
    with torch.no_grad():
        policy.module.layers[-1].bias[0] += 1e-3
    with pytest.raises(ImportFailedError, match=r"disagree by 0.0005\d* of the action's range on 3 observations"):
        policy.check(np.zeros((3, 5)))
    monkeypatch.setattr(onnx_policies, "_run", lambda model, rows: np.zeros((len(rows), 2)))
    refused(path, r"disagree by .* of the action's range on 600 observations; allowed is 1e-04")


def test_bundles_of_this_package_come_back_as_they_were(tmp_path: Path) -> None:
    directory = shipped_controllers()["cartpole_swingup_sac"]
    bundle = load_bundle(directory)
    manifest = bundle.manifest
    policy = import_onnx(directory / "policy.onnx", manifest.observation.size, manifest.action)
    assert policy.module.architecture == manifest.architecture
    assert policy.notes == ()
    rows = bundle.reference_observations
    with torch.no_grad():
        actions = policy.module(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(actions, bundle.policy.batch(rows), atol=1e-5 * 20.0)
