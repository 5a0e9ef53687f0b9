from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import environment_specs, make_environment
from nncontrol_prune.plants.joints import JointReadout
from nncontrol_prune.runtime.observation import ObservationAssembler


@pytest.mark.parametrize("environment", [CARTPOLE, "Hopper-v5", "HalfCheetah-v5", "InvertedDoublePendulum-v5"])
def test_observation_put_together_from_joint_states_is_the_environments(environment: str) -> None:
    env = make_environment(environment)
    spec = environment_specs(environment).observation
    readout = JointReadout(env, spec)
    assembler = ObservationAssembler(spec, 1)
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
    np.testing.assert_allclose(assembler.observation, observation)
    env.close()
