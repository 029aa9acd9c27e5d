"""The files of an RLDS data set, which tensorflow-datasets can read at any moment.

    features.json       of the steps
    dataset_info.json   how many episodes are in which file; it is written aside and renamed, and all else hangs on it
    <name>-train...     TFRecords, one for each episode

An episode that ends is written to a file of its own, which counts once the new dataset_info.json has its name. When enough
have come together they are copied into one file. Then the names of all files change, since a reader finds them by counting;
the older ones get a second name of the next *generation*, and lose the first once dataset_info.json says the generation.

    g1-00000 (1000 episodes)   g1-00001 (1)   g1-00002 (1)
    g2-00000, a link to it     g2-00001 (2)

So a process that is killed anywhere leaves what is whole, and a few names that nothing refers to. Everything is on the disk
before it is referred to. The names of the generation before stay until the next one, for those who are reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from edgeml_ipc.datasets.rlds_features import Feature, features_json
from edgeml_ipc.datasets.tf_example import record
from edgeml_ipc.errors import DatasetError

logger = logging.getLogger("edgeml_ipc")

INFO: Final = "dataset_info.json"
FEATURES: Final = "features.json"
_SPLIT: Final = "train"
_VERSION: Final = "1.0.0"
_CLOSED: Final = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # what tensorflow-datasets itself calls its files
_OPEN: Final = "{DATASET}-{SPLIT}.g%d.{FILEFORMAT}-{SHARD_INDEX}"
_NAME: Final = re.compile(r"[A-Za-z]\w*", re.ASCII)
_FULL_BYTES: Final = 1 << 28  # of a file, from which on it gets no more episodes
_MOST_FILES: Final = 100_000
_PIECE_BYTES: Final = 1 << 20


class File(NamedTuple):
    """One file of the data set."""

    episodes: int
    nbytes: int


class RLDSFolder:
    """A data set that episodes are added to.

    Threads and processes: one thread at a time; one process, to which a lock on the folder sees.
    """

    def __init__(self, directory: str, dataset_name: str, features: Sequence[Feature], max_episodes_per_file: int) -> None:
        """Make a data set, or go on with the one that is there.

        Raises:
            ValueError: a name that is none, or no episodes per file.
            DatasetError: another process adds to it, it is another data set, damaged, or cannot be written.
        """
        if not _NAME.fullmatch(dataset_name):
            raise ValueError(f"dataset_name must be a letter, then letters, digits and '_', got {dataset_name!r}")
        if max_episodes_per_file < 1:
            raise ValueError(f"max_episodes_per_file must be at least 1, got {max_episodes_per_file}")
        self._directory, self._name, self._most = directory, dataset_name, max_episodes_per_file
        self._files: list[File] = []
        self._generation = 0  # 0: the names that a closed data set has
        self._stale: list[str] = []
        with self._translated():
            os.makedirs(directory, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._translated():
                self._take_lock()
                self._begin(features_json(features))
        except BaseException:
            os.close(self._lock)
            raise
        self._closed = False

    @property
    def episodes(self) -> int:
        """How many there are."""
        return sum(file.episodes for file in self._files)

    def add(self, example: bytes) -> None:
        """Add an episode.

        Raises:
            DatasetError: it cannot be written; all others are as they were.
        """
        parts = record(example)
        with self._translated():
            if self._generation == 0:
                self._rename(1, self._files, [])
            path = self._path(len(self._files))
            try:
                with open(path, "wb", buffering=0) as file:
                    for part in parts:
                        _write(file.fileno(), part)
                    os.fsync(file.fileno())
            except BaseException:
                _remove([path])
                raise
            self._commit(self._generation, [*self._files, File(1, sum(map(len, parts)))])
        self._join_if_full()

    def close(self) -> None:
        """Join what is loose, name all files as tensorflow-datasets does, and let go of the folder. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._translated():
                if self._generation:
                    self._join(0)
                _remove(self._stale)
        finally:
            os.close(self._lock)

    # ---- beginning

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(
                f"another process, or another logger of this one, adds to the data set in {self._directory!r}; close it, or "
                "record into another directory"
            ) from error

    def _begin(self, wanted: dict[str, Any]) -> None:
        if not os.path.exists(os.path.join(self._directory, INFO)):
            self._put(FEATURES, wanted)
            self._commit(0, [])
            return
        if self._read(FEATURES) != wanted:
            raise DatasetError(
                f"the data set in {self._directory!r} has other features than this logger; record into another directory, or "
                f"compare its {FEATURES} with the spaces"
            )
        info = self._read(INFO)
        try:
            self._take_over(info)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise DatasetError(
                f"{os.path.join(self._directory, INFO)!r} is damaged, or not by this library: {error!r}"
            ) from error
        self._sweep()

    def _take_over(self, info: dict[str, Any]) -> None:
        if (info["name"], info["version"], info["fileFormat"]) != (self._name, _VERSION, "tfrecord"):
            raise DatasetError(
                f"the data set in {self._directory!r} is {info['name']!r} {info['version']} in {info['fileFormat']!r} files; "
                f"wanted is {self._name!r} {_VERSION} in 'tfrecord' files"
            )
        splits = info.get("splits", [])
        if not splits:
            return
        if len(splits) != 1 or splits[0]["name"] != _SPLIT:
            raise DatasetError(
                f"the data set in {self._directory!r} has the splits {[split['name'] for split in splits]}; a logger adds to "
                f"one that has {_SPLIT!r} only"
            )
        template = splits[0]["filepathTemplate"]
        if template != _CLOSED:
            found = re.fullmatch(re.escape(_OPEN).replace("%d", r"(\d{1,18})"), template)
            if found is None:
                raise ValueError(f"files called {template!r}")
            self._generation = int(found[1])
        lengths = [int(length) for length in splits[0]["shardLengths"]]
        if min(lengths, default=1) < 1 or len(lengths) > _MOST_FILES:
            raise ValueError(f"{len(lengths)} files of at least {min(lengths)} episodes")
        self._files = [File(length, 0) for length in lengths]
        self._files = [File(length, os.path.getsize(self._path(index))) for index, length in enumerate(lengths)]

    def _sweep(self) -> None:
        """Remove what a killed process left: files of ours that nothing refers to."""
        named = {self._path(index) for index in range(len(self._files))}
        ours = re.compile(re.escape(self._name) + rf"-{_SPLIT}\.(g\d+\.)?tfrecord-\d+(-of-\d+)?|\.[a-z_]+\.json\.part")
        found = [os.path.join(self._directory, name) for name in os.listdir(self._directory) if ours.fullmatch(name)]
        _remove(path for path in found if path not in named)

    # ---- changing

    def _loose(self) -> list[File]:
        """Return the files at the end that have room in one file."""
        loose: list[File] = []
        for file in reversed(self._files):
            if file.nbytes >= _FULL_BYTES or file.episodes + sum(other.episodes for other in loose) > self._most:
                break
            loose.append(file)
        return loose

    def _join_if_full(self) -> None:
        loose = self._loose()
        is_full = sum(file.episodes for file in loose) == self._most or sum(file.nbytes for file in loose) >= _FULL_BYTES
        if is_full and len(loose) > 1:
            try:
                self._join(self._generation + 1)
            except OSError as error:  # the episodes are there, in more files
                logger.warning("files of the data set in %r could not be joined: %s", self._directory, error)

    def _join(self, generation: int) -> None:
        """Copy the loose files into one, and name all anew."""
        loose = self._loose()
        if len(loose) < 2:
            self._rename(generation, self._files, [])
            return
        kept = len(self._files) - len(loose)
        joined = File(sum(file.episodes for file in loose), sum(file.nbytes for file in loose))
        sources = [self._path(index) for index in range(kept, len(self._files))]
        self._rename(generation, [*self._files[:kept], joined], sources)

    def _rename(self, generation: int, files: list[File], sources: Sequence[str]) -> None:
        """Begin a generation, the last file of which is made of `sources`, if there are any."""
        before = [self._path(index) for index in range(len(self._files))]
        after = [self._path_of(generation, index, len(files)) for index in range(len(files))]
        _remove(after)
        try:
            for old, new in zip(before, after[: len(files) - bool(sources)], strict=False):
                _link(old, new)
            if sources:
                _concatenate(sources, after[-1])
        except BaseException:
            _remove(after)
            raise
        self._commit(generation, files)
        os.fsync(self._lock)  # before what it replaces is gone
        _remove(path for path in self._stale if path not in after)
        self._stale = before

    def _commit(self, generation: int, files: list[File]) -> None:
        template = _OPEN % generation if generation else _CLOSED
        split = {
            "name": _SPLIT,
            "numBytes": str(sum(file.nbytes for file in files)),
            "shardLengths": [str(file.episodes) for file in files],
            "filepathTemplate": template,
        }
        self._put(INFO, {"name": self._name, "version": _VERSION, "fileFormat": "tfrecord", "splits": [split] if files else []})
        self._generation, self._files = generation, files

    # ---- files

    def _path(self, index: int) -> str:
        return self._path_of(self._generation, index, len(self._files))

    def _path_of(self, generation: int, index: int, files: int) -> str:
        tag, of = (f".g{generation}", "") if generation else ("", f"-of-{files:05}")
        return os.path.join(self._directory, f"{self._name}-{_SPLIT}{tag}.tfrecord-{index:05}{of}")

    def _put(self, name: str, content: dict[str, Any]) -> None:
        aside = os.path.join(self._directory, f".{name}.part")
        try:
            with open(aside, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, os.path.join(self._directory, name))
        except BaseException:
            _remove([aside])
            raise

    def _read(self, name: str) -> dict[str, Any]:
        path = os.path.join(self._directory, name)
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except ValueError as error:
            raise DatasetError(f"{path!r} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise DatasetError(f"{path!r} is damaged: it has a {type(content).__name__}")
        return content

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except OSError as error:
            raise DatasetError(f"the data set in {self._directory!r} cannot be written: {error}") from error


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _concatenate(sources: Sequence[str], target: str) -> None:
    """Copy files one after the other into a new one, onto the disk."""
    with open(target, "wb", buffering=0) as file:
        for source in sources:
            with open(source, "rb", buffering=0) as part:
                while data := part.read(_PIECE_BYTES):
                    _write(file.fileno(), data)
        os.fsync(file.fileno())


def _link(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except FileNotFoundError:
        raise
    except OSError:  # a file system that has no second names
        _concatenate([old], new)


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
