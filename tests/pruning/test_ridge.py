from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nncontrol_prune.pruning.ridge import Masks, weighted_ridge


def test_a_linear_problem_is_solved_exactly() -> None:
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(200, 4).double(), torch.randn(4, 3).double(), torch.randn(3).double()
    found, offset = weighted_ridge(inputs, inputs @ weight + bias, torch.rand(200).double())
    torch.testing.assert_close(found, weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(offset, bias, atol=1e-4, rtol=0)


def test_weights_decide_whose_error_counts() -> None:
    inputs = torch.tensor([[0.0], [1.0], [1.0]]).double()
    targets = torch.tensor([[0.0], [1.0], [3.0]]).double()
    weight, _ = weighted_ridge(inputs, targets, torch.tensor([1.0, 3.0, 1.0]).double())
    torch.testing.assert_close(weight, torch.tensor([[1.5]]).double(), atol=1e-4, rtol=0)


def test_without_an_intercept_the_line_goes_through_the_origin() -> None:
    inputs, targets = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[3.0], [4.0]]).double()
    weight, bias = weighted_ridge(inputs, targets, torch.ones(2).double(), intercept=False)
    torch.testing.assert_close(weight, torch.tensor([[11 / 5]]).double(), atol=1e-4, rtol=0)
    assert float(bias) == 0.0


def test_dependent_inputs_are_no_obstacle() -> None:
    column = torch.randn(50, 1).double()
    weight, bias = weighted_ridge(column.repeat(1, 3), column, torch.ones(50).double())
    torch.testing.assert_close(column.repeat(1, 3) @ weight + bias, column, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [3, 4, 20])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1.0])  # in binary, the mean of some is not quite what they are
def test_constant_inputs_give_the_mean(rows: int, value: float) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        inputs, targets = torch.full((rows, 5), value).double(), torch.rand(rows, 1).double()
        weights = torch.rand(rows).double()
        weight, bias = weighted_ridge(inputs, targets, weights)
        assert weight.abs().max() < 1.0
        mean = (weights[:, None] * targets).sum(0, keepdim=True) / weights.sum()
        torch.testing.assert_close(inputs[:1] @ weight + bias, mean)


def test_what_the_rows_do_not_tell_stays_as_it_was() -> None:
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(50, 1), torch.zeros(50, 1)], dim=1).double()  # nothing is known of the second
    left = torch.tensor([[1.0], [7.0]]).double()
    weight, bias = weighted_ridge(inputs, 3 * inputs[:, :1] + 2, torch.ones(50).double(), towards=left)
    torch.testing.assert_close(weight, torch.tensor([[3.0], [7.0]]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias, torch.tensor([2.0]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("near", [True, False])
def test_fewer_rows_than_inputs_give_the_least_error_all_the_same(intercept: bool, near: bool) -> None:
    torch.manual_seed(0)
    inputs, targets, weights = torch.randn(8, 20).double(), torch.randn(8, 3).double(), torch.rand(8).double()
    left = torch.randn(20, 3).double() if near else torch.zeros(20, 3).double()
    weight, bias = weighted_ridge(
        inputs, targets, weights, ridge=0.1, towards=left if near else None, intercept=intercept
    )
    weight.requires_grad_()
    bias.requires_grad_()
    share = (weights / weights.sum())[:, None]
    centred = inputs - intercept * (share * inputs).sum(0)
    damping = 0.1 * (share * centred.square()).sum() / 20
    error = (share * (inputs @ weight + bias - targets).square()).sum() + damping * (weight - left).square().sum()
    error.backward()
    found = [weight.grad, bias.grad] if intercept else [weight.grad]
    for gradient in found:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)


CHANNEL = torch.tensor([0, 1, 0, 1, 2, 2, 3, -1, -2, 0, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4])
"""Of 20 inputs: channels of one to nine of them, and two inputs that are no channel's."""


def odds_of(logits: Tensor) -> Tensor:
    """Odds, by channel, for each input; those that are no channel's stay."""
    return torch.where(CHANNEL >= 0, logits.exp()[CHANNEL.clamp_min(0)], 0.0)


@pytest.mark.parametrize("rows", [6, 15, 30])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("near", [True, False])
def test_masks_add_what_they_cost_in_expectation(rows: int, intercept: bool, near: bool) -> None:
    torch.manual_seed(0)
    inputs, targets, weights = torch.randn(rows, 20).double(), torch.randn(rows, 3).double(), torch.rand(rows).double()
    left = torch.randn(20, 3).double() if near else torch.zeros(20, 3).double()
    logits = torch.tensor([-3.0, 0.0, 2.0, 5.0, -1.0]).double()
    found, _ = weighted_ridge(
        inputs, targets, weights, Masks(CHANNEL, odds_of(logits)), towards=left if near else None, intercept=intercept
    )
    leaving = torch.sigmoid(logits)  # odds are the probability that it leaves over that it stays
    stays = torch.where(CHANNEL >= 0, 1 - leaving[CHANNEL.clamp_min(0)], 1.0)
    weight = (found / stays[:, None]).requires_grad_()  # what is found is their product
    share = (weights / weights.sum())[:, None]
    centred, wanted = (values - intercept * (share * values).sum(0) for values in (inputs, targets))
    error = (share * (centred @ (stays[:, None] * weight) - wanted).square()).sum()
    for channel, leaves in enumerate(leaving):  # the variance of a mask, which all inputs of a channel share
        given = centred[:, channel == CHANNEL] @ weight[channel == CHANNEL]
        error = error + leaves * (1 - leaves) * (share * given.square()).sum()
    damping = 1e-6 * (share * centred.square()).sum() / 20
    (error + damping * (stays[:, None] * weight - left).square().sum()).backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-9, rtol=0)


@pytest.mark.parametrize("rows", [6, 15, 30])
def test_it_is_differentiable_in_the_masks_and_the_inputs(rows: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(rows, 20).double().requires_grad_()
    targets, weights, left = torch.randn(rows, 2).double(), torch.rand(rows).double(), torch.randn(20, 2).double()
    logits = torch.randn(5).double().requires_grad_()

    def solved(inputs: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return weighted_ridge(inputs, targets, weights, Masks(CHANNEL, odds_of(logits)), ridge=0.1, towards=left)

    assert torch.autograd.gradcheck(solved, (inputs, logits))


@pytest.mark.parametrize("rows", [6, 15, 30])
def test_gradients_are_finite_where_no_input_ever_changes(rows: int) -> None:
    inputs, logits = torch.zeros(rows, 20).double().requires_grad_(), torch.full((5,), 9.0).double().requires_grad_()
    weight, bias = weighted_ridge(inputs, torch.rand(rows, 2).double(), torch.ones(rows).double(),
                                  Masks(CHANNEL, odds_of(logits)))  # fmt: skip
    (weight.sum() + bias.sum()).backward()
    assert torch.isfinite(inputs.grad).all()
    assert torch.isfinite(logits.grad).all()
