"""A transport that lives outside of the package is found by its scheme and passes the same suite."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml_ipc import transports
from edgeml_ipc.errors import TransportUnavailable
from edgeml_ipc.testing.transports import Place, TransportConformance

_SOURCE = Path(__file__).with_name("named_transport.py")


def _install(site: Path, package: str) -> None:
    """Lay a package down as pip would: a module, and metadata with an entry point."""
    shutil.copy(_SOURCE, site / f"{package}.py")
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[edgeml_ipc.transports]\nnamed = {package}:NamedTransport\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for installed packages, on the path of this process and of those that it spawns."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(transports, "_loaded", {})
    yield folder
    for name in ("outside_transport", "other_transport"):
        sys.modules.pop(name, None)


class TestThirdPartyTransport(TransportConformance):
    send_is_commit = False

    @pytest.fixture
    def place(self, site: Path, tmp_path: Path) -> Place:
        _install(site, "outside_transport")
        return Place(f"named://{tmp_path / 'server'}")

    def test_it_is_the_one_outside(self, place: Place, site: Path) -> None:
        transport = transports.transport_for("named")
        assert type(transport).__module__ == "outside_transport"
        assert sys.modules["outside_transport"].__file__ == str(site / "outside_transport.py")
        assert transports.transport_for("named") is transport


def test_an_unknown_scheme_names_those_there_are(site: Path) -> None:
    with pytest.raises(TransportUnavailable, match=r"0 packages register a transport named 'named'.*'auto'.*none"):
        transports.connect("named://x", timeout=1.0)


def test_two_packages_may_not_have_the_same_scheme(site: Path) -> None:
    _install(site, "outside_transport")
    _install(site, "other_transport")
    with pytest.raises(TransportUnavailable, match=r"2 packages register a transport named 'named'"):
        transports.connect("named://x", timeout=1.0)
