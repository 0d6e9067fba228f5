"""What the report says of runs is what the registry holds, whatever hostile or damaged things lie in it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_registry import ESCAPES, HOSTILE, RECORDS, Made

from dalle2_video.data.store import Store
from experiments import files
from experiments.registry import Registry
from experiments.run import Run
from slurm import run_state
from tools.report_page import clips, figures, stores
from tools.report_page.collect import MOST, buckets_per_curve
from tools.report_page.reading import Reader, Report
from tools.report_page.selection import Selection
from tools.report_page.text import MOST_CHARACTERS
from tools.run_story import end_of
from tools.runs_compare import metrics_of


@pytest.fixture(scope="module")
def report(reported: Made) -> Report:
    return Reader(registry=Registry(reported.home), selection=Selection()).read()


def row(report: Report, run: Run) -> dict[str, Any]:
    return next(row for row in report.index["runs"] if row["id"] == run.id)


def detail(report: Report, run: Run) -> dict[str, Any]:
    return json.loads(report.details[run.id])


def test_every_run_is_there_newest_first_and_nothing_is_damaged(reported: Made, report: Report) -> None:
    rows = report.index["runs"]
    assert {one["id"] for one in rows} == {run.id for run in Registry(reported.home).runs()} == set(report.details)
    assert [one["created"] for one in rows] == sorted((one["created"] for one in rows), reverse=True)
    assert [one["name"] for one in rows if one["damaged"]] == []


def test_states_are_those_of_a_launch(reported: Made, report: Report) -> None:
    states = {name: row(report, getattr(reported, name))["state"] for name in ("clip", "decoder", "failed", "queued")}
    assert states == {"clip": "done", "decoder": "running", "failed": "failed", "queued": "queued"}
    assert row(report, reported.failed)["why"].startswith("error: RuntimeError: </script>")


def test_curves_are_the_merged_metrics(reported: Made, report: Report) -> None:
    found = detail(report, reported.clip)["curves"]
    metrics = metrics_of(reported.clip)
    assert {(split, name) for split, of in found.items() for name in of} == metrics.keys()
    loss = found["train"]["loss"]
    assert loss["n"] == RECORDS == len(metrics["train", "loss"])
    assert len(loss["y"]) <= MOST and loss["per"] == -(-RECORDS // MOST)
    assert loss["bad"] == {"count": 1, "steps": [30_000]}
    assert max(found["train"]["grad_norm"]["hi"]) == 900
    step, value = metrics["val", "loss"][-1]
    assert sum(found["val"]["loss"]["x"]) == step
    assert found["val"]["loss"]["y"][-1] == pytest.approx(value, rel=1e-5)


def test_attempts_say_how_they_ended_where_and_what_was_lost(reported: Made, report: Report) -> None:
    found = detail(report, reported.clip)
    first, second, third = found["attempts"]
    assert [one["kind"] for one in (first, second, third)] == ["preempted", "without a word", "done"]
    assert (first["nodes"], second["nodes"]) == (["n1", "n2"], ["n3", "n4"])
    assert (second["from_step"], second["to_step"], second["lost"]) == (13_200, 26_900, 500)
    assert found["marks"] == [[2, 13_200], [3, 26_400]]
    assert [(wait["before"], wait["to"]) for wait in found["waits"]] == [
        (one["number"], one["began"]) for one in (first, second, third)
    ]


def test_a_run_in_the_queue_waits_and_one_at_work_has_no_end(reported: Made, report: Report) -> None:
    (wait,) = detail(report, reported.queued)["waits"]
    assert wait["to"] is None and wait["before"] is None
    (attempt,) = detail(report, reported.decoder)["attempts"]
    assert (attempt["kind"], attempt["ended"]) == ("at work", None)


def test_the_reports_words_on_an_end_are_those_of_the_terminal(reported: Made, report: Report) -> None:
    standing = run_state.standing(reported.clip)
    terminal = [end_of(attempt, standing) for attempt in reported.clip.attempts()]
    kinds = [one["kind"] for one in detail(report, reported.clip)["attempts"]]
    assert all(kind in words for kind, words in zip(kinds, terminal, strict=True)), (kinds, terminal)


def test_parents_that_are_no_longer_what_was_pinned_are_told(reported: Made, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(reported.home, home)
    folder = home / "runs/embed" / reported.embed.folder.name
    (folder / "DONE").write_text(json.dumps({"digest": "other"}))
    shutil.rmtree(home / "runs/clip" / reported.clip.folder.name)
    report = Reader(registry=Registry(home), selection=Selection()).read()
    pinned = {parent["stage"]: parent["pinned"] for parent in row(report, reported.prior)["parents"]}
    assert pinned == {"preprocess": "ok", "clip": "gone", "embed": "changed"}


def test_a_checkpoint_that_was_judged_is_a_parent_at_its_step(reported: Made, report: Report) -> None:
    of_preview = {parent["role"]: parent["step"] for parent in row(report, reported.previews[1])["parents"]}
    assert of_preview == {"clip": None, "prior": None, "decoder": 200}
    (parent,) = row(report, reported.watched[0])["parents"]
    assert parent == {
        "role": "decoder", "stage": "decoder", "id": reported.decoder.id, "step": 600, "pinned": "ok",
    }  # fmt: skip
    assert detail(report, reported.watched[0])["evaluation"]["judged"]["decoder"]["step"] == 600


def test_clips_hold_the_files_bytes_and_nothing_from_elsewhere(reported: Made, report: Report) -> None:
    found = detail(report, reported.sample)["clips"]
    assert found["of"] == len(found["shown"]) == 6
    shown = found["shown"][:4]
    for number, clip in enumerate(shown):
        assert base64.b64decode(clip["data"]) == (reported.sample.folder / f"samples/{number:04d}.mp4").read_bytes()
        assert len(clip["data"]) > 2 * MOST_CHARACTERS  # no text, that would be cut
        assert clip["type"] == "video/mp4" and clip["facts"] == {"seed": 7, "repeat": 0, "clip_score": 0.25}
        assert ["decoder", "32 steps of ddim, guidance 3.0"] in clip["made"] and ["fps", "8.0"] in clip["made"]
    made = dict(detail(report, reported.previews[0])["clips"]["shown"][0]["made"])
    assert made["decoder run"] == f"{reported.decoder.id} at step 600" and made["prior run"] == reported.prior.id
    outside, gone = found["shown"][4:]
    assert outside["missing"] == "the file is not in the samples' folder" and "data" not in outside
    assert gone["missing"] == "it cannot be read (No such file or directory)"


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "0.mp4").symlink_to(secret)
    (folder / "samples.json").write_text(json.dumps([{"file": "0.mp4"}, {"file": str(secret)}, {"file": "a.html"}]))
    found = clips.clips(folder, 9)
    assert found is not None
    assert ["missing" in clip and "data" not in clip for clip in found["shown"]] == [True, True, True]


def test_a_record_that_is_damaged_or_a_link_says_nothing_and_its_clip_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"device": "secret"}')
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "0.json").symlink_to(tmp_path / "secret")
    for number, text in enumerate(
        ("{", "[]", '{"samplers": [1], "made_by": {"parents": {"clip": 3}}, "fps": null}'), start=1
    ):
        (folder / f"{number}.json").write_text(text)
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(b"video")
    (folder / "samples.json").write_text(json.dumps([{"file": f"{number}.mp4"} for number in range(5)]))
    found = clips.clips(folder, 9)
    assert found is not None
    assert [clip["made"] for clip in found["shown"]] == [[], [], [], [["fps", "None"]], []]
    assert all(clip["data"] == b"video" for clip in found["shown"])


def test_as_many_clips_as_asked_for(reported: Made) -> None:
    report = Reader(registry=Registry(reported.home), selection=Selection(), most_clips=2).read()
    found = detail(report, reported.sample)["clips"]
    assert found["of"] == 6 and [clip["file"] for clip in found["shown"]] == ["0000.mp4", "0001.mp4"]


def test_every_number_with_an_interval_is_a_figure(reported: Made, report: Report) -> None:
    found = detail(report, reported.evaluate)["evaluation"]
    by_path = {" / ".join(path): numbers for path, *numbers in found["figures"]}
    assert by_path["text_to_video / top5"] == [0.5, 0.25, 0.75]
    assert by_path["distance / frechet_of_our_clip"] == [12.25, 11.0, 13.5]
    assert by_path["bits_per_dim"] == [3.25, None, None]
    assert by_path[HOSTILE] == [1.0, 0.5, 1.5]
    assert ["split", "val"] in found["facts"] and found["judged"]["clip"]["id"] == reported.clip.id
    assert found["ranks"]["of"] == 37 and len(found["ranks"]["shown"]) == 20
    assert found["ranks"]["shown"][0]["text"] == HOSTILE


def test_an_evaluation_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert figures.evaluation(tmp_path) is None


def test_data_statistics_and_bad_clips(reported: Made, report: Report) -> None:
    found = detail(report, reported.preprocess)["store"]
    assert ["clips", 400] in found["facts"] and found["counts"]["bad_reasons"] == {"it is cut": 2, "no video": 1}
    assert found["bad"]["of"] == 3 and ["abc_0_1", "it is cut"] in found["bad"]["shown"]


def test_statistics_of_a_real_store_are_shown(store_path: Path, tmp_path: Path, reported: Made) -> None:
    folder = tmp_path / "runs/preprocess" / reported.preprocess.folder.name
    shutil.copytree(reported.preprocess.folder, folder, ignore=shutil.ignore_patterns("store"))
    (folder / "store").symlink_to(store_path)
    found = stores.store(Run(folder))
    store = Store(store_path)
    assert found is not None
    assert dict(found["facts"])["clips"] == store.num_clips
    assert found["bad"]["of"] == len(store.bad_clips()) == 2
    assert sum(found["histograms"]["stored_seconds"]["counts"]) == store.num_clips - 2


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("metrics.0001.jsonl", "{no json\n", "metrics"),
        ("attempts/0001.json", "{", "attempts"),
        ("events.0001.jsonl", "[]\n", "events"),
        ("metrics.0009.jsonl", '{"split": "train", "step": "x", "loss": 1}\n', "metrics"),
        ("metrics.0009.jsonl", '{"split": 3, "step": 1.5e300, "loss": NaN}\n', "curves"),
        ("samples/samples.json", '{"a": 1}', "samples"),
        ("samples/samples.json", "[1]", "samples"),
        ("evaluation/evaluation.json", "[]", "evaluation"),
        ("run.json", '{"stage": "clip"}', "run"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    reported: Made, tmp_path: Path, name: str, content: str, part: str
) -> None:
    home = tmp_path / "home"
    shutil.copytree(reported.home, home)
    path = home / "runs/clip" / reported.clip.folder.name / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    report = Reader(registry=Registry(home), selection=Selection()).read()
    damaged = detail(report, reported.clip)["damaged"]
    assert any(text.startswith(f"{part}: ") for text in damaged), damaged
    assert row(report, reported.clip)["damaged"] == len(damaged)
    others = [one for one in report.index["runs"] if one["id"] != reported.clip.id]
    assert len(others) == len(report.index["runs"]) - 1 and not any(one["damaged"] for one in others)


def test_numbers_that_are_none_do_not_stop_the_page(reported: Made, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(reported.home, home)
    path = home / "runs/evaluate" / reported.evaluate.folder.name / "evaluation/evaluation.json"
    path.write_text('{"made_from": [], "far": {"value": Infinity, "low": NaN, "high": 1e999}, "x": NaN, "y": null}')
    metrics = home / "runs/decoder" / reported.decoder.folder.name / "metrics.0001.jsonl"
    rest = {"split": "train", "samples_per_second": 9.0, "samples": 9, "time": 0.0}
    records = [rest | {"step": 1, "loss": float("nan")}, rest | {"step": 2, "loss": float("-inf")}]
    metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    report = Reader(registry=Registry(home), selection=Selection()).read()
    found = detail(report, reported.evaluate)["evaluation"]
    assert found["figures"] == [[["far"], "inf", "nan", "inf"]] and found["facts"] == [["x", "nan"], ["y", None]]
    assert row(report, reported.decoder)["loss"] == "-inf" and row(report, reported.decoder)["damaged"] == 0
    assert detail(report, reported.decoder)["curves"]["train"]["loss"]["y"] == [None, None]


def test_terminal_escapes_and_changes_of_direction_are_written_out(reported: Made, report: Report) -> None:
    prompt = detail(report, reported.sample)["clips"]["shown"][3]["prompt"]
    assert prompt == r"\u{1b}[31mred\u{7} \u{202e}gnp.exe \u{2028} line"
    text = json.dumps(report.index) + "".join(report.details.values())
    assert not any(character in text for character in ESCAPES if not character.isprintable())
    assert not any(escaped in text for escaped in (r"\u001b", r"\u202e", r"\u2028"))


def test_a_run_with_its_lineage_or_alone(reported: Made) -> None:
    def ids(**of: Any) -> set[str]:
        return {run.id for run in Selection(**of).choose(Registry(reported.home)).runs}

    made_from, made = (reported.preprocess, reported.clip, reported.embed), (reported.sample, *reported.previews)
    assert ids(named=[reported.prior.id]) == {run.id for run in (*made_from, reported.prior, *made)}
    assert ids(named=[f"prior/{reported.prior.folder.name}"], alone=True) == {reported.prior.id}
    newest = Selection(newest=4).choose(Registry(reported.home))
    assert [run.id for run in newest.runs] == [run.id for run in (*reported.watched[::-1], *reported.previews[::-1])]
    assert newest.left_out == len(list(Registry(reported.home).runs())) - 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"newest": 0}, "--newest 0 must be 1 or more"), ({"alone": True}, "--alone needs the id of a run")],
)
def test_a_wrong_selection_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Selection(**wrong)


def test_what_did_not_change_is_not_read_again(reported: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(reported.home, home)
    reader = Reader(registry=Registry(home), selection=Selection(named=[reported.prior.id]))
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    before = reader.read()
    read: list[str] = []
    real = Run.metrics
    monkeypatch.setattr(Run, "metrics", lambda run: read.append(run.id) or real(run))
    assert reader.read() == before and read == []
    with (home / "runs/prior" / reported.prior.folder.name / "metrics.0001.jsonl").open("a") as file:
        file.write(json.dumps({"split": "train", "step": 9999, "loss": 0.5, "time": 0.0}) + "\n")
    after = reader.read()
    assert read == [reported.prior.id]
    assert row(after, reported.prior)["loss"] == 0.5
    assert row(after, reported.prior)["version"] != row(before, reported.prior)["version"]
    assert row(after, reported.clip)["version"] == row(before, reported.clip)["version"]


@pytest.mark.parametrize(("runs", "expected"), [(0, MOST), (1, MOST), (200, 125), (10**6, 60)])
def test_curves_share_the_pages_budget(runs: int, expected: int) -> None:
    assert buckets_per_curve(runs) == expected


def test_reading_never_writes(reported: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in reported.home.rglob("*")}
    Reader(registry=Registry(reported.home), selection=Selection()).read()
    assert {path: path.stat().st_mtime_ns for path in reported.home.rglob("*")} == before
    assert files.read_json(reported.clip.folder / "run.json")["stage"] == "clip"
