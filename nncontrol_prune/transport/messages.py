"""Requests and replies: JSON, with a schema each. A payload of raw bytes may follow in a frame of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from nncontrol_prune.controllers.specs import BUNDLE_FILES, Spec
from nncontrol_prune.controllers.verdict import Verdict

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Offset = Annotated[int, Field(ge=0, lt=2**40)]
"""In a file, in bytes; no file is longer, and operating systems do not take numbers much larger."""
BundleFile = Literal["manifest.json", "weights.safetensors", "policy.onnx", "reference.npz"]
assert set(BUNDLE_FILES) < set(BundleFile.__args__)  # type: ignore[attr-defined]

MAX_REQUEST_BYTES = 64 * 1024
"""Of a request's JSON; parsing more would hold up a loop in the same process."""

TICKS_PER_REPLY = 8192

CHUNK_BYTES = 1024 * 1024
"""Bundles travel in pieces of this size: no request takes long, and the rests between requests cost little."""


class Status(Spec):
    """Ask any process how it is."""

    request: Literal["status"] = "status"


class Reset(Spec):
    """Ask the plant for a new episode."""

    request: Literal["reset"] = "reset"


class Pause(Spec):
    """Ask the plant to let time stand still, or go on."""

    request: Literal["pause"] = "pause"
    paused: bool


class Stage(Spec):
    """Ask the controller to stage a bundle of its store and swap it in."""

    request: Literal["stage"] = "stage"
    reference: str


class Rollback(Spec):
    """Ask the controller for the controller before."""

    request: Literal["rollback"] = "rollback"


class Ticks(Spec):
    """Ask the controller for its last ticks; the payload is float64, columns as in `runtime.statistics.COLUMNS`.

    So many come at a time, `TICKS_PER_REPLY`; fewer are the last.
    """

    request: Literal["ticks"] = "ticks"
    start: Annotated[int, Field(ge=0)] = 0
    """Number of the first tick wanted, counted from the loop's start; older ones than are kept are left out."""


class GetChunk(Spec):
    """Ask for a piece of a bundle's file; it comes as the payload."""

    request: Literal["get_chunk"] = "get_chunk"
    reference: str
    file: BundleFile
    offset: Offset = 0


class PutChunk(Spec):
    """Send a piece of a bundle's file, as the payload; the manifest first, and each file from its beginning."""

    request: Literal["put_chunk"] = "put_chunk"
    digest: Digest
    file: BundleFile
    offset: Offset = 0


class PutDone(Spec):
    """Say that a bundle has arrived whole; it is checked, and stored with its verdict."""

    request: Literal["put_done"] = "put_done"
    digest: Digest
    verdict: Verdict | None = None


class Prune(Spec):
    """Ask the pruning service to prune the running controller. What is left out is as configured."""

    request: Literal["prune"] = "prune"
    rollouts: tuple[Path, ...] | None = None
    """Bags; by default those that the running controller records."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of the configuration's section `pruning_service` that differ for this job."""


class Validate(Spec):
    """Ask the pruning service to run the gate on a candidate of its store."""

    request: Literal["validate"] = "validate"
    reference: str
    rollouts: tuple[Path, ...] | None = None
    """Bags to check it on where there is no environment; by default those that the running controller records."""


class Cancel(Spec):
    """Ask the pruning service to cancel the running job."""

    request: Literal["cancel"] = "cancel"


class Deploy(Spec):
    """Ask the pruning service to send the last accepted controller to the loop and have it swapped in."""

    request: Literal["deploy"] = "deploy"


Transfer = GetChunk | PutChunk | PutDone
PlantRequest = Annotated[Status | Reset | Pause, Field(discriminator="request")]
ControllerRequest = Annotated[Status | Stage | Rollback | Ticks | Transfer, Field(discriminator="request")]
PruningRequest = Annotated[Status | Prune | Validate | Cancel | Deploy, Field(discriminator="request")]


class Reply(BaseModel):
    """An answer: `ok` with a result, or not, with an error that says why."""

    ok: bool
    result: dict[str, Any] = {}
    error: str | None = None
    field: str | None = None
    """The field of the request that is wrong, where it is one."""
    service: str | None = None
    """Who answers."""


class RequestError(Exception):
    """A request does not parse; names the field."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(message)
        self.field = field


def parse_request(adapter: TypeAdapter[Any], data: bytes) -> Spec:
    """Parse a request.

    Raises:
        RequestError: It does not parse; the message names the field and what is allowed.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestError(f"the request has {len(data)} bytes, allowed are {MAX_REQUEST_BYTES}", None)
    try:
        request: Spec = adapter.validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        # The first part of a location is the tag of the request, which is no field of it.
        path = [str(part) for part in problem["loc"]]
        field = ".".join(path[1:]) or (None if problem["type"] == "json_invalid" else "request")
        raise RequestError(f"{field or 'the request'}: {problem['msg']}", field) from error
    return request
