"""The suite that every transport passes, yours too: derive from `TransportConformance` and say where to listen.

Example:
    class TestMyTransport(TransportConformance):
        @pytest.fixture
        def place(self, tmp_path):
            return Place(f"mine://{tmp_path.name}")
"""

from __future__ import annotations

from typing import Any

from edgeml_ipc.testing._transport_base import Place
from edgeml_ipc.testing._transport_life import LifeTests
from edgeml_ipc.testing._transport_messages import MessageTests
from edgeml_ipc.testing._transport_processes import ProcessTests
from edgeml_ipc.testing._transport_topics import TopicTests

__all__ = ["Place", "TransportConformance"]


class TransportConformance(MessageTests, LifeTests, TopicTests, ProcessTests):
    """Tests of the contract in `edgeml_ipc.transports.base`, found by pytest in a subclass whose name starts with `Test`.

    The fixture `place` is required.

    Attributes:
        crosses_processes: False for a transport within one process, which has no processes to kill.
        send_is_commit: True if what `send` has returned from reaches a living peer although the sender is then killed; False if
            a killed sender may take its last messages with it (what arrives has no gap all the same).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.crosses_processes:
            for name in vars(ProcessTests):
                if name.startswith("test_"):
                    setattr(cls, name, None)
