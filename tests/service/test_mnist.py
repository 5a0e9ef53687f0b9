from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncontrol_prune.progress import Cancelled, Progress
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.prune import prune
from nncontrol_prune.service import mnist
from nncontrol_prune.service.idx import IdxError, read_images
from nncontrol_prune.service.mnist import TEST, TRAIN, load_images, run_mnist
from nncontrol_prune.service.mnist_report import MnistReport, MnistSettings

QUICK = MnistSettings(sparsity=(0.5,), method=("uniform", "threshold"), importance="l2", epochs=1)


def idx(images: np.ndarray) -> bytes:
    return bytes([0, 0, 8, 3]) + struct.pack(">3I", *images.shape) + images.tobytes()


def blobs(count: int, seed: int = 0) -> np.ndarray:
    """Blobs at random places, (count, 28, 28)."""
    centers = np.random.default_rng(seed).uniform(8, 20, (count, 2, 1, 1))
    rows, columns = np.mgrid[:28, :28]
    squares = (rows - centers[:, 0]) ** 2 + (columns - centers[:, 1]) ** 2
    return (255 * np.exp(-squares / 20)).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / f"{TEST}.gz").write_bytes(gzip.compress(idx(blobs(200))))
    return directory


def test_images_are_read_plain_and_compressed(tmp_path: Path) -> None:
    images = blobs(3)
    (tmp_path / "plain").write_bytes(idx(images))
    (tmp_path / "compressed.gz").write_bytes(gzip.compress(idx(images)))
    for name in ("plain", "compressed.gz"):
        np.testing.assert_array_equal(read_images(tmp_path / name), images)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is not an IDX file of images: it starts with nothing"),
        (b"\x89PNG\r\n", "it starts with 89 50 4e 47, and they start with 00 00 08 03"),
        (b"\0\0\x08\x01" + bytes(20), "it starts with 00 00 08 01, and they start with 00 00 08 03"),
        (idx(blobs(2))[:9], "is cut short in its header"),
        (idx(blobs(2))[:-1], "is cut short: it declares 1,568 bytes of images and holds 1,567"),
        (idx(blobs(2)) + b"\0", "goes on after the 1,568 bytes of images that it declares"),
        (b"\0\0\x08\x03" + b"\xff" * 12, r"declares 4294967295 × 4294967295 × 4294967295 bytes; allowed are 1 to"),
        (b"\0\0\x08\x03" + bytes(12), "declares 0 × 0 × 0 bytes; allowed are 1 to"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_malformed_files_are_refused(tmp_path: Path, contents: bytes, message: str, compressed: bool) -> None:
    path = tmp_path / ("images.gz" if compressed else "images")
    path.write_bytes(gzip.compress(contents) if compressed else contents)
    with pytest.raises(IdxError, match=message) as error:
        read_images(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("contents", [b"not gzip at all", gzip.compress(idx(blobs(40)))[:-500], b""])
def test_damaged_compression_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "images.gz").write_bytes(contents)
    with pytest.raises(IdxError, match="images.gz"):
        read_images(tmp_path / "images.gz")


def test_the_test_part_alone_is_split(data: Path) -> None:
    images = load_images(data)
    assert (images.train.shape, images.test.shape) == ((160, 1, 28, 28), (40, 1, 28, 28))
    assert float(images.train.max()) <= 1.0


def test_the_training_part_is_used_where_it_is_there(data: Path) -> None:
    (data / TRAIN).write_bytes(idx(blobs(300, seed=1)))
    images = load_images(data)
    assert (len(images.train), len(images.test)) == (300, 200)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no t10k-images-idx3-ubyte and no t10k-images-idx3-ubyte.gz, .* is missing too, but can be done"),
        ({TRAIN: idx(blobs(200))}, "holds no t10k-images-idx3-ubyte .* train-images-idx3-ubyte, .* is there"),
        ({TEST: idx(blobs(50))}, "t10k-images-idx3-ubyte holds 50 images; at least 128 are needed"),
        ({TEST: idx(np.zeros((9, 32, 30), np.uint8))}, "holds images of 32 × 30 pixels; MNIST's have 28 × 28"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(IdxError, match=message):
        load_images(tmp_path)


def test_training_depends_on_the_seed_alone(data: Path) -> None:
    images = load_images(data).train
    weights = []
    for seed in (0, 0, 1):
        torch.rand(1)  # the global generator plays no part
        module = mnist.train(images, MnistSettings(epochs=1, seed=seed), Progress())
        weights.append(module.encoder[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_run_writes_table_report_picture_and_network(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report, written = run_mnist(data, out, QUICK.model_copy(update={"distill_steps": 2}), Progress())
    assert sorted(path.name for path in written) == sorted(path.name for path in out.iterdir())
    assert MnistReport.model_validate_json((out / "report.json").read_text()) == report
    assert (out / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        *("dense", "uniform", "uniform, distilled", "threshold", "threshold, distilled"),
    ]
    for result in report.results:
        assert result.sparsity == pytest.approx(0.5, abs=0.01)
        assert result.parameters == pytest.approx(0.5 * report.dense_parameters, rel=0.03)
        assert {group.components for group in result.groups} == {("encoder",), ("encoder", "decoder"), ("decoder",)}


def test_the_dense_network_is_used_again_unless_its_training_changes(data: Path, tmp_path: Path) -> None:
    images = load_images(data).train
    path = tmp_path / "dense.safetensors"
    stages: list[str] = []

    def dense(settings: MnistSettings) -> torch.Tensor:
        stages.clear()
        module = mnist.dense_autoencoder(path, images, settings, Progress(lambda stage, _: stages.append(stage)))
        return module.encoder[0].weight.detach()

    first = dense(QUICK)
    assert "training" in stages
    assert torch.equal(dense(QUICK.model_copy(update={"importance": "obs"})), first)
    assert not stages
    assert not torch.equal(dense(QUICK.model_copy(update={"seed": 1})), first)
    assert "training" in stages
    path.write_bytes(path.read_bytes()[:-100])
    dense(QUICK.model_copy(update={"seed": 1}))
    assert "training" in stages
    images = images[:128]
    dense(QUICK.model_copy(update={"seed": 1}))
    assert "training" in stages


@pytest.mark.parametrize("stage", ["training", "threshold"])
def test_cancelling_leaves_nothing_half_written(data: Path, tmp_path: Path, stage: str) -> None:
    now: list[str] = [""]
    progress = Progress(lambda what, _: now.__setitem__(0, what), lambda: now[0].startswith(stage))
    with pytest.raises(Cancelled):
        run_mnist(data, tmp_path / "out", QUICK, progress)
    left = [path.name for path in (tmp_path / "out").glob("*")]
    assert left == ([] if stage == "training" else ["dense.safetensors"])


def test_tpe_is_left_out_with_a_note_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    methods, notes = mnist.methods_of(MnistSettings())
    assert methods == ["uniform", "threshold", "grid", "gradient"]
    assert "tpe is left out, since it needs Optuna" in notes[0]


def test_what_cannot_be_reached_is_a_note_beside_what_can(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reaching_half(*arguments: Any, budget: float, **options: Any) -> Any:
        if budget > 0.5:
            raise PruningError("no whole number of channels comes near")
        return prune(*arguments, budget=budget, **options)

    monkeypatch.setattr(mnist, "prune", reaching_half)
    settings = QUICK.model_copy(update={"method": ("uniform",), "sparsity": (0.9, 0.5)})
    report, _ = run_mnist(data, tmp_path / "out", settings, Progress())
    assert report.sparsities == [0.5]
    assert report.notes[-1] == "uniform at 0.9: no whole number of channels comes near"
    with pytest.raises(PruningError, match="no whole number of channels comes near"):
        run_mnist(data, tmp_path / "out", settings.model_copy(update={"sparsity": (0.9,)}), Progress())


def test_report_says_which_coefficient_each_component_got(data: Path, tmp_path: Path) -> None:
    run_mnist(data, tmp_path / "out", QUICK, Progress())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    latent = next(g for g in report["results"][0]["groups"] if g["kind"] == "inter-component")
    assert latent["components"] == ["encoder", "decoder"]
    assert latent["coefficient"] == pytest.approx(1 - latent["kept"] / latent["channels"])
