"""Tests of edgeml_ipc.compat.internal.utils."""

from __future__ import annotations

import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_ipc.compat.internal import utils
from edgeml_ipc.compat.internal.utils import compute_hash, jpeg_to_mat, make_compression_method, mat_to_jpeg
from edgeml_ipc.errors import CodecError

TREE = {"image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "keys": {"a", "b"}, "config": [1, 2.5, None, "x"]}


def test_a_jpeg_comes_back_as_it_was_nearly() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48] = (255, 0, 0)  # blue
    image[:, 48:] = (0, 0, 200)  # red
    encoded = mat_to_jpeg(image)
    assert encoded[:2] == b"\xff\xd8"
    assert len(encoded) < image.nbytes / 10
    found = jpeg_to_mat(encoded)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert np.abs(found[:, 8:40].astype(int) - image[:, 8:40]).max() < 6
    assert np.abs(found[:, 56:88].astype(int) - image[:, 56:88]).max() < 6


def test_a_grey_image_comes_back_with_three_channels() -> None:
    image = np.full((16, 16), 77, np.uint8)
    found = jpeg_to_mat(mat_to_jpeg(image))
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - 77).max() < 3


@pytest.mark.parametrize("compression", ["lz4", "zlib"])
def test_compression_there_and_back(compression: str) -> None:
    compress, decompress = make_compression_method(compression)
    tree = {**TREE, "zeros": np.zeros(100_000)}
    data = compress(tree)
    assert isinstance(data, bytes)
    assert len(data) < 10_000
    found = decompress(data)
    np.testing.assert_array_equal(found["image"], TREE["image"])
    found["zeros"][:] = 1  # a copy
    assert found["keys"] == {"a", "b"}
    assert found["config"] == [1, 2.5, None, "x"]


@pytest.mark.parametrize("compression", ["lz4", "zlib"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"nothing", lambda data: data[:-6], lambda data: data[:9]])
def test_bytes_that_are_none_of_it(compression: str, damage: Any) -> None:
    compress, decompress = make_compression_method(compression)
    with pytest.raises(CodecError):
        decompress(damage(compress(TREE)))


def test_what_decompression_yields_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "_MAX_BYTES", 1000)
    for compression in ("lz4", "zlib"):
        compress, decompress = make_compression_method(compression)
        with pytest.raises(CodecError, match="limit of 1000 bytes"):
            decompress(compress({"zeros": np.zeros(10_000)}))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tree_or_an_error(data: bytes) -> None:
    try:
        utils.bytes_to_tree(data)
    except CodecError:
        pass
    else:
        assert len(data) > 4


def test_other_compressions_are_refused() -> None:
    with pytest.raises(ValueError, match="'lz4' or 'zlib', got 'rar'"):
        make_compression_method("rar")


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("lz4", "compress", lambda: make_compression_method("lz4")),
        ("simplejpeg", "video", lambda: mat_to_jpeg(np.zeros((8, 8, 3), np.uint8))),
    ],
)
def test_a_missing_extra_is_named(module: str, extra: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.frame", None)
    with pytest.raises(ImportError, match=rf"pip install 'edgeml_ipc\[{extra}\]'"):
        call()


def test_hashes_tell_configs_apart() -> None:
    config = '{"port_number":5555,"request_types":[]}'
    assert compute_hash(config) == compute_hash(str(config))
    assert len(compute_hash(config)) == 32
    assert compute_hash(config) != compute_hash(config.replace("5555", "5556"))
    assert compute_hash({"a": np.zeros(3)}) != compute_hash({"a": np.ones(3)})


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    utils.print_size(b"x" * 2**20)
    utils.print_error("broken")
    utils.print_warning("careful")
    size, error, warning = capsys.readouterr().out.splitlines()
    assert size.startswith("bytes: 1.0000")
    assert error == "\033[91mbroken\033[0m"
    assert warning == "\033[93mcareful\033[0m"


def test_zlib_is_plain_zlib() -> None:
    compress, _ = make_compression_method("zlib")
    assert utils.bytes_to_tree(zlib.decompress(compress([1, 2]))) == [1, 2]
