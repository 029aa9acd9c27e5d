"""Where a run's numbers go: lines on stdout, a picture of the learning curve, and TensorBoard if it is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

_MEAN_OF: Final = 10  # episodes
_EVERY_SECONDS: Final = 2.0


class Metrics:
    """The numbers of one run. Use it in a `with` block: its end prints the last line and draws the picture.

    Threads and processes: one thread.

    Example:
        >>> with Metrics("Pendulum-v1, seed 0") as metrics:
        ...     metrics.episode(200, -1200.0)
        ...     metrics.progress(200, {"updates": 0}, now=True)  # doctest: +ELLIPSIS
        step 200  return -1200.0 (mean of 1)  updates 0  ... s
        episodes 1: the last 1 returned -1200.0 on average
    """

    def __init__(self, title: str, plot: str | None = None, tensorboard: str | None = None) -> None:
        """Look whether what is needed is installed, before there is anything to lose.

        Args:
            title: of the picture.
            plot: file to draw the learning curve into, its format by its suffix; None or "": no picture.
            tensorboard: folder for TensorBoard's files; None: none.
        Raises:
            ImportError: matplotlib or tensorboardX is missing.
        """
        self._title, self._plot = title, plot
        self._steps: list[int] = []
        self._returns: list[float] = []
        self._started = self._last_line = time.monotonic()
        self._writer: Any = None
        if self._plot:
            _figure()
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    f"TensorBoard's files need tensorboardX: pip install 'edgeml_ipc[tensorboard]' ({error})"
                ) from error
            self._writer = SummaryWriter(tensorboard)

    def episode(self, step: int, episode_return: float) -> None:
        """Note an episode that ended by environment step `step`."""
        self._steps.append(step)
        self._returns.append(episode_return)
        if self._writer is not None:
            self._writer.add_scalar("return", episode_return, step)

    def progress(self, step: int, values: Mapping[str, Any], *, now: bool = False) -> None:
        """Print a line if the last one was some seconds ago, or `now`."""
        time_now = time.monotonic()
        if not now and time_now - self._last_line < _EVERY_SECONDS:
            return
        self._last_line = time_now
        recent = self._returns[-_MEAN_OF:]
        mean = f"{sum(recent) / len(recent):.1f} (mean of {len(recent)})" if recent else "-"
        numbers = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
        _say("  ".join([f"step {step}", f"return {mean}", *numbers, f"{time_now - self._started:.1f} s"]))
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Print how it ended, draw the picture, and close TensorBoard's file."""
        recent = self._returns[-_MEAN_OF:]
        if recent:
            mean = sum(recent) / len(recent)
            _say(f"episodes {len(self._returns)}: the last {len(recent)} returned {mean:.1f} on average")
        if self._plot and recent:
            self._draw(Path(self._plot))
            _say(f"the learning curve is in {self._plot}")
        if self._writer is not None:
            self._writer.close()

    def _draw(self, path: Path) -> None:
        figure = _figure()
        axes = figure.subplots()
        means = [sum(self._returns[max(0, k - _MEAN_OF) : k]) / min(k, _MEAN_OF) for k in range(1, len(self._returns) + 1)]
        axes.plot(self._steps, self._returns, ".", color="#9ecae1", markersize=4, label="one episode")
        axes.plot(self._steps, means, color="#08519c", label=f"mean of {_MEAN_OF}")
        axes.set(title=self._title, xlabel="environment steps", ylabel="return")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=100)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"the picture needs matplotlib: pip install 'edgeml_ipc[plot]' ({error}); or: no picture") from error
    return Figure(figsize=(6.4, 3.6), layout="constrained")


def _say(line: str) -> None:
    """Print a line in one piece: other threads print, too."""
    print(f"{line}\n", end="", flush=True)
