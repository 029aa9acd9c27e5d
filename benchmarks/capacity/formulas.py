"""The formulas: queues at one server, and trees of relays. Nothing is measured here, and no case is known."""

from __future__ import annotations

import math
from typing import NamedTuple


class Loop(NamedTuple):
    """What clients get that each ask, wait for the answer, think, and ask again.

    Attributes:
        per_second: answers, of all clients. response_s: from a question to its answer.
        busy: the share of the time that the server is.
    """

    per_second: float
    response_s: float
    busy: float


def closed_loop(clients: int, service_s: float, think_s: float) -> Loop:
    """Solve the closed loop of `clients` around one server that serves one at a time.

    With S = service, Z = think time, and what k - 1 clients find as the queue that the k-th meets:

        R(k) = S (1 + Q(k - 1))      X(k) = k / (Z + R(k))      Q(k) = X(k) R(k)      Q(0) = 0

    This is exact where service times are exponential (the machine repairman, M/M/1//N). Ours vary less, so there is less
    waiting around the knee than it says; far from the knee, at min(k / (S + Z), 1 / S), the two are the same.

    **Source**: mean value analysis, Reiser and Lavenberg, Journal of the ACM 27(2), 1980.
    """
    if clients < 1 or service_s <= 0 or think_s < 0:
        raise ValueError(
            f"a loop has clients and service, not {clients} clients, {service_s} s of it and {think_s} s of thought"
        )
    queue = response = rate = 0.0
    for k in range(1, clients + 1):
        response = service_s * (1 + queue)
        rate = k / (think_s + response)
        queue = rate * response
    return Loop(rate, response, rate * service_s)


def knee(least_cycle_s: float, most_per_second: float) -> float:
    """Return for how many clients of a closed loop the two bounds meet, N / cycle and the most per second: N* = X_max cycle.

    **Source**: asymptotic bounds, Denning and Buzen, ACM Computing Surveys 10(3), 1978.
    """
    return least_cycle_s * most_per_second


def mean_wait(per_second: float, service_s: float) -> float:
    """Return the mean wait before service where requests come at random and each takes the same time (M/D/1).

        W = rho S / (2 (1 - rho))      rho = rate S;  infinite from rho = 1 on

    It describes many independent clients that each ask seldom. Clients that ask at the same moment wait longer.

    **Source**: Pollaczek and Khinchine; Kleinrock, Queueing Systems I, 1975, section 5.6.
    """
    busy = per_second * service_s
    return math.inf if busy >= 1 else busy * service_s / (2 * (1 - busy))


def levels(members: int, fan_out: int) -> int:
    """Return how many levels below its root a tree needs for so many members, all of which but the last pass things on.

    The least d with k + k^2 + ... + k^d >= members.
    """
    if members < 1 or fan_out < 1:
        raise ValueError(f"a tree has members and a fan-out, not {members} and {fan_out}")
    below, level, width = 0, 0, 1
    while below < members:
        width *= fan_out
        below += width
        level += 1
    return level


def seconds_to_the_last(members: int, fan_out: int, each_s: float) -> float:
    """Return when the last member of a tree has what the root sends: d k t.

    A node takes a whole value in before it sends it to the first of its k children, and sends it to one after the other, t
    seconds each: what its link or its CPU needs for one, whichever is more. `fan_out >= members` is no tree: members * t.
    """
    return levels(members, fan_out) * min(fan_out, members) * each_s
