"""How far an array is: its finished tasks, the parts of those at work, clips, bad clips and the time that is left.

All tasks of the run count, whichever launch or job did them and whether or not a job is there for them; the part of a
task whose attempt died is lost and does not count. Read from the run folder alone, for `progress` and `tools/runs.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from experiments.run import Intent, Run
from experiments.task_facts import TaskFacts, read_facts


@dataclass(frozen=True, kw_only=True)
class ArrayStatus:
    """One look at an array."""

    tasks: int
    """Tasks of the run."""
    done: int
    """Finished tasks."""
    running: int
    """Attempts that have not ended; those of a job that is gone died without a word."""
    parts: float
    """Tasks' worth of work done on tasks that are not finished."""
    clips: int
    """Clips of the finished tasks."""
    all_clips: int
    """Clips of the run; 0 where its work is not clips."""
    bad: dict[str, str]
    """Reason by the id of each bad clip of the finished tasks."""
    per_second: float
    """Clips a second since the newest launch started its first task (tasks a second without clips); 0 unknown."""

    @property
    def share(self) -> float:
        """Share of the work done, in [0, 1]."""
        return min(1.0, (self.done + self.parts) / self.tasks) if self.tasks else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present rate, None where there is none."""
        amount = self.all_clips or self.tasks
        return (1 - self.share) * amount / self.per_second if self.per_second > 0 else None


class ArrayWatch:
    """Looks at one array again and again; what cannot change is read once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._facts: dict[int, TaskFacts] = {}
        self._intent: Intent | None = None
        self._started_s: float | None = None

    def look(self) -> ArrayStatus | None:
        """Return how far the array is, None where it was never launched."""
        run, intent = self.run, self._newest_intent()
        if intent is None:
            return None
        done = run.tasks_done()
        self._facts = {task: facts for task, facts in self._facts.items() if task in done}
        fresh = done - self._facts.keys()
        if fresh:
            self._facts |= read_facts(run, fresh)
        open_attempts = [attempt for attempt in run.open_attempts() if attempt.claim.get("intent") == intent.number]
        parts: dict[int, float] = {}
        for attempt in open_attempts:
            beat = run.beat(attempt.number)
            if beat is not None and beat["task"] not in done:
                parts[beat["task"]] = beat["share"]
        if self._started_s is None:
            starts = [
                attempt.claim["time"] for attempt in run.attempts() if attempt.claim.get("intent") == intent.number
            ]
            self._started_s = min(starts, default=None)
        tasks = num_tasks(intent)
        clips, all_clips = sum(facts.clips for facts in self._facts.values()), intent.request.get("num_clips", 0)
        recent = [task for group in intent.request["groups"] for task in group if task in done]
        of_task = all_clips / tasks if tasks and all_clips else 1.0
        worked = sum(self._facts[task].clips if all_clips else 1 for task in recent) + sum(parts.values()) * of_task
        elapsed_s = time.time() - self._started_s if self._started_s is not None else 0.0
        return ArrayStatus(
            tasks=tasks,
            done=len(done),
            running=len(open_attempts),
            parts=sum(parts.values()),
            clips=clips,
            all_clips=all_clips,
            bad={clip: reason for task in sorted(self._facts) for clip, reason in self._facts[task].bad.items()},
            per_second=worked / elapsed_s if elapsed_s > 0 else 0.0,
        )

    def _newest_intent(self) -> Intent | None:
        number = self.run.newest_intent()
        if number and (self._intent is None or self._intent.number != number):
            self._intent, self._started_s = self.run.intent(number), None
        return self._intent


def num_tasks(intent: Intent) -> int:
    """Tasks of the run that an intent belongs to; the groups of an intent hold those that were missing."""
    groups: list[list[int]] = intent.request["groups"]
    return intent.request.get("num_tasks", sum(map(len, groups)))


def note(status: ArrayStatus) -> str:
    """Return an array's progress in words; what comes before the two spaces is enough for a list."""
    words = [f"{status.done}/{status.tasks} tasks "]
    if status.all_clips:
        words.append(f"{status.clips}/{status.all_clips} clips")
        words.append(f"{len(status.bad)} bad")
    words.append(f"{status.running} running")
    if status.left_s is not None and status.share < 1:
        words.append(
            f"{status.per_second:.3g} {'clips' if status.all_clips else 'tasks'}/s, {span(status.left_s)} left"
        )
    return f"{words[0]} {', '.join(words[1:])}"


def span(seconds: float) -> str:
    """Return a length of time in the unit that a person would choose: `12 s`, `5 min`, `3.2 h`, `4.0 days`."""
    seconds = max(0.0, seconds)
    for unit, length_s, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= length_s:
            return f"{seconds / length_s:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
