"""One run: a model of a setting, trained and asked EgoMCQ. Runs in a separate process."""

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.trainer_utils import set_seed

from modeling_svitt_ego import (
    SViTTEgoConfig,
    SViTTEgoForPreTraining,
    SViTTEgoModel,
    SViTTEgoProcessor,
    SViTTEgoVideoProcessor,
)
from modeling_svitt_ego.data.clip_shards import ClipShardDataset
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.egomcq import EgoMCQClips, load_egomcq
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.demo.demo import WHITENING_CLIPS, build_processor
from modeling_svitt_ego.demo.rendered_clips import ClipsInMemory
from modeling_svitt_ego.evaluation.egomcq import EgoMCQEvaluator
from modeling_svitt_ego.hub.configs import hub_config
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.training.patch_whitening import whiten_patch_projection
from modeling_svitt_ego.training.temporal_stages import parse_stages
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
from modeling_svitt_ego.weights.warm_start import TOWER_CONFIGS, split_fields

from .clips_in_memory import decode_once
from .plan import Setting
from .pruning import install_pruner

CANDIDATES = 2  # frames kept in memory for each frame drawn
# As in demo.py, for a model from scratch; and as in examples/pretrain_egoclip.py, the published recipe.
RECIPES = {
    "tiny": {
        "learning_rate": 2e-3,
        "muon_learning_rate": 6e-3,
        "weight_decay": 0.05,
        "adam_beta2": 0.98,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
    },
    "base": {
        "learning_rate": 3e-5,
        "weight_decay": 0.02,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.01},
        "max_grad_norm": 0.0,
    },
}
METRICS = ("inter", "intra", "num_inter", "num_intra")


@dataclass(frozen=True)
class Corpus:
    """Where the clips are.

    Args:
        egoclip, videos, egomcq, egomcq_videos (`str`): tables and video roots.
        clip_shards (`str`, *optional*): folder from `svitt-ego prepare --clip-shards` instead of the first two.
        name (`str`): as in the results.
        work (`str`): folder for decoded frames, models and logs.
        cache_gb (`float`): decoded frames are kept if they take no more.
    """

    egoclip: str | None
    videos: str | None
    egomcq: str
    egomcq_videos: str
    name: str
    work: str
    cache_gb: float = 8.0
    clip_shards: str | None = None


@dataclass(frozen=True)
class Budget:
    """How long and on what: equal for all settings that are compared."""

    steps: int = 250
    batch_size: int = 64
    num_frames: int = 4
    scale: str = "tiny"
    vision_encoder: str = "microsoft/beit-base-patch16-224-pt22k-ft22k"
    text_encoder: str = "bert-base-uncased"
    bf16: bool = False

    def as_recipe(self) -> dict:
        """What decides a result, for the records."""
        fields = asdict(self)
        if self.scale == "tiny":
            del fields["vision_encoder"], fields["text_encoder"]
        return fields


def prepare(corpus: Corpus, budget: Budget, workers: int) -> None:
    """Decodes what the runs will share."""
    _train_set(corpus, budget, seed=0, workers=workers)
    _test_frames(corpus, budget, workers)


def build_model(setting: Setting, budget: Budget, seed: int, narrations: list[str]):
    """The model, its weights decided by the seed alone where settings share a shape, and its processor."""
    set_seed(seed)
    model_class = SViTTEgoForPreTraining if setting.fusion else SViTTEgoModel
    fields = first_fields(setting, budget)
    if budget.scale == "base":
        model = model_class.from_encoders(budget.vision_encoder, budget.text_encoder, **fields)
        vision = model.config.vision_config
        video_processor = SViTTEgoVideoProcessor(
            size={"height": vision.image_size, "width": vision.image_size}, num_frames=budget.num_frames
        )
        return model, SViTTEgoProcessor(video_processor, AutoTokenizer.from_pretrained(budget.text_encoder))
    processor = build_processor(narrations)
    processor.video_processor.num_frames = budget.num_frames
    set_seed(seed)
    return model_class._from_config(tiny_config(fields, fields.pop("num_frames"))), processor


def first_fields(setting: Setting, budget: Budget) -> dict:
    """Fields to start with, those of the first stage where there are stages: new bias tables fit its frames."""
    stages = setting.arguments.get("temporal_stages")
    sparsity = parse_stages(stages)[0].sparsity if stages else {"num_frames": budget.num_frames}
    return {**setting.fields, **sparsity}


def tiny_config(fields: dict, num_frames: int) -> SViTTEgoConfig:
    """svitt-ego-tiny with other fields; with the published pattern, no temporal blocks, unless they name some."""
    given = split_fields({"num_temporal_blocks": 0, **fields, "vision_num_frames": num_frames})
    tiny = hub_config("svitt-ego-tiny").to_dict()
    towers = {key: tiny[key] | given[tower] for tower, key in TOWER_CONFIGS.items()}
    return SViTTEgoConfig.from_dict(tiny | towers | given[""])


def train(setting: Setting, seed: int, corpus: Corpus, budget: Budget, workers: int = 0) -> dict:
    """[`train_here`], with its progress in `console.txt` next to the model."""
    folder = model_folder(corpus, setting, budget, seed)
    with quietly(folder.with_name(f"{folder.name}.log") / "console.txt"):
        return train_here(setting, seed, corpus, budget, workers)


@contextlib.contextmanager
def quietly(file: Path):
    """What is printed inside goes to the file: the output of parallel runs would mix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield


def train_here(setting: Setting, seed: int, corpus: Corpus, budget: Budget, workers: int = 0) -> dict:
    """
    Trains and evaluates; the model is left in [`model_folder`].

    Returns:
        EgoMCQ as trained and with frames shuffled (per cent), the last logged loss, and what it took.
    """
    clips = _train_set(corpus, budget, seed, workers)
    narrations = clips.table["clip_text"]
    model, processor = build_model(setting, budget, seed, narrations)
    collator = ClipCollator(processor, do_random_resized_crop=True)
    if budget.scale == "tiny":
        every = max(1, len(clips) // WHITENING_CLIPS)
        some = collator([clips[row] for row in range(0, len(clips), every)])
        whiten_patch_projection(model.vision_model, some["pixel_values_videos"])
    if setting.first is not None:
        model.load_state_dict(first_weights(setting, seed, corpus, budget, workers))
    install_pruner(model.vision_model, setting.pruner)
    folder = model_folder(corpus, setting, budget, seed)
    decoded = isinstance(clips, ClipsInMemory)
    steps, batch_size = steps_and_batch(setting, budget)
    arguments = {
        **RECIPES[budget.scale],
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "warmup_steps": 0.1,  # a share of all steps
        "logging_steps": max(1, steps // 10),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # The same for all but experiment 2: what the demo found better from scratch.
        "scene_aware_negatives": budget.scale == "base",
        "dataloader_num_workers": 0 if decoded else workers,
        "bf16": budget.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "output_dir": str(folder.with_name(f"{folder.name}.log")),
        "overwrite_output_dir": True,  # the checkpoint between two stages of a run that was stopped: it starts over
    }
    if setting.clips_per_step is not None and setting.clips_per_step > batch_size:
        arguments["contrastive_batch_size"] = setting.clips_per_step
    trainer = SViTTEgoTrainer(
        model=model,
        args=SViTTEgoTrainingArguments(**(arguments | setting.arguments)),
        train_dataset=clips,
        data_collator=collator,
        processing_class=processor,
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    evaluator = build_evaluator(corpus, budget, processor, workers)
    result = evaluate(evaluator, model)
    shuffled = evaluator.with_settings(frame_order="shuffled")(model).metrics
    result |= {f"{name}_frames_shuffled": shuffled[name] for name in ("inter", "intra")}
    if setting.fusion:
        evaluator.scoring = "fusion"
        by_matching = evaluate(evaluator, model)
        result |= {f"{name}_by_matching": by_matching[name] for name in ("inter", "intra")}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    positives = [e["positives_per_clip"] for e in trainer.state.log_history if "positives_per_clip" in e]
    result |= {
        "loss": losses[-1],
        "positives_per_clip": sum(positives) / len(positives),
        "steps": steps,
        "wall_seconds_per_step": wall / steps,
        "cpu_seconds_per_step": cpu / steps,
        "shares_of_time": trainer.summary.as_dict(1)["shares"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if torch.cuda.is_available():
        result["max_memory_allocated"] = torch.cuda.max_memory_allocated()
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    trainer.save_model(str(aside))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return result


def steps_and_batch(setting: Setting, budget: Budget) -> tuple[int, int]:
    """Steps, and clips that are in memory at once: a larger contrastive batch is cached."""
    if setting.clips_per_step is None:
        return budget.steps, budget.batch_size
    steps = budget.steps
    if not setting.equal_steps:
        steps = max(1, steps * budget.batch_size // setting.clips_per_step)
    return steps, min(budget.batch_size, setting.clips_per_step)


def first_weights(setting: Setting, seed: int, corpus: Corpus, budget: Budget, workers: int) -> dict:
    """The weights that `setting` continues: of the run of `setting.first`, which is trained if it is not there."""
    first = Setting("first", setting.first, setting.arguments, setting.fusion)
    folder = model_folder(corpus, first, budget, seed)
    if not folder.is_dir():
        train_here(first, seed, corpus, budget, workers)
    model_class = SViTTEgoForPreTraining if setting.fusion else SViTTEgoModel
    return model_class.from_pretrained(folder).state_dict()


def evaluate(evaluator: EgoMCQEvaluator, model) -> dict:
    """Inter and intra in per cent, with the numbers of questions."""
    metrics = evaluator(model).numbers()
    return {name: metrics[name] for name in METRICS}


def build_evaluator(corpus: Corpus, budget: Budget, processor, workers: int) -> EgoMCQEvaluator:
    """EgoMCQ on the middle frames, decoded once where they fit."""
    evaluator = EgoMCQEvaluator(
        corpus.egomcq, corpus.egomcq_videos, processor, budget.num_frames, batch_size=64, num_workers=workers
    )
    frames = _test_frames(corpus, budget, workers)
    if frames is not None:
        old = evaluator.dataset
        evaluator.dataset = ClipsInMemory(
            evaluator.questions.clips, frames, old.store, num_frames=budget.num_frames, sampling="middle"
        )
        evaluator = evaluator.with_settings(num_workers=0)
    return evaluator


def model_folder(corpus: Corpus, setting: Setting, budget: Budget, seed: int) -> Path:
    """Named by what decides the weights, whatever the setting is called."""
    recipe = [setting.fields, setting.arguments, setting.fusion, budget.as_recipe(), corpus.name, seed]
    recipe += [setting.more()] if setting.more() else []
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    return Path(corpus.work) / "models" / name


def _train_set(corpus: Corpus, budget: Budget, seed: int, workers: int) -> EgoClipDataset:
    if corpus.clip_shards is not None:
        return ClipShardDataset(corpus.clip_shards, budget.num_frames, seed=seed, on_error="skip")
    table, store = load_egoclip(corpus.egoclip), VideoStore(corpus.videos)
    plain = EgoClipDataset(table, store, num_frames=budget.num_frames, seed=seed)
    frames = decode_once(plain, CANDIDATES * budget.num_frames, Path(corpus.work), corpus.cache_gb, workers)
    if frames is None:
        plain.on_error = "skip"
        return plain
    return ClipsInMemory(table, frames, num_frames=budget.num_frames, seed=seed)


def _test_frames(corpus: Corpus, budget: Budget, workers: int) -> Path | None:
    questions = EgoMCQClips(load_egomcq(corpus.egomcq))
    plain = EgoClipDataset(
        questions.clips, VideoStore(corpus.egomcq_videos), num_frames=budget.num_frames, sampling="middle"
    )
    return decode_once(plain, budget.num_frames, Path(corpus.work), corpus.cache_gb, workers)
