"""What a disturbed run is held to account for: its commits, what its attempts resumed from, the steps that were lost.

`look` is called every few milliseconds while the run is disturbed, and reads nothing but the run's files. A commit that
vanishes must leave two newer ones; an attempt must resume at the newest commit that is sound; a fenced attempt must
commit nothing any more. Invariant: what is counted was seen in files or done by the chaos run itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.run import Commit, Run, read_jsonl

KEPT = 2


@dataclass(kw_only=True)
class Account:
    """What all disturbed runs together are charged with. All but `max_steps_lost` and `notes` must be zero."""

    commits_lost: int = 0
    """Commits that vanished without two newer ones being there."""
    sound_alone: int = 0
    """Commits that retention removed though of the newer ones only one was sound."""
    damaged_used: int = 0
    """Attempts that resumed at something else than the newest sound commit."""
    untold: int = 0
    """Damaged commits that were skipped without an event that names them."""
    fenced_commits: int = 0
    """Commits by an attempt after a newer one owned the run."""
    max_steps_lost: int = 0
    """Steps that one kill, or one damaged commit, cost."""
    worst: str = ""
    """What cost these."""
    notes: list[str] = field(default_factory=list)
    """What was counted above, in words."""


class Ledger:
    """The account of one run."""

    def __init__(self, run: Run, account: Account) -> None:
        self.run, self.account = run, account
        self.seen: set[Commit] = set()
        self.gone: set[Commit] = set()
        self.damaged: dict[Commit, int] = {}
        """Commits that were damaged, and the newest attempt at that moment."""
        self.expected: dict[int, int] = {}
        """Step at which an attempt has to resume: that of the newest sound commit when its claim was first seen."""
        self.fenced: dict[int, int] = {}
        """Attempts that were stopped and superseded, and the step that they had reached."""
        self.fenced_at: dict[int, set[Commit]] = {}

    def look(self) -> None:
        """Note what is new and what is gone."""
        # Attempts first: a commit by an attempt that is not known yet cannot be among those it may resume from.
        newest = self.run.newest_attempt()
        present = set(self.run.commits())
        for number in range(max(self.expected, default=0) + 1, newest + 1):
            self.expected[number] = max((commit.step for commit in self.sound(present)), default=0)
        for commit in self.seen - present - self.gone:
            self.gone.add(commit)
            newer = {other for other in present if other > commit}
            if len(newer) < KEPT:
                self._charge("commits_lost", f"{commit.path.name} vanished; left: {_names(present)}")
            elif len(self.sound(newer)) < KEPT and commit not in self.damaged:
                self._charge(
                    "sound_alone",
                    f"{commit.path.name} was removed; left: {_names(present)}, "
                    f"damaged: {_names(present & self.damaged.keys())}",
                )
        for commit in present - self.seen:
            if commit.attempt in self.fenced and commit not in self.fenced_at[commit.attempt]:
                self._charge("fenced_commits", f"{commit.path.name} by an attempt that was superseded")
        self.seen |= present

    def sound(self, commits: set[Commit]) -> list[Commit]:
        """Return those that were not damaged, oldest first."""
        return sorted(commits - self.damaged.keys())

    def resumed(self, attempt: int) -> int | None:
        """Return the step at which an attempt began to train, None where it never did."""
        path = self.run.folder / f"events.{attempt:04d}.jsonl"
        starts = [event["step"] for event in _records(path) if event["event"] == "start"]
        return starts[0] if starts else None

    def reached(self, attempt: int) -> int:
        """Return the last step that an attempt has done; 0 where it did none."""
        path = self.run.folder / f"metrics.{attempt:04d}.jsonl"
        return max((record["step"] for record in _records(path)), default=self.resumed(attempt) or 0)

    def damage(self, commit: Commit) -> None:
        """Note that a commit is damaged from now on."""
        self.damaged[commit] = self.run.newest_attempt()

    def fence(self, attempt: int) -> None:
        """Note that an attempt was stopped and may not commit any more."""
        self.fenced[attempt] = self.reached(attempt)
        self.fenced_at[attempt] = set(self.run.commits())

    def close(self) -> None:
        """Add up what resuming cost, once the run is done."""
        self.look()
        before: int | None = None
        for number in sorted(self.expected):
            resumed = self.resumed(number)
            if resumed is None:
                continue
            if resumed != self.expected[number] and number not in self.fenced:
                words = f"attempt {number} resumed at step {resumed}, newest sound commit: {self.expected[number]}"
                self._charge("damaged_used", words)
            if before is not None:
                self._steps_lost(before, number, resumed)
            before = number

    def _steps_lost(self, before: int, number: int, resumed: int) -> None:
        """Charge the steps between what one attempt had done and where the next began."""
        reached = self.fenced.get(before, self.reached(before))
        damaged = [commit for commit, newest in self.damaged.items() if before <= newest < number]
        if damaged:
            # Two causes: the kill cost what had been done since the commit, the damage what lies before that.
            after_kill = max(commit.step for commit in damaged)
            self._lost(after_kill - resumed, f"damage of {_names(set(damaged))}")
            events = [str(event) for event in _records(self.run.folder / f"events.{number:04d}.jsonl")]
            for commit in damaged:
                if not any("damaged" in event and commit.path.name in event for event in events):
                    self._charge("untold", f"attempt {number} did not name {commit.path.name}")
        else:
            after_kill = resumed
        self._lost(reached - after_kill, f"end of attempt {before} at step {reached}")

    def _lost(self, steps: int, cause: str) -> None:
        if steps > self.account.max_steps_lost:
            self.account.max_steps_lost = steps
            self.account.worst = f"{self.run.folder}: {steps} steps by the {cause}"

    def _charge(self, what: str, words: str) -> None:
        setattr(self.account, what, getattr(self.account, what) + 1)
        self.account.notes.append(f"{self.run.folder}: {what}: {words}")


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return read_jsonl(path)
    except FileNotFoundError:
        return []


def _names(commits: set[Commit]) -> str:
    return ", ".join(commit.path.name for commit in sorted(commits)) or "none"
