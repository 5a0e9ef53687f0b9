from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.conduct import check_conduct
from nncontrol_prune.pruning.engine import Pruned
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.prune import Budget, prune
from nncontrol_prune.pruning.terms import Term
from tests.pruning.networks import ConvNet, Mixer, ResidualNet, StackedEnsemble, WithoutDerivative, WorldModel


class Two(nn.Module):
    """Two layers that could lead to a head, or both do, and buffers.

    Args:
        path: Takes the network and rows (rows, 6), and returns what it gives out.
    """

    def __init__(self, path: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 3)
        self.log_std = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("level", torch.full((24,), 0.5))
        self.register_buffer("count", torch.tensor(7))
        self.path = path

    def forward(self, inputs: Tensor) -> Any:
        return self.path(self, inputs)


def pruned(path: Callable[[Any, Tensor], Any], **changes: Any) -> Pruned[Any]:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"data": torch.randn(200, 6), "budget": Budget(0.1, tolerance=0.05),
                                 "components": {"all": [""]}, "method": "uniform"}  # fmt: skip
    return prune(Two(path), **{**arguments, **changes})


def both(net: Any, inputs: Tensor) -> Tensor:
    """Run both layers."""
    output: Tensor = net.head(torch.relu(net.a(inputs)) + torch.tanh(net.b(inputs)))
    return output


OTHER_PARTS = "the forward pass runs other parts for other rows"
TAKEN = (
    "the forward pass takes a number out of its data (with if, while or .item()), and what it does for other values "
    "than those of the traced rows is not known; torch.where chooses between two paths"
)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            lambda net, x: net.head(torch.relu(net.a(x)) if x[0, 0] > 0 else torch.tanh(net.b(x))),
            r"\((a for row \d+ alone, b|b for row \d+ alone, a) for the first 4 rows\): .* choose with torch.where$",
        ),
        (
            lambda net, x: net.head(torch.relu(net.a(x)) if x.flatten()[0].item() > 0 else torch.tanh(net.b(x))),
            r"\((a for row \d+ alone, b|b for row \d+ alone, a) for the first 4 rows\)",
        ),
        (
            lambda net, x: net.head(torch.relu(net.a(x) if len(x) > 4 else net.b(x))),
            r"\(a for all 200 rows, b for the first 4 rows\)",
        ),
        (
            lambda net, x: net.head(torch.relu(net.a(x) if len(x) > 1 else net.b(x))),
            r"\(b for row 0 alone, a for the first 4 rows\)",
        ),
        (
            lambda net, x: net.head(torch.relu(net.a(x) + net.b(x) if len(x) > 4 else net.a(x))),
            r"\(b for all 200 rows, and not for the first 4 rows\)",
        ),
        (
            lambda net, x: net.head(torch.relu(net.a(x) if len(x) > 4 else net.a(x) + net.b(x))),
            r"\(b for the first 4 rows, and not for all 200 rows\)",
        ),
        (  # no module is called
            lambda net, x: net.head(functional.linear(x, net.a.weight if len(x) > 4 else net.b.weight).relu()),
            r"\(a.weight for all 200 rows, b.weight for the first 4 rows\)",
        ),
        (  # it fails for one row alone
            lambda net, x: net.head(torch.relu(net.a(x) if x[1, 0] > 0 else net.b(x))),
            r"\((a for row \d+ alone, b|b for row \d+ alone, a) for the first 4 rows\)",
        ),
    ],
)
def test_a_network_that_runs_other_parts_for_other_rows_is_refused(path: Any, message: str) -> None:
    stages: list[str] = []
    with pytest.raises(PruningError, match=f"^{OTHER_PARTS} {message}"):
        pruned(path, progress=Progress(lambda stage, _: stages.append(stage)))
    assert not stages


def by_weights(net: Any, inputs: Tensor) -> Tensor:
    """Runs no layer but uses their weights."""
    hidden = functional.linear(inputs, net.a.weight, net.a.bias)
    return functional.linear(torch.relu(hidden), net.head.weight, net.head.bias)


@pytest.mark.parametrize("path", [both, by_weights])
def test_minibatches_in_the_forward_pass_are_refused(path: Any) -> None:
    message = r"^the layer head takes in 50 items at once for 200 rows of data, and 4 for 4; .* leave minibatches out"
    with pytest.raises(PruningError, match=message):
        pruned(lambda net, x: torch.cat([path(net, part) for part in x.split(50)]))


def test_how_often_a_layer_is_run_may_depend_on_the_rows_and_is_told() -> None:
    def settled(net: Any, inputs: Tensor) -> Tensor:
        """Go on until it settles, as an equilibrium network does."""
        hidden = net.a(inputs)
        output: Tensor = net.head(torch.relu(hidden))
        while (output.abs() > 0.3).any():
            hidden = hidden * 0.5
            output = net.head(torch.relu(hidden))
        return output

    first, second = pruned(settled).warnings
    assert first.startswith("the forward pass runs head ")
    assert first.endswith("how often it does for others is not known")
    assert second == TAKEN


@pytest.mark.parametrize(
    "path",
    [
        lambda net, x: both(net, x) if x.abs().max() < 1e3 else net.head(net.b(x)),
        lambda net, x: net.head(torch.relu(net.a(x) if x.abs().max() < 1e3 else net.b(x))),
        lambda net, x: both(net, x) if bool((x < 1e3).all()) and bool((x > -1e3).all()) else both(net, x * 0.5),
        lambda net, x: both(net, x) if torch.equal(x, x) else both(net, x[:, net.mean.long()]),
        lambda net, x: both(net, x) if x.abs().max() < 1e3 else both(net, x * 2.0 * 3.0),
        lambda net, x: both(net, x * (2.0 if x.abs().max() < 1e3 else 3.0)),
        lambda net, x: both(net, x / x.abs().max().item()),
        lambda net, x: both(net, x) if net.head(torch.relu(net.a(x))).max() < 1e3 else net.head(net.a(x)),
    ],
)
def test_a_number_that_is_taken_out_of_the_data_is_told(path: Any) -> None:
    assert TAKEN in pruned(path).warnings


def test_decisions_that_no_other_path_hangs_on_are_silent() -> None:
    def careful(net: Any, inputs: Tensor) -> Tensor:
        assert torch.isfinite(inputs).all()
        assert bool(torch.equal(inputs, inputs))
        if (inputs > 1e3).any():
            raise ValueError("too large")
        if inputs.dim() == 1 or inputs.shape[-1] != 6:
            inputs = inputs.view(-1, 6)
        found = inputs.mean() > 0  # told to somebody, perhaps
        net.told = "above" if found else "below"
        if net.log_std.sum() < 1:  # of the network, and not of the data
            inputs = inputs * 1.0
        for _ in range(3):
            inputs = inputs * 1.0
        return torch.distributions.Normal(both(net, inputs), net.log_std.exp(), validate_args=True).mean

    assert pruned(careful).warnings == ()


def test_the_networks_of_the_tests_conduct_themselves_well() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 48, batch_first=True)
    transformer = nn.Sequential(nn.Linear(4, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 2))
    rows: dict[nn.Module, dict[str, Tensor]] = {
        ResidualNet().eval(): {"x": torch.randn(70, 5)},
        ConvNet().eval(): {"x": torch.rand(70, 1, 12, 12)},
        Mixer().eval(): {"x": torch.randn(70, 5, 6)},
        transformer.eval(): {"x": torch.randn(70, 5, 4)},
        StackedEnsemble(): {"x": torch.randn(70, 5)},
        nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9, track_running_stats=False), nn.Linear(9, 2)): {
            "x": torch.randn(70, 5)
        },
    }
    for module, batch in rows.items():
        network = Network(module, {"all": [""]}, lambda m, b: {"y": m(b["x"])})
        assert check_conduct(network, network.groups(batch), batch, ()) == [], module
    world = Network(WorldModel(), WorldModel.components, lambda m, b: m(b["o"], b["a"]))
    batch = {"o": torch.randn(70, 5), "a": torch.rand(70, 2, 2)}
    assert check_conduct(world, world.groups(batch), batch, ()) == []


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (torch.no_grad()(lambda m, x: m(x)), "^the outputs have no gradient with respect to the network's layers: "),
        (lambda m, x: m(x).detach(), "^the outputs have no gradient .* under torch.no_grad.., detaches, or "),
        (lambda m, x: torch.from_numpy(np.array(m(x).tolist())).float(), "^the outputs have no gradient "),
        (lambda m, x: m(x).argmax(-1), "^the outputs have no gradient .* gives out integers alone; leave that out$"),
        (lambda m, x: {"y": m(x).detach(), "std": m.log_std.exp().expand(len(x), 3)}, "^the outputs have no gradient "),
        (
            torch.inference_mode()(lambda m, x: m(x)),
            "^trace or the forward pass runs the network's layers under torch.inference_mode, .* leave that out$",
        ),
    ],
)
def test_outputs_without_gradients_are_refused_before_anything_takes_long(
    trace: Any, message: str, frozen: bool
) -> None:
    stages: list[str] = []
    torch.manual_seed(0)
    model = Two(both).requires_grad_(not frozen)
    with pytest.raises(PruningError, match=message):
        prune(model, data=torch.randn(200, 6), budget=0.5, components={"all": [""]}, trace=trace,
              progress=Progress(lambda stage, _: stages.append(stage)))  # fmt: skip
    assert not stages


def test_what_fails_where_gradients_are_recorded_is_refused() -> None:
    message = r"^the network fails where gradients are taken, with RuntimeError: Can't call numpy\(\).*; trace and"
    with pytest.raises(PruningError, match=message):
        pruned(both, trace=lambda m, x: torch.from_numpy(m(x).numpy()))


def test_an_operation_without_a_derivative_is_refused_where_channels_are_ranked_through_it() -> None:
    def late(net: Two, inputs: Tensor) -> Tensor:
        output: Tensor = WithoutDerivative.apply(both(net, inputs))
        return output

    stages: list[str] = []
    with pytest.raises(PruningError, match=r"^the network fails where gradients are taken, with NotImplementedError"):
        pruned(late, progress=Progress(lambda stage, _: stages.append(stage)))
    assert not stages


def test_a_weighted_output_without_a_gradient_beside_one_that_has_one_is_told() -> None:
    def outputs(net: Any, inputs: Tensor) -> dict[str, Tensor]:
        action = both(net, inputs)
        std = net.log_std.exp().expand(len(inputs), 3)
        return {"action": action, "best": action.argmax(-1), "std": std, "input": inputs * 2.0}

    with torch.no_grad():
        assert pruned(outputs).warnings == (
            "the output 'best' has no gradient with respect to the network's layers, so it counts for the objective, "
            "and neither for the importance of channels nor where layers are fitted",
        )
    assert pruned(outputs, terms=[Term("action"), Term("best", weight=0.0, limit=9.0)]).warnings == ()


def test_outputs_that_are_others_in_a_second_run_are_named() -> None:
    def outputs(net: Any, inputs: Tensor) -> dict[str, Tensor]:
        mean = both(net, inputs)
        dropped = functional.dropout(torch.relu(net.a(inputs)), 0.2, True)
        return {"mean": mean, "sample": mean + torch.randn_like(mean), "dropped": net.head(dropped)}

    (warning,) = pruned(outputs, method="gradient", importance="obs").warnings
    assert warning.startswith("a second run on the same rows gives other values of sample, dropped: what is drawn by")
    assert pruned(outputs, terms=[Term("mean")]).warnings == ()


def test_noise_is_not_taken_for_rows_in_another_order() -> None:
    def by_frame(net: Any, frames: Tensor) -> Tensor:
        hidden = torch.relu(net.a(frames.flatten(0, 1)))
        output: Tensor = net.head(hidden + 0.1 * torch.randn_like(hidden)).unflatten(0, (len(frames), -1)).mean(1)
        return output

    (warning,) = pruned(by_frame, data=torch.randn(200, 3, 6)).warnings
    assert warning.startswith("a second run on the same rows gives other values of output: ")


def test_what_is_drawn_by_lot_leaves_the_generator_of_all_as_it_is() -> None:
    torch.manual_seed(0)
    model, data = Two(both), torch.randn(200, 6)
    before = torch.get_rng_state()
    prune(model, data=data, budget=Budget(0.1, tolerance=0.05), components={"all": [""]}, method="uniform")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["uniform", "gradient"])
def test_buffers_that_the_forward_pass_updates_are_the_users_in_the_result(method: Any) -> None:
    def normalized(net: Any, inputs: Tensor) -> Tensor:
        net.count += len(inputs)
        net.mean = net.mean + 0.1 * inputs.mean(0)
        hidden = torch.relu(net.a(inputs - net.mean))
        net.level.mul_(0.9).add_(0.1 * hidden.mean(0).detach())
        net.last = hidden.shape  # what is no buffer
        return net.head(hidden - net.level)

    torch.manual_seed(0)
    model = Two(normalized)
    model.level.copy_(torch.arange(24.0) / 24)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = prune(model, data=torch.randn(200, 6), budget=Budget(0.1, tolerance=0.05), components={"all": [""]},
                   method=method, distill_steps=30)  # fmt: skip
    assert result.warnings == ()
    for candidate in result.candidates.values():
        module = candidate.module
        assert torch.equal(module.mean, before["mean"])
        assert torch.equal(module.count, before["count"])
        assert len(module.level) == module.a.out_features < 24
        assert set(module.level.tolist()) < set(before["level"].tolist())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    result.chosen.module(torch.randn(5, 6))
    assert int(result.chosen.module.count) == 12  # where it is used it goes on


class Own(torch.autograd.Function):
    """A linear layer with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ ctx.saved_tensors[0], None, None


class FunctionLinear(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = Own.apply(inputs, self.weight, self.bias)
        return output


class Recomputed(nn.Module):
    """Two layers, and a third that is recomputed on the way back."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = checkpoint(lambda h: torch.tanh(self.b(h)), torch.tanh(self.a(inputs)), use_reentrant=self.reentrant)
        output: Tensor = self.head(hidden)
        return output


@pytest.mark.parametrize("importance", ["taylor", "fisher", "obs"])
@pytest.mark.parametrize("method", ["uniform", "gradient"])
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(6, 24), nn.Tanh(), FunctionLinear(24, 24), nn.Tanh(), nn.Linear(24, 3)),
        Recomputed(reentrant=True),
    ],
    ids=["function", "checkpoint"],
)
def test_layers_whose_operation_gradients_do_not_see_are_named_and_refitted(
    model: nn.Module, method: Any, importance: Any
) -> None:
    result = prune(model, data=torch.randn(300, 6), budget=Budget(0.3, tolerance=0.05), method=method,
                   importance=importance, components={"all": [""]})  # fmt: skip
    layer = "2" if isinstance(model, nn.Sequential) else "b"
    assert [warning.partition(",")[0] for warning in result.warnings] == [
        f"gradients are off where the operation of {layer} runs"
    ]
    assert result.chosen.objective < 0.1


def test_a_network_that_is_recomputed_for_its_gradient_is_refused() -> None:
    with pytest.raises(PruningError, match=r"keeps what its gradient needs .* leave that out, as with `if self.train"):
        prune(Recomputed(reentrant=False), data=torch.randn(300, 6), budget=0.3)


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (nn.Sequential(nn.Linear(6, 24), nn.Unflatten(0, (100, -1)), nn.Flatten(0, 1), nn.Linear(24, 3)), "unflatten"),
        (Two(lambda net, inputs: torch.vmap(lambda row: both(net, row))(inputs)), "vmap"),
    ],
)
def test_a_network_that_does_not_run_on_the_traced_rows_is_refused(model: nn.Module, cause: str) -> None:
    with pytest.raises(PruningError, match=rf"fails where it is traced, on 4 rows of the data, with .*{cause}"):
        prune(model, data=torch.randn(300, 6), budget=0.3, components={"all": [""]})


class Routed(nn.Module):
    """Has a part that takes in some rows alone."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 24), nn.Linear(24, 3), nn.Linear(6, 16), nn.Linear(16, 3)
        self.threshold = threshold

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = inputs[:, 0] > self.threshold
        output: Tensor = self.b(torch.relu(self.a(inputs))).clone()
        output[chosen] += self.d(torch.relu(self.c(inputs[chosen])))
        return output


@pytest.mark.parametrize("threshold", [1e9, 1.0])
@pytest.mark.parametrize("importance", ["taylor", "obs"])
def test_a_layer_that_takes_in_some_rows_alone_is_refused(threshold: float, importance: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        PruningError, match=r"^the layer d takes in a tensor of shape \(., 16\) for 4 rows of data; where"
    ):
        prune(Routed(threshold), data=torch.randn(200, 6), budget=0.3, importance=importance)


@pytest.mark.parametrize("importance", ["taylor", "obs", "l2"])
@pytest.mark.parametrize("method", ["uniform", "gradient"])
@pytest.mark.parametrize("off", [True, False])
def test_a_forward_pass_may_turn_gradients_on_itself(method: Any, importance: Any, off: bool) -> None:
    class Own(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.set_grad_enabled(not off):
                hidden = torch.tanh(self[0](inputs))
            with torch.enable_grad():
                output: Tensor = self[2](torch.tanh(self[1](hidden)))
            return output

    torch.manual_seed(0)
    model = Own(nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3))
    result = prune(model, data=torch.randn(300, 6), budget=Budget(0.3, tolerance=0.05), method=method,
                   importance=importance, components={"all": [""]}, distill_steps=20)  # fmt: skip
    assert result.chosen.objective < 0.2
