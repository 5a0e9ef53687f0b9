"""The task without a loop: an autoencoder of MNIST, scored by the similarity of its reconstructions."""

from __future__ import annotations

import functools
import io
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from comparison.tasks import Subject, Task
from nncontrol_prune.controllers.autoencoder import Autoencoder
from nncontrol_prune.files import write_atomically
from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import HELD_OUT_SHARE, Calibration
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.terms import structural_similarity
from nncontrol_prune.service.idx import IdxError
from nncontrol_prune.service.mnist import CALIBRATION_IMAGES, TERMS, dense_autoencoder, load_images, score
from nncontrol_prune.service.mnist_report import MnistSettings

ROOT = Path(__file__).resolve().parents[2]
DENSE_WEIGHTS = ROOT / "benchmarks" / "controllers" / "mnist_autoencoder" / "weights.safetensors"
"""The dense autoencoder of the part of MNIST with 8,000 training images. It is kept, since another processor rounds
otherwise and trains it to other weights."""
LATENCY_RUNS = 300


@dataclass(frozen=True)
class DeployedAutoencoder:
    """An autoencoder and the test images; the score is an image's structural similarity to its reconstruction."""

    module: Autoencoder
    test: Tensor

    @torch.no_grad()
    def scores(self, numbers: Sequence[int]) -> list[float]:
        """Score the test images of these numbers."""
        images = self.test[list(numbers)]
        return [float(similarity) for similarity in structural_similarity(self.module(images), images)]

    def latency(self) -> float:
        """Return the median seconds for an image, on one thread of ONNX Runtime."""
        image = self.test[:1].numpy()
        seconds = []
        for _ in range(LATENCY_RUNS):
            started = time.perf_counter()
            self._session.run(None, {"image": image})
            seconds.append(time.perf_counter() - started)
        return float(np.median(seconds))

    def figures(self) -> Mapping[str, float]:
        """Return PSNR, of the mean squared error over all test images."""
        return {"PSNR [dB]": score(self.module, self.test).psnr}

    @functools.cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(self.module, (self.test[:1],), buffer, dynamo=False, input_names=["image"])  # type: ignore[arg-type]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])


_images = functools.lru_cache(maxsize=1)(load_images)


@dataclass(frozen=True)
class ImageTask(Task):
    """MNIST's autoencoder, as `nncontrol-prune mnist` trains it.

    Attributes:
        data: Directory of the IDX files.
        trained: The file of the dense autoencoder: a copy of DENSE_WEIGHTS, unless it is trained on other images.
    """

    data: Path = ROOT.parent / "shared" / "data" / "mnist"
    trained: Path = ROOT / "out" / "compare" / "mnist_dense.safetensors"
    helps: Sequence[str] = field(default=("none", "ls", "distill", "both"), kw_only=True)

    score = "similarity"
    evaluations = "test images"

    @property
    def setting(self) -> str:
        """The data."""
        return "MNIST"

    def why_not(self) -> str | None:
        """Say if there are no images."""
        try:
            _images(self.data)
        except IdxError as error:
            return f"{error}; --mnist names the directory of MNIST's IDX files"
        return None

    def make_dense(self) -> DeployedAutoencoder:
        """Read the dense autoencoder from its file, or train it."""
        images = _images(self.data)
        if not self.trained.exists():
            write_atomically(self.trained, DENSE_WEIGHTS.read_bytes())
        return DeployedAutoencoder(
            dense_autoencoder(self.trained, images.train, MnistSettings(), Progress()), images.test
        )

    def make_subject(self, seed: int) -> Subject:
        """Draw training images, a part of them held out."""
        dense = self.make_dense().module
        train = _images(self.data).train
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:CALIBRATION_IMAGES]
        held_out = round(HELD_OUT_SHARE * len(drawn))
        parts = [{"image": train[rows]} for rows in (drawn[held_out:], drawn[:held_out])]
        weights = [torch.ones(len(part["image"])) for part in parts]
        network = Network(dense, dense.components(), lambda module, rows: {"image": module(rows["image"])})
        calibration = Calibration(parts[0], weights[0], parts[1], weights[1])
        return Subject(network, TERMS, calibration, network.groups(parts[0]), seed)

    def deploy(self, subject: Subject, module: Any) -> DeployedAutoencoder:
        """Score a pruned autoencoder on the same images."""
        return DeployedAutoencoder(module, _images(self.data).test)
