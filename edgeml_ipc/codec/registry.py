"""Classes that both ends registered: how an object of theirs becomes a tree, and comes back."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from edgeml_ipc.codec.wire import MAX_NAME_CHARS
from edgeml_ipc.errors import CodecError

T = TypeVar("T")


@dataclass(frozen=True)
class Registration:
    """One registered class."""

    cls: type[Any]
    name: str
    to_tree: Callable[[Any], Any]
    from_tree: Callable[[Any], Any]


@dataclass(frozen=True)
class Expanded:
    """An object of a registered class as its name and tree, in between `decode` without objects and `encode`."""

    name: str
    tree: Any


_by_name: dict[str, Registration] = {}
_by_class: dict[type[Any], Registration] = {}
_lock = Lock()


def registration_of(cls: type[Any]) -> Registration | None:
    """Return how objects of exactly that class travel, or None."""
    return _by_class.get(cls)


def registration_named(name: str) -> Registration:
    """Return the class registered under `name`.

    Raises:
        CodecError: none is.
    """
    try:
        return _by_name[name]
    except KeyError:
        raise CodecError(
            f"the message holds a {name!r}, which is not registered here; call codec.register(cls, name={name!r}) on both ends "
            f"(registered here: {sorted(_by_name) or 'none'})"
        ) from None


def add(cls: type[T], name: str | None, to_tree: Callable[[T], Any] | None, from_tree: Callable[[Any], T] | None) -> None:
    """See `edgeml_ipc.codec.register`."""
    if name is None:
        name = cls.__qualname__
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise CodecError(f"the name of a registered class has 1 to {MAX_NAME_CHARS} characters, not {len(name)}")
    if (to_tree is None) != (from_tree is None):
        raise CodecError(f"codec.register({cls.__qualname__}): give both to_tree and from_tree, or neither")
    if to_tree is None or from_tree is None:
        to_tree, from_tree = _automatic(cls)
        automatic = True
    else:
        automatic = False
    with _lock:
        known, holder = _by_class.get(cls), _by_name.get(name)
        if known is not None and known.name != name:
            raise CodecError(f"{cls.__qualname__} is registered as {known.name!r} already, it cannot be {name!r} too")
        if holder is not None and holder.cls is not cls:
            raise CodecError(f"the name {name!r} belongs to {holder.cls!r} already; give {cls!r} another one by name=")
        if known is not None and automatic:
            return
        registration = Registration(cls, name, to_tree, from_tree)
        _by_name[name] = _by_class[cls] = registration


def _automatic(cls: type[Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if dataclasses.is_dataclass(cls):
        fields = dataclasses.fields(cls)
        computed = [field.name for field in fields if not field.init]
        if computed:
            raise CodecError(
                f"{cls.__qualname__} has fields that its constructor does not take ({', '.join(computed)}); "
                "give to_tree and from_tree to codec.register"
            )
        names = tuple(field.name for field in fields)
        return _fields_to_tree(names), _fields_from_tree(cls, names)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return list, _items_from_tree(cls)
    raise CodecError(
        f"{cls.__qualname__} is neither a dataclass nor a namedtuple; give to_tree and from_tree to codec.register"
    )


def _fields_to_tree(names: tuple[str, ...]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: getattr(value, name) for name in names}


def _fields_from_tree(cls: type[T], names: tuple[str, ...]) -> Callable[[Any], T]:
    expected = set(names)

    def from_tree(tree: Any) -> T:
        if type(tree) is not dict or tree.keys() != expected:
            there = list(tree) if type(tree) is dict else type(tree).__name__
            raise CodecError(f"{cls.__qualname__} has the fields {list(names)} here, and {there!r:.200} in the message")
        return cls(**tree)

    return from_tree


def _items_from_tree(cls: type[Any]) -> Callable[[Any], Any]:
    fields: tuple[str, ...] = cls._fields

    def from_tree(tree: Any) -> Any:
        if type(tree) is not list or len(tree) != len(fields):
            raise CodecError(f"{cls.__qualname__} has the fields {list(fields)} here, and others in the message")
        return cls(*tree)

    return from_tree


def advice(cls: type[Any]) -> str:
    """Say what to do with an object of a class that cannot travel."""
    if issubclass(cls, (bytearray, memoryview)):
        return "send bytes(x), or np.frombuffer(x, np.uint8) to avoid the copy"
    if hasattr(cls, "__array__"):
        return "send np.asarray(x)"
    if dataclasses.is_dataclass(cls):
        return f"call codec.register({cls.__name__}) on both ends"
    for base in (dict, list, tuple, set, frozenset, str, bytes, int, float, complex):
        if issubclass(cls, base) and not issubclass(cls, enum.Enum):
            return f"send {base.__name__}(x), or call codec.register({cls.__name__}, to_tree=..., from_tree=...) on both ends"
    return f"call codec.register({cls.__name__}, to_tree=..., from_tree=...) on both ends"
