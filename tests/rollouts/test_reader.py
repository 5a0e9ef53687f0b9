from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.rollouts.reader import Rollouts, read_rollouts
from nncontrol_prune.rollouts.schema import (
    ARRAY,
    STEP_LAYOUT,
    STRING,
    Layout,
    array_prefix,
    serialize_string,
    transition_layout,
)
from nncontrol_prune.rollouts.writer import BagWriter

WriteBag = Callable[..., Path]


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(RolloutError) as error:
        read_rollouts(*arguments, **options)
    return str(error.value)


def array(layout: Layout, *values: float) -> bytes:
    return array_prefix(layout) + np.array(values, "<f8").tobytes()


def write_mcap(path: Path, messages: list[tuple[str, str, bytes]], **options: object) -> Path:
    """Write topic, type and serialized message of each row, as somebody else would."""
    writer = Writer(str(path), **options)
    writer.start(profile="ros2")
    channels: dict[str, int] = {}
    for index, (topic, message_type, data) in enumerate(messages):
        if topic not in channels:
            schema = writer.register_schema(message_type, "ros2msg", b"")
            channels[topic] = writer.register_channel(topic, "cdr", schema)
        writer.add_message(channels[topic], index * 10_000_000, data, index * 10_000_000)
    writer.finish()
    return path


# What is in the rows


def test_rows_are_what_was_written(write_bag: WriteBag) -> None:
    rollouts = read_rollouts(write_bag(rows=20))
    assert len(rollouts) == 20
    np.testing.assert_allclose(rollouts.stamp, np.arange(20) * 0.01)
    np.testing.assert_allclose(rollouts.observation, np.arange(20)[:, None] + [0.0, 0.1, 0.2])
    np.testing.assert_array_equal(rollouts.action[:, 0], -np.arange(20))
    np.testing.assert_array_equal(rollouts.reward, np.arange(20))
    np.testing.assert_array_equal(rollouts.episode, np.repeat([0, 1], 10))
    np.testing.assert_array_equal(rollouts.step, np.tile(np.arange(10), 2))
    np.testing.assert_array_equal(np.flatnonzero(rollouts.terminated), [9])
    np.testing.assert_array_equal(np.flatnonzero(rollouts.truncated), [19])
    assert rollouts.controllers == [f"dense@{'a' * 64}", f"pruned@{'b' * 64}"]
    np.testing.assert_array_equal(rollouts.bundle, np.repeat([0, 1], 10))
    assert rollouts.warnings == []
    assert rollouts.has_rewards


def test_columns_have_the_documented_types(write_bag: WriteBag) -> None:
    rollouts = read_rollouts(write_bag())
    for name in ("stamp", "observation", "action", "reward"):
        assert getattr(rollouts, name).dtype == np.float64
    for name in ("bundle", "episode", "step"):
        assert getattr(rollouts, name).dtype == np.int64
    assert rollouts.terminated.dtype == rollouts.truncated.dtype == np.bool_


def test_robot_has_no_rewards(write_bag: WriteBag) -> None:
    rollouts = read_rollouts(write_bag(robot=True))
    assert not rollouts.has_rewards
    assert np.isnan(rollouts.reward).all()
    assert (rollouts.step == -1).all()
    assert not rollouts.terminated.any()
    np.testing.assert_array_equal(rollouts.episodes, [0])
    np.testing.assert_array_equal(rollouts.successors, np.arange(19))


def test_lost_steps_leave_holes_only(write_bag: WriteBag) -> None:
    rollouts = read_rollouts(write_bag(lost_steps=(3, 4, 10), jitter=0.003))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(rollouts.reward)), [3, 4, 10])
    np.testing.assert_array_equal(rollouts.step[2:6], [2, -1, -1, 5])
    np.testing.assert_array_equal(rollouts.episode, np.repeat([0, 1], 10))


def test_lost_transitions_do_not_shift_rewards(write_bag: WriteBag) -> None:
    rollouts = read_rollouts(write_bag(lost_transitions=(0, 5, 6)))
    np.testing.assert_array_equal(rollouts.reward, -rollouts.action[:, 0])


def test_successors_skip_ends_holes_and_rows_that_may_be_ends(write_bag: WriteBag) -> None:
    rollouts = read_rollouts(write_bag(rows=12, lost_transitions=(2,), lost_steps=(8,)))
    # Rows 0 1 3 4 5 | 6 7 8 9 10 11 were recorded; 1 has lost its successor, 5 and 11 end episodes, 8 has no step.
    np.testing.assert_array_equal(rollouts.stamp[rollouts.successors], np.array([0, 3, 4, 6, 7, 9, 10]) * 0.01)


def test_steps_of_most_transitions_missing_is_reported(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", observation_size=1, action_size=1, rate=10.0) as writer:
        for row in range(20):
            writer.transition(row * 0.1, 0, [0.0], [0.0])
            writer.step(1000 + row * 0.1, 0, row, 0.0, False, False)
    assert "only 0 of 20 steps have a transition's stamp" in " ".join(read_rollouts(tmp_path / "bag").warnings)


def test_nan_is_kept_and_counted(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", observation_size=2, action_size=1, rate=10.0) as writer:
        writer.bundle(0, "a@01234567")
        for row in range(10):
            writer.transition(row * 0.1, 0, [np.nan if row == 3 else 0.0, 1.0], [np.inf if row == 4 else 0.0])
    rollouts = read_rollouts(tmp_path / "bag")
    assert np.isnan(rollouts.observation[3, 0])
    assert rollouts.warnings == [f"{tmp_path / 'bag'}: 2 of 10 transitions hold NaN or infinity"]


def test_transitions_without_a_stamp_are_left_out(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", observation_size=1, action_size=1, rate=10.0) as writer:
        writer.bundle(0, "a@01234567")
        for stamp in (0.0, np.nan, 0.2):
            writer.transition(stamp, 0, [stamp], [0.0])
    rollouts = read_rollouts(tmp_path / "bag")
    np.testing.assert_array_equal(rollouts.observation[:, 0], [0.0, 0.2])
    assert "1 transitions without a finite stamp" in rollouts.warnings[0]


def test_unknown_controller_is_reported(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", observation_size=1, action_size=1, rate=10.0) as writer:
        writer.transition(0.0, 0, [0.0], [0.0])
        writer.transition(0.1, 1, [0.0], [0.0])
        writer.bundle(1, "b@01234567")
    rollouts = read_rollouts(tmp_path / "bag")
    np.testing.assert_array_equal(rollouts.bundle, [-1, 0])
    assert rollouts.controllers == ["b@01234567"]
    assert "does not tell which controller acted in 1 of 2 transitions" in rollouts.warnings[0]


def test_loop_that_was_started_again_counts_swaps_anew(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", observation_size=1, action_size=1, rate=10.0) as writer:
        for start, name in ((0.0, "a@01234567"), (5.0, "b@01234567")):
            writer.bundle(0, name)
            writer.transition(start, 0, [0.0], [0.0])
            time.sleep(0.001)
    rollouts = read_rollouts(tmp_path / "bag")
    assert [rollouts.controllers[index] for index in rollouts.bundle] == ["a@01234567", "b@01234567"]


# Several bags


def test_episodes_of_two_bags_are_distinct(write_bag: WriteBag, tmp_path: Path) -> None:
    first, second = write_bag("first", rows=20), write_bag("second", rows=6)
    rollouts = read_rollouts([first, second])
    np.testing.assert_array_equal(rollouts.episode, np.repeat([0, 1, 2, 3], [10, 10, 3, 3]))
    assert len(rollouts.controllers) == 2
    np.testing.assert_array_equal(rollouts.bundle, np.repeat([0, 1, 0, 1], [10, 10, 3, 3]))
    assert read_rollouts(tmp_path).digest == rollouts.digest
    assert read_rollouts([first, first / "first_0.mcap", second, first]).digest != rollouts.digest
    assert len(read_rollouts([first, first])) == 20


def test_folder_of_bags_is_read_in_order_of_their_numbers(write_bag: WriteBag, tmp_path: Path) -> None:
    for name, rows in (("run_10", 4), ("run_2", 2)):
        write_bag(name, rows=rows)
    np.testing.assert_array_equal(read_rollouts(tmp_path).reward, [0, 1, 0, 1, 2, 3])


def test_folder_with_an_empty_bag_is_read(write_bag: WriteBag, tmp_path: Path) -> None:
    write_bag("full")
    BagWriter(tmp_path / "killed", observation_size=3, action_size=1, rate=100.0).close()
    rollouts = read_rollouts(tmp_path)
    assert len(rollouts) == 20
    assert rollouts.warnings == [f"{tmp_path / 'killed'} holds no transitions"]


def test_split_bag_is_one_bag(tmp_path: Path) -> None:
    layout = transition_layout(1, 1)
    for part in (10, 9):
        rows = [("/c/transition", ARRAY, array(layout, part * 10 + i, 0, part, 0)) for i in range(10)]
        write_mcap(tmp_path / f"bag_{part}.mcap", rows)
    np.testing.assert_array_equal(read_rollouts(tmp_path).observation[:, 0], np.repeat([9, 10], 10))


def test_digest_is_that_of_the_contents(write_bag: WriteBag, tmp_path: Path) -> None:
    digests = {read_rollouts(write_bag(name)).digest for name in ("a", "b")}
    assert len(digests) == 1
    changed = {read_rollouts(write_bag("c", lost_steps=(3,))).digest, read_rollouts(write_bag("d", rows=18)).digest}
    assert len(digests | changed) == 3


def test_bag_is_known_by_how_it_begins_however_long_it_grows(write_bag: WriteBag) -> None:
    first, longer, other = write_bag("a", rows=150), write_bag("b", rows=170), write_bag("c", rows=90)
    bags = read_rollouts([first, longer, other]).bags
    assert len(bags) == 3
    assert bags[0] == bags[1] != bags[2]
    assert read_rollouts([other]).bags == bags[2:]
    assert read_rollouts([first, other]).rows(slice(10)).bags == [bags[0], bags[2]]


# Bags of `ros2 bag record`


@pytest.mark.parametrize("compression", list(CompressionType))
@pytest.mark.parametrize("chunking", [True, False])
def test_foreign_bag_is_read(tmp_path: Path, compression: CompressionType, chunking: bool) -> None:
    layout = transition_layout(2, 1)
    messages = [("/robot1/nn_controller/bundle", STRING, serialize_string("0 a@01234567"))]
    for row in range(100):
        messages += [
            ("/joint_states", "sensor_msgs/msg/JointState", b"\x00\x01\x00\x00" + bytes(100)),
            ("/robot1/nn_controller/transition", ARRAY, array(layout, row * 0.1, 0, row, row, -row)),
            ("/robot1/mujoco_sim/step", ARRAY, array(STEP_LAYOUT, row * 0.1, 0, row, row, 0, 0)),
            ("/robot2/mujoco_sim/step", ARRAY, array(STEP_LAYOUT, row * 0.1, 0, row, -1, 0, 0)),
            ("/door/transition", STRING, serialize_string("open")),
            ("/other/transition", ARRAY, array((("from", 1), ("to", 1)), 1, 2)),
        ]
    path = write_mcap(tmp_path / "x.mcap", messages, compression=compression, chunk_size=2000, use_chunking=chunking)
    for place in (path, tmp_path):
        rollouts = read_rollouts(place, observation_size=2, action_size=1)
        np.testing.assert_array_equal(rollouts.reward, np.arange(100))
        np.testing.assert_array_equal(rollouts.observation, np.repeat(np.arange(100.0), 2).reshape(100, 2))
        assert rollouts.controllers == ["a@01234567"]
        assert rollouts.warnings == []


def two_controllers(tmp_path: Path) -> Path:
    layout = transition_layout(1, 1)
    rows = [(f"/{name}/ctl/transition", ARRAY, array(layout, 0, 0, x, 0)) for name, x in (("left", 1), ("right", 2))]
    return write_mcap(tmp_path / "two.mcap", rows)


def test_several_controllers_are_named(tmp_path: Path) -> None:
    message = refusal(two_controllers(tmp_path))
    assert "several controllers: left/ctl, right/ctl; record each in a bag of its own" in message


# Cut and damaged files


def write_in_chunks(path: Path, rows: int = 200) -> Path:
    with BagWriter(path, observation_size=2, action_size=1, rate=100.0) as writer:
        writer.bundle(0, "a@01234567")
        for row in range(rows):
            writer.transition(row * 0.01, 0, [row, row], [row])
            if row % 10 == 9:
                writer.flush()
    return path


def chunk_ends(bag: Path) -> list[int]:
    """Return where in the file each chunk ends."""
    with (bag / "bag_0.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    return [chunk.chunk_start_offset + chunk.chunk_length for chunk in summary.chunk_indexes]


def test_file_cut_at_any_byte_is_read_up_to_the_cut(tmp_path: Path) -> None:
    bag = write_in_chunks(tmp_path / "bag")
    data = (bag / "bag_0.mcap").read_bytes()
    first_chunk = chunk_ends(bag)[0]
    cut = tmp_path / "cut"
    cut.mkdir()
    read = []
    offsets = sorted({*range(0, len(data), 61), *range(len(data) - 40, len(data))})
    for offset in offsets:
        (cut / "cut_0.mcap").write_bytes(data[:offset])
        if offset < first_chunk:
            assert refusal(cut) == f"{cut} holds no transitions; it was cut short"
            continue
        rollouts = read_rollouts(cut)
        read.append(len(rollouts))
        np.testing.assert_array_equal(rollouts.action[:, 0], np.arange(len(rollouts)))
        until = f"read {len(rollouts)} transitions up to t={rollouts.stamp[-1]:.2f} s"
        assert rollouts.warnings == [f"{cut} was cut short, or is still being written: {until}"]
    assert read == sorted(read)
    assert set(read) == set(range(10, 201, 10))


def test_damaged_chunk_is_left_out(tmp_path: Path) -> None:
    bag = write_in_chunks(tmp_path / "bag")
    path = bag / "bag_0.mcap"
    data = bytearray(path.read_bytes())
    data[chunk_ends(bag)[3] - 20] ^= 0xFF
    path.write_bytes(data)
    rollouts = read_rollouts(bag)
    assert len(rollouts) == 190
    assert rollouts.warnings == [f"{bag} is damaged: 1 chunks of messages were left out"]


def test_flipped_byte_anywhere_is_survived(tmp_path: Path) -> None:
    bag = write_in_chunks(tmp_path / "bag", rows=50)
    path = bag / "bag_0.mcap"
    data = path.read_bytes()
    for offset in range(0, len(data), 37):
        changed = bytearray(data)
        changed[offset] ^= 0xFF
        path.write_bytes(changed)
        try:
            rollouts = read_rollouts(bag)
        except RolloutError:
            continue
        assert set(rollouts.action[:, 0]) <= set(range(50))


# What is no bag


def test_missing_path_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing") == f"{tmp_path / 'nothing'} does not exist"


def test_nothing_given_is_refused() -> None:
    assert refusal([]) == "no bag is given"


def test_other_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.mcap"
    path.write_text("These are my notes.")
    assert refusal(path) == f"{path} is not an MCAP file"


def test_folder_without_bags_is_refused(tmp_path: Path) -> None:
    assert "holds no bag" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "advice"), [("a.db3", "-s mcap"), ("a.mcap.zstd", "zstd -d")])
def test_other_storage_is_refused_with_advice(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).touch()
    assert advice in refusal(tmp_path)


def test_bag_without_transitions_is_refused(tmp_path: Path) -> None:
    BagWriter(tmp_path / "bag", observation_size=1, action_size=1, rate=10.0).close()
    assert refusal(tmp_path / "bag") == f"{tmp_path / 'bag'} holds no transitions"


def test_folder_of_empty_bags_is_refused(tmp_path: Path) -> None:
    BagWriter(tmp_path / "bag", observation_size=1, action_size=1, rate=10.0).close()
    assert refusal(tmp_path) == f"{tmp_path / 'bag'} holds no transitions"


def test_other_sizes_than_asked_for_are_refused(write_bag: WriteBag) -> None:
    bag = write_bag(observation_size=4, action_size=2)
    assert refusal(bag, observation_size=5) == f"{bag} holds observations of 4 values, and the controller has 5"
    assert refusal(bag, action_size=1) == f"{bag} holds actions of 2 values, and the controller has 1"
    assert isinstance(read_rollouts(bag, observation_size=4, action_size=2), Rollouts)


def test_bags_of_different_sizes_are_refused(write_bag: WriteBag) -> None:
    first, second = write_bag("first", observation_size=4), write_bag("second", observation_size=5)
    assert refusal([first, second]) == f"{second} holds observations of 5 values, and {first} has 4"


def test_size_that_changes_within_a_bag_is_refused(tmp_path: Path) -> None:
    rows = [("/c/transition", ARRAY, array(transition_layout(n, 1), *range(3 + n))) for n in (1, 1, 2)]
    message = refusal(write_mcap(tmp_path / "x.mcap", rows))
    assert "message 2 is laid out as stamp[1], bundle[1], observation[2], action[1]" in message


def test_bag_without_metadata_file_is_read(write_bag: WriteBag) -> None:
    bag = write_bag()
    (bag / "metadata.yaml").unlink()
    assert len(read_rollouts(bag)) == 20


def test_moved_bag_is_read(write_bag: WriteBag, tmp_path: Path) -> None:
    shutil.move(write_bag(), tmp_path / "moved")
    assert len(read_rollouts(tmp_path / "moved")) == 20
