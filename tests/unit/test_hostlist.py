"""Slurm's short form of a list of nodes is read as `scontrol show hostnames` reads it."""

from __future__ import annotations

import pytest

from slurm import hostlist


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,m2", ["n1", "m2"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1-2,7],login", ["n1", "n2", "n7", "login"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("rack[0-1]n[1,3]", ["rack0n1", "rack0n3", "rack1n1", "rack1n3"]),
        ("n[1-2].cluster.org", ["n1.cluster.org", "n2.cluster.org"]),
        ("gpu-a[1]x", ["gpu-a1x"]),
        ("n[1-", ["n", "1-"]),
    ],
)
def test_a_list_of_nodes_is_its_names(text: str, names: list[str]) -> None:
    assert hostlist.expand(text) == names


def test_what_a_file_says_does_not_fill_the_memory() -> None:
    assert len(hostlist.expand("n[0-999999999]")) == hostlist.MOST
    assert len(hostlist.expand("a[0-9999]b[0-9999]c[0-9999]")) == hostlist.MOST
