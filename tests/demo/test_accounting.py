"""Tests of edgeml_ipc.demo.accounting: a planted loss and a planted duplicate must be found."""

import numpy as np
import pytest

from edgeml_ipc.demo.accounting import Acknowledged, Audit, Ledger, Source, audit_store, episode_returns

ONE, OTHER = Source(0, 0), Source(1, 0)


def origins(source: Source, sequences: list[int]) -> np.ndarray:
    return np.array([[*source, sequence, 7] for sequence in sequences], np.int64).reshape(-1, 4)


def ledger_of(*parts: np.ndarray) -> Ledger:
    ledger = Ledger()
    for part in parts:
        ledger.add(part)
    return ledger


def known(sent: int, evicted: int = 0) -> Acknowledged:
    return Acknowledged(sent, evicted, "tcp")


def test_all_is_well() -> None:
    ledger = ledger_of(origins(ONE, [0, 1]), origins(OTHER, [0]), origins(ONE, [2]))
    assert ledger.audit({ONE: known(3), OTHER: known(1)}) == Audit(inserted=4, lost=0, duplicated=0, evicted=0)


def test_what_arrived_without_being_acknowledged_is_fine() -> None:
    """The actor was killed between the server's answer and its own note."""
    assert ledger_of(origins(ONE, [0, 1, 2, 3])).audit({ONE: known(2)}) == Audit(4, 0, 0, 0)
    assert ledger_of(origins(ONE, [0, 1, 2, 3])).audit({}) == Audit(4, 0, 0, 0)


@pytest.mark.parametrize(("arrived", "sent", "lost"), [([0, 1, 3], 4, 1), ([0, 1], 4, 2), ([], 3, 3), ([0, 1, 3], 2, 1)])
def test_a_loss_is_found(arrived: list[int], sent: int, lost: int) -> None:
    """At the end, in the middle, all of a source, and a gap that later ones prove."""
    audit = ledger_of(origins(ONE, arrived), origins(OTHER, [0])).audit({ONE: known(sent), OTHER: known(1)})
    assert audit == Audit(inserted=len(arrived) + 1, lost=lost, duplicated=0, evicted=0)


def test_a_duplicate_is_found_and_does_not_hide_a_loss() -> None:
    audit = ledger_of(origins(ONE, [0, 1, 1])).audit({ONE: known(3)})
    assert audit == Audit(inserted=3, lost=1, duplicated=1, evicted=0)


def test_incarnations_are_counted_apart() -> None:
    reborn = ONE._replace(incarnation=1)
    ledger = ledger_of(origins(ONE, [0, 1]), origins(reborn, [0, 1]))
    assert ledger.audit({ONE: known(2), reborn: known(2)}) == Audit(4, 0, 0, 0)
    assert ledger.audit({ONE: known(3), reborn: known(2)}).lost == 1


def test_evictions_are_reported_and_not_counted_as_lost() -> None:
    audit = ledger_of(origins(ONE, [3, 4, 5])).audit({ONE: known(7, evicted=3)})
    assert audit == Audit(inserted=3, lost=1, duplicated=0, evicted=3)


@pytest.mark.parametrize(
    ("stored", "announced", "lost", "duplicated"),
    [([0, 1, 2], [0, 1, 2], 0, 0), ([0, 1], [0, 1, 2], 1 + 1, 0), ([0, 1, 2, 2], [0, 1, 2], 0, 1 + 1)],
)
def test_the_store_itself_is_audited(stored: list[int], announced: list[int], lost: int, duplicated: int) -> None:
    """A row missing in the store, or doubled there, counts once as such and once as differing from what was announced."""
    audit = audit_store(origins(ONE, stored), ledger_of(origins(ONE, announced)), {ONE: known(3)})
    assert (audit.inserted, audit.lost, audit.duplicated) == (len(stored), lost, duplicated)


def test_episode_returns_are_summed_per_source() -> None:
    running: dict[Source, float] = {}

    def step(source: Source, reward: float, done: bool) -> dict[str, object]:
        return {"origin": np.array([*source, 0, 0]), "rewards": np.float32(reward), "dones": done}

    assert episode_returns(running, [step(ONE, 1, False), step(OTHER, 10, False), step(ONE, 2, True)]) == [3.0]
    assert episode_returns(running, [step(OTHER, 5, True), step(ONE, 4, False)]) == [15.0]
    assert running == {ONE: 4.0}
