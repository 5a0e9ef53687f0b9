from __future__ import annotations

import torch
from torch import nn

from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.sensitivity import EXACT_OUTPUTS, squared_gradients
from nncontrol_prune.pruning.terms import Term


def network_of(module: nn.Module) -> Network[nn.Module]:
    return Network(module, {"all": [""]}, lambda m, batch: {"y": m(batch["x"])})


def test_it_is_the_square_of_the_slope_row_by_row() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(300, 3)  # more than one minibatch
    found = squared_gradients(network_of(module), ["0"], {"x": x}, [Term("y", weight=4.0, scale=0.5)])
    slope = 1 - module(x).square()
    torch.testing.assert_close(found["0"], (2.0 * slope / 0.5).square())


def test_a_transformed_output_has_the_slope_of_what_is_compared() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 1))
    x = 50 * torch.randn(20, 3)
    found = squared_gradients(network_of(module), ["0"], {"x": x}, [Term("y", scale=0.5, transform=torch.asinh)])
    torch.testing.assert_close(found["0"], 1 / (0.5**2 + module(x).detach().square()))


def test_many_outputs_are_differentiated_along_random_directions() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 8 * EXACT_OUTPUTS, bias=False))
    found = squared_gradients(network_of(module), ["0"], {"x": torch.randn(2000, 3)}, [Term("y")])
    exact = module[1].weight.square().sum(dim=0)
    torch.testing.assert_close(found["0"].mean(dim=0), exact, rtol=0.5, atol=0)


def test_calls_add_up_and_layers_that_do_not_matter_are_left_out() -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 2), "other": nn.Linear(2, 2)})

    def run(m, batch):
        return {"y": m["used"](batch["x"]) + m["used"](2 * batch["x"]), "z": m["other"](batch["x"])}

    network = Network(module, {"all": [""]}, run)
    found = squared_gradients(network, ["used", "other"], {"x": torch.randn(5, 2)}, [Term("y"), Term("z", weight=0.0)])
    assert set(found) == {"used"}
    torch.testing.assert_close(found["used"], torch.full((5, 2), 2.0))
    assert squared_gradients(network, [], {"x": torch.randn(5, 2)}, [Term("y")]) == {}
