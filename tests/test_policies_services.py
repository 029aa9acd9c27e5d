"""Policies between real processes: over tcp arrays travel shortened, over shared memory the same program gets them raw."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import multiprocess
import numpy as np
import pytest
from gymnasium.spaces import Box

from edgeml_ipc.action import ActionClient, ActionConfig, ActionServer
from edgeml_ipc.data.data_store import QueuedDataStore
from edgeml_ipc.data.replay_buffer import ReplayBuffer
from edgeml_ipc.errors import CodecError, RemoteError
from edgeml_ipc.inference import InferenceClient, InferenceServer
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer
from tests.conftest import eventually, new_address
from tests.meta.source import ROOT
from tests.test_policies import picture

pytestmark = pytest.mark.usefixtures("no_threads_left")

PATIENCE_S = 30.0
IMAGE = picture(240, 320)
ACTIONS = ActionConfig(port_number=0, action_keys=["look"], observation_keys=["image"])
POLICIES = {"image": "jpeg:90", "*": "zstd"}
RAW_BYTES = IMAGE.nbytes


def is_raw(image: Any) -> bool:
    return np.array_equal(image, IMAGE)


def is_near(image: Any) -> bool:
    return bool(np.abs(image.astype(int) - IMAGE).max() <= 12)


# What runs in the other process


def serve_actions(address: str, pipe: Any) -> None:
    """Publish an image whenever told to; answer with what came in, and with the counters."""
    seen: list[Any] = []

    def act(_key: str, payload: Any) -> dict[str, Any]:
        seen[:] = [is_raw(payload["image"]), is_near(payload["image"])]
        return {"image": payload["image"], "seen": seen}

    with ActionServer(ACTIONS, lambda _keys: {"image": IMAGE}, act, host=address, policies=POLICIES) as server:
        server.start(threaded=True)
        pipe.send(server.address)
        while pipe.recv() == "publish":
            server.publish_obs({"image": IMAGE, "zeros": np.zeros(20_000)})
            pipe.send(server.stats()["policies"])
        pipe.send(server.stats()["policies"])


def serve_inference(address: str, pipe: Any) -> None:
    with InferenceServer(0, host=address, policies={"mask": "lz4"}) as server:
        server.register_interface("segment", lambda payload: {"mask": np.zeros((240, 320)), "raw": is_raw(payload["image"])})
        server.register_interface("batched", lambda payload: {"mask": payload["image"][..., 0]}, max_batch_size=4)
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()


def serve_trainer(address: str, pipe: Any) -> None:
    store = QueuedDataStore(100)
    config = TrainerConfig(port_number=0, request_types=["show"])
    with TrainerServer(config, request_callback=lambda _t, p: {"w": p["w"]}, host=address, policies={"w": "zstd"}) as server:
        server.register_data_store("actor", store)
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()
        pipe.send(
            [
                (is_raw(item["observations"]["image"]), is_near(item["observations"]["image"]))
                for item in store.get_latest_data(-1)
            ]
        )
        server.publish_network({"w": np.zeros(100_000), "b": np.zeros(10)})
        pipe.recv()
        pipe.send(server.stats()["policies"])


@pytest.fixture
def other() -> Iterator[Any]:
    """Start a function in a process of its own; give its end of a pipe, and the address that it sent."""
    started = []

    def start(function: Any, scheme: str) -> tuple[Any, str]:
        context = multiprocess.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=function, args=(new_address(scheme), theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, pipe))
        return pipe, hear(pipe)

    yield start
    for process, pipe in started:
        pipe.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def hear(pipe: Any) -> Any:
    assert pipe.poll(PATIENCE_S), f"the other process said nothing for {PATIENCE_S} s"
    return pipe.recv()


def subscribe(client: ActionClient) -> tuple[list[dict[str, Any]], threading.Semaphore]:
    got: list[dict[str, Any]] = []
    arrived = threading.Semaphore(0)
    client.register_obs_callback(lambda obs: (got.append(obs), arrived.release()))
    return got, arrived


# The services


@pytest.mark.parametrize("scheme", ["tcp", "shm", "auto"])
def test_actions(other: Any, scheme: str) -> None:
    pipe, address = other(serve_actions, scheme)
    with ActionClient(address, ACTIONS, timeout_ms=20_000, policies={"image": "jpeg:90"}) as client:
        assert client.transport == ("tcp" if scheme == "tcp" else "shm")
        over_tcp = client.transport == "tcp"
        image = client.obs()["image"]
        assert is_near(image)
        assert is_raw(image) is not over_tcp
        assert not image.flags.writeable
        answer = client.act("look", {"image": IMAGE})
        assert answer["seen"] == [not over_tcp, True]
        moved = client.stats()["connection"]
        for direction in ("bytes_sent", "bytes_received"):
            assert (moved[direction] < RAW_BYTES / 4) is over_tcp
        assert client.stats()["policies"]["image"]["arrays"] == int(over_tcp)
    pipe.send("stop")
    assert hear(pipe)["image"]["arrays"] == 2 * over_tcp


def test_one_value_for_both_kinds_of_subscribers(other: Any) -> None:
    """Over shared memory it is raw; for two behind tcp it is shortened once; without them it is not."""
    pipe, address = other(serve_actions, "auto")
    by_tcp = address.replace("auto://", "tcp://")
    with ActionClient(address, ACTIONS, timeout_ms=20_000) as near:
        got, arrived = subscribe(near)
        pipe.send("publish")
        hear(pipe)
        assert arrived.acquire(timeout=PATIENCE_S)
        assert is_raw(got[0]["image"])
        pipe.send("publish")
        assert hear(pipe)["image"]["arrays"] == 0
        with (
            ActionClient(by_tcp, ACTIONS, timeout_ms=20_000) as one,
            ActionClient(by_tcp, ACTIONS, timeout_ms=20_000) as two,
        ):
            by_one, one_arrived = subscribe(one)
            by_two, two_arrived = subscribe(two)
            for expected in (1, 2):  # the value that is there already, and the next
                assert one_arrived.acquire(timeout=PATIENCE_S)
                assert two_arrived.acquire(timeout=PATIENCE_S)
                for got_by_tcp in (by_one, by_two):
                    assert is_near(got_by_tcp[-1]["image"])
                    assert not is_raw(got_by_tcp[-1]["image"])
                    assert not got_by_tcp[-1]["zeros"].any()
                np.testing.assert_array_equal(by_one[-1]["image"], by_two[-1]["image"])
                pipe.send("publish")
                assert hear(pipe)["image"]["arrays"] in (expected, expected + 1)
            stats = one.stats()["background_connection"]
            assert stats["bytes_received"] < RAW_BYTES / 4
        assert all(is_raw(obs["image"]) for obs in got)
        pipe.send("stop")
        counted = hear(pipe)
        assert counted["image"]["arrays"] <= 3
        assert counted["image"]["bytes_before"] == counted["image"]["arrays"] * RAW_BYTES
        assert counted["image"]["bytes_after"] < counted["image"]["bytes_before"] / 4
        assert counted["*"]["bytes_after"] < counted["*"]["bytes_before"] / 100


@pytest.mark.parametrize("scheme", ["tcp", "shm"])
def test_inference(other: Any, scheme: str) -> None:
    pipe, address = other(serve_inference, scheme)
    with InferenceClient(address, 0, timeout_ms=20_000, policies={"image": "resize:120x160+jpeg:90"}) as client:
        over_tcp = scheme == "tcp"
        assert client.call("segment", {"image": IMAGE})["raw"] is not over_tcp
        assert client.call_async("segment", {"image": IMAGE}).result(20)["raw"] is not over_tcp
        assert client.call("batched", {"image": IMAGE})["mask"].shape == ((120, 160) if over_tcp else (240, 320))
        received = client.stats()["connection"]["bytes_received"]
        assert (received < 240 * 320 * 8 / 10) is over_tcp
        with pytest.raises(CodecError, match=r"jpeg.*image.*float64"):
            client.call("segment", {"image": np.zeros((240, 320, 3))})
        assert client.stats()["connection"]["messages_sent"] == 2
    pipe.send("stop")


@pytest.mark.parametrize("scheme", ["tcp", "shm"])
def test_trainer(other: Any, scheme: str) -> None:
    pipe, address = other(serve_trainer, scheme)
    over_tcp = scheme == "tcp"
    queue = QueuedDataStore(100)
    for i in range(20):
        queue.insert({"observations": {"image": IMAGE, "state": np.full(4, i)}, "rewards": float(i)})
    policies = {"observations.image": "jpeg:90"}
    with TrainerClient(
        "actor", address, TrainerConfig(port_number=0, request_types=["show"]), queue, timeout_ms=20_000, policies=policies
    ) as client:
        assert client.update().sent == 20
        sent = client.stats()["connection"]["bytes_sent"]
        assert (sent < 20 * RAW_BYTES / 4) is over_tcp
        assert not client.request("show", {"w": np.zeros(10_000)})["w"].any()
        arrived = threading.Event()
        networks: list[Any] = []
        client.recv_network_callback(lambda params: (networks.append(params), arrived.set()))
        pipe.send("show")
        assert hear(pipe) == [(not over_tcp, True)] * 20
        assert arrived.wait(PATIENCE_S)
        assert networks[0]["w"].shape == (100_000,)
        assert not networks[0]["w"].any()
    pipe.send("stop")
    assert hear(pipe)["w"]["arrays"] == 2 * over_tcp


def test_samples_of_a_remote_buffer_travel_as_they_are() -> None:
    pictures, actions = Box(0, 255, (32, 32, 3), np.uint8), Box(-1, 1, (2,), np.float32)
    config = TrainerConfig(port_number=0, request_types=["show"])
    policies = {"*": "zstd", "observations": "resize:4x4"}
    image = picture(32, 32)
    with (
        ReplayBuffer(pictures, actions, 100) as buffer,
        TrainerServer(config, request_callback=lambda _t, p: p, host=new_address("tcp"), policies=policies) as server,
    ):
        for _ in range(10):
            step = {"observations": image, "next_observations": image, "actions": np.zeros(2, np.float32), "rewards": 0.0}
            buffer.insert({**step, "masks": 1.0})
        server.register_data_store("steps", buffer)
        server.start(threaded=True)
        with ReplayBuffer.connect(f"{server.address}/steps") as remote:
            np.testing.assert_array_equal(remote.sample(4)["observations"], np.stack([image] * 4))
        assert server.stats()["policies"]["observations"]["arrays"] == 0
        with TrainerClient("me", server.address, config, timeout_ms=20_000) as client:
            assert client.request("show", {"observations": image})["observations"].shape == (4, 4, 3)


# What does not fit


def test_a_published_value_that_does_not_fit_is_refused_without_subscribers_too() -> None:
    with ActionServer(
        ACTIONS, lambda _: {}, lambda _k, _p: {}, host=new_address("shm"), policies={"image": "jpeg:90"}
    ) as server:
        with pytest.raises(CodecError, match="image"):
            server.publish_obs({"image": np.zeros((4, 4), np.float32)})
        assert server.stats()["version"] == 0
        assert server.publish_obs({"image": IMAGE}) == 1


def test_a_reply_that_does_not_fit_reaches_its_caller() -> None:
    with ActionServer(
        ACTIONS, lambda _: {"image": IMAGE / 2}, lambda _k, _p: {}, host=new_address("tcp"), policies=POLICIES
    ) as server:
        server.start(threaded=True)
        with ActionClient(server.address, ACTIONS, timeout_ms=20_000) as client:
            with pytest.raises(RemoteError, match=r"jpeg:90.*float64"):
                client.obs()
            assert client.act("look") == {}


@pytest.mark.parametrize("front", [ActionServer, ActionClient, InferenceServer, InferenceClient, TrainerServer, TrainerClient])
def test_a_wrong_policy_is_refused_before_anything_listens_or_connects(front: Any) -> None:
    arguments = {
        ActionServer: (ACTIONS, None, None),
        ActionClient: ("tcp://127.0.0.1:1", ACTIONS),
        InferenceServer: (0,),
        InferenceClient: ("tcp://127.0.0.1:1", 1),
        TrainerServer: (TrainerConfig(port_number=0),),
        TrainerClient: ("me", "tcp://127.0.0.1:1", TrainerConfig()),
    }[front]
    with pytest.raises(ValueError, match="jpg:90"):
        front(*arguments, policies={"image": "jpg:90"})


# Without the extras

WITHOUT = """
import sys
for name in ("simplejpeg", "lz4", "lz4.block", "zstandard"):
    sys.modules[name] = None  # as if it were not installed
import numpy as np
from edgeml_ipc import CodecError, InferenceClient, InferenceServer
for policy, extra in (("jpeg:90", "video"), ("lz4", "compress"), ("zstd", "compress")):
    try:
        InferenceClient("tcp://127.0.0.1:1", 1, policies={"x": policy})
    except CodecError as error:
        assert f"'edgeml_ipc[{extra}]'" in str(error), error
with InferenceServer(0, host="tcp://127.0.0.1:0", policies={"x": "resize:4x4"}) as server:
    server.register_interface("echo", lambda payload: payload)
    server.start(threaded=True)
    print(server.address, flush=True)
    sys.stdin.read()
"""


def test_without_the_extras_both_ends_say_what_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        for policy, extra in (("jpeg:90", "video"), ("lz4", "compress"), ("zstd", "compress")):
            with InferenceClient(address, 0, timeout_ms=20_000, policies={"image": policy}) as client:
                with pytest.raises(CodecError, match=rf"pip install 'edgeml_ipc\[{extra}\]'"):
                    client.call("echo", {"image": np.zeros((240, 320, 3), np.uint8)})
                assert client.call("echo", {"x": IMAGE})["x"].shape == (4, 4, 3)
        errors = process.communicate(timeout=PATIENCE_S)[1]
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.communicate()


# The listener's own thread


def test_subscribers_that_are_slow_skip_versions_and_shorten_only_what_they_take() -> None:
    with ActionServer(ACTIONS, lambda _: {}, lambda _k, _p: {}, host=new_address("tcp"), policies=POLICIES) as server:
        server.start(threaded=True)
        with ActionClient(server.address, ACTIONS, timeout_ms=20_000) as client:
            got, arrived = subscribe(client)
            eventually(lambda: server.stats()["lag"])
            for i in range(200):
                frame = IMAGE.copy()
                server.publish_obs({"image": frame, "number": i})
                frame[:] = 0  # the publisher's again
            while not got or got[-1]["number"] < 199:
                assert arrived.acquire(timeout=PATIENCE_S)
            assert [obs["number"] for obs in got] == sorted({obs["number"] for obs in got})
            assert all(is_near(obs["image"]) for obs in got)
            counted = server.stats()["policies"]["image"]["arrays"]
            assert len(got) <= counted < 200


def test_what_the_page_shows_runs() -> None:
    block = re.search(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "image_policies.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert block is not None
    done = subprocess.run([sys.executable, "-c", block[1]], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
