"""Bundles: a controller on disk, checked in every way before it is used. No pickle anywhere."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.observations import ObservationSpec
from nncontrol_prune.controllers.policy import Policy, load_policy, refusing_model
from nncontrol_prune.controllers.specs import (
    BUNDLE_FILES,
    FORMAT_VERSION,
    POLICY,
    REFERENCE,
    WEIGHTS,
    ActionSpec,
    Architecture,
    FileEntry,
    Manifest,
    Provenance,
    TdMpcArchitecture,
    parameters_of,
    problem_of,
)
from nncontrol_prune.files import new_directory, write_synced

if TYPE_CHECKING:
    from nncontrol_prune.controllers.modules import ControllerModule

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1024 * 1024
REFERENCE_PAIRS, PLANNER_PAIRS = 256, 32
"""How many observation/action pairs a loaded policy must reproduce; a planner takes milliseconds for each."""
REFERENCE_TOLERANCE = 1e-4
"""How far a reproduced action may be off, as a share of the action's range: room for another processor's rounding."""
EXPORT_TOLERANCE = 1e-5
"""How far the exported policy may be off its torch module, as a share of the action's range."""
PLANNER_FACTOR = 100
"""How much further off a planner's action may be: it is a mean weighted by exponentials of expected returns."""
FLIPPED_SHARE = 0.5
"""Share of the pairs in which a planner may give another action: where plans are worth nearly the same, rounding
decides which are the best. A policy that is another one differs in all."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check.

    Attributes:
        manifest: What it says of itself.
        digest: sha256 of `manifest.json`; the bundle's identity.
        files: Contents by file name, the manifest included.
        policy: The deployed network, warm.
    """

    manifest: Manifest
    digest: str
    files: dict[str, bytes]
    policy: Policy

    @property
    def reference(self) -> str:
        """`name@digest`."""
        return f"{self.manifest.name}@{self.digest}"

    @property
    def reference_observations(self) -> NDArray[np.float32]:
        """The observations (256, n) of the reference pairs."""
        observations, _ = _read_reference(self.files[REFERENCE], self.manifest)
        return observations

    def module(self) -> ControllerModule:
        """Return a new torch module with the bundle's weights, to prune further."""
        import torch  # the robot's computer runs the policy without torch

        from nncontrol_prune.controllers.modules import build_module

        manifest = self.manifest
        module = build_module(manifest.architecture, manifest.observation.size, manifest.action.size)
        tensors = safetensors.numpy.load(self.files[WEIGHTS])
        module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
        return module.eval()

    def write(self, directory: Path) -> None:
        """Write the bundle to a new directory, whole or not at all.

        Raises:
            FileExistsError: The directory exists already.
        """
        with new_directory(directory) as temporary:
            for name, data in self.files.items():
                write_synced(temporary / name, data)


def short(reference: str) -> str:
    """Shorten `name@digest` for people to read."""
    name, _, digest = reference.partition("@")
    return f"{name}@{digest[:12]}" if digest else reference


def make_bundle(
    module: ControllerModule,
    *,
    name: str,
    observation: ObservationSpec,
    action: ActionSpec,
    rate: float,
    reference_observations: NDArray[np.floating],
    environment: str | None = None,
    parent: str | None = None,
    provenance: Provenance | None = None,
) -> Bundle:
    """Export a module and make a bundle of it, in memory.

    Args:
        module: The controller's network.
        name: Name of the controller.
        observation: Its observation.
        action: Its action.
        rate: Its control rate in Hz.
        reference_observations: Observations (at least 1, n) that the controller meets in its work; 256 of them
            become the reference pairs.
        environment: The gymnasium environment it was trained for.
        parent: `name@digest` of the controller it was pruned from.
        provenance: How it was pruned.

    Raises:
        BundleError: The module has non-finite weights, or its export does not compute what it computes.
    """
    import torch

    from nncontrol_prune.controllers.mlp import parameter_count
    from nncontrol_prune.controllers.modules import export_onnx, first_actions

    architecture = module.current_architecture()
    model = export_onnx(module, observation.size)
    policy = load_policy(model, architecture, observation.size, action.size)
    pick = np.linspace(0, len(reference_observations) - 1, _pairs(architecture)).round().astype(int)
    references = np.asarray(reference_observations, dtype=np.float32)[pick]
    actions = policy.batch(references)
    torch_actions = first_actions(module, torch.from_numpy(references)).numpy()
    _compare_actions(
        actions, torch_actions, action, architecture, EXPORT_TOLERANCE, "the exported policy and its torch module"
    )

    buffer = io.BytesIO()
    np.savez(buffer, observation=references, action=actions)
    tensors = {key: value.detach().contiguous().numpy() for key, value in module.state_dict().items()}
    files = {WEIGHTS: safetensors.numpy.save(tensors), POLICY: model, REFERENCE: buffer.getvalue()}
    manifest = Manifest(
        name=name,
        architecture=architecture,
        observation=observation,
        action=action,
        rate=rate,
        environment=environment,
        parameters=parameter_count(module),
        parent=parent,
        provenance=provenance,
        files={key: FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for key, data in files.items()},
    )
    files[MANIFEST] = manifest.model_dump_json(indent=1).encode()
    return check_bundle(files)


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle from a directory and check everything.

    Raises:
        BundleError: A check failed; the message names the directory, the file and the reason.
    """
    try:
        return check_bundle(_read_files(directory))
    except BundleError as error:
        raise BundleError(f"{directory}: {error}") from error


def check_bundle(files: dict[str, bytes]) -> Bundle:
    """Check the contents of a bundle: version, digests, shapes, finiteness, and the reference pairs.

    Raises:
        BundleError: A check failed; the message names the file and the reason.
    """
    manifest = parse_manifest(files.get(MANIFEST))
    for name, entry in manifest.files.items():
        if name not in files:
            raise BundleError(f"{name} is missing")
        if len(files[name]) != entry.bytes:
            raise BundleError(f"{name} has {len(files[name])} bytes, the manifest says {entry.bytes}")
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise BundleError(f"{name} is damaged: its sha256 is not the one in the manifest")
    _check_weights(files[WEIGHTS], manifest)
    observations, actions = _read_reference(files[REFERENCE], manifest)
    with refusing_model("cannot be run"):
        policy = load_policy(files[POLICY], manifest.architecture, manifest.observation.size, manifest.action.size)
        found = policy.batch(observations)
        # The first runs of a session allocate; they belong here and not into the loop.
        warm = np.zeros(manifest.action.size)
        for row in observations[:32].astype(np.float64):
            policy.act(row, warm)
    _compare_actions(
        found,
        actions,
        manifest.action,
        manifest.architecture,
        REFERENCE_TOLERANCE,
        f"{POLICY} and {REFERENCE}",
    )
    return Bundle(manifest, hashlib.sha256(files[MANIFEST]).hexdigest(), files, policy)


def parse_manifest(data: bytes | None) -> Manifest:
    """Parse a `manifest.json`.

    Raises:
        BundleError: It is missing, of a newer format, or a field is wrong; the message names the field.
    """
    if data is None:
        raise BundleError(f"{MANIFEST} is missing; a bundle is a directory with {', '.join((MANIFEST, *BUNDLE_FILES))}")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not JSON: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, (int, float)) and version > FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST} has format version {version}, this release reads up to {FORMAT_VERSION}; "
            "update nncontrol_prune"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {problem_of(error)}") from error


def _read_files(directory: Path) -> dict[str, bytes]:
    """Read the manifest first, then the files it declares, each no further than its declared size."""
    if not directory.is_dir():
        raise BundleError("there is no such directory")
    path = directory / MANIFEST
    if path.is_symlink() or not path.is_file():
        if path.exists():
            raise BundleError(f"{MANIFEST} is not a regular file")
        raise BundleError(f"{MANIFEST} is missing; a bundle is a directory with {', '.join((MANIFEST, *BUNDLE_FILES))}")
    files = {MANIFEST: _read_file(path, MAX_MANIFEST_BYTES)}
    manifest = parse_manifest(files[MANIFEST])
    for name, entry in manifest.files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{name} is missing" if not path.exists() else f"{name} is not a regular file")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{name} has {size} bytes, the manifest says {entry.bytes}")
        files[name] = _read_file(path, entry.bytes)
    return files


def _read_file(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{path.name} is larger than {limit} bytes")
    return data


def _check_weights(data: bytes, manifest: Manifest) -> None:
    expected = manifest.architecture.tensor_shapes(manifest.observation.size, manifest.action.size)
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{WEIGHTS} is not a safetensors file: {error}") from error
    parameters = parameters_of(manifest.architecture, manifest.observation.size, manifest.action.size)
    if manifest.parameters != parameters:
        raise BundleError(f"{MANIFEST} says {manifest.parameters} parameters, its architecture has {parameters}")
    found = {name: tuple(array.shape) for name, array in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise BundleError(
                f"{WEIGHTS}: tensor {name} has shape {found.get(name, 'missing')}, "
                f"the manifest's architecture needs {expected.get(name, 'none')}"
            )
    for name, array in tensors.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise BundleError(f"{WEIGHTS}: tensor {name} has type {array.dtype}, allowed are floating-point types")
        if not np.isfinite(array).all():
            raise BundleError(f"{WEIGHTS}: tensor {name} holds NaN or infinite values")


def _read_reference(data: bytes, manifest: Manifest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shapes = {
        "observation": (_pairs(manifest.architecture), manifest.observation.size),
        "action": (_pairs(manifest.architecture), manifest.action.size),
    }
    arrays: dict[str, NDArray[np.float32]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name, shape in shapes.items():
                info = archive.getinfo(f"{name}.npy")
                # Before a byte is unpacked: a small archive may claim to hold gigabytes.
                if info.file_size > 8 * shape[0] * shape[1] + 1024:
                    raise BundleError(f"{REFERENCE}: {name} declares {info.file_size} bytes, more than its shape needs")
                with archive.open(info) as file:
                    array = np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)
                if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                    raise BundleError(f"{REFERENCE}: {name} is not a finite float32 array of shape {shape}")
                arrays[name] = array
    except BundleError:
        raise
    except Exception as error:  # an archive can be wrong in more ways than anyone has listed
        raise BundleError(f"{REFERENCE} is not an npz file with observation and action: {error}") from error
    return arrays["observation"], arrays["action"]


def _pairs(architecture: Architecture) -> int:
    return PLANNER_PAIRS if isinstance(architecture, TdMpcArchitecture) else REFERENCE_PAIRS


def _compare_actions(
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    action: ActionSpec,
    architecture: Architecture,
    tolerance: float,
    what: str,
) -> None:
    ranges = np.asarray(action.upper) - np.asarray(action.lower)
    planner = isinstance(architecture, TdMpcArchitecture)
    if planner:
        tolerance *= PLANNER_FACTOR
    worst = float("nan")
    if np.isfinite(found).all():
        deviations = np.max(np.abs(found - expected) / ranges, axis=1)
        worst = float(np.quantile(deviations, 1.0 - FLIPPED_SHARE) if planner else deviations.max())
    if not worst <= tolerance:
        raise BundleError(f"{what} disagree by {worst:.2g} of the action's range; allowed is {tolerance:.0e}")
