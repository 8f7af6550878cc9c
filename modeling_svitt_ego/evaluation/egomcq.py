"""EgoMCQ by the dual encoder: every clip and every text is embedded once, then the five cosines decide."""

import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.clips import EgoClipDataset
from ..data.egomcq import EgoMCQClips, load_egomcq
from ..data.layouts import VideoStore
from .metrics import egomcq_accuracy

CHANCE = 20.0  # per cent: one of five


class EgoMCQEvaluator:
    """
    Scores a model on EgoMCQ: `evaluator(model)` → metrics.

    Args:
        json_path: `egomcq.json`.
        video_root: where the videos lie, in any known layout.
        processor ([`SViTTEgoProcessor`]): of the model.
        num_frames (`int`): frames per clip, the middle ones of as many segments.
        batch_size (`int`): clips embedded at once.
        num_workers (`int`): processes that decode clips.
        accelerator (`Accelerator`, *optional*): shards the clips over its processes; each is counted once.
    """

    primary_metric = "intra"

    def __init__(
        self,
        json_path: str | os.PathLike,
        video_root: str | os.PathLike,
        processor,
        num_frames: int,
        batch_size: int = 32,
        num_workers: int = 0,
        accelerator: Accelerator | None = None,
    ):
        self.questions = EgoMCQClips(load_egomcq(json_path))
        self.processor = processor
        self.num_frames = num_frames
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.accelerator = accelerator
        self.dataset = EgoClipDataset(
            self.questions.clips, VideoStore(video_root), num_frames=num_frames, sampling="middle"
        )

    def __call__(self, model, shuffle_frames: bool = False, desc: str = "EgoMCQ") -> dict:
        """
        Args:
            model: with `get_video_features` and `get_text_features`.
            shuffle_frames (`bool`): put the frames of each clip into a wrong order (never the right one), seeded: what
                is lost is what the model owes to time.

        Returns:
            The metrics of [`egomcq_accuracy`], `num_frames` and `scoring` ("dual": cosine of the two towers).
        """
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                clips = self.embed_clips(model, shuffle_frames, desc)
                texts = self.embed_texts(model)
        finally:
            model.train(was_training)
        questions = self.questions
        scores = np.einsum("qd,qcd->qc", texts[questions.text_of], clips[questions.choices])
        metrics = egomcq_accuracy(scores, questions.answers, questions.is_intra)
        return metrics | {"num_frames": self.num_frames, "scoring": "dual"}

    def embed_clips(self, model, shuffle_frames: bool, desc: str) -> np.ndarray:
        """Normalised embeddings `(num_clips, projection_dim)` of the unique clips."""
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_Collate(self.processor, shuffle_frames),
            worker_init_fn=one_thread if self.num_workers else None,
        )
        accelerator = self.accelerator
        if accelerator is not None:
            loader = accelerator.prepare(loader)
        device = next(model.parameters()).device
        rows = []
        hidden = accelerator is not None and not accelerator.is_main_process
        for batch in tqdm(loader, desc=desc, unit="batch", disable=hidden):
            features = model.get_video_features(batch.to(device)).pooler_output
            features = F.normalize(features.float(), dim=-1)
            if accelerator is not None:
                features = accelerator.gather_for_metrics(features)
            rows.append(features.cpu())
        return torch.cat(rows).numpy()

    def embed_texts(self, model) -> np.ndarray:
        """Normalised embeddings `(num_texts, projection_dim)` of the unique questions."""
        device = next(model.parameters()).device
        rows = []
        for first in range(0, len(self.questions.texts), 256):
            batch = self.processor(text=self.questions.texts[first : first + 256], return_tensors="pt").to(device)
            features = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
            rows.append(F.normalize(features.float(), dim=-1).cpu())
        return torch.cat(rows).numpy()


class _Collate:
    """Examples → pixel values `(batch_size, num_frames, channels, height, width)`."""

    def __init__(self, processor: Callable, shuffle_frames: bool):
        self.processor = processor
        self.shuffle_frames = shuffle_frames

    def __call__(self, examples: list[dict]) -> torch.Tensor:
        videos = [example["video"] for example in examples]
        if self.shuffle_frames:
            videos = [video[wrong_order(len(video), example["index"])] for video, example in zip(videos, examples)]
        return self.processor(videos=videos, return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]


def wrong_order(num_frames: int, seed: int) -> np.ndarray:
    """A permutation of the frames that is not the identity (with one frame there is none)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_frames)
    while num_frames > 1 and (order == np.arange(num_frames)).all():
        order = rng.permutation(num_frames)
    return order


def one_thread(worker: int) -> None:
    """A worker per core: more threads in each would fight for the cores."""
    torch.set_num_threads(1)
