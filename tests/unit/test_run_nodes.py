"""Nodes that several failures have in common are found, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from registry_fixtures import attempt

from experiments.run import AttemptRecord
from tools import run_nodes
from tools.run_nodes import Suspect


def test_slurms_word_counts_where_the_attempt_knew_only_that_it_was_stopped() -> None:
    attempts = [on(1, "n[1-2]", "stopped"), on(2, "n[2-3]", "stopped"), on(3, "n[1,3]", "stopped")]
    assert run_nodes.suspects(attempts) == []
    assert run_nodes.suspects(attempts, {1, 2}) == [Suspect(node="n2", failures=2, of=2)]


def on(number: int, nodes: str, end: str | None, **details: Any) -> AttemptRecord:
    made = attempt(number, end, **details)
    made.claim.update(slurm={"SLURM_JOB_NODELIST": nodes}, world_size=4)
    return made


@pytest.mark.parametrize(
    ("attempts", "found"),
    [
        ([], []),
        ([on(1, "n[1-2]", "error")], []),
        ([on(1, "n[1-2]", None), on(2, "n[2-3]", None)], [("n2", 2, 2)]),
        ([on(1, "n[1-2]", None), on(2, "n[2-3]", "hang"), on(3, "n[1,3]", "done")], [("n2", 2, 2)]),
        ([on(1, "n[1-2]", None), on(2, "n[2,4]", None), on(3, "n[2,5]", None), on(4, "n[6-7]", None)], [("n2", 3, 4)]),
        # The first node was there all the time.
        (
            [on(1, "n[1-2]", None), on(2, "n[1-2]", None), *(on(k, "n[1,3]", "done") for k in range(3, 9))],
            [("n2", 2, 2)],
        ),
        # All nodes alike: nothing can be told.
        ([on(1, "n[1-2]", None), on(2, "n[1-2]", None)], []),
        # The rank that failed, or its host, tells the node: ranks 2 and 3 are on the second.
        ([on(1, "n[1-2]", "error", rank=3), on(2, "n[1-2]", "error", rank=2)], [("n2", 2, 2)]),
        ([on(1, "n[1-2]", "error", host="n1.hpc"), on(2, "n[1-2]", "error", host="n1.hpc", rank=3)], [("n1", 2, 2)]),
        ([on(1, "n[1-2]", "error", rank=3), on(2, "n[1-2]", "error", rank=0)], []),
        # A preemption and a mistake on the command line are no node's fault.
        ([on(1, "n[1-2]", "preempted"), on(2, "n[2-3]", "preempted")], []),
        ([on(1, "n[1-2]", "error", exit_code=2), on(2, "n[2-3]", "error", exit_code=2)], []),
        # On this machine there are no nodes.
        ([attempt(1, "error"), attempt(2, None)], []),
    ],
)
def test_a_node_that_failures_have_in_common_is_suspect(
    attempts: list[AttemptRecord], found: list[tuple[str, int, int]]
) -> None:
    assert run_nodes.suspects(attempts) == [Suspect(node=node, failures=count, of=of) for node, count, of in found]
