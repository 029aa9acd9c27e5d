"""The model as a page: parameters, what it foretold of this run, and tables for more clients than can be measured here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.capacity.checks import Check, checks
from benchmarks.capacity.loads import (
    FULL,
    PERIOD_SECONDS,
    Load,
    Resource,
    Server,
    Spreading,
    fullest,
    most_clients,
    usual_loads,
    usual_spreadings,
)
from benchmarks.capacity.parameters import Connection, Parameters
from benchmarks.document import Run
from benchmarks.harness import Result
from benchmarks.report import conditions, number

CLIENTS = (10, 1_000, 100_000)
FAN_OUTS = (8, 32, 64)
DOUBTFUL_CORES = 0.1


@dataclass(frozen=True)
class Question:
    """What is asked of the model.

    Attributes:
        links_gbit: of the server, and of each host. calls_per_second: of each client. callback_s: that a policy takes.
    """

    links_gbit: tuple[float, ...] = (1.0, 10.0)
    calls_per_second: float = 10.0
    callback_s: float = 0.002
    clients_per_host: int = 8


def page(run: Run, known: Parameters, question: Question, pictures: Sequence[str] = ()) -> str:
    """Return it as Markdown.

    Args:
        pictures: names of files beside the page.
    """
    servers = [Server(gbit * 1e9, known.connections["tcp"], known.memory_bytes) for gbit in question.links_gbit]
    sections = [
        ["# Capacity on paper", "", *_taken(run)],
        [f"![{name.rsplit('.', 1)[0]}]({name})" for name in pictures],
        ["## Parameters", "", *_parameters(known)],
        ["## What the model says of this run, and what was measured", "", *_checks(checks(run, known))],
        [
            f"## One server, clients elsewhere: {question.calls_per_second:g} calls or 20 transitions a second each",
            "",
            *_loads(usual_loads(known, question.calls_per_second, question.callback_s), servers),
        ],
        [
            f"## 50 MB to every client each {PERIOD_SECONDS:g} s",
            "",
            *_spreading(known, usual_spreadings(question.clients_per_host, FAN_OUTS), servers),
        ],
        ["## What to do", "", *(f"* **{resource.title}**: {resource.value}." for resource in Resource)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _taken(run: Run) -> list[str]:
    others = [result.foreign() for result in run.results if _is_ours(result)]
    busy = sorted(others)[len(others) // 2] if others else 0.0
    state = "**taken on a busy machine**, not to be quoted" if busy > DOUBTFUL_CORES else "taken on a quiet machine"
    words = f"The parameters were {state}: others kept {busy:.2f} cores busy in the median case."
    return [f"{words} {' '.join(conditions(run)[:2])}"]


def _is_ours(result: Result) -> bool:
    return result.case.startswith("scale.") and bool(result.rounds)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lay out a Markdown table whose first `left` columns are words."""
    rule = ["---" if column < left else "--:" for column in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def _parameters(known: Parameters) -> list[str]:
    both = {f"call, {name}": cost for name, cost in known.calls.items()}
    both |= {f"transition uploaded, {name}": cost for name, cost in known.uploads.items()}
    costs = [
        [name, number(1e6 * cost.server_s), number(1e6 * cost.client_s), f"{cost.wire_bytes:,.0f}"]
        for name, cost in both.items()
    ]
    megabyte_us = number(1e6 * known.publish_s_per_mb)
    return [
        *_table(["", "server, µs of CPU", "client, µs", "bytes"], costs, 1),
        "",
        f"* a published megabyte over tcp: {megabyte_us} µs of the server's CPU for each subscriber",
        *(_silent(scheme, found) for scheme, found in known.connections.items()),
    ]


def _silent(scheme: str, found: Connection) -> str:
    kb, client_kb = number(found.memory_bytes / 1e3), number(found.client_memory_bytes / 1e3)
    return (
        f"* a silent connection over {scheme}: {found.descriptors:.3g} of the {found.allowed_descriptors:,.0f} descriptors "
        f"that the server may have, {kb} kB of its memory, {client_kb} kB of the client's; with all of them the server wakes "
        f"{number(found.wakeups_per_second)} times a second and uses {found.idle_percent:.2g} % of a core"
    )


def _checks(found: Sequence[Check]) -> list[str]:
    rows = [
        [
            check.case,
            check.figure,
            number(check.predicted),
            number(check.measured),
            f"{check.ratio:.2f}",
            "yes" if check.used else "",
        ]
        for check in found
    ]
    foretold = sorted(check.ratio for check in found if not check.used)
    said = (
        f"Of the {len(foretold)} figures that gave no parameter, the ratio is {foretold[0]:.2f} to "
        f"{foretold[-1]:.2f}, {foretold[len(foretold) // 2]:.2f} in the middle."
    )
    head = ["case", "figure", "predicted", "measured", "ratio", "gave a parameter"]
    return [*_table(head, rows, 2), "", said] if foretold else ["Nothing was measured that could be foretold."]


def _loads(loads: Sequence[Load], servers: Sequence[Server]) -> list[str]:
    rows = []
    for load in loads:
        for server in servers:
            most, first = most_clients(load, server)
            cells = [_load_cell(load, server, clients) for clients in CLIENTS]
            needed = math.ceil(CLIENTS[-1] / most) if most else 0
            rows.append([load.name, _link(server), f"{most:,}", first.title, *cells, f"{needed:,}" if needed else "-"])
    head = [
        "each client",
        "link",
        "carries",
        "breaks first",
        *(f"{clients:,} clients" for clients in CLIENTS),
        "servers for the last",
    ]
    note = (
        f"A cell: the share of what may be used ({FULL:.0%} of link and CPU, all of the rest) of whatever is nearest to its "
        "end, and the mean time to an answer, without the network's delay and without waking a server that sleeps; past the "
        "end, how many times too much."
    )
    return [*_table(head, rows, 2), "", note]


def _link(server: Server) -> str:
    return f"{server.link_bits / 1e9:g} Gbit/s"


def _load_cell(load: Load, server: Server, clients: int) -> str:
    resource, used = fullest(load.shares(server, clients))
    if used > 1:
        return f"**{resource.title} ×{number(used)}**"
    answer = f", {number(1e3 * load.answer_s(server, clients))} ms" if load.answered else ""
    return f"{resource.title} {used:.0%}{answer}"


def _spreading(known: Parameters, ways: Sequence[Spreading], servers: Sequence[Server]) -> list[str]:
    rows = [
        [way.name, _link(server), *(_spreading_cell(known, way, server, clients) for clients in CLIENTS)]
        for way in ways
        for server in servers
    ]
    note = (
        "A cell: the same for the busiest node, and when the last client has it. Past the end nobody waits for anybody: "
        "subscribers skip versions, and take about one in so many as the factor says. **Trees over several hosts are not "
        "built**: what is built is one relay for each host (`relay=True`), which its clients share over shared memory. In a "
        "tree the delay may be longer than ten seconds: then several versions are on their way at once."
    )
    return [*_table(["way", "link", *(f"{clients:,} clients" for clients in CLIENTS)], rows, 2), "", note]


def _spreading_cell(known: Parameters, way: Spreading, server: Server, clients: int) -> str:
    resource, used = fullest(way.shares(known, server, clients))
    if used > 1:
        return f"**{resource.title} ×{number(used)}**"
    depth = way.depth(clients)
    return f"{resource.title} {used:.0%}, {number(way.last_s(known, server, clients))} s" + (
        f", {depth} levels" if depth > 1 else ""
    )
