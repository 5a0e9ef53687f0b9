"""Finding bags and reading their messages, up to the cut where a file was cut short."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC

from nncontrol_prune.files import TEMPORARY_PREFIX
from nncontrol_prune.rollouts.errors import RolloutError


@dataclass(frozen=True)
class Bag:
    """A bag on disk."""

    path: Path
    """What the user knows it by: its directory, or its file."""
    files: tuple[Path, ...]
    """Its MCAP files, in order; `ros2 bag record` may split a bag."""
    found: bool = False
    """Whether it was found in a folder of bags; False if it was asked for by its own path."""


@dataclass
class Channels:
    """The messages of a bag."""

    messages: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """Log time in ns and serialized message, by topic."""
    types: dict[str, str] = field(default_factory=dict)
    """Message type by topic."""
    cut: bool = False
    """Whether a file of the bag ends before its end."""
    damaged: int = 0
    """How many chunks were left out because their checksum or compression is broken."""


def find_bags(paths: Path | Iterable[Path]) -> list[Bag]:
    """Return the bags at paths: each is an MCAP file, a bag's directory, or a folder of bags.

    Raises:
        RolloutError: There is nothing there, or something that cannot be read.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not given:
        raise RolloutError("no bag is given")
    bags: dict[Path, Bag] = {}  # by where they really are: a bag given twice is read once
    for path in given:
        for bag in _bags_at(path):
            bags.setdefault(bag.path.resolve(), bag)
    return list(bags.values())


def read_channels(bag: Bag, endings: tuple[str, ...]) -> Channels:
    """Read the messages of all topics that end so.

    Raises:
        RolloutError: A file cannot be read, or is no MCAP file.
    """
    channels = Channels()
    for path in bag.files:
        try:
            with path.open("rb") as file:
                _read_file(path, file, endings, channels)
        except OSError as error:
            raise RolloutError(f"{path} cannot be read: {error.strerror}") from error
    return channels


def _bags_at(path: Path) -> list[Bag]:
    if path.is_file():
        return [Bag(path, (path,))]
    if not path.is_dir():
        raise RolloutError(f"{path} does not exist")
    if files := _mcap_files(path):
        return [Bag(path, files)]
    folders = sorted((entry for entry in path.iterdir() if entry.is_dir()), key=_natural)
    found = [
        Bag(folder, files, found=True)
        for folder in folders
        if not folder.name.startswith(TEMPORARY_PREFIX) and (files := _mcap_files(folder))
    ]
    if found:
        return found
    if any(path.glob("*.mcap.zstd")):
        raise RolloutError(f"the files of {path} are compressed as a whole; unpack them with `zstd -d` first")
    if any(path.glob("*.db3")):
        raise RolloutError(f"{path} is a bag in SQLite storage; record with `ros2 bag record -s mcap`")
    raise RolloutError(f"{path} holds no bag: there is no .mcap file in it or in the folders in it")


def _mcap_files(directory: Path) -> tuple[Path, ...]:
    return tuple(sorted((path for path in directory.glob("*.mcap") if path.is_file()), key=_natural))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort by name, with numbers in order: bag_2 comes before bag_10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _read_file(path: Path, file: BinaryIO, endings: tuple[str, ...], channels: Channels) -> None:
    magic = file.read(len(MCAP0_MAGIC))
    if not MCAP0_MAGIC.startswith(magic):
        raise RolloutError(f"{path} is not an MCAP file")
    # No record is longer than the file. A damaged length would otherwise be memory asked for.
    limit = path.stat().st_size
    stream = StreamReader(file, skip_magic=True, emit_chunks=True, record_size_limit=limit)
    topics: dict[int, list[tuple[int, bytes]]] = {}
    schemas: dict[int, str] = {}
    for record in _until_cut(stream, channels):
        if isinstance(record, Message):
            if record.channel_id in topics:
                topics[record.channel_id].append((record.log_time, record.data))
        elif isinstance(record, Schema):
            schemas[record.id] = record.name
        elif isinstance(record, Channel) and record.topic.endswith(endings) and record.message_encoding == "cdr":
            topics[record.id] = channels.messages.setdefault(record.topic, [])
            channels.types[record.topic] = schemas.get(record.schema_id, "")


def _until_cut(stream: StreamReader, channels: Channels) -> Iterator[McapRecord]:
    """Yield all records, those in chunks too, that can be read."""
    try:
        for record in stream.records:
            if isinstance(record, Chunk):
                yield from _unpack(record, channels)
            else:
                yield record
    except OSError:
        raise
    except Exception:  # half a record makes the reader raise anything
        channels.cut = True


def _unpack(chunk: Chunk, channels: Channels) -> list[McapRecord]:
    try:
        return breakup_chunk(chunk, validate_crc=True)
    except Exception:  # damaged bytes make the decompressors raise anything
        channels.damaged += 1
        return []
