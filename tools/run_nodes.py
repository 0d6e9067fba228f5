"""Which nodes a run's failures have in common: pure counting over its attempts, for `tools/runs.py why`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from experiments.reconcile import FREE_ENDS
from experiments.run import AttemptRecord
from slurm import hostlist

USER_ERROR = 2
SEVERAL = 2
"""Failures from which on a node is worth a word."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A node that was in several failures, and in more of them than the others."""

    node: str
    failures: int
    """Failures that it was in."""
    of: int
    """Failures in all."""


def nodes_of(attempt: AttemptRecord) -> list[str]:
    """Return the nodes of an attempt in Slurm's order; none where it was no Slurm job's."""
    return hostlist.expand((attempt.claim.get("slurm") or {}).get("SLURM_JOB_NODELIST", ""))


def blamed(attempt: AttemptRecord) -> list[str]:
    """Return the nodes that may have to do with an attempt's failure: the one of the rank that is on record, or all."""
    nodes, end = nodes_of(attempt), attempt.end or {}
    rank, ranks = end.get("rank"), attempt.claim.get("world_size", 0)
    said = [node for node in nodes if node.split(".")[0] == str(end.get("host", "")).split(".")[0]]
    if said:
        return said
    if rank is None or not nodes or ranks % len(nodes) or not 0 <= rank < ranks:
        return nodes
    return [nodes[rank // (ranks // len(nodes))]]  # srun fills one node after the other


def suspects(attempts: Sequence[AttemptRecord], node_failures: Collection[int] = ()) -> list[Suspect]:
    """Return the nodes to look at, the worst first.

    attempts: those that are over; node_failures: numbers of those that Slurm ended since a node failed, whatever they
    knew of it themselves. What a user has to mend is no node's fault; and where the failures have all nodes of the run
    in common alike, they tell none from the others.
    """
    ended = [attempt for attempt in attempts if nodes_of(attempt)]
    bad = [one for one in ended if one.number in node_failures or _failed(one)]
    failures = Counter(node for attempt in bad for node in set(blamed(attempt)))
    used = Counter(node for attempt in ended for node in set(nodes_of(attempt)))
    candidates = [node for node, count in failures.items() if count >= SEVERAL and 2 * count > len(bad)]
    rates = {node: failures[node] / count for node, count in used.items()}
    # A node that was there all the time was in many failures too: a far smaller share of its attempts failed.
    worst = max((rates[node] for node in candidates), default=0.0)
    mean_rate, mean_count = (sum(failures.values()) / max(1, number) for number in (sum(used.values()), len(used)))
    found = [
        Suspect(node=node, failures=failures[node], of=len(bad))
        for node in candidates
        if 2 * rates[node] > worst and (rates[node] > mean_rate or failures[node] > mean_count)
    ]
    return sorted(found, key=lambda one: (-one.failures, -rates[one.node], one.node))


def _failed(attempt: AttemptRecord) -> bool:
    if attempt.end is None:
        return True
    return attempt.end["kind"] not in FREE_ENDS and attempt.end.get("exit_code") != USER_ERROR
