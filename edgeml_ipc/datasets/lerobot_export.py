"""Export of a buffer as a LeRobot data set, format v3.0, written by pyarrow alone.

    meta/info.json, stats.json, tasks.parquet
    meta/episodes/chunk-000/file-000.parquet     a row for each episode: where its frames lie, and their statistics
    data/chunk-000/file-000.parquet ...          a row for each frame

A frame is an observation and the action that was taken on it, as everywhere in LeRobot: an episode of T transitions has T
frames, and the observation that followed the last action is in none.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from edgeml_ipc.data.columns import Array, DataShape, dtype_of
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.datasets.episodes import Episode, check_fields, episodes
from edgeml_ipc.datasets.frame_stats import FrameStats
from edgeml_ipc.datasets.needs import needed
from edgeml_ipc.datasets.png import CHANNELS, encode_png
from edgeml_ipc.errors import DatasetError

_FILES_PER_CHUNK: Final = 1000
_FILE_MB: Final = 100
_DATA: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES: Final = "meta/episodes/chunk-000/file-000.parquet"
_INDICES: Final = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_DERIVED: Final = frozenset({"next_observations", "dones", "end_of_trajectory", "masks"})


class Column(NamedTuple):
    """One feature of a frame.

    Attributes:
        name: of the feature. source: field of a transition, "" for what is derived. is_image: stored as PNG.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    is_image: bool = False

    def description(self) -> dict[str, Any]:
        """Return what info.json says of it."""
        names = ["height", "width", "channels"] if self.is_image else None
        return {"dtype": "image" if self.is_image else self.dtype, "shape": list(self.shape), "names": names}


def export_lerobot(
    buffer: SharedBuffer, root: str | os.PathLike[str], fps: int, *, task: str = "", robot_type: str | None = None
) -> int:
    """Write the episodes that a buffer holds as a LeRobot data set, which `LeRobotDataset(name, root=root)` loads.

    See `episodes` for what an episode is. A frame has

    * `observation.state`, or `observation.image`, for an observation without names; `observation.<name>` for a dict of them,
      and `observation.images.<name>` for its images `uint8 (height, width, 1 | 3 | 4)`;
    * `action`, or `action.<name>`; `next.reward`, `next.done` (the episode ended here) and `next.terminated` (for good);
    * any further field, by its name.

    The observation that followed the last action is left out, as everywhere in LeRobot. Statistics are without quantiles.

    Args:
        buffer: a `ReplayBuffer`, or a `TrajectoryBuffer` of transitions. Others may write and sample meanwhile.
        root: a directory that is not there yet.
        fps: frames per second, of which the timestamps are made.
        task: what the episodes show, in words.
        robot_type: the kind of robot.
    Returns:
        how many episodes were written.
    Raises:
        ImportError: pyarrow is missing. TypeError: a dtype that a data set cannot hold.
        ValueError: the buffer has no transitions, or `fps` is below 1.
        DatasetError: the buffer is empty, `root` is there, or it cannot be written. Then nothing was written.

    Example:
        export_lerobot(buffer, "/data/walks", fps=30, task="walk forward")
    """
    needed("pyarrow", "lerobot")
    check_fields(buffer)
    if type(fps) is not int or fps < 1:
        raise ValueError(f"fps must be an int of at least 1, got {fps!r}")
    columns = _columns(buffer.data_shapes)
    if not len(buffer):
        raise DatasetError("the buffer is empty, and LeRobot has no data sets without episodes")
    target = os.path.abspath(os.fspath(root))
    if os.path.exists(target):
        raise DatasetError(f"{target!r} is there already; a LeRobot data set is written into a new directory")
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        aside = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}.", dir=os.path.dirname(target))
        try:
            writer = _Writer(aside, columns, fps, task)
            for episode in episodes(buffer):
                writer.add(episode)
            writer.finish(robot_type)
            os.chmod(aside, 0o755)
            os.rename(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except OSError as error:
        raise DatasetError(f"the LeRobot data set {target!r} cannot be written: {error}") from error
    return len(writer.rows)


def _columns(fields: list[DataShape]) -> list[Column]:
    found = [_column(field) for field in fields if field.name.split(".")[0] not in _DERIVED]
    marks = [Column(name, "", (1,), "bool") for name in ("next.done", "next.terminated")]
    indices = [Column(name, "", (1,), dtype) for name, dtype in _INDICES.items()]
    names = [column.name for column in (*found, *marks, *indices)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two features of a frame would be called {twice}; rename the fields of the buffer")
    return [*found, *marks, *indices]


def _column(field: DataShape) -> Column:
    dtype = dtype_of(field.dtype)
    if dtype.kind not in "biuf" or dtype.name in ("uint64", "float128"):
        raise TypeError(f"{field.name!r} has dtype {dtype}; LeRobot reads bools, integers that fit int64, and floats")
    root, *path = field.name.split(".")
    is_image = field.dtype == "uint8" and len(field.shape) == 3 and field.shape[-1] in CHANNELS
    if root == "observations":
        kind = "image" if is_image else "state"
        name = ".".join(["observation", *(["images"] if is_image else []), *path]) if path else f"observation.{kind}"
    else:
        name = ".".join([{"actions": "action", "rewards": "next.reward"}.get(root, root), *path])
    return Column(name, field.name, field.shape or (1,), field.dtype, is_image)


class _Writer:
    """Writes frames, one row group for each episode, and what is known of them.

    Attributes:
        rows: of the table of episodes.
    """

    def __init__(self, root: str, columns: list[Column], fps: int, task: str) -> None:
        self._root, self._columns, self._fps, self._task = root, columns, fps, task
        self._arrow, self._parquet = needed("pyarrow", "lerobot"), needed("pyarrow.parquet", "lerobot")
        self._stats = {column.name: FrameStats() for column in columns}
        self._file: Any = None
        self._files = self._frames = 0
        self.rows: list[dict[str, Any]] = []

    def add(self, episode: Episode) -> None:
        """Write the frames of an episode."""
        count, number = len(episode), len(self.rows)
        values = self._values(episode)
        table = self._arrow.table({column.name: self._array(column, values[column.name]) for column in self._columns})
        if self._file is None or os.path.getsize(self._path(self._files - 1)) >= _FILE_MB << 20:
            self._open(table.schema)
        self._file.write_table(table)
        chunk, file = divmod(self._files - 1, _FILES_PER_CHUNK)
        row = {
            "episode_index": number,
            "tasks": [self._task],
            "length": count,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + count,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for column in self._columns:
            stats = FrameStats()
            stats.add(_measured(column, values[column.name]))
            row |= {f"stats/{column.name}/{key}": value for key, value in _described(column, stats).items()}
            self._stats[column.name].merge(stats)
        self.rows.append(row)
        self._frames += count

    def finish(self, robot_type: str | None) -> None:
        """Write what is known of the data set."""
        if self._file is not None:
            self._file.close()
        os.makedirs(os.path.dirname(os.path.join(self._root, _EPISODES)))
        self._parquet.write_table(self._arrow.Table.from_pylist(self.rows), os.path.join(self._root, _EPISODES))
        self._parquet.write_table(self._tasks(), os.path.join(self._root, "meta/tasks.parquet"))
        self._json("meta/stats.json", {column.name: _described(column, self._stats[column.name]) for column in self._columns})
        info = {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": len(self.rows),
            "total_frames": self._frames,
            "total_tasks": 1,
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": _FILE_MB,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": _DATA,
            "video_path": None,
            "features": {column.name: column.description() for column in self._columns},
        }
        self._json("meta/info.json", info)

    def _values(self, episode: Episode) -> dict[str, Array]:
        count = len(episode)
        ended = np.arange(count) == count - 1
        frame = np.arange(count)
        derived = {
            "next.done": ended,
            "next.terminated": ended & episode.terminated,
            "timestamp": (frame / self._fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(count, len(self.rows)),
            "index": self._frames + frame,
            "task_index": np.zeros(count, np.int64),
        }
        return derived | {
            column.name: episode.values[column.source].reshape(count, *column.shape)
            for column in self._columns
            if column.source
        }

    def _array(self, column: Column, values: Array) -> Any:
        """Return values as arrow has them: PNGs, numbers, or lists, nested where there are several axes."""
        arrow = self._arrow
        if column.is_image:
            frames = [{"bytes": encode_png(image), "path": None} for image in values]
            return arrow.array(frames, arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}))
        array = arrow.array(np.ascontiguousarray(values).reshape(-1))
        if column.shape == (1,):
            return array
        if len(column.shape) == 1:
            return arrow.FixedSizeListArray.from_arrays(array, column.shape[0])
        for size in reversed(column.shape):
            array = arrow.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
        return array

    def _open(self, schema: Any) -> None:
        """Begin the next file."""
        if self._file is not None:
            self._file.close()
        path = self._path(self._files)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._file = self._parquet.ParquetWriter(path, schema)
        self._files += 1

    def _path(self, number: int) -> str:
        chunk, file = divmod(number, _FILES_PER_CHUNK)
        return os.path.join(self._root, _DATA.format(chunk_index=chunk, file_index=file))

    def _tasks(self) -> Any:
        """Return the table of tasks, of which there is one, indexed by their words as pandas does it."""
        index = "__index_level_0__"
        described = [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ]
        pandas = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        table = self._arrow.table({"task_index": np.array([0]), index: [self._task]})
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _json(self, name: str, content: Mapping[str, Any]) -> None:
        with open(os.path.join(self._root, name), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=4)


def _measured(column: Column, values: Array) -> Array:
    """Return what statistics are of: `(samples, *shape)`, of images the channels, from 0 to 1."""
    return values.reshape(-1, column.shape[-1]) / np.float64(255) if column.is_image else values.astype(np.float64)


def _described(column: Column, stats: FrameStats) -> dict[str, Any]:
    pixels = column.shape[0] * column.shape[1] if column.is_image else 1
    shape = (column.shape[-1], 1, 1) if column.is_image else column.shape
    found = {key: value.reshape(shape).tolist() for key, value in stats.values().items()}
    return {**found, "count": [stats.count // pixels]}
