"""Tables and plots of the cells."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

from comparison.cells import BASELINES, METHODS, OURS, PIPELINE, SPARSITIES, Cell, Dense, Settings
from comparison.tasks import HELPS, Task

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KEEPS = 0.95
"""Share of the dense score that counts as kept."""

LABELS = {
    "tp_magnitude_local": "Torch-Pruning magnitude, local",
    "tp_magnitude_global": "Torch-Pruning magnitude, global",
    "tp_taylor_local": "Torch-Pruning Taylor, local",
    "tp_taylor_global": "Torch-Pruning Taylor, global",
    "random": "random",
    "scratch": "small network from scratch",
    "uniform": "ours: uniform",
    "grid": "ours: grid",
    "gradient": "ours: gradient",
    "tpe": "ours: tpe",
    "pipeline": "ours: the whole pipeline",
}
TITLES = {
    "none": "no help",
    "ls": "least-squares reconstruction",
    "on_policy": "least-squares reconstruction, on policy",
    "distill": "distillation",
    "both": "reconstruction, then distillation",
}
COLOURS = {
    "tp_magnitude_local": "#9ecae1",
    "tp_magnitude_global": "#6baed6",
    "tp_taylor_local": "#3182bd",
    "tp_taylor_global": "#08519c",
    "random": "#999999",
    "scratch": "#444444",
    "uniform": "#fdd0a2",
    "grid": "#fdae6b",
    "gradient": "#d94801",
    "tpe": "#a63603",
    "pipeline": "#31a354",
}

Cells = Mapping[tuple[str, float, str], Cell]


def write_report(docs: Path, task: Task, settings: Settings, dense: Dense, cells: Cells) -> Path:
    """Write a task's page and its plot; return the page's path."""
    page = docs / "comparison" / f"{task.name}.md"
    picture = docs / "images" / f"comparison_{task.name}.png"
    for path in (page, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    _plot(picture, task, cells)
    page.write_text("\n".join(_page(task, settings, dense, cells, f"../images/{picture.name}")))
    return page


def write_summary(docs: Path, cells_by_task: Mapping[str, Cells]) -> Path:
    """Write the page with what can be removed on each task; return its path."""
    page = docs / "comparison" / "summary.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(_summary(cells_by_task)))
    return page


def _summary(cells_by_task: Mapping[str, Cells]) -> Iterator[str]:
    yield "# How much can be removed"
    yield ""
    yield "Written by `benchmarks/compare_pruners.py`, like the pages of the tasks."
    yield ""
    yield (
        f"The largest share of the parameters that can be removed so that {KEEPS:.0%} of the return (of images, the "
        "similarity) are kept: by the middle of the 95 % interval, in brackets with all of it. *None*: not even the "
        "smallest share that was measured. *Undecided*: at this larger share the interval is wider than ± 2.5 and "
        f"reaches {KEEPS:.0%}. Only shares count at which all of Torch-Pruning's methods and `gradient` were measured; "
        "≥: it is the largest of them; †: the method was not measured at all of them. *The others* are Torch-Pruning, "
        "random choice, and a small network from scratch. What the headings mean: [README.md](README.md)."
    )
    for name in HELPS:
        shared = {task: cells for task, known in cells_by_task.items() if (cells := _shared(known, name))}
        ours = [
            method for method in ("uniform", "gradient", PIPELINE) if any(_is_in(c, method) for c in shared.values())
        ]
        if not shared:
            continue
        yield ""
        yield f"## {TITLES[name].capitalize()}"
        yield ""
        yield from _row("", ["measured at [%]", "best of the others", *(LABELS[method] for method in ours)])
        yield "|---" * (len(ours) + 3) + "|"
        for task, cells in shared.items():
            best = max(BASELINES, key=lambda method: _keeping(cells, method, name))
            theirs = _among(cells, best, name)
            yield from _row(
                f"[{task}]({task}.md)",
                [
                    ", ".join(f"{100 * sparsity:g}" for sparsity in sorted({cell.sparsity for cell in cells.values()})),
                    theirs if theirs.startswith("none (none)") and ";" not in theirs else f"{theirs}: {LABELS[best]}",
                    *(_among(cells, method, name) for method in ours),
                ],
            )
    yield ""
    yield "## What was measured"
    yield ""
    yield "Percent of the parameters removed, and in brackets how many methods were run there."
    yield ""
    helps = [name for name in HELPS if any(name in _helps(cells) for cells in cells_by_task.values())]
    yield from _row("", [TITLES[name] for name in helps])
    yield "|---" * (len(helps) + 1) + "|"
    for task, cells in cells_by_task.items():
        if cells:
            yield from _row(f"[{task}]({task}.md)", [_measured(cells, name) for name in helps])
    yield ""


def _among(cells: Cells, method: str, help_kind: str) -> str:
    """Return the largest sparsity of those that all were measured at, with what limits it."""
    text = _largest(cells, method, help_kind)
    sparsities = {cell.sparsity for cell in cells.values()}
    largest = "≥ " if _keeping(cells, method, help_kind)[0] == max(sparsities) else ""
    missing = any((method, sparsity, help_kind) not in cells for sparsity in sparsities)
    return largest + text + ("†" if text and missing else "")


def _measured(cells: Cells, help_kind: str) -> str:
    methods = Counter(cell.sparsity for cell in cells.values() if cell.help == help_kind)
    return ", ".join(f"{100 * sparsity:g} ({count})" for sparsity, count in sorted(methods.items()))


def _is_in(cells: Cells, method: str) -> bool:
    return any(cell.method == method for cell in cells.values())


def _shared(cells: Cells, help_kind: str) -> Cells:
    """Return the cells of a help at the sparsities that all whose comparison is of interest were measured at."""
    wanted = [method for method in BASELINES if method.startswith("tp_")] + ["gradient"]
    sparsities = {cell.sparsity for cell in cells.values()}
    shared = {s for s in sparsities if all((method, s, help_kind) in cells for method in wanted)}
    return {key: cell for key, cell in cells.items() if cell.help == help_kind and cell.sparsity in shared}


def _helps(cells: Cells) -> list[str]:
    return [name for name in HELPS if any(cell.help == name for cell in cells.values())]


def _page(task: Task, settings: Settings, dense: Dense, cells: Cells, picture: str) -> Iterator[str]:
    options = "".join(
        f" --{name.replace('_', '-')} {getattr(settings, name)}"
        for name in ("seeds", "max_episodes", "distill_steps")
        if getattr(settings, name) != getattr(Settings.of(task), name)
    )
    sparsities = sorted({cell.sparsity for cell in cells.values()})
    methods = [method for method in METHODS if _is_in(cells, method)]
    helps = _helps(cells)
    yield f"# {task.name}: pruners compared on {task.setting}"
    yield ""
    yield "Written by this command; `--help` says what is measured and how:"
    yield ""
    yield f"```sh\npython benchmarks/compare_pruners.py --task {task.name}{options}\n```"
    yield ""
    yield (
        f"The dense network's {task.score} is {dense.return_mean:.5g} ± {dense.half_width:.2g} ({len(dense.returns)} "
        f"{task.evaluations}). {settings.seeds} calibration seeds, {settings.distill_steps} steps of distillation, at "
        f"most {settings.max_episodes} {task.evaluations} a cell. Columns are the shares of the parameters removed; "
        f"entries are the {task.score} kept in % of the dense one, ± the half-width of the 95 % interval, over "
        f"calibration seeds and {task.evaluations}. *In italics*: unresolved, the half-width is over 2.5. <: certainly "
        "below 50, not looked into further."
    )
    yield ""
    if PIPELINE in methods:
        yield (
            "The whole pipeline is what `nncontrol-prune prune` does where there is an environment: `gradient`, "
            "on-policy rounds (but for planners), in distillation too, and choices in closed loop; and where that is "
            "not enough, up to two more candidates that are distilled, and a search of up to 12 choices of "
            "coefficients, each treated like the others. It runs in episodes that the others do not have, and they are "
            "the same for all calibration seeds."
        )
        yield ""
    yield "What was run of it and when, and what the tasks say together: [README.md](README.md)."
    yield ""
    yield f"![{task.score} kept against sparsity]({picture})"
    for name in helps:
        yield ""
        yield f"## {task.score.capitalize()} kept, {TITLES[name]}"
        yield ""
        yield from _table(methods, sparsities, functools.partial(_kept, cells, name))
    for figure, value in dense.figures.items():
        for name in helps:
            yield ""
            yield f"## {figure}, {TITLES[name]}"
            yield ""
            yield f"Dense: {value:.2f}. Mean over the calibration seeds, ± the half-width of its 95 % interval."
            yield ""
            yield from _table(methods, sparsities, functools.partial(_figure, cells, name, figure))
    yield ""
    yield f"## Largest sparsity that keeps {KEEPS:.0%}"
    yield ""
    yield (
        "Of those measured, and resolved; in brackets: with the interval wholly above. Undecided: a larger one, at "
        "which the interval is too wide and reaches as far."
    )
    yield ""
    yield from _row("", [TITLES[name] for name in helps])
    yield "|---" * (len(helps) + 1) + "|"
    for method in methods:
        yield from _row(LABELS[method], [_largest(cells, method, name) for name in helps])
    yield ""
    yield "## Where a baseline is better than `gradient`"
    yield ""
    yield "With the same help, by more than both intervals explain."
    yield ""
    yield from _losses(cells, sparsities)
    yield ""
    yield "## Search time"
    yield ""
    yield "Seconds for importance and coefficients of one network, mean over calibration seeds."
    if PIPELINE in methods:
        yield "For the whole pipeline, of all that it does, episodes in its environment among it."
    yield ""
    yield from _table(methods, sparsities, lambda m, s: _search_seconds(cells, m, s))
    yield ""
    timed = [cell for cell in cells.values() if not math.isnan(cell.latency)]
    if not timed:  # no method reached any share
        return
    yield "## Latency"
    yield ""
    yield (
        "Median of the deployed network, and what is above the runtime's floor, a network of two channels a group, as "
        "a share of the same of the dense one. The dense takes "
        f"{statistics.median(cell.dense_latency for cell in timed):.1f} µs and the floor "
        f"{statistics.median(cell.floor_latency for cell in timed):.1f} µs (medians over all cells; each cell is "
        "measured in turns with both)."
    )
    yield ""
    yield from _table(methods, sparsities, lambda m, s: _latency(cells, m, s))
    yield ""


def _row(first: str, entries: Sequence[str]) -> Iterator[str]:
    yield f"| {first} | {' | '.join(entries)} |"


def _table(methods: Sequence[str], sparsities: Sequence[float], entry: Callable[[str, float], str]) -> Iterator[str]:
    yield from _row("", [f"{100 * sparsity:g} %" for sparsity in sparsities])
    yield "|---" * (len(sparsities) + 1) + "|"
    for method in methods:
        entries = [entry(method, sparsity) for sparsity in sparsities]
        if any(entries):
            yield from _row(LABELS[method], entries)


def _kept(cells: Cells, help_kind: str, method: str, sparsity: float) -> str:
    return _entry(cells.get((method, sparsity, help_kind)))


def _figure(cells: Cells, help_kind: str, figure: str, method: str, sparsity: float) -> str:
    cell = cells.get((method, sparsity, help_kind))
    if cell is None or figure not in cell.figures:
        return ""
    mean, half_width = cell.figures[figure]
    return f"{mean:.2f} ± {half_width:.2f}"


def _entry(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.status == "unreachable":
        return "unreachable"
    kept = f"{100 * cell.kept:.1f} ± {100 * cell.half_width:.1f}"
    return {"resolved": kept, "unresolved": f"*{kept}*", "hopeless": f"< ({kept})"}[cell.status]


def _largest(cells: Cells, method: str, help_kind: str) -> str:
    if not any(cell.method == method and cell.help == help_kind for cell in cells.values()):
        return ""
    kept, surely, undecided = _keeping(cells, method, help_kind)
    return f"{_percent(kept)} ({_percent(surely)})" + (f"; {_percent(undecided)} undecided" if undecided else "")


def _keeping(cells: Cells, method: str, help_kind: str) -> tuple[float, float, float]:
    """Return the largest sparsities that keep enough, each 0 for none.

    Returns:
        By the middle of the interval; with all of it; and beyond the first, where an interval too wide has some of it.
    """
    mine = [cell for cell in cells.values() if cell.method == method and cell.help == help_kind]
    resolved = [cell for cell in mine if cell.status == "resolved"]
    kept = max((cell.sparsity for cell in resolved if cell.kept >= KEEPS), default=0.0)
    surely = max((cell.sparsity for cell in resolved if cell.kept - cell.half_width >= KEEPS), default=0.0)
    open_ones = [c.sparsity for c in mine if c.status == "unresolved" and c.kept + c.half_width >= KEEPS]
    return kept, surely, max((sparsity for sparsity in open_ones if sparsity > kept), default=0.0)


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} %" if sparsity else "none"


def _losses(cells: Cells, sparsities: Sequence[float]) -> Iterator[str]:
    found = False
    for name in HELPS:
        for sparsity in sparsities:
            ours = cells.get(("gradient", sparsity, name))
            if ours is None or math.isnan(ours.kept):
                continue
            for method in (*BASELINES, *(other for other in OURS if other != "gradient")):
                other = cells.get((method, sparsity, name))
                if other is None or math.isnan(other.kept):
                    continue
                if other.kept - ours.kept > math.hypot(ours.half_width, other.half_width):
                    found = True
                    yield (
                        f"- {TITLES[name]}, {100 * sparsity:g} %: {LABELS[method]} {_entry(other)}, "
                        f"gradient {_entry(ours)}"
                    )
    if not found:
        yield "Nowhere."


def _search_seconds(cells: Cells, method: str, sparsity: float) -> str:
    """Return the time without and with reconstruction in the objective, where these differ."""
    seconds = []
    for helps in (("none", "distill"), ("ls", "on_policy", "both")):
        found = [cells.get((method, sparsity, name)) for name in helps]
        known = [cell.search_seconds for cell in found if cell is not None and not math.isnan(cell.kept)]
        seconds += [f"{value:.2g}" for value in known[:1]]
    if len(seconds) == 2 and method in OURS:
        return f"{seconds[0]}, with reconstruction {seconds[1]}"
    return seconds[0] if seconds else ""


def _latency(cells: Cells, method: str, sparsity: float) -> str:
    found = [cell for name in HELPS if (cell := cells.get((method, sparsity, name))) and not math.isnan(cell.latency)]
    if not found:
        return ""
    share = statistics.median((c.latency - c.floor_latency) / (c.dense_latency - c.floor_latency) for c in found)
    latency = float(f"{statistics.median(cell.latency for cell in found):.3g}")
    return f"{latency:g} µs, {100 * share:.0f} %"


def _plot(path: Path, task: Task, cells: Cells) -> None:
    helps = _helps(cells)
    figure, (axes,) = plt.subplots(
        1, len(helps), figsize=(4 + 3 * len(helps), 4.6), sharey=True, squeeze=False, constrained_layout=True
    )
    sparsities = sorted({cell.sparsity for cell in cells.values()})
    position = {sparsity: number for number, sparsity in enumerate(sparsities)}
    for axis, name in zip(axes, helps, strict=True):
        for number, method in enumerate(METHODS):
            # Without a value at a share of all tasks, so that no line leads across what was not measured there.
            keys = [(method, share, name) for share in sparsities]
            mine = [cells.get(key, Cell(*key, "unresolved")) for key in keys if key in cells or key[1] in SPARSITIES]
            if not all(math.isnan(cell.kept) for cell in mine):
                axis.errorbar(
                    # Side by side, so that intervals do not hide each other.
                    [position[cell.sparsity] + 0.05 * (number - len(METHODS) / 2) for cell in mine],
                    [100 * cell.kept for cell in mine],
                    yerr=[100 * cell.half_width for cell in mine],
                    fmt="s--" if method in BASELINES else "o-",
                    ms=3.5,
                    lw=1.6 if method in ("gradient", PIPELINE) else 1.0,
                    elinewidth=0.8,
                    color=COLOURS[method],
                    label=LABELS[method],
                )
        axis.axhline(100 * KEEPS, color="0.6", lw=0.8, ls=":")
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_xlim(-0.5, len(sparsities) - 0.5)  # the same for all, whatever was measured
        axis.set_xticks(range(len(sparsities)), [f"{100 * sparsity:g}" for sparsity in sparsities])
        axis.set_xlabel("parameters removed [%]")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(f"{task.score} kept [%]")
    lowest = min((cell.kept - cell.half_width for cell in cells.values() if not math.isnan(cell.kept)), default=0.0)
    axes[0].set_ylim(max(-20.0, 100 * min(lowest, 0.0)) - 2.0, 115.0)
    known = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=2 + len(axes), fontsize=8)
    figure.suptitle(f"{task.name}, {task.setting}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
