"""Five hundred damaged clips: each ends as a bad clip with a reason or with all its frames, and the process goes on."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import av
import numpy as np

from dalle2_video.data.archives import Source
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.video import BadClip, ClipFacts
from dalle2_video.data_config import DataConfig, DecodeConfig

CONFIG = DataConfig(
    frame_sizes=(16,), fps=8.0, min_frames=1, max_frames=64, decode=DecodeConfig(timeout_s=5.0, memory_gb=1.0)
)
ATOMS = (b"moov", b"mvhd", b"trak", b"tkhd", b"elst", b"mdia", b"mdhd", b"minf", b"stbl", b"stsd", b"stts", b"ctts")
ATOMS += (b"stss", b"stsc", b"stsz", b"stco", b"mdat", b"avcC")
SEEDS = {
    "h264": ("libx264", {"g": "8", "crf": "20"}, {}),
    "h264, index in front": ("libx264", {"g": "100", "bf": "3", "crf": "20"}, {"movflags": "faststart"}),
    "h264, fragmented": ("libx264", {"g": "8", "crf": "20"}, {"movflags": "frag_keyframe+empty_moov"}),
    "mpeg4": ("mpeg4", {"g": "8"}, {}),
    "vp9": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "crf": "30", "b": "0"}, {}),
}
FRAGMENTED = list(SEEDS).index("h264, fragmented")


def write_seed(path: Path, codec: str, options: dict[str, str], mux: dict[str, str]) -> Source:
    """Three seconds of noise that drifts, 48 x 32 at 16 fps."""
    noise = np.random.default_rng(1).integers(0, 255, (4, 96, 3)).astype(np.uint8).repeat(8, 0).repeat(4, 1)
    with av.open(str(path), "w", options=mux) as container:
        stream = container.add_stream(codec, rate=16, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(48):
            image = np.ascontiguousarray(noise[:, 5 * number : 5 * number + 48])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return Source.of_file(path)


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return the file after one to three accidents."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place, length = chance.randrange(len(result)), chance.choice((1, 4, 64, 512))
        # Half of the accidents hit the index, where they are most treacherous.
        if chance.random() < 0.5:
            found = result.find(chance.choice(ATOMS))
            place = min(max(found, 0) + chance.randrange(-4, 60), len(result) - 1) if found >= 0 else place
            place = max(place, 0)
        match chance.choice(("flip", "zero", "cut", "size", "splice", "random")):
            case "flip":
                result[place] ^= 1 << chance.randrange(8)
            case "zero":
                result[place : place + length] = bytes(len(result[place : place + length]))
            case "cut":
                del result[chance.randrange(len(result) // 2, len(result)) :]
            case "size":
                found = result.find(chance.choice(ATOMS))
                if found >= 4:
                    struct.pack_into(">I", result, found - 4, chance.choice((0, 1, 7, 2**31, chance.randrange(2**32))))
            case "splice":
                result[place : place + length] = other[place : place + length]
            case "random":
                result[place : place + length] = chance.randbytes(len(result[place : place + length]))
        if not result:
            break
    return bytes(result)


def test_five_hundred_damaged_clips(tmp_path: Path) -> None:
    with DecodeProcess(CONFIG) as process:
        sources = [write_seed(tmp_path / f"{n}.mp4", *seed) for n, seed in enumerate(SEEDS.values())]
        good: list[np.ndarray] = []
        for source in sources:
            assert process.decode(source).num_frames == 24
            good.append(process.frames[16][:24].copy())
        contents = [source.path.read_bytes() for source in sources]
        verdicts: list[BadClip | ClipFacts] = []
        for number in range(500):
            chance = random.Random(f"damaged clip {number}")
            kind = number % len(sources)
            data = damaged(contents[kind], chance.choice(contents), chance)
            path = tmp_path / "damaged.mp4"
            path.write_bytes(data)
            try:
                facts = process.decode(Source.of_file(path))
            except BadClip as error:
                assert error.reason and "Traceback" not in error.reason and "failed with" not in error.reason, number
                verdicts.append(error)
                continue
            verdicts.append(facts)
            frames = process.frames[16][: facts.num_frames]
            if not np.array_equal(frames, good[kind]):
                # A fragmented file states no duration but those of the fragments that can be read.
                seconds = facts.seconds if kind == FRAGMENTED else 3.0
                stated = min(round(seconds * CONFIG.fps), CONFIG.max_frames)
                assert facts.num_frames >= stated - 2, f"{number}: {facts}"
        bad = [verdict for verdict in verdicts if isinstance(verdict, BadClip)]
        assert 100 < len(bad) < 450, "the damage must matter, and not always"
        for source, frames in zip(sources, good, strict=True):
            assert process.decode(source).num_frames == 24
            np.testing.assert_array_equal(process.frames[16][:24], frames)
