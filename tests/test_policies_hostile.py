"""Compressed arrays whose sender lies: bombs, other sizes, other images, damage. All end as CodecError, and cost little."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import lz4.block
import msgspec
import numpy as np
import pytest
import simplejpeg
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from edgeml_ipc import codec
from edgeml_ipc.codec import wire
from edgeml_ipc.codec.policies import Policies
from edgeml_ipc.errors import CodecError

pytestmark = pytest.mark.usefixtures("codec_half")

ZEROS = np.zeros(8192, np.uint8)
IMAGE = np.add.outer(np.arange(64), np.arange(64))[..., None].repeat(3, -1).astype(np.uint8)


def message(text: str, *parts: Any) -> list[Any]:
    return [msgspec.msgpack.encode(Ext(wire.COMPRESSED_ARRAY, text.encode())), *parts]


def refused(text: str, part: Any, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=match):
            codec.decode(message(text, part))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def jpeg(image: Any = IMAGE, **options: Any) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), **options))


def table(*streams: bytes) -> bytes:
    return struct.pack(f"<{len(streams)}I", *map(len, streams)) + b"".join(streams)


def test_what_these_tests_change_is_accepted_unchanged() -> None:
    assert (codec.decode(message("lz4:uint8:8192", lz4.block.compress(ZEROS, store_size=False))) == ZEROS).all()
    assert (codec.decode(message("zstd:uint8:8192", zstandard.compress(ZEROS))) == ZEROS).all()
    assert codec.decode(message("jpeg:uint8:64,64,3", table(jpeg()))).shape == (64, 64, 3)
    assert codec.decode(message("jpeg:uint8:2,64,64,3", table(jpeg(), jpeg()))).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "description"),
        ("lz4", "description"),
        (":uint8:8192", "compressed by"),
        ("gzip:uint8:8192", "compressed by b'gzip'"),
        ("LZ4:uint8:8192", "compressed by"),
        ("lz4:object:8192", "object"),
        ("lz4:uint8:-1", "description"),
    ],
)
def test_descriptions_that_mean_nothing(text: str, match: str) -> None:
    refused(text, lz4.block.compress(ZEROS, store_size=False), match)


@pytest.mark.parametrize("codec_name", ["lz4", "zstd", "jpeg"])
def test_more_than_a_message_may_yield(codec_name: str) -> None:
    refused(f"{codec_name}:uint8:1048577,1024,1", b"x" * 100, "1073741824 bytes")


def test_the_arrays_of_a_message_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_INFLATED_BYTES", 2 * 8192)
    compressed = lz4.block.compress(ZEROS, store_size=False)
    node = Ext(wire.COMPRESSED_ARRAY, b"lz4:uint8:8192")
    assert len(codec.decode([msgspec.msgpack.encode([node] * 2), compressed, compressed])) == 2
    with pytest.raises(CodecError, match="more than"):
        codec.decode([msgspec.msgpack.encode([node] * 3), *[compressed] * 3])
    sender = Policies({"*": "lz4"})
    with pytest.raises(CodecError, match="more than"):
        sender.shorten(sender.encode([ZEROS] * 3))


@pytest.mark.parametrize("declared", [8191, 8193, 1 << 29])
def test_lz4_of_another_size(declared: int) -> None:
    with pytest.raises(CodecError, match=r"lz4|yields"):
        codec.decode(message(f"lz4:uint8:{declared}", lz4.block.compress(ZEROS, store_size=False)))


@pytest.mark.parametrize("declared", [8191, 8193, 1 << 29])
def test_zstd_of_another_size(declared: int) -> None:
    refused(f"zstd:uint8:{declared}", zstandard.compress(ZEROS), "8192 bytes in the place of")


def test_a_zstd_frame_that_says_no_size() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(ZEROS)
    refused("zstd:uint8:8192", frame, "-1 bytes")


def test_a_zstd_frame_that_says_a_size_which_it_does_not_have() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(np.zeros(1 << 20, np.uint8)))
    place = frame.index(struct.pack("<I", 1 << 20))
    frame[place : place + 4] = struct.pack("<I", (1 << 20) + 4096)
    with pytest.raises(CodecError, match=r"damaged|yields"):
        codec.decode(message(f"zstd:uint8:{(1 << 20) + 4096}", bytes(frame)))


def test_more_behind_a_zstd_frame() -> None:
    refused("zstd:uint8:8192", zstandard.compress(ZEROS) + b"more", "damaged")


@pytest.mark.parametrize("codec_name", ["lz4", "zstd"])
def test_truncated(codec_name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 16, 8192).astype(np.uint8)
    whole = lz4.block.compress(noise, store_size=False) if codec_name == "lz4" else zstandard.compress(noise)
    for length in (0, 1, 5, len(whole) // 2, len(whole) - 1):
        with pytest.raises(CodecError):
            codec.decode(message(f"{codec_name}:uint8:8192", whole[:length]))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("jpeg:uint8:64,64,3", table(jpeg())[:-200]),
        ("jpeg:uint8:64,64,3", table(jpeg()[:-200])),
        ("jpeg:uint8:64,64,3", table(jpeg()[:300])),
        ("jpeg:uint8:64,64,3", table(b"")),
        ("jpeg:uint8:64,64,3", b"\1\0\0"),
        ("jpeg:uint8:64,64,3", table(jpeg(), jpeg())),
        ("jpeg:uint8:2,64,64,3", table(jpeg())),
        ("jpeg:uint8:1000000,8,8,1", table(jpeg())),
        ("jpeg:uint8:32,64,3", table(jpeg())),
        ("jpeg:uint8:64,65,3", table(jpeg())),
        ("jpeg:uint8:64,64,1", table(jpeg())),
        ("jpeg:uint8:64,192", table(jpeg())),
        ("jpeg:uint8:64,64,3", table(jpeg(IMAGE[..., :1], colorspace="GRAY", colorsubsampling="Gray"))),
        ("jpeg:uint8:64,64,4", table(jpeg())),
        ("jpeg:float32:64,64,3", table(jpeg())),
        ("jpeg:int8:64,64,3", table(jpeg())),
        ("jpeg:uint8:12288", table(jpeg())),
        ("jpeg:uint8:", table(jpeg())),
        ("jpeg:uint8:64,64,3", table(zstandard.compress(IMAGE))),
    ],
)
def test_jpeg_that_does_not_fit(text: str, part: bytes) -> None:
    refused(text, part, "JPEG|images|yields")


def with_size(stream: bytes, height: int, width: int) -> bytes:
    frame = stream.index(b"\xff\xc0")
    return stream[: frame + 5] + struct.pack(">HH", height, width) + stream[frame + 9 :]


def test_a_small_stream_that_claims_a_large_image() -> None:
    refused("jpeg:uint8:16000,16000,3", table(with_size(jpeg(), 16000, 16000)), "cannot hold")


def test_a_progressive_stream_is_not_begun() -> None:
    progressive = jpeg().replace(b"\xff\xc0", b"\xff\xc2", 1)
    refused("jpeg:uint8:64,64,3", table(progressive), "baseline")


def test_a_second_scan_is_not_begun() -> None:
    stream = jpeg()
    scan = stream[stream.index(b"\xff\xda") : -2]
    refused("jpeg:uint8:64,64,3", table(stream[:-2] + scan + stream[-2:]), "baseline JPEG stream of one scan")


def test_the_part_may_be_missing_or_left_over() -> None:
    with pytest.raises(CodecError, match="uses more"):
        codec.decode(message("zstd:uint8:8192"))
    with pytest.raises(CodecError, match="uses 2"):
        codec.decode(message("zstd:uint8:8192", zstandard.compress(ZEROS), b"left"))


WHOLE = {
    "lz4:uint8:8192": lz4.block.compress(ZEROS, store_size=False),
    "zstd:uint8:8192": zstandard.compress(ZEROS),
    "jpeg:uint8:64,64,3": table(jpeg()),
}


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_an_array_of_that_shape_or_an_error(text: str, changes: list[tuple[int, int]]) -> None:
    part = bytearray(WHOLE[text])
    for position, value in changes:
        part[position % len(part)] = value
    try:
        array = codec.decode(message(text, bytes(part)))
    except CodecError:
        return
    assert array.nbytes in (8192, 64 * 64 * 3)


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"(jpeg|lz4|zstd|x):(uint8|float32|object):([0-9]{1,3}(,[0-9]{1,3}){0,3})?", fullmatch=True),
    st.binary(max_size=80),
)
def test_random_descriptions_and_bytes(text: str, part: bytes) -> None:
    try:
        codec.decode(message(text, part))
    except CodecError:
        return
