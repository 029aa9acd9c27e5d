"""The codec alone: trees to buffers and back, by its compiled half and by the one in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round, timed
from edgeml_ipc import codec
from edgeml_ipc.codec import decoder, encoder
from edgeml_ipc.errors import TransportUnavailable

GROUP = "codec"
TREES: dict[str, tuple[str, Callable[[], Any]]] = {
    "small": ("a dict with 64 bytes of numbers", lambda: {"image": payloads.block(payloads.SMALL_BYTES)}),
    "transition": ("a transition", payloads.transition),
    "list50": ("a list of 50 transitions", lambda: [payloads.transition() for _ in range(payloads.STACKED)]),
    "stacked50": ("50 transitions stacked", payloads.stacked),
    "image": ("a dict with an image", lambda: {"image": payloads.block(payloads.OBSERVATION_BYTES)}),
    "network": ("ten arrays of 5 MB", payloads.network),
}
Operations = tuple[Callable[[Any], list[Any]], Callable[[list[Any]], Any]]


def operations(half: str) -> Operations:
    """Return encode and decode of one half; the compiled one as programs call it."""
    if half == "python":
        return encoder.encode_in_python, decoder.decode_in_python
    if encoder._fast is None:
        raise TransportUnavailable("edgeml_ipc.codec._fast was not built (no C compiler?)")
    return codec.encode, codec.decode


@contextmanager
def measured(_placement: Placement, half: str, direction: str, tree: str) -> Iterator[Round]:
    """Encode one tree again and again, or decode its buffers."""
    encode, decode = operations(half)
    value = TREES[tree][1]()
    parts = [bytes(part) for part in encode(value)]
    operation = (lambda: encode(value)) if direction == "encode" else (lambda: decode(parts))
    yield lambda seconds: timed(operation, seconds)


def _case(half: str, direction: str, tree: str) -> Case:
    what = f"{direction} {TREES[tree][0]}, {half}"
    return Case(f"codec.{direction}.{tree}.{half}", "ours", what, lambda p: measured(p, half, direction, tree), group=GROUP)


CASES = [_case(half, way, tree) for tree in TREES for way in ("encode", "decode") for half in ("compiled", "python")]
