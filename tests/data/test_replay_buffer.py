"""Tests of edgeml_ipc.data.replay_buffer."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats

from edgeml_ipc.data import BufferEmpty, DataShape, LatestSampler, ReplayBuffer, SequenceSampler
from edgeml_ipc.errors import BufferFull, ConnectionClosed, SegmentError

BOX = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
ROOT = Path(__file__).parents[2]
FIRST, LAST, TERMINAL, TRUNCATED = 1, 2, 4, 8
_names = itertools.count()
DICT = spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 1), np.uint8), "arm": spaces.Dict({"joints": BOX})})


def transition(value: float, **changes: Any) -> dict[str, Any]:
    step = {
        "observations": np.full(3, value, np.float32),
        "actions": np.full(2, value, np.float32),
        "rewards": value,
        "masks": 1.0,
        "dones": False,
        "next_observations": np.full(3, value + 1, np.float32),
    }
    return {key: item for key, item in {**step, **changes}.items() if item is not None}


def image_transition(value: int) -> dict[str, Any]:
    observation = {"image": np.full((4, 4, 1), value, np.uint8), "arm": {"joints": np.full(3, value, np.float32)}}
    return transition(value, observations=observation, next_observations=observation)


def make(capacity: int = 8, count: int = 0, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(BOX, ACTIONS, capacity, **options)
    if count:
        buffer.batch_insert([transition(value) for value in range(count)])
    return buffer


def test_sample_has_the_shapes_and_dtypes_of_the_spaces() -> None:
    buffer = ReplayBuffer(DICT, spaces.Discrete(5), 10)
    buffer.insert({**image_transition(7), "actions": 4})
    batch = buffer.sample(6)
    assert batch["observations"]["image"].shape == (6, 4, 4, 1)
    assert batch["observations"]["image"].dtype == np.uint8
    assert batch["next_observations"]["arm"]["joints"].dtype == np.float32
    assert (batch["actions"].shape, batch["actions"].dtype) == ((6,), np.int64)
    assert (batch["rewards"].dtype, batch["masks"].dtype, batch["dones"].dtype) == (np.float32, np.float32, np.bool_)


def test_sample_is_a_copy() -> None:
    buffer = make(count=3)
    batch = buffer.sample(5)
    batch["rewards"][:] = 99
    assert buffer.columns["rewards"].max() == 2
    assert buffer.get_latest_data(1)[0]["observations"].flags.writeable


def test_insert_copies() -> None:
    buffer = make()
    step = transition(1)
    buffer.insert(step)
    step["observations"][:] = 99
    assert (buffer.sample(1)["observations"] == 1).all()
    assert set(step) == set(transition(1))


@pytest.mark.parametrize("chunk_rows", [None, 1, 7, 50])
def test_sampling_is_uniform_after_wrapping(chunk_rows: int | None) -> None:
    buffer = make(capacity=50, count=73, seed=1, chunk_rows=chunk_rows)
    rewards = buffer.sample(50_000)["rewards"].astype(int)
    assert rewards.min() == 23
    counts = np.bincount(rewards, minlength=73)[23:]
    assert stats.chisquare(counts).pvalue > 0.01


def test_sampling_depends_on_the_seed_and_not_on_the_layout() -> None:
    once, again, other = make(8, 20, seed=5), make(8, 0, seed=5), make(8, 20, seed=6)
    again.batch_insert([transition(value) for value in range(12, 20)])
    batch = once.sample(100)["rewards"]
    np.testing.assert_array_equal(batch, again.sample(100)["rewards"])
    assert not np.array_equal(batch, other.sample(100)["rewards"])
    assert not np.array_equal(batch, once.sample(100)["rewards"])


def test_sampling_an_empty_buffer_is_an_error() -> None:
    with pytest.raises(BufferEmpty, match="cannot sample 4 rows: nothing was inserted yet"):
        make().sample(4)


def test_sampling_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1 row, got 0"):
        make(count=1).sample(0)


def test_stats_count() -> None:
    buffer = make(capacity=8, count=20)
    buffer.sample(30)
    assert buffer.stats() == {
        "inserted": 20,
        "evicted": 12,
        "sampled": 30,
        "redrawn": 0,
        "occupancy": 8,
        "capacity": 8,
        "writers": 1,
        "priorities_updated": 0,
        "priorities_stale": 0,
    }


def test_columns_are_read_only_views() -> None:
    buffer = make(capacity=4, count=2)
    rewards = buffer.columns["rewards"]
    buffer.batch_insert([transition(value) for value in range(2, 5)])
    assert rewards.tolist() == [4, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        rewards[0] = 1


def test_batch_insert_takes_stacked_arrays() -> None:
    buffer, steps = make(capacity=4), [transition(value) for value in range(6)]
    stacked = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
    buffer.batch_insert(stacked)
    assert [step["rewards"] for step in buffer.get_latest_data(-1)] == [2, 3, 4, 5]
    batch = buffer.sample(20)
    assert (batch["observations"][:, 0] == batch["rewards"]).all()
    assert (batch["next_observations"][:, 0] == batch["rewards"] + 1).all()


@pytest.mark.parametrize(
    ("masks", "given", "argument", "expected"),
    [
        (1.0, {}, False, False),
        (0.0, {}, False, True),
        (1.0, {"dones": True}, False, True),
        (0.0, {"dones": False}, False, False),
        (1.0, {"end_of_trajectory": True}, False, True),
        (1.0, {"dones": False}, True, True),
        (1.0, {}, True, True),
    ],
)
def test_dones_are_given_or_follow_the_mask(masks: float, given: dict[str, bool], argument: bool, expected: bool) -> None:
    buffer = make()
    buffer.insert({**transition(0, masks=masks, dones=None), **given}, end_of_trajectory=argument)
    assert bool(buffer.columns["dones"][0]) is expected


def test_extra_columns_are_stored_and_sampled() -> None:
    buffer = ReplayBuffer(BOX, ACTIONS, 4, extra_columns=[DataShape("origin", (2,), "int64"), DataShape("log.loss")])
    buffer.insert({**transition(0), "origin": [3, 2**31 - 1], "log": {"loss": 0.5}})
    batch = buffer.sample(1)
    assert batch["origin"].tolist() == [[3, 2**31 - 1]]
    assert batch["log"]["loss"].tolist() == [0.5]


def test_fields_of_one_dict_may_lie_apart() -> None:
    extra = [DataShape("log.loss"), DataShape("bonus"), DataShape("log.norm")]
    buffer = ReplayBuffer(BOX, ACTIONS, 4, extra_columns=extra)
    for step in (transition(0), {**transition(0), "rewards": np.float32(0)}):
        buffer.insert({**step, "log": {"norm": 0.25, "loss": 0.5}, "bonus": 0.75})
    batch = buffer.sample(9)
    assert {*batch["log"]["loss"]} == {0.5}
    assert {*batch["bonus"]} == {0.75}
    assert {*batch["log"]["norm"]} == {0.25}
    with pytest.raises(ValueError, match=r"cannot be an array and have fields within it: 'rewards.x'"):
        ReplayBuffer(BOX, ACTIONS, 4, extra_columns=[DataShape("rewards.x")])


class Named(np.ndarray):
    """An array of another type."""


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1, 2, 3], [4, 5, 6]], np.float32)[1],
        np.array([[1, 4], [2, 5], [3, 6]], np.float32)[:, 1],
        np.array([6, 5, 4], np.float32)[::-1],
        np.array([4, 5, 6], ">f4"),
        np.array([4, 5, 6], np.float64),
        np.array([4, 5, 6], np.float32).view(Named),
        np.frombuffer(b"-" + np.array([4, 5, 6], np.float32).tobytes(), np.float32, 3, 1),
        np.array([4, 5, 6], np.dtype(np.float32, copy=True)),
        [4, 5, 6],
    ],
    ids=["row", "column", "reversed", "swapped", "wide", "subclass", "unaligned", "own dtype", "list"],
)
def test_arrays_are_copied_however_they_lie(array: Any) -> None:
    buffer = make()
    references = sys.getrefcount(array)
    buffer.insert(transition(0, observations=array, next_observations=array))
    buffer.batch_insert({key: np.stack([value]) for key, value in transition(0, observations=array).items()})
    one, other = buffer.get_latest_data(-1)
    assert one["observations"].tolist() == one["next_observations"].tolist() == other["observations"].tolist() == [4, 5, 6]
    assert sys.getrefcount(array) == references


def test_keys_come_in_any_order_and_as_any_string() -> None:
    buffer = make(64)
    for value, order in enumerate([*itertools.permutations(range(7))][::210]):
        step = [*transition(value, policy_version=value).items()]
        buffer.insert({"".join([*step[number][0]]): step[number][1] for number in order})
    buffer.insert(transition(24))
    buffer.insert(transition(25, dones=None))
    data = buffer.get_latest_data(-1)
    assert [step["rewards"] for step in data] == [*range(26)]
    assert [step["observations"][2] for step in data] == [*range(26)]
    assert [step["next_observations"][2] for step in data] == [*range(1, 27)]
    assert buffer.about["policy_version"][:26].tolist() == [*range(24), -1, -1]


def test_items_that_are_as_they_are_stored_take_the_same_checks() -> None:
    buffer = ReplayBuffer(DICT, spaces.Discrete(5), 4)
    observation = image_transition(2)["observations"]
    exact = {**image_transition(2), "rewards": 2.5, "masks": 1.0, "dones": False, "actions": np.int64(4)}
    buffer.insert(exact)
    for wrong in ({**observation, "more": 1}, {"image": observation["image"]}, {**observation, "arm": {"joints": 1.0}}):
        with pytest.raises(ValueError, match=r"unknown field|is missing|has shape"):
            buffer.insert({**exact, "observations": wrong})
    assert (buffer.columns["rewards"][0], buffer.columns["actions"][0], len(buffer)) == (2.5, 4, 1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": None}, ValueError, r"'rewards' is missing; got the keys \['actions'"),
        ({"next_observations": None, "dones": True}, ValueError, "'next_observations' is missing; it is needed where an"),
        ({"policy_version": 1 << 31}, ValueError, "policy_version must fit in 32 bits, got 2147483648"),
        ({"bonus": 1}, ValueError, "unknown field 'bonus'.*extra_columns"),
        ({"observations": np.zeros(4, np.float32)}, ValueError, r"'observations' has shape \(4,\); \(3,\) is required"),
        ({"rewards": [1.0]}, ValueError, r"'rewards' has shape \(1,\); \(\) is required"),
        ({"dones": [True]}, ValueError, r"'dones' has shape \(1,\); \(\) is required"),
        ({"actions": [[1], [1, 2]]}, ValueError, r"'actions' is ragged; an array of shape \(2,\)"),
        ({"actions": {"x": 1}}, ValueError, "unknown field 'actions.x'"),
        ({"actions": np.zeros(2, complex)}, TypeError, "'actions' has dtype complex128.*float32"),
        ({"actions": ["a", "b"]}, TypeError, "'actions' has dtype <U1.*float32"),
        ({"masks": object()}, TypeError, "'masks' has dtype object"),
    ],
)
def test_bad_transitions_are_refused_whole(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    buffer = make(count=2)
    with pytest.raises(error, match=message):
        buffer.insert(transition(5, **changes))
    with pytest.raises(error, match=message):
        buffer.batch_insert([transition(4), transition(5, **changes)])
    assert buffer.latest_data_id() == 1
    assert buffer.columns["rewards"].tolist() == [0, 1] + 6 * [0]


def test_nested_observations_are_checked_by_path() -> None:
    buffer = ReplayBuffer(DICT, ACTIONS, 4)
    step = image_transition(3)
    with pytest.raises(ValueError, match=r"'observations.image' has values from 300 to 300, which do not fit uint8"):
        buffer.insert({**step, "observations": {**step["observations"], "image": np.full((4, 4, 1), 300, np.uint16)}})
    with pytest.raises(ValueError, match=r"'observations.arm' must be a dict with the key 'joints', got list"):
        buffer.insert({**step, "observations": {**step["observations"], "arm": [1, 2, 3]}})
    with pytest.raises(ValueError, match=r"'observations.image' is missing"):
        buffer.insert({**step, "observations": {"arm": step["observations"]["arm"]}})


def test_a_stacked_batch_of_unequal_lengths_is_refused() -> None:
    buffer = make()
    stacked = {key: np.stack([transition(0)[key]] * 3) for key in transition(0)}
    with pytest.raises(ValueError, match=r"'actions' has shape \(2, 2\); \(3, 2\) is required"):
        buffer.batch_insert({**stacked, "actions": stacked["actions"][:2]})
    assert len(buffer) == 0


def test_a_transition_must_be_a_dict() -> None:
    with pytest.raises(TypeError, match="an item must be a dict, got list"):
        make().insert([1, 2])  # type: ignore[arg-type]


def test_a_space_without_shape_is_refused() -> None:
    with pytest.raises(TypeError, match="the space of 'actions' must be a Dict, or have a shape and a dtype, got Text"):
        ReplayBuffer(BOX, spaces.Text(3), 4)


def test_two_fields_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="field names must differ"):
        make(extra_columns=[DataShape("rewards")])


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let Python change threads at nearly every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
def test_rows_are_never_torn_while_threads_insert_and_sample() -> None:
    """Each row's parts hold one number; a batch that shows two in one row was torn. Small, so that it wraps all the time."""
    buffer = make(capacity=32, count=32)
    stop = threading.Event()
    inserted = [0] * 3

    def insert(worker: int) -> None:
        while not stop.is_set():
            value = worker * 1000 + inserted[worker] % 1000
            if inserted[worker] % 2:
                buffer.insert(transition(value))
                inserted[worker] += 1
            else:
                buffer.batch_insert([transition(value)] * 5)
                inserted[worker] += 5

    threads = [threading.Thread(target=insert, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    torn = 0
    for _ in range(1500):
        batch = buffer.sample(64)
        rewards = batch["rewards"][:, None]
        same = [batch["observations"] == rewards, batch["actions"] == rewards, batch["next_observations"] == rewards + 1]
        torn += sum(int((~part).sum()) for part in same)
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == 0
    assert buffer.stats()["inserted"] == 32 + sum(inserted)


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-buffer-{os.getpid()}-{next(_names)}"
    yield made
    ReplayBuffer.remove(made)


def about_by_id(buffer: ReplayBuffer) -> dict[str, list[int]]:
    """Return what is known of the rows that are held, in the order of their ids."""
    written = np.flatnonzero(buffer.about["writer"])
    order = written[np.argsort(buffer.about["sequence"][written])]
    return {key: column[order].tolist() for key, column in buffer.about.items()}


STEPS = [
    {},
    {},
    {"masks": 0.0, "dones": None},
    {"dones": True},
    {},
    {"masks": 0.0},
    {"masks": 0.0, "dones": True},
]
POSITIONS = [0, 1, 2, 0, 0, 1, 2]
FLAGS = [FIRST, 0, LAST | TERMINAL, FIRST | LAST | TRUNCATED, FIRST, 0, LAST | TERMINAL]


@pytest.mark.parametrize("chunk_rows", [1, 3, 64])
@pytest.mark.parametrize("cuts", [range(8), [0, 7], [0, 2, 3, 7], [0, 5, 7]])
@pytest.mark.parametrize("stacked", [True, False])
def test_rows_know_their_place_in_the_episode(chunk_rows: int, cuts: Any, stacked: bool) -> None:
    buffer = make(capacity=64, chunk_rows=chunk_rows)
    for turn in range(2):
        steps = [transition(7 * turn + i, **changes) for i, changes in enumerate(STEPS)]
        for begin, end in itertools.pairwise(cuts):
            if end - begin == 1:
                buffer.insert(steps[begin])
            elif stacked and all("dones" in step for step in steps[begin:end]):
                buffer.batch_insert({key: np.stack([step[key] for step in steps[begin:end]]) for key in steps[begin]})
            else:
                buffer.batch_insert(steps[begin:end])
    about = about_by_id(buffer)
    assert about["sequence"] == list(range(14))
    assert about["position"] == 2 * POSITIONS
    assert about["flags"] == 2 * FLAGS
    assert set(about["writer"]) == {1}


def test_end_trajectory_cuts_the_open_episode() -> None:
    buffer = make()
    buffer.end_trajectory()
    buffer.insert(transition(0))
    buffer.insert(transition(1))
    buffer.end_trajectory()
    buffer.end_trajectory()
    buffer.insert(transition(2, masks=0.0, dones=True))
    buffer.end_trajectory()
    about = about_by_id(buffer)
    assert about["position"] == [0, 1, 0]
    assert about["flags"] == [FIRST, LAST | TRUNCATED, FIRST | LAST | TERMINAL]


def test_policy_versions_are_kept_and_travel() -> None:
    buffer, learner = make(capacity=16), make(capacity=16)
    buffer.insert({**transition(0), "policy_version": 4})
    buffer.insert(transition(1))
    buffer.batch_insert([transition(2), {**transition(3), "policy_version": 2**31 - 1}])
    stacked = {key: np.stack([transition(0)[key]] * 2) for key in transition(0)}
    buffer.batch_insert({**stacked, "policy_version": 6})
    buffer.batch_insert({**stacked, "policy_version": np.array([7, 8])})
    versions = [4, -1, -1, 2**31 - 1, 6, 6, 7, 8]
    assert about_by_id(buffer)["policy_version"] == versions
    learner.batch_insert(buffer.get_latest_data(-1))
    assert about_by_id(learner)["policy_version"] == versions


def test_a_sample_tells_about_its_rows() -> None:
    buffer = make(capacity=8, count=20)
    batch = buffer.sample(50, about=True)
    assert (batch["about"]["sequence"] == batch["rewards"]).all()
    assert (batch["about"]["position"] == batch["rewards"]).all()
    assert set(batch["about"]) == {"sequence", "position", "writer", "policy_version", "flags"}
    assert "about" not in buffer.sample(5)


@pytest.mark.parametrize("taken", ["about", "policy_version", "end_of_trajectory", "about.x"])
def test_names_that_have_a_meaning_are_refused(taken: str) -> None:
    with pytest.raises(ValueError, match="these names have a meaning of their own"):
        make(extra_columns=[DataShape(taken)])


def test_streams_of_one_process_do_not_mix() -> None:
    buffer = make(capacity=60, chunk_rows=4)
    with buffer.writer() as one, buffer.writer() as other:
        for value in range(10):
            one.insert(transition(value), end_of_trajectory=value == 4)
            other.batch_insert([transition(100 + value), transition(200 + value)])
    assert buffer.stats()["writers"] == 0
    about, rewards = buffer.about, buffer.columns["rewards"]
    for stream, expected in ((one, range(10)), (other, [k for v in range(10) for k in (100 + v, 200 + v)])):
        rows = np.flatnonzero(about["writer"] == stream.number)
        rows = rows[np.argsort(about["sequence"][rows])]
        assert rewards[rows].tolist() == list(expected)
        assert about["flags"][rows[-1]] == LAST | TRUNCATED
    rows_of_one = np.flatnonzero(about["writer"] == one.number)
    assert sorted(about["position"][rows_of_one]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    with pytest.raises(ConnectionClosed, match="the writer was closed"):
        one.insert(transition(0))
    assert [buffer.get_latest_data(28)[0]["rewards"], buffer.latest_data_id()] == [209, 29]


def test_a_buffer_for_few_writers_refuses_more() -> None:
    buffer = make(capacity=8, chunk_rows=4, max_writers=3)
    streams = [buffer.writer() for _ in range(3)]
    streams[0].insert(transition(0))
    streams[1].insert(transition(1))
    with pytest.raises(BufferFull, match="smaller chunk_rows"):
        streams[2].insert(transition(2))
    with pytest.raises(BufferFull, match="more max_writers"):
        buffer.writer()
    streams[0].close()
    streams[2].insert(transition(2))
    assert set(buffer.sample(200)["rewards"].tolist()) == {1, 2}  # in place of the oldest


@pytest.mark.parametrize("options", [{"chunk_rows": 0}, {"chunk_rows": 9}, {"max_writers": 0}, {"max_writers": 10**6}])
def test_sizes_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"chunk_rows must be|max_writers must be|out of range"):
        make(capacity=8, **options)


def test_another_object_attaches_by_name(name: str) -> None:
    buffer = ReplayBuffer(DICT, ACTIONS, 8, name=name)
    buffer.insert(image_transition(3))
    with ReplayBuffer.attach(name, seed=1) as other:
        assert (other.sample(4)["observations"]["image"] == 3).all()
        other.insert(image_transition(5))
        assert other.incarnation == buffer.incarnation
        assert buffer.latest_data_id() == other.latest_data_id() == 1
        assert sorted(np.unique(buffer.sample(100)["rewards"])) == [3, 5]
        with pytest.raises(ValueError, match=r"'observations.image' has shape"):
            other.insert({**image_transition(1), "observations": {"image": 1, "arm": {"joints": np.zeros(3)}}})
    assert buffer.stats()["writers"] == 1
    buffer.close()


def test_an_anonymous_buffer_is_reached_by_its_descriptor() -> None:
    buffer = make(count=5)
    code = (
        "import sys; from edgeml_ipc.data import ReplayBuffer\n"
        "buffer = ReplayBuffer.attach(int(sys.argv[1]))\n"
        "buffer.batch_insert(buffer.get_latest_data(2))\n"
    )
    fd = buffer.fileno()
    subprocess.run([sys.executable, "-c", code, str(fd)], cwd=ROOT, pass_fds=[fd], check=True, timeout=60)
    assert [step["rewards"] for step in buffer.get_latest_data(-1)] == [0, 1, 2, 3, 4, 3, 4]
    buffer.recover()  # that process ended without a word
    assert about_by_id(buffer)["writer"] == [1] * 5 + [2] * 2
    assert about_by_id(buffer)["flags"][-1] & (LAST | TRUNCATED) == LAST | TRUNCATED


def test_reattach_makes_or_finds(name: str) -> None:
    first = make(capacity=8, count=3, name=name, reattach=True)
    first.close()
    again = make(capacity=8, name=name, reattach=True)
    assert again.latest_data_id() == 2
    for options in ({"capacity": 9}, {"capacity": 8, "chunk_rows": 2}, {"capacity": 8, "extra_columns": [DataShape("x")]}):
        with pytest.raises(SegmentError, match="that is there has capacity 8"):
            make(name=name, reattach=True, **options)
    with pytest.raises(SegmentError, match="exists already"):
        make(capacity=8, name=name)
    with pytest.raises(ValueError, match="reattach needs a name"):
        make(reattach=True)
    again.close()


def test_a_stream_may_be_closed_after_its_buffer() -> None:
    buffer = make(capacity=8)
    with buffer.writer() as stream:
        stream.insert(transition(0))
        flags = buffer.about["flags"]
        buffer.close()
    stream.close()
    assert flags[0] == FIRST | LAST | TRUNCATED


def test_a_closed_buffer_says_so_and_its_views_live_on() -> None:
    buffer = make(capacity=4, count=3)
    rewards, about = buffer.columns["rewards"], buffer.about
    buffer.close()
    buffer.close()
    for call in (buffer.stats, lambda: buffer.sample(1), lambda: buffer.insert(transition(1)), buffer.latest_data_id):
        with pytest.raises(ConnectionClosed, match="closed"):
            call()
    assert rewards.tolist() == [0, 1, 2, 0]
    assert about["flags"].tolist() == [FIRST, 0, LAST | TRUNCATED, 0]


def test_a_forked_child_reads_and_is_refused_when_it_writes() -> None:
    """In a program of its own, since this one has threads."""
    code = "from tests.data.test_replay_buffer import fork_a_child_that_reads_and_writes as run; run()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def fork_a_child_that_reads_and_writes() -> None:
    buffer = make(count=5)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = f"{sorted(set(buffer.sample(200)['rewards'].astype(int).tolist()))} "
        for call in (lambda: buffer.insert(transition(9)), buffer.writer, buffer.recover):
            try:
                call()
                said += "wrote "
            except ConnectionClosed as error:
                said += str(error)[:18] + " "
        buffer.close()
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert pipe.read() == "[0, 1, 2, 3, 4] " + 3 * "opened before fork "
    os.waitpid(pid, 0)
    buffer.insert(transition(5))
    assert about_by_id(buffer)["flags"] == [FIRST, 0, 0, 0, 0, 0]


def test_a_child_that_keeps_the_lock_does_not_keep_the_dead_alive(name: str) -> None:
    """The writer dies; a child that it forked, which holds the same lock, lives on."""
    make(capacity=8, name=name).close()
    code = (
        "import os, signal, sys; from edgeml_ipc.data import ReplayBuffer\n"
        "from tests.data.test_replay_buffer import transition\n"
        f"buffer = ReplayBuffer.attach({name!r})\n"
        "buffer.batch_insert([transition(0), transition(1)])\n"
        "if os.fork() == 0:\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
    try:
        process.wait(60)
        buffer = ReplayBuffer.attach(name)
        assert buffer.stats()["writers"] == 0
        assert about_by_id(buffer)["flags"] == [FIRST, LAST | TRUNCATED]
        buffer.batch_insert([transition(value) for value in range(2, 12)])
        assert [step["rewards"] for step in buffer.get_latest_data(-1)] == list(range(4, 12))
        buffer.close()
    finally:
        assert process.stdin is not None
        process.stdin.close()


def test_a_stopped_writer_is_alive(name: str) -> None:
    buffer = make(capacity=8, chunk_rows=2, name=name)
    code = (
        "import os, signal; from edgeml_ipc.data import ReplayBuffer; from tests.data.test_replay_buffer import transition\n"
        f"buffer = ReplayBuffer.attach({name!r})\n"
        "buffer.insert(transition(100))\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "buffer.insert(transition(101))\n"
        "buffer.close()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    os.waitpid(process.pid, os.WUNTRACED)
    assert buffer.recover() == 0
    buffer.batch_insert([transition(value) for value in range(50)])
    assert 100 in buffer.columns["rewards"]
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) == 0
    assert sorted(buffer.columns["rewards"][buffer.about["writer"] == 1]) == [100, 101]
    buffer.close()


FALLBACK = """
import sys
sys.modules["edgeml_ipc.data._rows"] = None  # as where it was not built
import pytest
from edgeml_ipc.data import ReplayBuffer
from edgeml_ipc.errors import SegmentError
from tests.data import test_replay_buffer as tests
buffer = tests.make(capacity=8, count=20, seed=5)
assert [step["rewards"] for step in buffer.get_latest_data(-1)] == list(range(12, 20))
assert buffer.sample(100)["rewards"].tolist() == EXPECTED
assert buffer.stats()["evicted"] == 12
for call in (lambda: tests.make(name="x"), lambda: ReplayBuffer.attach("x"), buffer.fileno):
    with pytest.raises(SegmentError, match="not built here"):
        call()
tests.test_streams_of_one_process_do_not_mix()
tests.test_a_closed_buffer_says_so_and_its_views_live_on()
tests.test_rows_are_never_torn_while_threads_insert_and_sample()
"""


def test_without_the_c_half_a_buffer_is_private() -> None:
    expected = make(capacity=8, count=20, seed=5).sample(100)["rewards"].tolist()
    code = FALLBACK.replace("EXPECTED", repr(expected))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_descriptors_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        make(count=2).close()
        make(count=2)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_batches_that_are_held_never_change() -> None:
    buffer = make(capacity=16, count=16, seed=3)
    held = [buffer.sample(32) for _ in range(20)]
    before = [{key: value.copy() for key, value in batch.items()} for batch in held]
    for turn in range(1, 20):
        buffer.batch_insert([transition(16 * turn + value) for value in range(16)])
        buffer.sample(32)
    buffer.close()
    for batch, copies in zip(held, before, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, copies[key])
            value[...] = 1  # it is the holder's own


def test_the_memory_of_a_batch_that_nobody_holds_is_used_again() -> None:
    buffer = make(count=8)
    for _ in range(50):
        buffer.sample(32)
    assert buffer._batches.stats()["blocks_allocated"] <= 2


def test_sampling_after_close_is_an_error() -> None:
    buffer = make(count=8)
    buffer.close()
    buffer.close()
    with pytest.raises(ConnectionClosed, match="closed on this side"):
        buffer.sample(4)


@pytest.mark.parametrize("name", [None, "windows"])
def test_prefetched_batches_that_are_held_never_change(name: str | None) -> None:
    buffer = make(capacity=16, count=16, seed=3)
    past = SequenceSampler(begin=-2, end=1, source="rewards")
    buffer.register_sample_config("windows", {"rewards": LatestSampler(), "observations": LatestSampler(), "past": past})
    with buffer.prefetch(32, size=3, name=name) as batches:
        held, before = [], []
        for turn in range(1, 40):
            batch = next(batches)
            held.append(batch if name is None else batch[0] | {f"mask.{key}": value for key, value in batch[1].items()})
            before.append({key: np.array(value, copy=True) for key, value in held[-1].items()})
            buffer.batch_insert([transition(16 * turn + value) for value in range(16)])
    buffer.close()
    assert len({float(copies["rewards"].max()) for copies in before}) > 10  # of many rounds of the ring
    for batch, copies in zip(held, before, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.asarray(value), copies[key])
        np.testing.assert_array_equal(batch["observations"][:, 0], batch["rewards"])


def test_prefetching_an_empty_buffer_is_an_error_of_the_iterator() -> None:
    with make().prefetch(4, timeout=0) as batches, pytest.raises(BufferEmpty, match="nothing was inserted yet"):
        next(batches)
