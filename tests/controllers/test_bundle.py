from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from nncontrol_prune.controllers.bundle import MANIFEST, Bundle, load_bundle
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.observations import ObservationTerm
from nncontrol_prune.controllers.specs import POLICY, REFERENCE, WEIGHTS


@pytest.fixture
def directory(small_bundle: Bundle, tmp_path: Path) -> Path:
    small_bundle.write(tmp_path / "bundle")
    return tmp_path / "bundle"


def refusal(directory: Path) -> str:
    with pytest.raises(BundleError) as error:
        load_bundle(directory)
    assert str(directory) in str(error.value)
    return str(error.value)


def replace(directory: Path, name: str, data: bytes) -> None:
    """Replace a file and put its size and digest into the manifest, as somebody with bad intent would."""
    (directory / name).write_bytes(data)
    edit_manifest(directory, files={name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


def edit_manifest(directory: Path, files: dict[str, object] | None = None, **changes: object) -> None:
    path = directory / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.update(changes)
    manifest["files"].update(files or {})
    path.write_text(json.dumps(manifest))


def test_written_bundle_loads_with_the_same_digest(small_bundle: Bundle, directory: Path) -> None:
    loaded = load_bundle(directory)
    assert loaded.digest == small_bundle.digest == hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    assert loaded.manifest == small_bundle.manifest


def test_policy_computes_what_the_module_computes(small_bundle: Bundle) -> None:
    observations = np.random.default_rng(1).normal(scale=3.0, size=(100, 5)).astype(np.float32)
    with torch.no_grad():
        expected = small_bundle.module()(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(small_bundle.policy.batch(observations), expected, atol=1e-4)
    action = np.zeros(1)
    small_bundle.policy.act(observations[7].astype(np.float64), action)
    assert action[0] == small_bundle.policy.batch(observations)[7, 0]


def test_writing_over_a_bundle_is_refused(small_bundle: Bundle, directory: Path) -> None:
    with pytest.raises(FileExistsError):
        small_bundle.write(directory)


def test_failed_write_leaves_nothing(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("nncontrol_prune.controllers.bundle.write_synced", fail)
    with pytest.raises(OSError, match="disk full"):
        small_bundle.write(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, POLICY, REFERENCE])
def test_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert f"{name} is missing" in refusal(directory)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("name", [WEIGHTS, POLICY, REFERENCE])
def test_flipped_byte_is_found(directory: Path, name: str) -> None:
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / name).write_bytes(data)
    assert f"{name} is damaged" in refusal(directory)


@pytest.mark.parametrize(("batch", "kind"), [(1, onnx.TensorProto.FLOAT), (None, onnx.TensorProto.DOUBLE)])
def test_policy_that_cannot_be_run_on_what_it_is_to_be_run_on_is_refused(
    directory: Path, batch: int | None, kind: int
) -> None:
    observation, action = (
        onnx.helper.make_tensor_value_info(name, kind, [batch, size])
        for name, size in (("observation", 5), ("action", 1))
    )
    last = onnx.helper.make_tensor("last", onnx.TensorProto.INT64, [1], [4])
    node = onnx.helper.make_node("Gather", ["observation", "last"], ["action"], axis=1)
    graph = onnx.helper.make_graph([node], "policy", [observation], [action], [last])
    opset = [onnx.helper.make_opsetid("", 17)]
    replace(directory, POLICY, onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    assert f"{POLICY} cannot be run: " in refusal(directory)


def test_wrong_shape_is_named(directory: Path) -> None:
    tensors = safetensors.numpy.load((directory / WEIGHTS).read_bytes())
    tensors["layers.0.weight"] = tensors["layers.0.weight"][:, :4].copy()
    replace(directory, WEIGHTS, safetensors.numpy.save(tensors))
    message = refusal(directory)
    assert "layers.0.weight" in message
    assert "(16, 4)" in message
    assert "(16, 5)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights_are_refused(directory: Path, value: float) -> None:
    tensors = safetensors.numpy.load((directory / WEIGHTS).read_bytes())
    tensors["layers.1.bias"][3] = value
    replace(directory, WEIGHTS, safetensors.numpy.save(tensors))
    assert "layers.1.bias holds NaN or infinite values" in refusal(directory)


@pytest.mark.parametrize("version", [99, 99.0])
def test_newer_format_version_asks_for_an_update(directory: Path, version: float) -> None:
    edit_manifest(directory, format_version=version)
    message = refusal(directory)
    assert "99" in message
    assert "update" in message


def test_path_that_climbs_out_is_refused(directory: Path) -> None:
    (directory.parent / "secret").write_text("secret")
    edit_manifest(directory, files={"../secret": {"bytes": 6, "sha256": "0" * 64}})
    assert "'../secret' is not a file of a bundle" in refusal(directory)


@pytest.mark.parametrize("name", [POLICY, MANIFEST])
def test_link_out_of_the_bundle_is_refused(directory: Path, name: str) -> None:
    target = directory.parent / "elsewhere"
    (directory / name).rename(target)
    (directory / name).symlink_to(target)
    assert f"{name} is not a regular file" in refusal(directory)


def test_huge_declared_size_is_refused_before_reading(directory: Path) -> None:
    edit_manifest(directory, files={WEIGHTS: {"bytes": 10**15, "sha256": "0" * 64}})
    assert "536870912" in refusal(directory)


def test_huge_tensor_declared_in_the_weights_is_refused(directory: Path) -> None:
    header = json.dumps({"layers.0.weight": {"dtype": "F32", "shape": [10**9, 10**6], "data_offsets": [0, 8]}}).encode()
    replace(directory, WEIGHTS, struct.pack("<Q", len(header)) + header + bytes(8))
    assert "not a safetensors file" in refusal(directory)


def test_huge_array_declared_in_the_reference_is_refused(directory: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, observation=np.zeros((5000, 5000), np.float32), action=np.zeros((256, 1), np.float32))
    replace(directory, REFERENCE, buffer.getvalue())
    assert "observation declares" in refusal(directory)


def damaged_reference(how: str) -> bytes:
    """An archive that names the right files and cannot be read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if how == "rows" else zipfile.ZIP_DEFLATED) as archive:
        array = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**13 if how == "rows" else 2, 5)}
        np.lib.format.write_array_header_1_0(array, header)
        for name in ("observation", "action"):
            archive.writestr(f"{name}.npy", array.getvalue() + bytes(40))
        first = archive.infolist()[0]
    data = bytearray(buffer.getvalue())
    if how == "deflate":
        start = first.header_offset + 30 + len(first.filename)
        data[start : start + first.compress_size] = b"\xff" * first.compress_size
    elif how == "encrypted":
        data[first.header_offset + 6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize("how", ["deflate", "encrypted", "rows"])
def test_reference_that_cannot_be_read_is_refused(directory: Path, how: str) -> None:
    replace(directory, REFERENCE, damaged_reference(how))
    assert "not an npz file" in refusal(directory)


def test_manifest_without_end_is_refused(directory: Path) -> None:
    (directory / MANIFEST).write_text("[" * 100_000)
    assert "not JSON" in refusal(directory)


def test_pickle_in_the_reference_is_never_loaded(directory: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, observation=np.array([{}], dtype=object), action=np.zeros((256, 1), np.float32))
    replace(directory, REFERENCE, buffer.getvalue())
    assert "not an npz file" in refusal(directory)


def test_policy_that_does_not_reproduce_the_reference_is_refused(
    directory: Path, make_cartpole_bundle, tmp_path: Path
) -> None:
    other = make_cartpole_bundle(seed=5)
    replace(directory, POLICY, other.files[POLICY])
    assert "policy.onnx and reference.npz disagree" in refusal(directory)


def test_file_that_is_no_model_is_refused(directory: Path) -> None:
    replace(directory, POLICY, b"not a model")
    assert "not a model that ONNX Runtime can load" in refusal(directory)


def test_manifest_that_is_no_json_is_refused(directory: Path) -> None:
    (directory / MANIFEST).write_bytes(b"\xff\xfe{")
    assert "not JSON" in refusal(directory)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate", -5, "rate = -5: "),
        ("format_version", True, "format_version = True: "),
        ("format_version", "1", "format_version = '1': "),
        ("parameters", 5, "says 5 parameters, its architecture has "),
        ("action", {"joints": ["slider"], "lower": [-1e308], "upper": [1.0]}, "limit of 'slider' .* is beyond ±1e"),
        ("action", {"joints": ["slider"], "lower": [-1.0], "upper": [1e308]}, "limit of 'slider' .* is beyond ±1e"),
    ],
)
def test_wrong_manifest_field_is_named(directory: Path, field: str, value: object, message: str) -> None:
    edit_manifest(directory, **{field: value})
    assert re.search(message, refusal(directory))


def test_term_that_measures_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="term 'angle' has the scale 0, by which nothing is measured"):
        ObservationTerm(name="angle", size=1, scale=0.0)


def test_unknown_manifest_field_is_named(directory: Path) -> None:
    edit_manifest(directory, colour="red")
    assert "colour" in refusal(directory)
