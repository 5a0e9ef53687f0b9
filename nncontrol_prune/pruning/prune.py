"""Pruning any torch module, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nncontrol_prune.controllers.specs import problem_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import HELD_OUT_SHARE, MIN_ROWS, Calibration
from nncontrol_prune.pruning.conduct import steady
from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.engine import ON_POLICY_ROUNDS, Choose, Enough, Pruned, prune_network
from nncontrol_prune.pruning.errors import PruningError, Stuck, Unreachable
from nncontrol_prune.pruning.groups import Components
from nncontrol_prune.pruning.importance import Importance, checked
from nncontrol_prune.pruning.network import Batch, Network, Outputs, rows_of, take
from nncontrol_prune.pruning.observing import Observe, Observer
from nncontrol_prune.pruning.parts import Undivided
from nncontrol_prune.pruning.rehearsal import rehearse
from nncontrol_prune.pruning.settings import CostName, ImportanceName, Method, PruningSettings
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import Term, check_terms
from nncontrol_prune.pruning.tracing import check_traceable, without_fast_path


@dataclass(frozen=True)
class Budget:
    """How much to remove.

    Attributes:
        sparsity: Share of the cost to remove, in [0, 1).
        cost: What it is a share of: `parameters`, `multiplications` or `latency`.
        tolerance: How far the share may be off.
    """

    sparsity: float
    cost: CostName = "parameters"
    tolerance: float = 0.01


def prune(
    model: Module,
    *,
    data: Tensor | Batch,
    budget: Budget | float,
    trace: Callable[[Any, Any], Any] | None = None,
    components: Components | None = None,
    terms: Sequence[Term] | None = None,
    channel_multiple: int = 1,
    method: Method = "gradient",
    importance: ImportanceName | Importance = "taylor",
    component_weights: Mapping[str, float] | None = None,
    ties: Sequence[Sequence[str]] = (),
    keep: Sequence[str] = (),
    weights: Tensor | None = None,
    held_out: Tensor | None = None,
    rounds: int = 1,
    distill_steps: int = 0,
    latency: Callable[[Any], float] | None = None,
    choose: Choose | None = None,
    enough: Enough | None = None,
    observe: Observe | None = None,
    on_policy_rounds: int | None = None,
    variations: int = 0,
    jobs: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned[Module]:
    """Prune a module; the module itself is left as it is.

    Args:
        model: The dense network, in the units and the mode it is used in.
        data: Rows of what it takes in: a tensor (rows, ...), or named ones.
        budget: How much to remove; a number is a share of the parameters.
        trace: Runs a network on rows of the data and returns its output (rows, ...), or named ones. Every output's
            sizes stay. A network that is applied to its own output has to be unrolled over two steps or more. By
            default the network is called with the data.
        components: Names of the modules of each component; by default each child of the model is one, or the model
            itself where it has none.
        terms: What matters of the outputs; by default each output's squared error, in units of its own spread.
        channel_multiple: Groups keep a multiple of so many channels, or all of theirs.
        method: How the coefficients are found.
        importance: How the channels of a group are ranked: a name, or a function that takes `Evidence` and returns, by
            group, scores (channels,) of 0 or more, of which the least leave first; it is asked in each round.
        component_weights: How much more the channels of a component matter, for the method `threshold`.
        ties: Groups, by name, that keep as many channels as each other; ties that share a group are one.
        keep: Groups, by name, that keep all their channels.
        weights: Weights (rows,) of the rows; equal by default.
        held_out: Which rows (rows,), as booleans, are held out for judging; by default every fourth.
        rounds: Surgery and reconstruction in so many steps.
        distill_steps: Gradient steps of distillation; 0 for none.
        latency: Returns the seconds that a network takes, where it will run; a budget on latency needs it.
        choose: Takes the candidates and returns the index of the best, where something can tell that better than the
            terms, such as a closed loop. With it, uniform coefficients are a candidate beside those of the method,
            and not only what it picks is distilled, but also the one with the least objective, and one with channels
            ranked by `fisher`.
        enough: Takes a candidate and tells whether to end the varying, and to spare what else would be distilled.
        observe: Runs a copy of a pruned network where it is used, as in closed loop, and returns rows like the data's
            that it met there; those with NaN or infinity do not count, and of the others 3000 each time. It needs
            `choose`, since what is held out are rows that the dense network met.
        on_policy_rounds: Times that the reconstruction is repeated, and that distillation is told more, with such rows;
            None for three where there is `observe`.
        variations: Choices near the best one's coefficients that `choose` is asked about.
        jobs: Choices that the method `grid` judges at the same time, each in a thread, where `trace` and the terms are
            run; the result does not depend on it, unless these draw by lot.
        seed: Of all that is drawn.
        progress: Told of every stage, and asked whether to stop.

    Returns:
        The candidates, and which was chosen: its module and what became of each group.

    Raises:
        PruningError: The network cannot be traced, the arguments do not fit it, `importance` returns what are no scores
            of its channels or `observe` what are no rows of its data, or the budget cannot be reached.
        Cancelled: `progress` said so.
    """
    if torch.is_inference_mode_enabled():
        raise PruningError("prune() takes gradients, which torch.inference_mode forbids; call it outside of that")
    _check_types(model, data, weights=weights, held_out=held_out)
    _check_names(components, terms, ties, keep)
    _check_functions(trace=trace, latency=latency, choose=choose, enough=enough, observe=observe)
    if on_policy_rounds is None:
        on_policy_rounds = 0 if observe is None else ON_POLICY_ROUNDS
    elif on_policy_rounds and observe is None:
        raise PruningError("on-policy rounds need observe, a function that returns the rows that a network meets")
    if on_policy_rounds and choose is None:
        raise PruningError(
            "on-policy rounds need choose, which picks the best in closed loop: by rows of the dense network's, which "
            "is all that is held out, what knows its own states is the worse one"
        )
    by_name = {"importance": importance} if isinstance(importance, str) else {}
    ranking = None if isinstance(importance, str) else checked(importance)
    check_traceable(model)
    if progress is not None and not isinstance(progress, Progress):
        raise PruningError(f"progress is of type {type(progress).__name__}; it needs to be a Progress, which takes one")
    progress = progress or Progress()
    budget = _budget(budget)
    settings = _settings(
        sparsity=budget.sparsity,
        tolerance=budget.tolerance,
        cost=budget.cost,
        channel_multiple=channel_multiple,
        method=method,
        component_weights=component_weights or {},
        rounds=rounds,
        distill_steps=distill_steps,
        on_policy_rounds=on_policy_rounds,
        variations=variations,
        jobs=jobs,
        seed=seed,
        **by_name,
    )
    tensors = {"data": data} if isinstance(data, Tensor) else data
    batch: Batch = {name: values.detach() for name, values in tensors.items()}
    calibration = _calibration(batch, weights, held_out)
    if components is None:
        components = {name: (name,) for name, _ in model.named_children()} or {"all": ("",)}
    alone = isinstance(data, Tensor)

    def run(module: Any, rows: Batch) -> Mapping[str, Tensor]:
        given: Any = rows["data"] if alone else rows
        with _without_autocast():  # in this thread, which need not be the one that called prune()
            found = module(given) if trace is None else trace(module, given)
        named = {"output": found} if isinstance(found, Tensor) else found
        if torch.is_grad_enabled() or not isinstance(named, Mapping):
            return named
        # A forward pass that turns gradients on would tie what is computed now to what is differentiated later.
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in named.items()}

    dense = copied(model).eval()
    network = Network(dense, components, run, ties, keep)
    # The one passes over layers that have to be seen, the other over weights, of which it caches copies.
    with without_fast_path(), _without_autocast():
        outputs = _dense_outputs(network, batch)
        network = steady(network, model)
        if terms is None:
            terms = [Term(name, scale=None) for name in outputs]
        check_terms(terms, outputs, batch)
        for name in dict.fromkeys(term.output for term in terms):
            if not torch.isfinite(outputs[name]).all():
                raise PruningError(f"the dense network's output {name!r} holds NaN or infinity; leave those rows out")
        network, rehearsed = _rehearsed(network, batch, terms)
        kept = network.kept_channels(batch, needlessly=True)
        observer = None if observe is None else Observer(observe, batch)
        try:
            pruned = prune_network(
                network,
                calibration,
                terms,
                settings,
                progress=progress,
                latency=latency,
                importance=ranking,
                more_data=observer,
                choose=choose,
                enough=enough,
            )
        except Unreachable as error:
            staying = network.kept_channels(batch, needlessly=False)
            unused = network.unused_parts(batch) if budget.cost == "parameters" else []
            raise Unreachable("; ".join([str(error), *staying, *unused]), error.nearest) from error
    met = () if observer is None else observer.warnings
    return replace(pruned, warnings=(*rehearsed, *kept, *pruned.warnings, *met))


def _without_autocast() -> torch.autocast:
    """Within the block autocast is off in this thread, and a forward pass that turns it on caches no weights."""
    return torch.autocast("cpu", enabled=False, cache_enabled=False)


def _check_types(model: Any, data: Any, **by_row: Any) -> None:
    """Check what the type hints say, since a notebook does not, and what goes wrong otherwise does so far from here."""
    if not isinstance(model, nn.Module):
        raise PruningError(f"the model is of type {type(model).__name__}; it needs to be a torch.nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise PruningError(f"the model's {name} has no values yet; run the model once on rows of the data before")
        _check_device(f"the model's {name}", tensor)
    if not isinstance(data, (Tensor, Mapping)):
        raise PruningError(
            f"data is of type {type(data).__name__}; allowed are a tensor, such as torch.as_tensor(data).float(), "
            "and a mapping of names to tensors"
        )
    named = {"data": data} if isinstance(data, Tensor) else {f"data[{name!r}]": value for name, value in data.items()}
    for name, value in {**named, **by_row}.items():
        if value is not None and not isinstance(value, Tensor):
            raise PruningError(
                f"{name} is of type {type(value).__name__}; it needs to be a tensor, such as torch.as_tensor gives"
            )
        if value is not None and value.dim() == 0:
            raise PruningError(f"{name} is a single number; it needs a row for every example")
        if value is not None:
            _check_device(name, value)
        if value is not None and value.layout != torch.strided:
            raise PruningError(f"{name} is of the layout {value.layout}; it needs to be dense, as to_dense() makes it")


def _check_device(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise PruningError(f"{name} is on the device meta, where tensors hold no values; it needs to hold some")
    if tensor.device.type != "cpu":
        raise PruningError(
            f"{name} is on the device {tensor.device}, and prune() works on the CPU: move it there with .cpu(), and "
            f"the pruned network back with .to({str(tensor.device)!r})"
        )


def _check_names(components: Any, terms: Any, ties: Any, keep: Any) -> None:
    """Check what is given by names; a string is a sequence of strings, too, and never what was meant."""
    if components is not None and not isinstance(components, Mapping):
        raise PruningError(
            f"components is of type {type(components).__name__}; allowed is a mapping of names to lists of modules' "
            'names, such as {"encoder": ["0", "1"]}'
        )
    listed = {f"components[{name!r}]": names for name, names in (components or {}).items()}
    if not _is_list(ties):
        raise PruningError(f"ties is of type {type(ties).__name__}; it needs to be a list of lists of groups' names")
    tied = {f"ties[{number}]": names for number, names in enumerate(ties)}
    for what, names in {**listed, **tied, "keep": keep}.items():
        if not _is_list(names) or not all(isinstance(name, str) for name in names):
            raise PruningError(f"{what} is {names!r}; it needs to be a list of names")
    if terms is not None and not _is_list(terms):
        raise PruningError(f"terms is of type {type(terms).__name__}; it needs to be a list, such as [Term('output')]")
    for number, term in enumerate(terms or ()):
        if not isinstance(term, Term):
            raise PruningError(f"terms[{number}] is {term!r}; it needs to be a Term, such as Term('output')")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise PruningError(f"{name} is of type {type(function).__name__}; it needs to be a function")


def _budget(budget: Any) -> Budget:
    if isinstance(budget, Budget):
        return budget
    try:
        return Budget(float(budget))
    except (TypeError, ValueError) as error:
        raise PruningError(
            f"budget is {budget!r}; allowed are a share of the parameters in [0, 1), such as 0.5, and a Budget"
        ) from error


def _settings(**values: Any) -> PruningSettings:
    try:
        return PruningSettings(**values)
    except ValidationError as error:
        raise PruningError(problem_of(error)) from error


def _calibration(batch: Batch, weights: Tensor | None, held_out: Tensor | None) -> Calibration:
    rows = _checked_rows(batch, weights, held_out)
    judge = torch.arange(rows) % round(1 / HELD_OUT_SHARE) == 0 if held_out is None else held_out
    row_weights = torch.ones(rows) if weights is None else weights.detach().float()
    parts: list[tuple[Batch, Tensor]] = []
    for what, chosen in (("to fit", ~judge), ("held out", judge)):
        weight = row_weights[chosen]
        if not weight.sum() > 0:
            raise PruningError(f"the weights of the rows {what} are all 0; some have to be more")
        parts.append((take(batch, chosen), weight / weight.mean()))
    return Calibration(*parts[0], *parts[1])


def _checked_rows(batch: Batch, weights: Tensor | None, held_out: Tensor | None) -> int:
    rows = rows_of(batch) if batch else 0
    for name, values in batch.items():
        if len(values) != rows:
            raise PruningError(f"the data {name!r} has {len(values)} rows, others have {rows}")
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise PruningError(f"the data {name!r} holds NaN or infinity; leave those rows out")
    for what, given in (("weights", weights), ("held_out", held_out)):
        if given is not None and given.shape != (rows,):
            raise PruningError(f"{what} has shape {tuple(given.shape)}; it needs one value for each of {rows} rows")
    if rows < MIN_ROWS:
        raise PruningError(f"the data has {rows} rows; at least {MIN_ROWS} are needed")
    if weights is not None and not (torch.isfinite(weights) & (weights >= 0)).all():
        raise PruningError("the weights hold negative numbers, NaN or infinity; each has to be 0 or more")
    if held_out is not None:
        if held_out.dtype != torch.bool:
            raise PruningError(f"held_out holds {held_out.dtype}; it needs booleans")
        if not 0 < held_out.sum() < rows - 1:
            raise PruningError(f"held_out holds out {int(held_out.sum())} of {rows} rows; allowed are 1 to {rows - 2}")
    return rows


def _rehearsed(network: Network[Module], batch: Batch, terms: Sequence[Term]) -> tuple[Network[Module], list[str]]:
    """Rehearse a network; where only what is chunked cannot lose channels, return one that keeps those.

    Returns:
        The network, and what the user should know, as sentences.
    """

    def run(module: Any, rows: Batch) -> Outputs:
        with Undivided():
            return network.run(module, rows)

    try:
        return network, rehearse(network, batch, terms)
    except PruningError as error:
        whole = replace(network, run=run)
        try:
            notes = rehearse(whole, batch, terms)
        except PruningError:
            pass
        else:
            return whole, [f"what chunk and glu divide keeps its channels, as otherwise {error}", *notes]
        if not isinstance(error, Stuck):
            raise
        keep = [*network.keep, *error.groups]
        raise PruningError(f"{error}; or prune the other groups alone, with keep={keep}") from error


def _dense_outputs(network: Network[Any], batch: Batch) -> Outputs:
    allowed = "allowed are a tensor with a row for each row of the data, and a mapping of names to such"
    try:
        with torch.no_grad():
            outputs: Any = network.run(network.module, batch)
    except Exception as error:
        given = ", ".join(f"{name} {tuple(values.shape)} {values.dtype}" for name, values in batch.items())
        raise PruningError(
            f"the dense network fails on the data ({given}) with {type(error).__name__}: {error}; "
            "if it takes them in another way, pass trace="
        ) from error
    if not isinstance(outputs, Mapping):
        raise PruningError(f"the network's output is of type {type(outputs).__name__}; {allowed}")
    for name, output in outputs.items():
        if not isinstance(output, Tensor):
            raise PruningError(f"the network's output {name!r} is of type {type(output).__name__}; {allowed}")
        _check_device(f"the network's output {name!r}", output)
        if output.shape[:1] != (rows_of(batch),):
            raise PruningError(
                f"the network's output {name!r} has shape {tuple(output.shape)} for {rows_of(batch)} rows of data; "
                f"{allowed}"
            )
    return outputs
