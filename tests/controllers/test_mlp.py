from __future__ import annotations

import torch

from nncontrol_prune.controllers.mlp import Mlp, parameter_count
from nncontrol_prune.controllers.observations import ObservationSpec
from nncontrol_prune.controllers.specs import ActionSpec, MlpArchitecture


def test_output_stays_within_the_action_limits(two_joint_specs: tuple[ObservationSpec, ActionSpec]) -> None:
    observation, action = two_joint_specs
    for squash in ("tanh", "clip"):
        module = Mlp.for_action(MlpArchitecture(hidden=(8,), squash=squash), observation.size, action)
        actions = module(100 * torch.randn(200, observation.size))
        assert (actions >= torch.tensor(action.lower) - 1e-6).all()
        assert (actions <= torch.tensor(action.upper) + 1e-6).all()


def test_observation_is_normalized_and_clipped() -> None:
    module = Mlp(MlpArchitecture(hidden=(), observation_clip=2.0), 2, 1)
    module.normalizer.mean.copy_(torch.tensor([1.0, 0.0]))
    module.normalizer.inverse_std.copy_(torch.tensor([0.5, 10.0]))
    normalized = module.normalizer(torch.tensor([[3.0, 1.0]]))
    assert normalized.tolist() == [[1.0, 2.0]]


def test_declared_shapes_are_those_of_the_module() -> None:
    for hidden in ((), (7,), (7, 3)):
        architecture = MlpArchitecture(hidden=hidden)
        module = Mlp(architecture, 4, 2)
        assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == architecture.tensor_shapes(4, 2)


def test_parameter_count_leaves_out_statistics_and_limits() -> None:
    assert parameter_count(Mlp(MlpArchitecture(hidden=(3,)), 4, 2)) == (4 + 1) * 3 + (3 + 1) * 2
