from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.pruning.architectures import recipe_for, run_policy
from nncontrol_prune.pruning.errors import PruningError


def test_actions_count_in_units_of_their_range(module: Mlp) -> None:
    recipe = recipe_for(module)
    assert [(term.label, term.weight) for term in recipe.terms] == [("action", 1.0), ("jacobian", 0.0)]
    assert recipe.terms[0].scale.tolist() == [2.0, 20.0]


def test_the_jacobian_is_that_of_autograd_along_the_direction(module: Mlp, observations: Tensor) -> None:
    rows, directions = observations[:6], 0.1 * torch.randn(6, 5)
    found = run_policy(module, {"observation": rows, "direction": directions})["jacobian"]
    wanted: Tensor = torch.func.jvp(module, (rows,), (directions,))[1]
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-2)


def test_unknown_architectures_have_no_recipe() -> None:
    with pytest.raises(PruningError, match="no recipe for pruning Linear"):
        recipe_for(nn.Linear(2, 2))
