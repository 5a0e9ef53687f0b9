from __future__ import annotations

import numpy as np

from nncontrol_prune.drawing import without_wraps


def test_line_has_a_gap_where_an_angle_wraps_and_none_where_something_else_jumps() -> None:
    np.testing.assert_array_equal(without_wraps([3.0, 3.1, -3.1, -3.0]), [3.0, 3.1, np.nan, -3.0])
    speed = [0.0, 5.0, 10.0, 15.0, 20.0]
    np.testing.assert_array_equal(without_wraps(speed), speed)
