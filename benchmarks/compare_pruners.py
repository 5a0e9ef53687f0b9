"""Compare pruners: one table and one plot for each task, in docs/comparison/ and docs/images/.

    pip install 'nncontrol_prune[compare]'
    python benchmarks/compare_pruners.py                                      # everything; hours, and can be cut off
    python benchmarks/compare_pruners.py --task hopper_td3 --jobs 8           # one task
    python benchmarks/compare_pruners.py --quick                              # does it run? a minute
    python benchmarks/compare_pruners.py --tables                             # only write what is there as tables

All methods start from the same dense controller and the same rollouts: for each calibration seed 20 episodes of its
own, run by the deployed policy. A cell is a method, a sparsity (share of the parameters) and a help: none, `ls`
(least-squares reconstruction), `on_policy` (the same, repeated in rounds with states that the pruned network itself
gets into), `distill`, or both (`ls` and `distill`), with as many steps for all. The coefficients of ours are found
for what comes after them: with reconstruction in the objective, but for `none` and `distill`. `pipeline` is what
`nncontrol-prune prune` does: it refits and distils on policy (but for planners), chooses and searches in closed loop,
and may distil many networks to give one, so it has episodes and steps that the others do not have. A cell's networks,
one for each calibration seed, run as many evaluation episodes each, of seeds that calibration never sees and the dense
controller ran from too, until the 95 % interval of the return kept (comparison/intervals.py) has a half-width under
2.5 % of the dense return, or lies wholly below 50 %, at most 500 over all networks; otherwise the cell is
*unresolved*. The autoencoder is calibrated on training images; an episode is a test image, and its return the
structural similarity.

Every cell is appended to docs/comparison/<task>.jsonl as soon as it is known, and those that are there are not run
again: a run that was cut off goes on where it was. Cells measured under other settings are left alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import joblib

from comparison.cells import METHODS, SPARSITIES, Cell, Dense, Settings, helps_of, measure_cells, measure_dense
from comparison.controllers import CONTROLLER_TASKS
from comparison.images import ImageTask
from comparison.report import write_report, write_summary
from comparison.tasks import HELPS, Task

MNIST = ImageTask("mnist_autoencoder")
TASKS: dict[str, Task] = {task.name: task for task in (*CONTROLLER_TASKS, MNIST)}
ROOT = Path(__file__).resolve().parents[1]
FORMAT = 2
"""Of the lines on disk; those of another format are not read."""
QUICK = {"seeds": 2, "max_episodes": 8, "distill_steps": 50}

Unit = tuple[str, float, list[str]]
"""A method, a sparsity, and the helps that are missing: they share the search."""


class Results:
    """A task's cells on disk, one line each."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = asdict(settings)

    def append(self, result: Cell | Dense) -> None:
        """Add a line, in one write, so that the lines of several processes do not mix."""
        kind = "dense" if isinstance(result, Dense) else "cell"
        line = json.dumps({"kind": kind, "format": FORMAT, "settings": self._settings, **asdict(result)})
        with self.path.open("a") as file:
            file.write(line + "\n")

    def read(self) -> tuple[Dense | None, dict[tuple[str, float, str], Cell]]:
        """Return what was measured under these settings; a line that was cut short does not count."""
        dense: Dense | None = None
        cells: dict[tuple[str, float, str], Cell] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            kind = row.pop("kind")
            if row.pop("format", None) != FORMAT or row.pop("settings") != self._settings:
                continue
            if kind == "dense":
                dense = Dense(**{**row, "returns": tuple(row["returns"])})
            else:
                figures = {key: tuple(values) for key, values in row.pop("figures", {}).items()}
                cell = Cell(**{**row, "kept_by_seed": tuple(row["kept_by_seed"]), "figures": figures})
                cells[cell.key] = cell
        return dense, cells


def run_unit(task: Task, settings: Settings, results: Results, dense: Dense, unit: Unit) -> float:
    """Measure the cells of a unit and write them down; return the seconds that took."""
    started = time.monotonic()
    for cell in measure_cells(task, settings, dense, *unit):
        results.append(cell)
        kept = f"{100 * cell.kept:6.1f} ± {100 * cell.half_width:4.1f} %  {cell.episodes:3} evaluations"
        print(f"  {cell.method:20} {cell.sparsity:5.0%} {cell.help:8} {kept}  {cell.status}", flush=True)
    return time.monotonic() - started


def missing_units(
    task: Task,
    known: dict[tuple[str, float, str], Cell],
    methods: Sequence[str],
    sparsities: Sequence[float],
    helps: Sequence[str],
) -> list[Unit]:
    """Return what is still to be measured; the largest sparsities first, where methods differ."""
    units = []
    for sparsity in sorted(sparsities, reverse=True):
        for method in methods:
            wanted = [
                name for name in helps if name in helps_of(task, method) and (method, sparsity, name) not in known
            ]
            if wanted:
                units.append((method, sparsity, wanted))
    return units


def compare(task: Task, settings: Settings, results: Results, arguments: argparse.Namespace) -> None:
    """Measure what is missing of a task."""
    dense, known = results.read()
    if dense is None:
        dense = measure_dense(task, settings)
        results.append(dense)
    units = missing_units(task, known, arguments.method, arguments.sparsity, arguments.help_kind)
    cells = sum(len(helps) for _, _, helps in units)
    worst = cells * settings.max_episodes * dense.seconds / arguments.jobs / 3600
    print(
        f"{task.name}: dense {task.score} {dense.return_mean:.4g} ± {dense.half_width:.2g}; {len(known)} cells are "
        f"there, {cells} to do, with at most {worst:.1f} h of {task.evaluations}, plus the searches",
        flush=True,
    )
    started = time.monotonic()
    pool = joblib.Parallel(n_jobs=arguments.jobs, return_as="generator_unordered")
    runs = (joblib.delayed(run_unit)(task, settings, results, dense, unit) for unit in units)
    for done, _ in enumerate(pool(runs), start=1):
        spent = time.monotonic() - started
        left = spent / done * (len(units) - done)
        print(f"  {done}/{len(units)} after {spent / 60:.0f} min, about {left / 60:.0f} min left", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=TASKS, help="may be repeated; all by default")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all by default")
    parser.add_argument("--sparsity", action="append", type=float, help="may be repeated; by default 0.3 to 0.98")
    parser.add_argument("--help-kind", action="append", choices=HELPS, help="may be repeated; all by default")
    parser.add_argument("--seeds", type=int, default=Settings.seeds, help="calibration seeds")
    parser.add_argument("--max-episodes", type=int, help="of a cell, over all networks; by default the task's own")
    parser.add_argument("--distill-steps", type=int, default=Settings.distill_steps)
    parser.add_argument("--mnist", type=Path, default=MNIST.data, help="directory of MNIST's IDX files")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--quick", action="store_true", help="a smoke run, into out/compare/quick")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables and plots of what is there")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "comparison", help="where the cells are kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where tables and plots go")
    arguments = parser.parse_args()
    arguments.method = arguments.method or list(METHODS)
    arguments.sparsity = arguments.sparsity or list(SPARSITIES)
    arguments.help_kind = arguments.help_kind or list(HELPS)
    if arguments.quick:
        arguments.out = arguments.docs = ROOT / "out" / "compare" / "quick"
        arguments.sparsity = [0.9]
        vars(arguments).update(QUICK)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = TASKS | {MNIST.name: replace(MNIST, data=arguments.mnist)}
    for name in arguments.task or tasks:
        task = tasks[name]
        settings = Settings(arguments.seeds, arguments.max_episodes or task.max_evaluations, arguments.distill_steps)
        results = Results(arguments.out / f"{name}.jsonl", settings)
        if not arguments.tables:
            reason = task.why_not()
            if reason is not None:
                print(f"{name}: skipped, {reason}")
                continue
            compare(task, settings, results, arguments)
        dense, cells = results.read()
        if dense is not None and cells:
            print(f"{name}: {write_report(arguments.docs, task, settings, dense, cells)}")
    # Of all tasks, whichever were run now, and only of what was measured as they are by default.
    known = {
        name: Results(arguments.out / f"{name}.jsonl", Settings.of(task)).read()[1] for name, task in tasks.items()
    }
    if any(known.values()):
        print(f"all: {write_summary(arguments.docs, known)}")


if __name__ == "__main__":
    main()
