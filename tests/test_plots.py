from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.plots import plot_run
from nncontrol_prune.rollouts.reader import Rollouts

ROWS = 20


@pytest.fixture
def middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that draws a run with so many joints, swapped half-way, and returns the commands' axis."""

    def draw(joints: int) -> Axes:
        drawn: list[Figure] = []
        save = Figure.savefig

        def keep(figure: Figure, path: Path, **options: object) -> None:
            drawn.append(figure)
            save(figure, path, **options)

        monkeypatch.setattr(Figure, "savefig", keep)
        limits = tuple(float(number + 1) for number in range(joints))
        action = ActionSpec(
            joints=tuple(f"joint {number}" for number in range(joints)),
            lower=tuple(-limit for limit in limits),
            upper=limits,
            unit="N m",
        )
        rollouts = Rollouts(
            stamp=np.arange(ROWS) / 10,
            bundle=np.repeat([0, 1], ROWS // 2),
            observation=np.zeros((ROWS, 3)),
            action=np.tile(limits, (ROWS, 1)),
            reward=np.ones(ROWS),
            episode=np.zeros(ROWS, int),
            step=np.arange(ROWS),
            terminated=np.zeros(ROWS, bool),
            truncated=np.zeros(ROWS, bool),
            controllers=["dense@0", "pruned@1"],
            warnings=[],
            bags=[],
        )
        ticks = np.column_stack([rollouts.bundle, np.full((ROWS, 4), 0.1)])
        path = tmp_path / "run.png"
        plot_run(path, "Hopper-v5", rollouts, action, ticks, rollouts.controllers)
        assert path.read_bytes().startswith(b"\x89PNG")
        return drawn[0].axes[1]

    return draw


def test_one_or_two_commands_share_an_axis_in_their_unit(middle) -> None:
    axis = middle(2)
    assert axis.get_ylabel() == "command [N m]"
    assert {float(np.nanmax(line.get_ydata())) for line in axis.lines[:4]} == {1.0, 2.0}


def test_many_commands_have_a_lane_each_with_the_joints_name(middle) -> None:
    axis = middle(3)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["joint 0", "joint 1", "joint 2"]
    # At their upper limits they are at the upper edge of their lanes, and up is towards smaller numbers.
    assert [float(np.nanmax(line.get_ydata())) for line in axis.lines[:3]] == pytest.approx([-0.45, 0.55, 1.55])
    assert axis.yaxis_inverted()
