"""Milestones: checkpoints that are kept for good, because the launch that made them said so (`--keep-every`).

What was made as a milestone stays one where a later launch says something else or nothing.
"""

from __future__ import annotations

from experiments.run import Commit, Run


class Milestones:
    """Of one run; each attempt's launch is read once."""

    def __init__(self, run: Run, every: int) -> None:
        """every: steps that this divides are milestones whoever made them; 0: just those that were told so."""
        self._run, self._every = run, every
        self._of_attempt: dict[int, int] = {}

    def __contains__(self, commit: Commit) -> bool:
        """Return whether a checkpoint is kept for good."""
        if commit.attempt not in self._of_attempt:
            self._of_attempt[commit.attempt] = self._told(commit.attempt)
        return any(every and commit.step % every == 0 for every in (self._every, self._of_attempt[commit.attempt]))

    def _told(self, attempt: int) -> int:
        intent = self._run.attempt(attempt).claim.get("intent")
        return self._run.intent(intent).request.get("runtime", {}).get("keep_every", 0) if intent else 0
