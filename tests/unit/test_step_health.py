"""Judging steps and keeping their metrics: skips, spikes, windows that survive an interruption to the bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.training import notes
from dalle2_video.training.checkpoint import DamagedCheckpointError
from dalle2_video.training.health import Diverged, StepHealth, spread_nonfinite
from dalle2_video.training.window import MACHINE_METRICS, Window


def health(
    on_nonfinite: str = "skip", max_skipped: int = 3, on_spike: str = "record", skip_spikes: float = 0.0
) -> StepHealth:
    return StepHealth(
        on_nonfinite=on_nonfinite,  # type: ignore[arg-type]
        on_spike=on_spike,  # type: ignore[arg-type]
        skip_spikes=skip_spikes,
        max_skipped=max_skipped,
        remedy="lower --prior.optim.lr",
    )


def test_skipped_steps_in_a_row_end_the_training_with_steps_loss_norm_and_remedy() -> None:
    judged = health()
    for step in (4, 5):
        event = judged.judge(step, math.nan, math.inf, applied=False)
        judged.check()
        assert (
            event is not None
            and event["event"] == "skipped step"
            and (event["loss"], event["grad_norm"])
            == (
                "nan",
                "inf",
            )
        )
    judged.judge(6, 0.5, math.inf, applied=False)
    with pytest.raises(Diverged, match=r"steps 4 to 6 .* loss 0.5, gradient norm inf; lower --prior.optim.lr"):
        judged.check()


def test_an_update_between_skipped_steps_begins_the_count_anew() -> None:
    judged = health(max_skipped=2)
    for step in range(1, 20):
        judged.judge(step, 1.0, 1.0, applied=step % 2 == 0)
        judged.check()


def test_with_the_policy_stop_the_first_step_that_is_not_finite_ends_the_training() -> None:
    judged = health("stop")
    judged.judge(1, 1.0, 1.0, applied=True)
    judged.check()
    judged.judge(2, math.nan, math.nan, applied=False)
    with pytest.raises(Diverged, match=r"^step 2 gave"):
        judged.check()


def test_a_gradient_norm_of_more_than_ten_medians_is_a_spike_and_a_smaller_one_is_not() -> None:
    judged = health()
    norms = [100.0, *[1.0, 2.0, 3.0] * 5, 19.9, 20.1, 2.0]
    events = [judged.judge(step, 1.0, norm, applied=True) for step, norm in enumerate(norms, 1)]
    spikes = [event for event in events if event]
    assert [(event["step"], event["grad_norm"], event["event"]) for event in spikes] == [(18, 20.1, "loss spike")]


def after_ten_steps(**policies: object) -> StepHealth:
    """A judge that has seen ten gradient norms of 1."""
    judged = health(**policies)  # type: ignore[arg-type]
    for step in range(1, 11):
        assert judged.norm_limit() == math.inf, "too little is known of what is usual"
        judged.judge(step, 1.0, 1.0, applied=True)
    return judged


@pytest.mark.parametrize(
    ("policies", "limit"),
    [
        ({}, math.inf),
        ({"on_spike": "stop"}, 10.0),
        ({"skip_spikes": 4.0}, 4.0),
        ({"skip_spikes": 4.0, "on_spike": "stop"}, 4.0),
        ({"skip_spikes": 40.0, "on_spike": "stop"}, 10.0),
    ],
)
def test_the_limit_of_the_norm_is_that_of_the_stricter_policy(policies: dict, limit: float) -> None:
    assert after_ten_steps(**policies).norm_limit() == limit


def test_gradients_that_vanished_are_no_reason_to_limit_the_next_where_no_policy_does() -> None:
    judged = health()
    for step in range(1, 12):
        judged.judge(step, 1.0, 0.0, applied=True)
    assert judged.norm_limit() == math.inf


def test_spikes_are_skipped_and_recorded_until_there_are_too_many_in_a_row() -> None:
    judged = after_ten_steps(skip_spikes=4.0)
    for step in (11, 12):
        event = judged.judge(step, 2.0, 5.0, applied=False)
        judged.check()
        assert event is not None and (event["event"], event["in_row"]) == ("skipped step", step - 10)
        assert event["message"] == "loss 2, gradient norm 5, median of the last 10 steps 1"
        assert judged.norm_limit() == 4.0, "what was skipped is no measure"
    judged.judge(13, 2.0, 5.0, applied=False)
    with pytest.raises(Diverged, match=r"steps 11 to 13 gave no update, the last one: .*median of the last 10 steps 1"):
        judged.check()


def test_with_the_policy_stop_the_first_spike_that_the_recipe_does_not_skip_ends_the_training() -> None:
    judged = after_ten_steps(on_spike="stop", skip_spikes=40.0)
    judged.judge(11, 1.0, 41.0, applied=False)
    judged.check()
    judged.judge(12, 1.0, 1.0, applied=True)
    judged.judge(13, 1.0, 11.0, applied=False)
    with pytest.raises(Diverged, match=r"^step 13 gave no update"):
        judged.check()


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.booleans()), min_size=1, max_size=150), st.integers(0, 150))
def test_a_judge_restored_between_any_two_steps_judges_as_one_that_was_never_stopped(
    steps: list[tuple[float, bool]], cut: int
) -> None:
    undisturbed, resumed = (health(max_skipped=1000, skip_spikes=5.0) for _ in range(2))
    for step, (norm, applied) in enumerate(steps, 1):
        if step == cut:
            state = json.loads(json.dumps(resumed.state()))
            resumed = health(max_skipped=1000, skip_spikes=5.0)
            resumed.restore(state)
        limits = [judge.norm_limit() for judge in (undisturbed, resumed)]
        verdicts = [judge.judge(step, 1.0, norm, applied=applied) for judge in (undisturbed, resumed)]
        assert verdicts[0] == verdicts[1] and limits[0] == limits[1]


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=1, max_size=40).filter(
        lambda steps: any(applied for _, applied in steps)
    ),
    st.integers(0, 40),
)
def test_a_window_restored_between_any_two_steps_has_the_same_means_to_the_bit(
    steps: list[tuple[float, bool]], cut: int
) -> None:
    undisturbed, resumed = Window(), Window()
    for number, (loss, applied) in enumerate(steps):
        if number == cut:
            resumed = Window(json.loads(json.dumps(resumed.state())))
        for window in (undisturbed, resumed):
            window.add({"loss": loss}, applied=applied)
    records = []
    for window in (undisturbed, resumed):
        window.add_times(0.1, 0.05)
        records.append({k: v for k, v in window.record(4).items() if k not in MACHINE_METRICS})
    assert records[0] == records[1]
    assert records[0]["skipped"] == sum(not applied for _, applied in steps)


def test_a_window_tells_what_a_step_costs() -> None:
    window = Window()
    for step_s in (1.0, 2.0, 6.0):
        window.add({"loss": 1.0}, applied=True)
        window.add_times(step_s, 0.5)
    window.add_checkpoint(4.0)
    record = window.record(12)
    assert (record["step_s"], record["data_s"], record["checkpoint_s"]) == (2.0, 0.5, 4.0)
    assert record["samples_per_second"] == 4.0 and 0.01 < record["memory_gib"] < 1000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_makes_every_gradient_nan_though_its_own_is_finite(value: float) -> None:
    weights = torch.ones(3, requires_grad=True)
    spread_nonfinite(weights.sum() + value).backward()
    assert weights.grad is not None and weights.grad.isnan().all()


@given(st.floats(-(2.0**80), 2.0**80, width=32, allow_subnormal=False))
def test_a_finite_loss_and_its_gradient_are_left_as_they_are(value: float) -> None:
    weight = torch.tensor(value, requires_grad=True)
    loss = spread_nonfinite(weight * 3)
    loss.backward()
    assert loss == torch.tensor(value) * 3 and weight.grad == 3.0


def test_notes_are_read_as_written_and_any_flipped_byte_is_damage(tmp_path: Path) -> None:
    written = {"window": {"sums": {"loss": 0.1 + 0.2}, "updates": 3, "skipped": 0}}
    notes.write(tmp_path, written)
    assert notes.read(tmp_path) == written
    path = tmp_path / notes.NOTES
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert notes.read(tmp_path) == written
        except DamagedCheckpointError:
            continue
    for damage in ("{", "[]", '{"notes": 1}'):
        path.write_text(damage)
        with pytest.raises(DamagedCheckpointError) as damaged:
            notes.read(tmp_path)
        assert str(damaged.value).count(str(path)) == 1
    path.unlink()
    with pytest.raises(DamagedCheckpointError, match=r"notes\.json"):
        notes.read(tmp_path)
