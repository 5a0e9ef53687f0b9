from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.terms import (
    Term,
    check_errors,
    check_terms,
    chosen_terms,
    dissimilarity,
    mean_squared,
    psnr,
    squared,
    structural_similarity,
    weighted_sum,
)


def test_errors_are_measured_in_the_scale() -> None:
    term = Term("y", scale=torch.tensor([1.0, 2.0]))
    errors = term.errors({"y": torch.tensor([[1.0, 4.0]])}, {"y": torch.zeros(1, 2)}, {})
    assert errors.tolist() == [1.0 + 4.0]


def test_outputs_are_transformed_in_units_of_the_scale_before_they_are_compared() -> None:
    term = Term("y", scale=2.0, transform=torch.asinh)
    errors = term.errors({"y": torch.tensor([2e-3, 200.0])}, {"y": torch.zeros(2)}, {})
    assert errors.tolist() == pytest.approx([1e-6, math.asinh(100.0) ** 2])


def test_targets_are_the_dense_network_zero_or_the_data() -> None:
    found, dense, batch = {"y": torch.tensor([3.0])}, {"y": torch.tensor([1.0])}, {"image": torch.tensor([7.0])}
    assert [Term("y", target=target).errors(found, dense, batch).item() for target in ("dense", "zero", "image")] == [
        4.0,
        9.0,
        16.0,
    ]


def test_the_objective_is_the_weighted_sum_over_weighted_rows() -> None:
    terms = [Term("a", weight=2.0), Term("b", weight=0.5, name="other")]
    found = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([2.0, 0.0])}
    dense = {name: torch.zeros(2) for name in found}
    total, means = weighted_sum(terms, found, dense, {}, torch.tensor([0.5, 1.5]))
    assert {name: float(mean) for name, mean in means.items()} == {"a": 7.0, "other": 1.0}
    assert float(total) == 2.0 * 7.0 + 0.5 * 1.0


def test_identical_images_are_perfectly_similar() -> None:
    image = torch.rand(3, 1, 20, 20)
    torch.testing.assert_close(structural_similarity(image, image), torch.ones(3))
    torch.testing.assert_close(dissimilarity(image, image), torch.zeros(3), atol=1e-6, rtol=0)


def test_similarity_of_flat_images_follows_from_their_means() -> None:
    dark, light = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    wanted = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(structural_similarity(dark, light)) == pytest.approx(wanted, rel=1e-4)


def test_psnr_is_in_decibels() -> None:
    error = float(mean_squared(torch.full((1, 4), 0.1), torch.zeros(1, 4)))
    assert psnr(error) == pytest.approx(20.0, rel=1e-5)
    assert psnr(0.0) == math.inf
    assert float(squared(torch.full((1, 4), 0.1), torch.zeros(1, 4))) == pytest.approx(0.04)


def test_a_term_has_to_look_at_what_there_is() -> None:
    outputs, batch = {"y": torch.zeros(2)}, {"x": torch.zeros(2)}
    for terms, message in (
        ([Term("z")], "the output 'z'; the run gives y"),
        ([Term("y", target="image")], "compared with 'image'; allowed are dense, zero and what the batch holds: x"),
        ([Term("y", weight=0.0, limit=1.0)], "no term has a weight above 0"),
        ([Term("y", weight=-1.0)], "'y' has weight -1.0 and limit None; it needs a finite weight of 0 or more"),
        ([Term("y"), Term("y", weight=math.nan, name="b")], "'b' has weight nan and limit None; it needs a finite"),
        ([Term("y", weight=math.inf)], "has weight inf"),
        ([Term("y", weight="1")], "has weight 1 and"),
        ([Term("y", limit=math.nan)], "has weight 1.0 and limit nan; .* a limit above 0 if any"),
        ([Term("y", scale=0.0)], "'y' has scale 0.0; allowed are finite numbers above 0, and None for the spread"),
        ([Term("y", scale=-1)], "has scale -1; allowed"),
        ([Term("y", scale=math.nan)], "has scale nan; allowed"),
        ([Term("y", scale="range")], "has a scale of type str; allowed are a number"),
        ([Term("y", scale=torch.ones(2))], r"a scale of shape \(2,\); allowed .* a row of 'y', \(1,\)"),
        ([Term("y", scale=torch.ones(2, 1))], r"a scale of shape \(2, 1\); allowed .* a row of 'y', \(1,\)"),
    ):
        with pytest.raises(PruningError, match=message):
            check_terms(terms, outputs, batch)


def test_a_scale_is_a_number_or_one_for_each_entry_of_a_row() -> None:
    outputs = {"y": torch.zeros(2, 3), "image": torch.zeros(2, 1, 4, 5), "line": torch.zeros(2)}
    for output, shapes in (
        ("y", [(), (1,), (3,), (1, 3), (1, 1)]),
        ("image", [(), (4, 5), (1, 1, 5), (1, 4, 5), (1, 1, 4, 5)]),
        ("line", [(), (1,)]),
    ):
        for shape in shapes:
            check_terms([Term(output, scale=torch.ones(shape))], outputs, {})


def _refuse(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    raise ValueError("no such error")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("y", target="w"), r"'y' fails with RuntimeError: .*it compares 'y', \(4, 3\), with 'w', \(4, 2\)$"),
        (Term("y", error=_refuse), r"'y' fails with ValueError: no such error; .* with 'dense', \(4, 3\)$"),
        (Term("y", error=lambda a, b: (a - b).square().mean()), r"has shape \(\); .* number for each row, \(4,\)$"),
        (Term("y", error=lambda a, b: (a - b).square()), r"has shape \(4, 3\); it has to be a tensor with"),
        (Term("y", error=lambda a, b: 1.0), "has type float; it has to be"),  # type: ignore[return-value]
        (
            Term("y", transform=torch.log, name="tails"),
            "the term 'tails' gives NaN or infinity for the dense network's",
        ),
    ],
)
def test_a_term_has_a_finite_error_for_each_row_of_the_dense_network(term: Term, message: str) -> None:
    dense, batch = {"y": torch.linspace(-1, 1, 12).view(4, 3)}, {"w": torch.zeros(4, 2)}
    check_errors([Term("y")], dense, batch)
    with pytest.raises(PruningError, match=message):
        check_errors([Term("y"), term], dense, batch)


def test_terms_need_names_that_tell_them_apart() -> None:
    outputs = {"y": torch.zeros(2)}
    alike = [Term("y"), Term("y", error=mean_squared, limit=0.1)]
    with pytest.raises(PruningError, match="2 terms go by the name 'y'; give each a name of its own"):
        check_terms(alike, outputs, {})
    check_terms([alike[0], replace(alike[1], name="bounded")], outputs, {})


def test_users_choose_terms_by_name() -> None:
    known = [Term("action"), Term("jacobian", weight=0.0)]
    assert [t.label for t in chosen_terms(known, None, {})] == ["action"]
    chosen = chosen_terms(known, {"jacobian": 0.1}, {"action": 0.5})
    assert [(t.label, t.weight, t.limit) for t in chosen] == [("action", 0.0, 0.5), ("jacobian", 0.1, None)]
    with pytest.raises(PruningError, match="no term 'reward' for this network; there are action, jacobian"):
        chosen_terms(known, {"reward": 1.0}, {})
