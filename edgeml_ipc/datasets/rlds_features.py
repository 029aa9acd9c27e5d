"""The features of an RLDS data set: what of a transition becomes which feature of a step, and how it is stored.

observations[.key]   observation[/key]      actions[.key]   action[/key]
rewards              reward                 masks           discount (1 where there are none)
dones, end_of_trajectory, next_observations     derived: is_first, is_last, is_terminal, the observation of the next step
any other field      a feature of its name

images uint8 (height, width, 1 | 3 | 4)     Image: PNG
float64, and other arrays of bytes          Tensor of encoding "bytes": a tf.train.Example has no doubles
all else                                    Tensor or Scalar of encoding "none": packed floats or varints
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from edgeml_ipc.data.columns import Array, DataShape, dtype_of
from edgeml_ipc.data.schema import NEXT
from edgeml_ipc.datasets.png import CHANNELS, encode_png
from edgeml_ipc.datasets.tf_example import BYTES, FLOATS, INTS, listed_bytes, packed_floats, packed_ints

OBSERVATION: Final = "observation"
REWARD: Final = "reward"
DISCOUNT: Final = "discount"
MARKS: Final = ("is_first", "is_last", "is_terminal")
_NAMES: Final = {"observations": OBSERVATION, "actions": "action", "rewards": REWARD, "masks": DISCOUNT}
_DERIVED: Final = frozenset({"dones", "end_of_trajectory", "next_observations"})
_LONGEST_INT_LIST: Final = 64  # bytes; longer arrays of bytes are stored as they are
_CLASSES: Final = "tensorflow_datasets.core.features"


class Feature(NamedTuple):
    """One feature of a step.

    Attributes:
        name: path in the step, joined by "/". source: field of a transition.
        shape, dtype: of one step's value.
        kind: of the list in the Example. is_image: stored as PNG.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: int
    is_image: bool

    @property
    def is_observation(self) -> bool:
        """Whether the step that ends an episode has a value of its own."""
        return self.name.split("/")[0] == OBSERVATION

    def encode(self, values: Array) -> bytes:
        """Return what a list of an Example has of values `(steps, *shape)` of `dtype`."""
        if self.kind == FLOATS:
            return packed_floats(values)
        if self.kind == INTS:
            return packed_ints(values)
        if self.is_image:
            return listed_bytes(encode_png(value) for value in values)
        little = np.ascontiguousarray(values, self.dtype.newbyteorder("<"))
        return listed_bytes(value.tobytes() for value in little)

    def description(self) -> dict[str, Any]:
        """Return what features.json says of it."""
        shape = {"dimensions": [str(size) for size in self.shape]} if self.shape else {}
        if self.is_image:
            image = {"shape": shape, "dtype": "uint8", "encodingFormat": "png"}
            return {"pythonClassName": f"{_CLASSES}.image_feature.Image", "image": image}
        encoding = "bytes" if self.kind == BYTES else "none"
        tensor = {"shape": shape, "dtype": self.dtype.name, "encoding": encoding}
        kind = "tensor_feature.Tensor" if self.shape or self.kind == BYTES else "scalar.Scalar"
        return {"pythonClassName": f"{_CLASSES}.{kind}", "tensor": tensor}


def features_of(fields: Iterable[DataShape]) -> list[Feature]:
    """Return the features of steps whose transitions have these fields.

    Raises:
        TypeError: a dtype that a data set cannot hold. ValueError: a field without elements, or two features of one name.
    """
    found = []
    for field in fields:
        root, *path = field.name.split(".")
        if root not in _DERIVED:
            found.append(_feature("/".join([_NAMES.get(root, root), *path]), field))
    if DISCOUNT not in {feature.name for feature in found}:
        found.append(Feature(DISCOUNT, "masks", (), np.dtype("float32"), FLOATS, False))
    roots = [feature.name.split("/")[0] for feature in found]
    twice = {field.name for field in fields if field.name.split(".")[0] in {*_NAMES.values(), *MARKS, "steps"}}
    if twice:
        raise ValueError(f"the fields {sorted(twice)} cannot be recorded: an RLDS step has features of these names already")
    assert OBSERVATION in roots
    return found


def fields_of(features: Sequence[Feature], shapes: Mapping[str, DataShape]) -> tuple[list[str], list[str]]:
    """Return which fields of a buffer the features are made of, and those of the observation that follows.

    Raises:
        ValueError: the buffer lacks one, or has it of another shape.
    """
    values = [feature.source for feature in features if feature.name != DISCOUNT or feature.source in shapes]
    nexts = [NEXT + feature.source for feature in features if feature.is_observation]
    wanted = {feature.source: feature.shape for feature in features}
    for name in (*values, *nexts):
        if name not in shapes or shapes[name].shape != wanted[name.removeprefix(NEXT)]:
            there = f"of shape {shapes[name].shape}" if name in shapes else "missing"
            raise ValueError(
                f"the field {name!r} is {there} in the buffer; shape {wanted[name.removeprefix(NEXT)]} is required"
            )
    return values, nexts


def _feature(name: str, field: DataShape) -> Feature:
    dtype, shape = dtype_of(field.dtype), field.shape
    if dtype.kind not in "biuf" or dtype.name == "float128":
        raise TypeError(f"{field.name!r} has dtype {dtype}; a data set holds bools, integers and floats of 16, 32 or 64 bits")
    if math.prod(shape) == 0:
        raise ValueError(f"{field.name!r} of shape {shape} has no elements; a data set cannot hold it")
    if name == DISCOUNT:
        dtype = np.dtype("float32")
    is_image = dtype == np.uint8 and len(shape) == 3 and shape[-1] in CHANNELS
    is_long = dtype.itemsize == 1 and dtype.kind != "b" and math.prod(shape) > _LONGEST_INT_LIST
    if is_image or is_long or dtype == np.float64:
        return Feature(name, field.name, shape, dtype, BYTES, is_image)
    return Feature(name, field.name, shape, dtype, FLOATS if dtype.kind == "f" else INTS, False)


def features_json(features: Sequence[Feature]) -> dict[str, Any]:
    """Return the content of features.json, as tensorflow-datasets writes it."""
    tree: dict[str, Any] = {}
    marks = [Feature(name, name, (), np.dtype("bool"), INTS, False) for name in MARKS]
    for feature in (*features, *marks):
        *parents, last = feature.name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = feature
    steps = {
        "pythonClassName": f"{_CLASSES}.dataset_feature.Dataset",
        "sequence": {"feature": _described(tree), "length": "-1"},
    }
    return {
        "type": f"{_CLASSES}.features_dict.FeaturesDict",
        "content": {"features": {"steps": steps}},
        "proto_cls": "tensorflow_datasets.FeaturesDict",
    }


def _described(tree: dict[str, Any]) -> dict[str, Any]:
    features = {key: _described(node) if isinstance(node, dict) else node.description() for key, node in tree.items()}
    return {"pythonClassName": f"{_CLASSES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
