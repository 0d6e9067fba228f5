"""A CLIP judged by retrieval on a split, as a task array: one task embeds the split's clips of one shard.

    shards/00003.npy      (m, 2, d) float32: of each clip of the split in shard 3 the video and the text embedding
    evaluation.json       the figures with their intervals, and what they were measured on
    ranks.jsonl           one clip a line: its text and the rank of each of the two in the other's list

The middle window stands for a clip, and one draw of its captions. Where clips share a text, top-1 can be no more than
distinct_texts / clips: one of them alone can come first.
Invariant: which window and which text stand for a clip follows from the store and the seed, and which clips share a
batch from the store, and each is computed on one thread, so that no sharing-out of the tasks can change a bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_video.config import EvaluateConfig
from dalle2_video.data import keyed_random
from dalle2_video.data.batches import read_window, to_float
from dalle2_video.data.captions import Captions
from dalle2_video.data.celebv_text import identity_of
from dalle2_video.data.store import Store
from dalle2_video.data_config import CaptionConfig
from dalle2_video.digests import file_digest
from dalle2_video.evaluation import retrieval
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.task_array import OnProgress, Published

EVALUATION, RANKS = "evaluation.json", "ranks.jsonl"
CLIPS_AT_ONCE = 64


class EvaluateArray:
    """Retrieval on a split."""

    def __init__(
        self,
        *,
        root: Path,
        store: Path,
        clip_export: Path,
        made_from: dict[str, dict[str, str]],
        config: EvaluateConfig,
        captions: CaptionConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        """root: folder of what is made; made_from: id and digest by stage; captions: as CLIP was trained on them."""
        self.root, self.made_from, self.config, self.seed, self.device = root, made_from, config, seed, device
        self.store = Store(store)
        self.clip = FrozenClip(clip_export)
        self.clip.to(device)
        if config.captions != "trained":
            captions = dataclasses.replace(captions, choose=config.captions)
        self.captions, self._texts = captions, Captions(self.store, captions)
        self.rows = chosen_rows(self.store, config, seed)
        self.clips_per_shard = self.store.config.clips_per_shard
        self.num_tasks = -(-self.store.num_clips // self.clips_per_shard)

    def prepare(self, staging: Path) -> Published:
        """Nothing must exist before the first task."""
        return []

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Embed the split's clips of one shard; there may be none."""
        first = task * self.clips_per_shard
        last = min(first + self.clips_per_shard, self.store.num_clips)
        rows = self.rows[np.searchsorted(self.rows, first) : np.searchsorted(self.rows, last)]
        pairs = np.empty((len(rows), 2, self.clip.config.embed_dim), np.float32)
        with _one_thread():
            for start in range(0, len(rows), CLIPS_AT_ONCE):
                part = slice(start, start + CLIPS_AT_ONCE)
                pairs[part] = self._embed(rows[part], functools.partial(_told, on_progress, start, len(rows)))
        staged = staging / "pairs.npy"
        np.save(staged, pairs)
        record = {"clips": last - first, "evaluated": len(rows), "sha256": file_digest(staged)}
        return [(staged, shard_file(task))], record

    def _embed(self, rows: np.ndarray, on_read: Callable[[int], None]) -> np.ndarray:
        """Return the embeddings (b, 2, d) of clips' middle windows and texts; on_read: told how many have been read."""
        window = self.clip.config.window
        reader = self.store.frames(window.size)
        num_frames = self.store.num_frames_at(window.size, rows)
        starts = np.maximum(num_frames - window.span, 0) // 2
        frames = np.empty((len(rows), window.num_frames, window.size, window.size, 3), np.uint8)
        tokens, lengths = np.empty((len(rows), self.store.config.text_context), np.int64), np.empty(len(rows), np.int64)
        for place, (row, lines) in enumerate(zip(rows.tolist(), self._lines(rows), strict=True)):
            on_read(place)
            read_window(reader, row, int(starts[place]), int(num_frames[place]), window.stride, frames[place])
            lengths[place] = self._texts.write(lines, tokens[place])
        on_read(len(rows))
        video = self.clip.encode_video(to_float(torch.from_numpy(frames).to(self.device)))
        on_device = (torch.from_numpy(array).to(self.device) for array in (tokens, lengths))
        text = self.clip.encode_text(*on_device).embedding_bd
        return torch.stack([video.float(), text.float()], dim=1).cpu().numpy()

    def _lines(self, rows: np.ndarray) -> list[list[int]]:
        """Return the captions that stand for each clip, as rows of the store."""
        return self._texts.choose(keyed_random.key(self.seed, "evaluate"), rows, rows)

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Rank all clips of the split and write the figures."""
        pairs = np.concatenate([self._read(task, records[task]) for task in sorted(records)])
        n = len(self.rows)
        assert len(pairs) == n, (len(pairs), n)
        clip_ids = [self.store.clip_id(row) for row in self.rows.tolist()]
        identities = np.array([identity_of(clip_id) for clip_id in clip_ids])
        of_text, of_video = retrieval.places(pairs[:, 0], pairs[:, 1])
        draws = keyed_random.key(self.seed, "evaluate")
        found = {
            "text_to_video": retrieval.figures(of_text, identities, draws),
            "video_to_text": retrieval.figures(of_video, identities, draws),
        }
        texts = [self._words(row, lines) for row, lines in zip(self.rows.tolist(), self._lines(self.rows), strict=True)]
        facts = {
            "made_from": self.made_from,
            "split": self.config.split,
            "seed": self.seed,
            "captions": self.captions.choose,
            "clips": n,
            "identities": len(set(identities.tolist())),
            "distinct_texts": len(set(texts)),
            "tie": retrieval.TIE,
            "confidence": retrieval.CONFIDENCE,
            "resamples": retrieval.RESAMPLES,
        }
        plain = {
            direction: {name: dataclasses.asdict(one) for name, one in of.items()} for direction, of in found.items()
        }
        (staging / EVALUATION).write_text(json.dumps(facts | plain, indent=1, ensure_ascii=False))
        with (staging / RANKS).open("w") as file:
            ranks = zip(of_text.ranks().tolist(), of_video.ranks().tolist(), strict=True)
            for row, clip_id, text, (by_text, by_video) in zip(self.rows.tolist(), clip_ids, texts, ranks, strict=True):
                line = {"clip": clip_id, "row": row, "text_to_video": by_text, "video_to_text": by_video, "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        summary = {"split": self.config.split, "clips": n, "folder": str(self.root)}
        summary |= {direction: retrieval.words(of, n) for direction, of in found.items()}
        return [(staging / RANKS, RANKS), (staging / EVALUATION, EVALUATION)], summary

    def _read(self, task: int, record: dict[str, Any]) -> np.ndarray:
        """Return a task's embeddings; ValueError where its file is not the one that it wrote."""
        path = self.root / shard_file(task)
        if not path.is_file() or file_digest(path) != record["sha256"]:
            raise ValueError(f"{path} is missing or damaged; remove the run's folder and run the same command again")
        return np.load(path, allow_pickle=False)

    def _words(self, row: int, lines: list[int]) -> str:
        first, _ = self.store.caption_range(row)
        captions = self.store.captions_of(row)
        return " ".join(captions[line - first].text for line in lines)


def _told(on_progress: OnProgress, before: int, of: int, read: int) -> None:
    on_progress((before + read) / (of + 1))  # one more: until the last batch is computed a task may be stopped


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread: how many share a sum changes its last bits, and how many there are the job's size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shard_file(task: int) -> str:
    """Where a task's embeddings lie, relative to the array's root."""
    return f"shards/{task:05d}.npy"


def chosen_rows(store: Store, config: EvaluateConfig, seed: int) -> np.ndarray:
    """Return the store's rows that are evaluated, int64 ascending; ValueError if the split has none."""
    rows = store.usable(config.split)
    if config.max_clips == 0 or len(rows) <= config.max_clips:
        return rows
    lots = keyed_random.uniform(seed, "evaluate.clips", rows)
    return np.sort(rows[np.argsort(lots, kind="stable")[: config.max_clips]])
