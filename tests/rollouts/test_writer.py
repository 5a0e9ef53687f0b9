from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from rosbags.interfaces import ConnectionExtRosbag2, QosDurability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from ruamel.yaml import YAML

from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.rollouts.writer import FLUSH_PERIOD, BagWriter

WriteBag = Callable[..., Path]
FileSizeLimit = Callable[[int], AbstractContextManager[None]]
SIZES = {"observation_size": 2, "action_size": 1, "rate": 100.0}


def test_other_readers_read_the_bag(write_bag: WriteBag) -> None:
    bag = write_bag(rows=20)
    with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts == {"/nn_controller/transition": 20, "/mujoco_sim/step": 20, "/nn_controller/bundle": 2}
        chosen = [connection for connection in reader.connections if connection.topic.endswith("transition")]
        messages = [reader.deserialize(data, chosen[0].msgtype) for _, _, data in reader.messages(chosen)]
    assert [dimension.label for dimension in messages[7].layout.dim] == ["stamp", "bundle", "observation", "action"]
    np.testing.assert_allclose(messages[7].data, [0.07, 0, 7.0, 7.1, 7.2, -7])


def test_metadata_describes_the_bag(write_bag: WriteBag) -> None:
    bag = write_bag(controller="/robot1/nn_controller")
    information = YAML(typ="safe").load(bag / "metadata.yaml")["rosbag2_bagfile_information"]
    assert information["version"] == 8
    assert information["storage_identifier"] == "mcap"
    assert information["relative_file_paths"] == [path.name for path in bag.glob("*.mcap")] == ["bag_0.mcap"]
    assert information["message_count"] == 42
    assert abs(information["starting_time"]["nanoseconds_since_epoch"] - time.time_ns()) < 60e9
    assert 0 < information["duration"]["nanoseconds"] < 60e9
    with Reader(bag) as reader:
        durability = {}
        for connection in reader.connections:
            assert isinstance(connection.ext, ConnectionExtRosbag2)
            durability[connection.topic] = connection.ext.offered_qos_profiles[0].durability
    assert durability["/robot1/nn_controller/bundle"] == QosDurability.TRANSIENT_LOCAL
    assert durability["/robot1/nn_controller/transition"] == QosDurability.VOLATILE


def test_file_holds_the_metadata_that_ros_looks_for(write_bag: WriteBag) -> None:
    with (write_bag() / "bag_0.mcap").open("rb") as file:
        reader = make_reader(file)
        assert reader.get_header().profile == "ros2"
        records = [record.metadata for record in reader.iter_metadata() if record.name == "rosbag2"]
    last = YAML(typ="safe").load(records[-1]["serialized_metadata"])
    assert last["version"] == 8
    assert last["message_count"] == 42


def test_bag_without_messages_is_a_bag(tmp_path: Path) -> None:
    BagWriter(tmp_path / "bag", **SIZES).close()
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 0


def test_unfinished_bag_is_a_bag(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", **SIZES):
        information = YAML(typ="safe").load(tmp_path / "bag" / "metadata.yaml")["rosbag2_bagfile_information"]
        assert information["message_count"] == 0
        assert len(information["topics_with_message_count"]) == 3


def test_messages_leave_the_process_within_half_a_second(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", **SIZES) as writer:
        writer.transition(0.0, 0, [1, 2], [3])
        assert writer.written == 0
        time.sleep(FLUSH_PERIOD)
        writer.flush_if_due()
        assert writer.written == 1
        rollouts = read_rollouts(tmp_path / "bag")
    assert len(rollouts) == 1
    assert "still being written" in rollouts.warnings[0]


def test_closing_twice_does_no_harm(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", **SIZES) as writer:
        writer.transition(0.0, 0, [1, 2], [3])
        writer.close()
    assert len(read_rollouts(tmp_path / "bag")) == 1


def test_existing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=f"{tmp_path} exists already"):
        BagWriter(tmp_path, **SIZES)


def test_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RolloutError, match="cannot write the bag .*/file/bag"):
        BagWriter(tmp_path / "file" / "bag", **SIZES)


def test_bag_whose_files_can_have_no_name_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="File name too long"):
        BagWriter(tmp_path / ("n" * 252), **SIZES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("observation", "action"), [([1.0], [1.0]), (1.0, [1.0]), ([1.0, 2.0], [1.0, 2.0])])
def test_vector_of_another_size_is_refused(tmp_path: Path, observation: object, action: object) -> None:
    with BagWriter(tmp_path / "bag", **SIZES) as writer, pytest.raises(RolloutError, match="has shape .*, not"):
        writer.transition(0.0, 0, observation, action)


def test_full_disk_is_reported_and_what_was_written_stays(tmp_path: Path, file_size_limit: FileSizeLimit) -> None:
    writer = BagWriter(tmp_path / "bag", observation_size=100, action_size=1, rate=100.0)
    noise = np.random.default_rng(0).normal(size=100)  # does not become small by compression
    with file_size_limit(40_000):
        failure = ""
        while not failure:
            try:
                writer.transition(writer.written * 0.01, 0, noise + writer.written, [0])
                writer.flush()
            except RolloutError as error:
                failure = str(error)
        assert "cannot write the bag" in failure
        assert "File too large" in failure
        with pytest.raises(RolloutError, match="an earlier write failed"):
            writer.step(0.0, 0, 0, 0.0, False, False)
        writer.close()
    assert 0 < writer.written == len(read_rollouts(tmp_path / "bag")) < 50


def test_disk_full_behind_a_chunk_leaves_what_is_counted(tmp_path: Path, file_size_limit: FileSizeLimit) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 100))

    def write(bag: Path) -> BagWriter:
        writer = BagWriter(bag, observation_size=100, action_size=1, rate=100.0)
        for row, observation in enumerate(noise):
            writer.transition(row * 0.01, 0, observation, [0])
            if row in {9, 19}:
                writer.flush()
        return writer

    with write(tmp_path / "whole"):
        size = (tmp_path / "whole" / "whole_0.mcap").stat().st_size
    # The last 175 bytes are the index of the second chunk's ten messages: the chunk itself is on the disk.
    with file_size_limit(size - 100), pytest.raises(RolloutError, match="File too large"):
        write(tmp_path / "bag")
    assert len(read_rollouts(tmp_path / "bag")) == 10
