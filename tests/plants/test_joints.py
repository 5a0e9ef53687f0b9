from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import environment_specs, make_environment
from nncontrol_prune.plants.joints import JointReadout
from nncontrol_prune.runtime.observation import ObservationAssembler
from tests.legged_robot import LEGGED


@pytest.mark.parametrize("environment", [CARTPOLE, "Hopper-v5", "HalfCheetah-v5", "InvertedDoublePendulum-v5", LEGGED])
def test_observation_put_together_from_joint_states_is_the_environments(environment: str) -> None:
    env = make_environment(environment)
    spec = environment_specs(environment).observation
    readout = JointReadout(env, spec)
    assembler = ObservationAssembler(spec, 2 if environment == LEGGED else 1)
    observation, _ = env.reset(seed=0)
    if environment == "Hopper-v5":
        base = env.unwrapped
        base.set_state(base.data.qpos, np.full(base.model.nv, 15.0))
        observation = base._get_obs()
        assert (observation == 10.0).any(), "velocities are clipped"
    readout.read(observation)
    assert assembler.joint_states(readout.names, readout.position, readout.velocity, readout.effort) is None
    for name, values in readout.others.items():
        assert assembler.other(name, values)
    for quantity, values in readout.vectors.items():
        assembler.vector(quantity, values)
    assembler.complete()
    np.testing.assert_allclose(assembler.observation, observation, atol=1e-15)
    env.close()


def test_offset_and_scale_are_taken_back_from_what_is_observed() -> None:
    env = make_environment(LEGGED)
    readout = JointReadout(env, environment_specs(LEGGED).observation)
    env.reset(seed=0)
    readout.read(np.arange(1.0, 21.0))
    assert {quantity: values.tolist() for quantity, values in readout.vectors.items()} == {
        "angular_velocity": [4.0, 8.0, 12.0],
        "projected_gravity": [4.0, 5.0, 6.0],
        "velocity_command": [3.5, 4.0, 36.0],
    }
    np.testing.assert_allclose(readout.position, [10.4, 10.2])
    np.testing.assert_allclose(readout.velocity, [320.0, 340.0])  # the newest of three ticks
    assert {name: values.tolist() for name, values in readout.others.items()} == {"height": [20.0]}
    env.close()
