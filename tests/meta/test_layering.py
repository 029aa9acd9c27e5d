"""Imports point one way. The floors below are those that ARCHITECTURE.md draws."""

import graphlib

import pytest

from tests.meta.source import imported_names, package_modules

# A module may import modules of its own room and of the rooms named beside it; the longest prefix counts.
# "edgeml_ipc" alone is the table of contents: nothing below the top floor may import it.
GROUND = {"errors", "_connector", "_deadline", "security"}
TRANSPORTS = GROUND | {"transports"}
PROTOCOL = GROUND | {"codec", "protocol"}
# The parts of `service`:
SERVICE_PARTS = {
    "_address",
    "_background",
    "_client",
    "_dial",
    "_guests",
    "_outgoing",
    "_relay",
    "_replies",
    "_server",
    "_session",
    "_ticket",
}
SERVICE = PROTOCOL | TRANSPORTS | SERVICE_PARTS | {"service"}
BUFFERS = {
    "_ahead",
    "_attachments",
    "_buffer_messages",
    "_departures",
    "_parking",
    "_visits",
    "connect_buffer",
    "remote_buffer",
    "remote_writer",
}  # buffers reached from elsewhere
FRONTS = SERVICE | BUFFERS | {"_fronts", "_batching", "_direct", "_inlets", "_uploads"}  # parts of the three services
SERVICES = FRONTS | {"data", "datasets", "action", "inference", "_trainer_server", "trainer"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "_connector": {"errors"},
    "_deadline": {"errors"},
    "security": {"errors"},
    "codec": GROUND,
    "transports": GROUND,
    "data": GROUND | {"codec"},
    "datasets": GROUND | {"codec", "data"},
    "protocol": GROUND | {"codec"},
    "service": PROTOCOL | TRANSPORTS | SERVICE_PARTS,
    **dict.fromkeys(SERVICE_PARTS, PROTOCOL | TRANSPORTS | SERVICE_PARTS),
    "_fronts": SERVICE,
    "_batching": SERVICE,
    "_uploads": SERVICE | {"_direct", "data"},
    "_direct": GROUND | {"_attachments", "data"},
    "_inlets": GROUND | {"_attachments", "data"},
    "_ahead": set(),
    "_departures": set(),
    "_parking": SERVICE,
    "_attachments": GROUND | {"data"},
    "_buffer_messages": GROUND | {"data"},
    "_visits": SERVICE | {"_attachments", "_buffer_messages", "_parking", "data"},
    "remote_buffer": SERVICE | {"_ahead", "_buffer_messages", "data", "remote_writer"},
    "connect_buffer": SERVICE | {"_attachments", "_buffer_messages", "data", "remote_buffer"},
    "remote_writer": {"errors", "remote_buffer"},
    "action": FRONTS,
    "inference": FRONTS,
    "_trainer_server": FRONTS | {"data"},
    "trainer": FRONTS | {"_trainer_server", "data"},
    # The top floor: whole programs and conveniences, which nothing below may import.
    "gym_env": SERVICES | {"launch"},
    "": SERVICES | {"gym_env"},
    "testing": SERVICES | {""},
    "compat": SERVICES | {"", "datasets", "gym_env"},
    "launch": SERVICES | {""},
    "demo": SERVICES | {"", "launch", "gym_env"},
    "cli": SERVICES | {"", "launch", "demo"},
    "__main__": {"cli"},
}


def room_of(module: str) -> str:
    """Return the room of a module of the package: the first name below `edgeml_ipc`, "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def internal_imports(module: str, *, for_types_too: bool) -> list[tuple[int, str]]:
    """List (line, module) of what a module imports from the package."""
    imports = imported_names(package_modules()[module], for_types_too=for_types_too)
    return [(line, name) for line, name in imports if name.split(".")[0] == "edgeml_ipc"]


@pytest.mark.parametrize("module", package_modules())
def test_imports_point_downwards(module: str) -> None:
    room = room_of(module)
    assert room in ROOMS, f"{module}: give the room {room!r} a floor in {__file__} and in ARCHITECTURE.md"
    allowed = ROOMS[room] | {room}
    wrong = [
        f"line {line}: {name}" for line, name in internal_imports(module, for_types_too=True) if room_of(name) not in allowed
    ]
    assert not wrong, f"{module} imports from rooms that it must not know: {wrong}; allowed: {sorted(allowed)}"


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("transports", {"codec", "protocol", "service", "data"}),
        ("data", {"transports", "protocol", "service"}),
        ("codec", {"transports", "protocol", "service"}),
        ("protocol", {"transports", "service"}),
        ("service", {"data"}),
    ],
)
def test_the_absences_that_hold_the_floors_apart(room: str, never: set[str]) -> None:
    """Kept apart from the table above, so that loosening the table alone does not loosen these."""
    assert not ROOMS[room] & never
    modules = [module for module in package_modules() if room_of(module) == room]
    assert modules
    for module in modules:
        met = {room_of(name) for _, name in internal_imports(module, for_types_too=True)} & never
        assert not met, f"{module} must never import {met}"


@pytest.mark.parametrize("room", ["codec", "protocol", "data"])
def test_no_input_or_output_above_the_transports(room: str) -> None:
    for module in (module for module in package_modules() if room_of(module) == room):
        names = {name.split(".")[0] for _, name in imported_names(package_modules()[module], for_types_too=False)}
        assert not names & {"socket", "zmq", "select", "selectors", "asyncio"}, f"{module} does I/O"


def test_no_cycles() -> None:
    """Among modules, imports inside functions counted, those for types only not counted."""
    modules = package_modules()
    graph = {
        module: {name for _, name in internal_imports(module, for_types_too=False) if name != module} for module in modules
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle
    assert len(order) >= len(modules)
