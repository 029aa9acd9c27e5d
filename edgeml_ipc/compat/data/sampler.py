"""Samplers under edgeml's and agentlace's names."""

from __future__ import annotations

from typing import Any

from edgeml_ipc.data import sampler
from edgeml_ipc.data.sampler import LatestSampler as LatestSampler
from edgeml_ipc.data.sampler import Pick
from edgeml_ipc.data.sampler import PrioritySampler as PrioritySampler
from edgeml_ipc.data.sampler import Sampler as Sampler
from edgeml_ipc.data.sampler import SequenceSampler as SequenceSampler


class FutureSampler(sampler.FutureSampler):
    """See `edgeml_ipc.FutureSampler`. As in agentlace its field is a dict of `data` and `offset`, and so is its mask."""

    def value(self, field: str, stored: list[Any], picks: list[Pick]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Sampler`."""
        pick = picks[0]
        return {field: {"data": stored[0], "offset": pick.offset}}, {field: {"data": pick.mask, "offset": pick.mask.copy()}}
