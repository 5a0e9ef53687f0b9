"""The method on MNIST: train an autoencoder, prune it with every method, and score what is left on test images."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nncontrol_prune.controllers.autoencoder import CHANNELS, LATENT, Autoencoder
from nncontrol_prune.controllers.mlp import parameter_count
from nncontrol_prune.files import write_atomically
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import MIN_ROWS
from nncontrol_prune.pruning.engine import Pruned
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import spread_rows
from nncontrol_prune.pruning.prune import prune
from nncontrol_prune.pruning.settings import Method
from nncontrol_prune.pruning.terms import (
    Term,
    dissimilarity,
    mean_squared,
    psnr,
    structural_similarity,
    weighted_sum,
)
from nncontrol_prune.service.idx import IdxError, find_idx, read_images
from nncontrol_prune.service.mnist_report import MnistReport, MnistResult, MnistSettings, Score

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
SIDE = 28
TEST_EVERY = 5
"""Every such image of MNIST's test part is one to test on where there is no other part to train on."""
TERMS = (
    Term("image", weight=10.0, target="image", error=mean_squared, name="squared_error"),
    Term("image", weight=1.0, target="image", error=dissimilarity, name="dissimilarity"),
)
"""What matters: both against the image itself, and weighted so that both count for about as much."""
BATCH_IMAGES = 64
LEARNING_RATE = 2e-3
CALIBRATION_IMAGES = 3000
"""Training images that pruning looks at."""
SCORED_IMAGES = 1000
"""Images that are run at a time."""
SHOWN_IMAGES = 12
"""Test images in the picture."""


@dataclass(frozen=True)
class Images:
    """Images (images, 1, 28, 28) in 0..1.

    Attributes:
        train: Those that the autoencoder is trained on, and pruned with.
        test: Those that it is scored on.
    """

    train: Tensor
    test: Tensor


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        report: Scores and coefficients.
        dense: The dense autoencoder.
        best: The best candidate by the held-out objective, by method, at the highest sparsity that was reached.
    """

    report: MnistReport
    dense: Autoencoder
    best: dict[str, Autoencoder]


def load_images(directory: Path) -> Images:
    """Read MNIST's images from IDX files, plain or as .gz.

    Without the 60,000 images of the training part, four fifths of the test part are trained on.

    Raises:
        IdxError: A file is missing or malformed, or holds other images.
    """
    paths = {name: find_idx(directory, name) for name in (TRAIN, TEST)}
    test_path = paths[TEST]
    if test_path is None:
        raise IdxError(
            f"{directory} holds no {TEST} and no {TEST}.gz, MNIST's test images; {TRAIN}, its training images, "
            + ("is there" if paths[TRAIN] else "is missing too, but can be done without")
        )
    test = _images_in(test_path)
    train_path = paths[TRAIN]
    if train_path is not None:
        return Images(_images_in(train_path), test)
    held_back = torch.arange(len(test)) % TEST_EVERY == TEST_EVERY - 1
    return Images(test[~held_back], test[held_back])


def _images_in(path: Path) -> Tensor:
    pixels = read_images(path)
    if pixels.shape[1:] != (SIDE, SIDE):
        raise IdxError(f"{path} holds images of {pixels.shape[1]} × {pixels.shape[2]} pixels; MNIST's have 28 × 28")
    if len(pixels) < 2 * MIN_ROWS:
        raise IdxError(f"{path} holds {len(pixels)} images; at least {2 * MIN_ROWS} are needed")
    return torch.from_numpy(pixels.copy()).unsqueeze(1).float() / 255.0


def train(images: Tensor, settings: MnistSettings, progress: Progress) -> Autoencoder:
    """Train an autoencoder by Adam on what pruning then tries to keep.

    Raises:
        Cancelled: `progress` said so.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = Autoencoder(SIDE)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = -(-len(images) // BATCH_IMAGES)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    for epoch in range(settings.epochs):
        for step, rows in enumerate(torch.randperm(len(images), generator=generator).split(BATCH_IMAGES)):
            progress("training", (epoch + step / steps) / settings.epochs)
            batch = {"image": images[rows]}
            loss, _ = weighted_sum(TERMS, {"image": module(batch["image"])}, {}, batch, torch.ones(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def dense_autoencoder(path: Path, images: Tensor, settings: MnistSettings, progress: Progress) -> Autoencoder:
    """Return the autoencoder of a file if it was trained as it would be now; otherwise train it and write the file.

    Raises:
        Cancelled: `progress` said so.
    """
    wanted = made_from(images, settings)
    module = _loaded(path, wanted)
    if module is None:
        module = train(images, settings, progress)
        tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        write_atomically(path, safetensors.torch.save(tensors, metadata=wanted))
    return module


def made_from(images: Tensor, settings: MnistSettings) -> dict[str, str]:
    """Return what a file of weights says of how they were trained."""
    return {
        "channels": str(CHANNELS),
        "latent": str(LATENT),
        "epochs": str(settings.epochs),
        "seed": str(settings.seed),
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
    }


def _loaded(path: Path, wanted: dict[str, str]) -> Autoencoder | None:
    """Return what a file holds; None if there is none, or it was not made from this."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if file.metadata() != wanted:
                return None
            module = Autoencoder(SIDE)
            module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (safetensors.SafetensorError, RuntimeError):
        return None  # it is damaged, and training again mends it
    return module.eval()


def methods_of(settings: MnistSettings) -> tuple[list[Method], list[str]]:
    """Return the methods that can be run, and notes about those that cannot."""
    if importlib.util.find_spec("optuna") is not None or "tpe" not in settings.method:
        return list(settings.method), []
    note = "tpe is left out, since it needs Optuna: pip install 'nncontrol_prune[search]'"
    return [method for method in settings.method if method != "tpe"], [note]


def compare(dense: Autoencoder, images: Images, settings: MnistSettings, progress: Progress) -> Comparison:
    """Prune an autoencoder with every method to every sparsity, and score the results.

    Raises:
        PruningError: Nothing that was asked for can be reached.
        Cancelled: `progress` said so.
    """
    methods, notes = methods_of(settings)
    sparsities = sorted(set(settings.sparsity))
    calibration = images.train[spread_rows(len(images.train), CALIBRATION_IMAGES)]
    results: list[MnistResult] = []
    best: dict[float, dict[str, Autoencoder]] = {}
    jobs = [(sparsity, method) for sparsity in sparsities for method in dict.fromkeys(methods)]
    for number, (sparsity, method) in enumerate(jobs):
        what = f"{method}, {sparsity:g} removed"

        def told(_: str, share: float, number: int = number, what: str = what) -> None:
            progress(what, (number + share) / len(jobs))

        try:
            pruned = prune(
                dense,
                data={"image": calibration},
                budget=sparsity,
                trace=lambda module, rows: {"image": module(rows["image"])},
                components=dense.components(),
                terms=TERMS,
                channel_multiple=settings.channel_multiple,
                method=method,
                importance=settings.importance,
                distill_steps=settings.distill_steps,
                seed=settings.seed,
                progress=Progress(told),
            )
        except PruningError as error:
            notes.append(f"{method} at {sparsity:g}: {error}")
            continue
        notes += [note for note in pruned.warnings if note not in notes]
        results += _results(pruned, sparsity, images.test)
        best.setdefault(sparsity, {})[method] = pruned.chosen.module
    if not results:
        raise PruningError("; ".join(notes) or "no method was named")
    report = MnistReport(
        settings=settings,
        train_images=len(images.train),
        test_images=len(images.test),
        dense_parameters=parameter_count(dense),
        dense=score(dense, images.test),
        results=tuple(results),
        notes=tuple(notes),
    )
    return Comparison(report, dense, best[max(best)])


def _results(pruned: Pruned[Autoencoder], sparsity: float, test: Tensor) -> Iterator[MnistResult]:
    for candidate in pruned.candidates.values():
        yield MnistResult(
            method=candidate.method,
            distilled=candidate.distilled,
            asked_sparsity=sparsity,
            sparsity=candidate.sparsity,
            parameters=parameter_count(candidate.module),
            score=score(candidate.module, test),
            objective=candidate.objective,
            search_seconds=pruned.search_seconds,
            groups=tuple(outcome.report() for outcome in candidate.groups),
        )


@torch.no_grad()
def score(module: Autoencoder, images: Tensor) -> Score:
    """Return PSNR and SSIM of a network's reconstructions."""
    errors, similarities = [], []
    for part in images.split(SCORED_IMAGES):
        found = module(part)
        errors.append(mean_squared(found, part))
        similarities.append(structural_similarity(found, part))
    return Score(psnr=psnr(float(torch.cat(errors).mean())), ssim=float(torch.cat(similarities).mean()))


def run_mnist(data: Path, out: Path, settings: MnistSettings, progress: Progress) -> tuple[MnistReport, list[Path]]:
    """Train or load the dense autoencoder, compare the methods, and write what was found.

    Args:
        data: Directory of the IDX files.
        out: Directory to write to; a dense autoencoder that is there already is used if it was trained alike.
        settings: What to train and prune.
        progress: Told of every stage, and asked whether to stop.

    Returns:
        The report, and the files that hold it.

    Raises:
        IdxError: The images cannot be read.
        PruningError: Nothing that was asked for can be reached.
        Cancelled: `progress` said so.
    """
    images = load_images(data)
    dense_file = out / "dense.safetensors"
    dense = dense_autoencoder(dense_file, images.train, settings, progress)
    comparison = compare(dense, images, settings, progress)
    written = {
        out / "table.md": comparison.report.markdown().encode(),
        out / "report.json": comparison.report.model_dump_json(indent=1).encode(),
        out / "reconstructions.png": _picture(comparison, images.test),
    }
    for path, contents in written.items():
        write_atomically(path, contents)
    return comparison.report, [*written, dense_file]


@torch.no_grad()
def _picture(comparison: Comparison, test: Tensor) -> bytes:
    """Return a PNG of some test images and what becomes of them at the highest sparsity."""
    from nncontrol_prune.plots import plot_reconstructions

    report = comparison.report
    shown = test[spread_rows(len(test), SHOWN_IMAGES)]
    rows = [("original", f"{report.test_images:,} test images", shown)]
    networks = {"dense": (comparison.dense, report.dense_parameters)}
    networks |= {method: (module, parameter_count(module)) for method, module in comparison.best.items()}
    for name, (module, parameters) in networks.items():
        found = score(module, test)
        share = (
            f"{parameters:,} parameters"
            if name == "dense"
            else f"{1 - parameters / report.dense_parameters:.0%} removed"
        )
        rows.append((name, f"{share}\nPSNR {found.psnr:.2f} dB, SSIM {found.ssim:.3f}", module(shown)))
    buffer = io.BytesIO()
    plot_reconstructions(buffer, [(title, figures, part.squeeze(1).numpy()) for title, figures, part in rows])
    return buffer.getvalue()
