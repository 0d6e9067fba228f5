"""Where the ranks of a Slurm job meet, and which of them take part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm import rendezvous

RANK_5 = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[08-10]", "SLURM_NTASKS": "6", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
}  # fmt: skip
SET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT")


@pytest.fixture(autouse=True)
def rank_5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SET:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in RANK_5.items():
        monkeypatch.setenv(name, value)


def test_ranks_meet_on_the_first_node() -> None:
    assert rendezvous.join(lambda ranks: True)
    assert [os.environ[name] for name in SET[:5]] == ["5", "6", "1", "2", "n08"]
    assert os.environ["TORCH_EXTENSIONS_DIR"].startswith(str(rendezvous.caches_of_job()))


def test_the_port_is_another_one_after_a_requeue_and_no_ephemeral_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for restarts in range(20):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        monkeypatch.delenv("RANK", raising=False)
        assert rendezvous.join(lambda ranks: True)
        ports.add(int(os.environ["MASTER_PORT"]))
    assert len(ports) == 20 and all(15000 <= port < 30000 for port in ports)


def test_of_nodes_that_do_not_share_the_batch_the_most_that_do_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not rendezvous.join(lambda ranks: ranks == 4)  # this rank is on the third node
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert rendezvous.join(lambda ranks: ranks == 4)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("3", "4")


def test_a_batch_that_no_number_of_nodes_shares_is_an_error() -> None:
    with pytest.raises(ValueError, match="no number of nodes up to 3, with 2 ranks each, shares the batch"):
        rendezvous.join(lambda ranks: False)


def test_what_a_supervisor_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert rendezvous.join(lambda ranks: False)
    assert "MASTER_PORT" not in os.environ
