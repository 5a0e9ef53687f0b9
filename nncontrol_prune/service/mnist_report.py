"""What the comparison on MNIST is asked for and what it finds; importable without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, FiniteFloat

from nncontrol_prune.controllers.specs import Seed, Spec
from nncontrol_prune.pruning.group_report import GroupReport
from nncontrol_prune.pruning.settings import ChannelMultiple, ImportanceName, Method
from nncontrol_prune.tables import Table

METHODS: tuple[Method, ...] = ("uniform", "threshold", "grid", "gradient", "tpe")


class MnistSettings(Spec):
    """What to train, and what to prune it to."""

    sparsity: tuple[Annotated[FiniteFloat, Field(gt=0.0, lt=1.0)], ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of the parameters to remove."""
    channel_multiple: ChannelMultiple = 1
    """Groups keep a multiple of so many channels, or all of theirs."""
    method: tuple[Method, ...] = METHODS
    """How the coefficients are found."""
    importance: ImportanceName = "obs"
    """How the channels of a group are ranked."""
    distill_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Gradient steps on the pruned networks; 0 for none."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 30
    """Passes of the dense autoencoder's training over the images."""
    seed: Seed = 0
    """Of training and pruning."""


class Score(Spec):
    """How close reconstructions are to test images."""

    psnr: float
    """Peak signal-to-noise ratio in dB, of the mean squared error over all images."""
    ssim: float
    """Structural similarity, the mean over the images."""


class MnistResult(Spec):
    """One candidate of one method at one sparsity."""

    method: Method
    distilled: bool
    """Whether gradient steps followed."""
    asked_sparsity: float
    sparsity: float
    parameters: int
    score: Score
    """On the test images."""
    objective: float
    """On the held-out training images, which the coefficients were chosen by."""
    search_seconds: float
    """Time to find the coefficients."""
    groups: tuple[GroupReport, ...]

    @property
    def label(self) -> str:
        """The method, and what else was done."""
        return f"{self.method}, distilled" if self.distilled else self.method


class MnistReport(Spec):
    """The whole comparison."""

    settings: MnistSettings
    train_images: int
    test_images: int
    dense_parameters: int
    dense: Score
    results: tuple[MnistResult, ...]
    notes: tuple[str, ...]

    @property
    def sparsities(self) -> list[float]:
        """The sparsities with a result, in ascending order."""
        return sorted({result.asked_sparsity for result in self.results})

    def rows(self) -> Iterator[tuple[str, list[MnistResult | None]]]:
        """Yield each method's label and its results in the order of `sparsities`; None where there is none."""
        found = {(result.label, result.asked_sparsity): result for result in self.results}
        for label in dict.fromkeys(result.label for result in self.results):
            yield label, [found.get((label, sparsity)) for sparsity in self.sparsities]

    def table(self) -> Table:
        """Return PSNR / SSIM by method and sparsity, and the time of the search."""
        rows = [("dense", *[_score(self.dense)] * len(self.sparsities), "")]
        for label, results in self.rows():
            scores = ["-" if result is None else _score(result.score) for result in results]
            seconds = [f"{result.search_seconds:.1f}" for result in results if result is not None]
            times = dict.fromkeys((min(seconds, key=float), max(seconds, key=float)))
            rows.append((label, *scores, " to ".join(times)))
        shares = (f"{100 * sparsity:.3g} %" for sparsity in self.sparsities)
        return Table(("PSNR (dB) / SSIM", *shares, "search (s)"), tuple(rows))

    def markdown(self) -> str:
        """Return the table for a page."""
        table = self.table()
        lines = [table.headings, ("---", *["---:"] * (len(table.headings) - 1)), *table.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _score(score: Score) -> str:
    return f"{score.psnr:.2f} / {score.ssim:.3f}"
