"""Accounting: was every transition that an actor saw acknowledged stored exactly once?

Every transition carries its origin: which actor, which incarnation of it (a replaced actor is a new one), its sequence number
there, counted from 0. The actors say how many of theirs `update()` acknowledged; the ledger says what arrived.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Source(NamedTuple):
    """One incarnation of one actor."""

    actor: int
    incarnation: int


@dataclass(frozen=True)
class Acknowledged:
    """What one incarnation of an actor knows about its uploads.

    Attributes:
        sent: how many of its transitions `update()` has taken care of: all with a sequence number below this.
        evicted: how many of those its bounded queue had dropped before they could be sent.
        transport: by which its client was connected.
    """

    sent: int
    evicted: int
    transport: str


@dataclass(frozen=True)
class Audit:
    """The result: transitions stored, missing, stored more than once, and dropped by the actors' queues."""

    inserted: int
    lost: int
    duplicated: int
    evicted: int


class Ledger:
    """Which sequence numbers arrived from which source."""

    def __init__(self) -> None:
        """Start with an empty ledger."""
        self._seen: defaultdict[Source, set[int]] = defaultdict(set)
        self.rows = 0

    @property
    def sources(self) -> set[Source]:
        """The sources that anything arrived from."""
        return set(self._seen)

    def add(self, origins: npt.NDArray[np.int64]) -> None:
        """Note rows of (actor, incarnation, sequence, ...)."""
        for actor, incarnation, sequence, *_ in origins.tolist():
            self._seen[Source(actor, incarnation)].add(sequence)
            self.rows += 1

    def audit(self, acknowledged: Mapping[Source, Acknowledged]) -> Audit:
        """Compare what arrived with what the actors saw acknowledged.

        A sequence number counts as lost if it was acknowledged, or a later one arrived, while it never did. What the actor's
        queue evicted is not counted as lost.
        """
        lost = evicted = 0
        for source in self.sources | set(acknowledged):
            seen = self._seen.get(source, set())
            known = acknowledged.get(source, Acknowledged(0, 0, ""))
            expected = max(known.sent, max(seen, default=-1) + 1)
            lost += max(0, expected - len(seen) - known.evicted)
            evicted += known.evicted
        distinct = sum(len(seen) for seen in self._seen.values())
        return Audit(inserted=self.rows, lost=lost, duplicated=self.rows - distinct, evicted=evicted)


def audit_store(origins: npt.NDArray[np.int64], announced: Ledger, acknowledged: Mapping[Source, Acknowledged]) -> Audit:
    """Audit the rows that a store really holds, and add what they differ by from the rows that were announced to its owner.

    Args:
        origins: the origin of each row in the store, `(rows, 4)`.
        announced: what the data callback was called with.
    """
    stored = Ledger()
    stored.add(origins)
    audit = stored.audit(acknowledged)
    return Audit(
        inserted=audit.inserted,
        lost=audit.lost + max(0, announced.rows - stored.rows),
        duplicated=audit.duplicated + max(0, stored.rows - announced.rows),
        evicted=audit.evicted,
    )


def episode_returns(running: dict[Source, float], transitions: list[dict[str, Any]]) -> list[float]:
    """Sum rewards per source; return the sums of the episodes that ended, and keep the others in `running`."""
    ended = []
    for transition in transitions:
        source = Source(*(int(i) for i in transition["origin"][:2]))
        running[source] = running.get(source, 0.0) + float(transition["rewards"])
        if transition["dones"]:
            ended.append(running.pop(source))
    return ended
