from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nncontrol_prune.controllers.verdict import ConditionSummary, Verdict
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.service.charts import Chart
from nncontrol_prune.service.report_charts import (
    DECISIONS,
    MOST_COMMANDS,
    OUTCOMES,
    attraction_chart,
    coefficients_chart,
    eigenvalues_chart,
    latency_chart,
    responses_chart,
    robustness_chart,
)
from nncontrol_prune.service.report_pictures import write_picture
from nncontrol_prune.service.report_plots import embedded
from nncontrol_prune.validation.evidence import Attraction, Response, Track
from nncontrol_prune.validation.stability import LocalStability, Pole


def group(name: str, *components: str, kept: int = 4) -> GroupReport:
    kind = "intra-component" if len(components) == 1 else "inter-component"
    return GroupReport(
        name=name,
        components=components,
        kind=kind,
        channels=16,
        kept=kept,
        coefficient=1 - kept / 16,
        parameters_per_channel=9,
    )


def loop(*places: complex) -> LocalStability:
    poles = [complex(place) for place in places]
    radius = max(map(abs, poles))
    return LocalStability(
        equilibrium=(0.0,),
        action=(0.0,),
        delay=0,
        spectral_radius=radius,
        poles=tuple(Pole(real=pole.real, imaginary=pole.imag, damping=1.0, frequency=1.0) for pole in poles),
        delay_margin=1 if radius < 1 else -1,
        gain_margins=None,
        lyapunov=None,
    )


def response(values: list[float], joints: int = 1) -> Response:
    commands = {f"joint {index}": tuple(values) for index in range(joints)}
    track = Track(signals={"angle [rad]": tuple(values)}, commands=commands, success=True, episode_return=1.0)
    return Response(seed=0, dense=track, pruned=track)


def condition(name: str, pruned: int) -> ConditionSummary:
    return ConditionSummary(
        condition=name,
        pairs=20,
        dense_successes=20,
        pruned_successes=pruned,
        regressions=20 - pruned,
        dense_return=800.0,
        pruned_return=700.0,
        dense_interval=(0.83, 1.0),
        pruned_interval=(0.4, 0.9),
    )


GROUPS = [group("encoder.0", "encoder"), group("policy.0", "policy", kept=8), group("latent", "encoder", "policy")]
CONDITIONS = [condition("pushes", 14), condition("noise", 20)]


def test_groups_that_couple_components_come_first_and_are_hatched() -> None:
    (panel,) = coefficients_chart(GROUPS).panels
    assert panel.y.names == ("latent  16 → 4", "encoder.0  16 → 4", "policy.0  16 → 8")
    hatched = [series for series in panel.series if series.hatched]
    assert [(series.name, series.y) for series in hatched] == [("removed: several components", (0.0,))]
    colours = {series.name: series.colour for series in panel.series}
    assert len(set(colours.values())) == len(colours) == 4


def test_bars_are_as_long_as_what_was_removed_and_the_rest_was_kept() -> None:
    (panel,) = coefficients_chart(GROUPS).panels
    spans = {series.name: series.spans for series in panel.series}
    assert spans["removed: policy"] == ((0.0, 0.5),)
    assert spans["kept"] == ((0.75, 1.0), (0.75, 1.0), (0.5, 1.0))


@pytest.mark.parametrize("kinds", [[kind[2] for kind in DECISIONS.values()], [outcome[3] for outcome in OUTCOMES]])
def test_what_means_different_things_differs_in_shape(kinds: list[str]) -> None:
    assert len(set(kinds)) == len(kinds)


def test_poles_near_one_are_drawn_a_second_time_closer() -> None:
    whole, near = eigenvalues_chart(loop(0.99 + 0.01j, 0.2), loop(1.02, 0.3)).panels
    assert whole.equal
    assert near.equal
    assert whole.x.limits[1] > 1.02
    assert near.x.limits == pytest.approx((0.972, 1.028))


def test_no_close_view_where_no_pole_is_slow() -> None:
    assert len(eigenvalues_chart(loop(0.3), None).panels) == 1
    assert eigenvalues_chart(None, None) is None


def test_poles_far_outside_are_in_the_picture() -> None:
    (whole,) = eigenvalues_chart(loop(-2.5), loop(0.1)).panels
    assert whole.x.limits[0] < -2.5


def test_long_rest_after_a_short_transient_is_out_of_sight_and_the_note_says_so() -> None:
    chart = responses_chart([response([1.0] * 150 + [0.0] * 4851)], rate=100.0)
    assert {panel.x.limits for panel in chart.panels} == {(0.0, 2.0)}
    assert "the first 2 s of 50 s" in chart.note
    assert len(chart.panels[0].series[0].x) == 5001


@pytest.mark.parametrize("values", [[math.sin(tick / 10) for tick in range(1000)], [1.0] * 100 + [math.nan] * 900])
def test_whole_episode_is_in_sight_where_nothing_settles(values: list[float]) -> None:
    chart = responses_chart([response(values)], rate=100.0)
    assert {panel.x.limits for panel in chart.panels} == {None}
    assert chart.note == ""


def test_commands_that_are_left_out_are_named() -> None:
    chart = responses_chart([response([0.0, 1.0], joints=MOST_COMMANDS + 2)], rate=10.0)
    assert len(chart.rows) == 1 + MOST_COMMANDS
    assert chart.note.endswith("the commands of joint 6, joint 7.")


def test_no_line_is_drawn_where_an_angle_wraps() -> None:
    chart = responses_chart([response([3.0, 3.1, -3.1, -3.0])], rate=10.0)
    drawn = chart.panels[0].series[0].y
    assert np.isnan(drawn).tolist() == [False, False, True, False]


def test_limit_is_drawn_only_where_it_is_near() -> None:
    seconds = (1e-5, 2e-5)
    near, far = latency_chart(seconds, seconds, 1e-4), latency_chart(seconds, seconds, 6e-3)
    assert [series.name for series in near.panels[0].series] == ["dense", "pruned", "allowed to 99 of 100"]
    assert [series.name for series in far.panels[0].series] == ["dense", "pruned"]
    assert "6,000 µs, which is 300 times the longest" in far.note
    assert latency_chart(seconds, seconds, None).note == ""


def test_regressions_stand_beside_each_condition() -> None:
    panel, _ = robustness_chart(CONDITIONS, 800.0).panels
    assert panel.y.names == ("pushes  (6 of 20 regress)", "noise  (0 of 20 regress)")
    assert panel.series[1].x == (0.7, 1.0)
    assert panel.series[1].spans == ((0.4, 0.9), (0.4, 0.9))


def test_returns_under_conditions_are_shares_of_what_the_dense_controller_usually_returns() -> None:
    _, panel = robustness_chart(CONDITIONS, 1000.0).panels
    assert panel.y.names == ("pushes", "noise")
    assert {series.name: series.x for series in panel.series} == {"dense": (0.8, 0.8), "pruned": (0.7, 0.7)}


def test_starts_are_told_apart_by_who_succeeds() -> None:
    starts = tuple((float(index), 0.0) for index in range(4))
    found = Attraction(
        labels=("a", "b"), starts=starts, dense=(True, True, False, False), pruned=(True, False, True, False)
    )
    (panel,) = attraction_chart(found).panels
    assert {series.name: series.x for series in panel.series} == {
        "both succeed: 1": (0.0,),
        "only the dense one: 1": (1.0,),
        "only the pruned one: 1": (2.0,),
        "neither: 1": (3.0,),
    }


@pytest.mark.parametrize(
    "chart",
    [
        coefficients_chart(GROUPS),
        robustness_chart(CONDITIONS, 800.0),
        eigenvalues_chart(loop(0.99, 0.5), loop(-2.5)),
        responses_chart([response([math.nan] * 9), response([math.inf, 1.0])], rate=10.0),
    ],
    ids=lambda chart: chart.name,
)
def test_both_drawers_draw_every_kind_of_chart(chart: Chart, tmp_path: Path) -> None:
    assert write_picture(chart, tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    _, script, elements = embedded({chart.name: chart})
    assert elements.keys() == {chart.name}
    assert "docs_json" in script


def test_verdict_without_conditions_has_no_picture_of_them(small_bundle, make_verdict: Callable[..., Verdict]) -> None:
    assert robustness_chart(make_verdict(small_bundle).robustness, 1.0) is None
    assert coefficients_chart(()) is None
