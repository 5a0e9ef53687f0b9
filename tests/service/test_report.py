from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.specs import Provenance
from nncontrol_prune.controllers.verdict import Criterion, Verdict
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service import report_files
from nncontrol_prune.service.report import Report, curve, make_report, removed_groups
from nncontrol_prune.service.report_charts import charts_of
from nncontrol_prune.service.report_files import write_report
from nncontrol_prune.service.report_page import page
from nncontrol_prune.service.report_tables import behaviour_table
from nncontrol_prune.validation.evidence import Evidence

MakeVerdict = Callable[..., Verdict]


def offline(verdict: Verdict, reason: str) -> Verdict:
    """Return an off-line verdict with this reason."""
    criteria = (Criterion(name="actions", outcome="passed", reason=reason),)
    return verdict.model_copy(update={"criteria": criteria})


@pytest.fixture(scope="module")
def full(
    shipped_bundle: Bundle,
    wrong_way: Bundle,
    wrong_way_evidence: Evidence,
    make_verdict: MakeVerdict,
    tmp_path_factory: pytest.TempPathFactory,
) -> Report:
    """Everything there is to show, of a controller that fails."""
    store = BundleStore(tmp_path_factory.mktemp("full"))
    verdict = make_verdict(wrong_way, accepted=False).model_copy(update={"against": shipped_bundle.reference})
    store.add(wrong_way)
    store.write_verdict(verdict)
    return make_report(verdict, wrong_way, shipped_bundle, store, "the pole stands", wrong_way_evidence)


@pytest.fixture(scope="module")
def written(full: Report, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Its files."""
    return write_report(full, tmp_path_factory.mktemp("full") / "report")


@pytest.fixture
def bare(shipped_bundle: Bundle, make_verdict: MakeVerdict, store: BundleStore) -> Report:
    """As little as there can be: an off-line verdict."""
    verdict = make_verdict(shipped_bundle, offline=True)
    return make_report(verdict, shipped_bundle, shipped_bundle, store, "", None)


def test_data_is_read_again_as_it_was_written(full: Report, written: list[Path]) -> None:
    data = (written[0].parent / "report.json").read_bytes()
    assert Report.model_validate_json(data) == full
    json.loads(data, parse_constant=pytest.fail)


def test_numbers_of_a_plant_that_blew_up_are_kept(full: Report) -> None:
    first, *others = full.evidence.responses
    track = first.pruned.model_copy(update={"signals": {"x": (math.nan, -math.inf)}, "episode_return": math.nan})
    responses = (first.model_copy(update={"pruned": track}), *others)
    written = full.model_copy(update={"evidence": full.evidence.model_copy(update={"responses": responses})})
    json.loads(written.model_dump_json(), parse_constant=pytest.fail)
    found = Report.model_validate_json(written.model_dump_json()).evidence.responses[0].pruned
    assert math.isnan(found.signals["x"][0])
    assert found.signals["x"][1] == -math.inf
    assert math.isnan(found.episode_return)


def test_page_begins_with_the_verdict_and_its_reasons(full: Report) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", page(full, charts_of(full)).partition("<body>")[2])
    order = [
        "REJECTED",
        "a test said so",
        "Criteria",
        "Pruning coefficients",
        "Sparsity against return",
        "Time responses",
    ]
    order += ["Eigenvalues", "Region of attraction", "Robustness", "Latency"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


def test_what_was_measured_of_the_episodes_stands_below_the_responses(full: Report) -> None:
    table = behaviour_table(full.evidence)
    rows = {name: (dense, pruned) for name, dense, pruned in table.rows}
    dense, pruned = rows["pole angle [rad]: settling time"]
    assert 0.5 < float(dense.removesuffix(" s")) < 10.0
    assert pruned == "does not settle"
    assert rows["pole angle [rad]: overshoot"][0].endswith("%")
    dense, pruned = rows["cart position [m]: error in the end"]
    assert float(dense) < float(pruned)
    assert "commands, root mean square, of half their range" in rows
    found = page(full, charts_of(full))
    assert found.index("Time responses") < found.index("Medians over 5 episodes") < found.index("Eigenvalues")


def test_page_needs_no_network(full: Report) -> None:
    found = page(full, charts_of(full))
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:)[^"']+""", found)
    assert "default-src 'none'" in found


def test_page_shows_names_and_reasons_as_text(bare: Report) -> None:
    evil = "</script><script>alert(1)</script>"
    found = page(bare.model_copy(update={"verdict": offline(bare.verdict, evil)}), {})
    assert evil not in found
    assert "&lt;script&gt;alert(1)" in found


def test_report_without_a_closed_loop_says_so_wherever_something_is_missing(bare: Report) -> None:
    charts = charts_of(bare)
    assert charts == {}
    found = page(bare, charts)
    assert "off-line check on rollouts alone" in found
    assert found.count("No closed loop was run.") >= 4


def test_pictures_lie_beside_the_page_one_a_chart(full: Report, written: list[Path]) -> None:
    names = {path.stem for path in written if path.suffix == ".png"}
    assert names == set(charts_of(full)) >= {"sparsity", "responses", "attraction", "latency"}
    for path in written:
        assert path.stat().st_size > 1000
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")


def test_newer_report_takes_the_place_of_an_older_one(full: Report, bare: Report, tmp_path: Path) -> None:
    directory = tmp_path / "report"
    write_report(full, directory)
    write_report(bare, directory)
    assert {path.name for path in directory.iterdir()} == {"report.json", "report.html"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_link_to_a_directory_stays_one(bare: Report, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to("reports/of-today")
    (tmp_path / "reports").mkdir()
    write_report(bare, link)
    data = write_report(bare, link)[0]
    assert link.is_symlink()
    assert (data.parent, data.resolve()) == (link, tmp_path / "reports/of-today" / data.name)


def test_what_is_no_report_is_not_replaced(bare: Report, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"no report \(it holds thesis.tex\)"):
        write_report(bare, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("data", "picture", "named"),
    [
        ('{"sales": 12}', "latency.png", "report.json"),
        ("[not JSON", "latency.png", "report.json"),
        (None, "holiday.png", "holiday.png"),
    ],
)
def test_other_peoples_data_and_pictures_are_not_replaced(
    bare: Report, tmp_path: Path, data: str | None, picture: str, named: str
) -> None:
    (tmp_path / "report.json").write_text(bare.model_dump_json() if data is None else data)
    (tmp_path / picture).touch()
    with pytest.raises(FileExistsError, match=rf"no report \(it holds {named}\); move that away or name another"):
        write_report(bare, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({picture, "report.json"})


def test_failure_in_the_middle_leaves_the_older_report(
    full: Report, bare: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    directory = tmp_path / "report"
    write_report(bare, directory)
    before = (directory / "report.json").read_bytes()
    monkeypatch.setattr(report_files, "write_pictures", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_report(full, directory)
    assert (directory / "report.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_eigenvalues_are_drawn_with_the_unit_circle(
    pendulum: Bundle, pendulum_evidence: Evidence, make_verdict: MakeVerdict, store: BundleStore
) -> None:
    report = make_report(make_verdict(pendulum), pendulum, pendulum, store, "", pendulum_evidence)
    (panel, *_) = charts_of(report)["eigenvalues"].panels
    assert [series.name for series in panel.series] == ["unit circle", "dense", "pruned"]
    assert panel.equal
    found = page(report, charts_of(report))
    assert "0.95709" in found
    assert "Lyapunov decrease of xᵀ P x" in found


def test_curve_is_of_what_comes_from_the_same_controller(
    small_bundle: Bundle, make_cartpole_bundle, make_verdict: MakeVerdict, store: BundleStore
) -> None:
    pruned = [make_cartpole_bundle(hidden=(width, width), parent=small_bundle) for width in (4, 8)]
    other = make_cartpole_bundle(hidden=(4, 4), seed=3, parent=pruned[0])
    for bundle in (*pruned, other):
        store.add(bundle)
        store.write_verdict(make_verdict(bundle))
    gone = make_cartpole_bundle(hidden=(6, 6), parent=small_bundle)
    store.write_verdict(make_verdict(gone))
    found = curve(make_verdict(pruned[0]), small_bundle, store)
    assert [point.reference for point in found] == [pruned[1].reference, pruned[0].reference]
    assert found[0].return_ratio == 1.0


def test_groups_are_told_by_what_the_candidate_says_was_removed(small_bundle: Bundle, make_cartpole_bundle) -> None:
    made = Provenance(
        rollouts="none",
        method="uniform",
        importance="l2",
        coefficients={"layers.0": 0.5, "layers.1": 0.25},
        sparsity=0.5,
    )
    pruned = make_cartpole_bundle(hidden=(8, 9), parent=small_bundle, provenance=made)
    found = removed_groups(pruned, small_bundle)
    assert [(group.name, group.channels, group.kept) for group in found] == [("layers.0", 16, 8), ("layers.1", 12, 9)]
    assert removed_groups(small_bundle, small_bundle) == ()


def test_why_neither_loop_has_poles_is_said_once(full: Report) -> None:
    assert full.evidence is not None
    without = {"dense_local": None, "pruned_local": None, "notes": ("local stability: not applicable, nothing rests",)}
    report = full.model_copy(update={"evidence": full.evidence.model_copy(update=without)})
    found = page(report, charts_of(report))
    assert "Neither controller&#39;s loop has poles to show: nothing rests." in found
    assert "has no poles to show" not in found
