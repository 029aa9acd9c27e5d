"""Policies by themselves: what they do to a tree, which array each one means, and what is refused at the sender."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.core
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeml_ipc import codec
from edgeml_ipc.codec import images
from edgeml_ipc.codec.policies import Policies
from edgeml_ipc.errors import CodecError

pytestmark = pytest.mark.usefixtures("codec_half")


def picture(height: int = 120, width: int = 160, channels: int = 3) -> np.ndarray[Any, Any]:
    """Return an image of soft gradients, which JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    return np.ascontiguousarray(np.stack(planes[:channels], -1).astype(np.uint8))


def through(policies: dict[str, str], tree: Any, *, copy: bool = False) -> Any:
    """Send a tree by its policies and return what arrives."""
    sender = Policies(policies)
    return codec.decode(sender.shorten(sender.encode(tree)), copy=copy)


def equal(ours: Any, theirs: Any) -> bool:
    """Compare trees, types included."""
    if isinstance(ours, np.ndarray):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return bool(ours == theirs)


# What each policy does


@pytest.mark.parametrize(
    "shape", [(120, 160, 3), (120, 160, 1), (120, 160), (4, 120, 160, 3), (2, 3, 120, 160, 1), (1, 1), (7, 5, 3)]
)
def test_jpeg_keeps_shape_dtype_and_nearly_the_pixels(shape: tuple[int, ...]) -> None:
    height, width = shape[-3:-1] if shape[-1] in (1, 3) and len(shape) > 2 else shape
    image = picture(height, width, 1)[..., 0]
    image = np.broadcast_to(image[..., None] if len(shape) > 2 else image, shape).copy()
    arrived = through({"image": "jpeg:95"}, {"image": image})["image"]
    assert (arrived.dtype, arrived.shape) == (np.uint8, shape)
    assert np.abs(arrived.astype(int) - image).max() <= 4


def test_colours_keep_their_order() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert (through({"image": "jpeg:90"}, {"image": red})["image"][16, 16] >= [250, 0, 0]).all()
    assert (through({"image": "jpeg:90"}, {"image": red})["image"][16, 16] <= [255, 5, 5]).all()


def test_a_lower_quality_is_shorter_and_all_are_shorter_than_raw() -> None:
    sizes = {}
    for policy in ("raw", "jpeg:95", "jpeg:50"):
        sender = Policies({"image": policy})
        sizes[policy] = sum(memoryview(part).nbytes for part in sender.shorten(sender.encode({"image": picture(480, 640)})))
    assert sizes["jpeg:50"] < sizes["jpeg:95"] < sizes["raw"] / 10


def test_resize_takes_means() -> None:
    image = np.array([[0, 10, 100, 110], [20, 30, 120, 130]], np.uint8)
    np.testing.assert_array_equal(images.resize(image, 1, 2), [[15, 115]])
    np.testing.assert_array_equal(images.resize(np.stack([image, image + 1])[..., None], 1, 2)[1, ..., 0], [[16, 116]])


def test_resize_to_more_repeats_pixels() -> None:
    image = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(images.resize(image, 4, 2), [[1, 2], [1, 2], [3, 4], [3, 4]])


def test_resize_of_the_largest_sums_does_not_overflow() -> None:
    assert (images.resize(np.full((1024, 1024), 255, np.uint8), 1, 1) == 255).all()


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 40)] * 2, st.sampled_from([1, 3]))),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_a_resized_image_is_of_the_size_and_within_the_range(image: np.ndarray[Any, Any], height: int, width: int) -> None:
    arrived = through({"*": f"resize:{height}x{width}"}, image)
    assert arrived.shape == (height, width, image.shape[-1])
    assert image.min() <= arrived.min()
    assert arrived.max() <= image.max()


def test_resize_then_jpeg() -> None:
    arrived = through({"image": "resize:60x80+jpeg:95"}, {"image": picture()})["image"]
    assert np.abs(arrived.astype(int) - images.resize(picture(), 60, 80)).max() <= 4


@pytest.mark.parametrize("policy", ["lz4", "zstd", "zstd:1", "zstd:19", "raw"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(5000, dtype=np.int64),
        np.zeros((100, 30), np.float32)[:, ::2],
        np.arange(5000, dtype=">i4"),
        np.ones(5000, ml_dtypes.bfloat16),
        np.zeros((50, 50), np.complex128),
        np.random.default_rng(0).random(5000),
        np.zeros(3),
        np.zeros((0, 5000)),
        np.array(2.5),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_without_loss(policy: str, array: np.ndarray[Any, Any]) -> None:
    arrived = through({"*": policy}, [array])[0]
    assert arrived.shape == array.shape
    assert arrived.dtype == array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    np.testing.assert_array_equal(arrived, array)


lossless_trees = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | arrays.arrays(
        st.sampled_from([np.uint8, np.float32, np.int64, np.bool_]),
        st.sampled_from([(), (0,), (3,), (4096,), (64, 65), (2, 3, 700)]),
        fill=st.just(1),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b.c", "image"]), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    lossless_trees,
    st.dictionaries(st.sampled_from(["a", "b.c", "image", "a.image", "*"]), st.sampled_from(["lz4", "zstd", "raw"])),
)
def test_any_tree_arrives_as_it_was(tree: Any, policies: dict[str, str]) -> None:
    assert equal(tree, through(policies, tree))


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=50)), st.integers(1, 100))
def test_any_image_arrives_in_its_shape(image: np.ndarray[Any, Any], quality: int) -> None:
    assert through({"*": f"jpeg:{quality}"}, image).shape == image.shape


def test_what_gets_no_shorter_stays_as_it_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 8192).astype(np.uint8)
    for policy in ("lz4", "zstd"):
        sender = Policies({"*": policy})
        parts = sender.encode({"noise": noise})
        assert sender.shorten(parts)[0] == parts[0]


class Step(NamedTuple):
    image: Any
    rest: Any


@dataclass
class Frame:
    image: Any


codec.register(Frame, name="policies-frame")


def test_every_container_on_the_way() -> None:
    image = picture()
    tree = {
        "list": [image, {"image": image}],
        "tuple": (1, image),
        "named": Step(image, {"image": image}),
        "ordered": collections.OrderedDict(image=image),
        "frozen": flax.core.freeze({"image": image}),
        "registered": Frame(image),
        ("a", 1): {"image": image},
        "set": {1, 2},
        "scalar": np.float32(1.5),
        "big": 1 << 80,
    }
    arrived = through({"*": "zstd"}, tree)
    assert list(arrived) == list(tree)
    assert [type(value) for value in arrived.values() if not isinstance(value, tuple)] == [
        type(value) for value in tree.values() if not isinstance(value, tuple)
    ]
    assert (arrived["named"].image == image).all()
    assert (arrived["named"].rest["image"] == image).all()
    assert (arrived["registered"].image == image).all()
    assert (arrived["frozen"]["image"] == image).all()
    sender = Policies({"*": "zstd"})
    sender.shorten(sender.encode(tree))
    assert sender.stats()["*"]["arrays"] == 9


def test_the_senders_tree_is_not_changed() -> None:
    image = picture()
    tree = {"image": image, "list": [image]}
    through({"*": "jpeg:10"}, tree)
    assert tree["image"] is image
    assert tree["list"] == [image]
    np.testing.assert_array_equal(image, picture())


def test_arrays_are_read_only_or_copies() -> None:
    tree = {"image": picture(), "depth": np.zeros((64, 64), np.float32), "state": np.zeros(3)}
    policies = {"image": "jpeg:90", "depth": "lz4"}
    assert [array.flags.writeable for array in through(policies, tree).values()] == [False, False, False]
    assert [array.flags.writeable for array in through(policies, tree, copy=True).values()] == [True, True, True]


# Which array a key means


@pytest.mark.parametrize(
    ("policies", "shorter"),
    [
        ({"image": "resize:1x1"}, {"image", "observations.image", "next.observations.image", "wrist.image"}),
        ({"observations.image": "resize:1x1"}, {"observations.image", "next.observations.image"}),
        ({"image": "resize:1x1", "observations.image": "raw"}, {"image", "wrist.image"}),
        ({"*": "resize:1x1", "image": "raw"}, {"depth_image"}),
        ({"mage": "resize:1x1"}, set()),
        ({"observations": "resize:1x1"}, set()),
        ({"wrist.image": "resize:1x1"}, {"wrist.image"}),
    ],
)
def test_keys(policies: dict[str, str], shorter: set[str]) -> None:
    image = picture()
    tree = {
        "image": image,
        "depth_image": image,
        "observations": {"image": [image, (image,)]},
        "next": {"observations": {"image": image}},
        "wrist.image": image,
    }
    arrived = through(policies, tree)
    found = {
        "image": arrived["image"],
        "depth_image": arrived["depth_image"],
        "observations.image": arrived["observations"]["image"][1][0],
        "next.observations.image": arrived["next"]["observations"]["image"],
        "wrist.image": arrived["wrist.image"],
    }
    assert {key for key, array in found.items() if array.shape == (1, 1, 3)} == shorter
    assert arrived["observations"]["image"][0].shape == found["observations.image"].shape


def test_stats_count_by_key() -> None:
    sender = Policies({"image": "resize:60x80", "*": "zstd"})
    parts = sender.encode({"image": picture(), "zeros": np.zeros(10_000, np.uint8)})
    assert sender.stats()["image"] == {"arrays": 0, "bytes_before": 0, "bytes_after": 0}
    for _ in range(2):
        sender.shorten(parts)
    assert sender.stats()["image"] == {"arrays": 2, "bytes_before": 2 * 120 * 160 * 3, "bytes_after": 2 * 60 * 80 * 3}
    assert sender.stats()["*"]["bytes_before"] == 20_000
    assert 0 < sender.stats()["*"]["bytes_after"] < 200


# What is refused


@pytest.mark.parametrize(
    "policy",
    [
        "", "png", "jpeg", "jpeg:", "jpeg:0", "jpeg:101", "jpeg:9000", "jpeg:-1", "jpeg:90 ", "jpeg:\u0669",
        "resize", "resize:10", "resize:0x10", "resize:10x0", "resize:10x99999", "resize:10x10+", "resize:10x10+raw",
        "resize:10x10+resize:5x5", "resize:10x10jpeg:90", "+jpeg:90", "jpeg:90+resize:10x10", "jpeg:90+lz4",
        "lz4:1", "zstd:", "zstd:0", "zstd:23", "RAW",
    ],
)  # fmt: skip
def test_wrong_policies_name_the_key_and_what_was_given(policy: str) -> None:
    with pytest.raises(ValueError, match="image") as caught:
        Policies({"image": policy})
    assert repr(policy) in str(caught.value)


@pytest.mark.parametrize("policies", [{1: "raw"}, {"": "raw"}, {"image": 90}, {"image": None}])
def test_keys_and_policies_are_texts(policies: Any) -> None:
    with pytest.raises(ValueError, match="str"):
        Policies(policies)


@pytest.mark.parametrize(
    ("policy", "array"),
    [
        ("jpeg:90", np.zeros((4, 4, 3), np.float32)),
        ("jpeg:90", np.zeros((4, 4, 3), np.int8)),
        ("jpeg:90", np.zeros((4, 4, 4), np.uint8)),
        ("jpeg:90", np.zeros((4, 4, 2), np.uint8)),
        ("jpeg:90", np.zeros(4, np.uint8)),
        ("jpeg:90", np.zeros((), np.uint8)),
        ("jpeg:90", np.zeros((1, 65_501), np.uint8)),
        ("resize:2x2", np.zeros((4, 4, 3), np.float32)),
        ("resize:2x2", np.zeros((4, 4, 4), np.uint8)),
        ("resize:2x2+jpeg:90", np.zeros(5, np.uint8)),
    ],
)
def test_an_array_that_does_not_fit_is_named_before_anything_is_sent(policy: str, array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(CodecError, match=r"observations\.image") as caught:
        Policies({"image": policy}).encode({"observations": {"image": array}})
    assert policy in str(caught.value)


def test_a_tree_is_looked_at_again_when_it_changes() -> None:
    sender = Policies({"image": "jpeg:90"})
    for _ in range(2):
        sender.encode({"image": picture()})
        with pytest.raises(CodecError, match="float32"):
            sender.encode({"image": picture().astype(np.float32)})


def test_numbers_and_bytes_of_a_named_key_stay_as_they_are() -> None:
    assert through({"image": "jpeg:90"}, {"image": [b"png", 5, "none", None]}) == {"image": [b"png", 5, "none", None]}


def test_an_image_without_pixels_stays_as_it_is() -> None:
    for shape in ((0, 4, 4, 3), (0, 4, 3), (4, 0)):
        assert through({"image": "jpeg:90"}, {"image": np.zeros(shape, np.uint8)})["image"].shape == shape
