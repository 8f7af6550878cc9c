"""`svitt-ego demo`: the package's whole path on a synthetic world, in minutes on a CPU.

World of mp4 files → EgoClip table → pretraining with EgoNCE → EgoMCQ before and after → a folder for the Hub.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.trainer_utils import set_seed

from ..data.clips import ClipCollator, EgoClipDataset
from ..data.egoclip import load_egoclip
from ..data.layouts import VideoStore
from ..evaluation.egomcq import CHANCE, EgoMCQEvaluator
from ..evaluation.report import EvaluationReport
from ..hub.card import write_model_card
from ..model.configuration_svitt_ego import SViTTEgoConfig
from ..model.modeling_svitt_ego import SViTTEgoModel
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from ..training.arguments import SViTTEgoTrainingArguments
from ..training.patch_whitening import whiten_patch_projection
from ..training.trainer import SViTTEgoTrainer
from ..weights.tokenizer import train_tokenizer
from .pictures import draw_surviving_patches
from .synthetic_world import WorldPaths, build_world

# svitt-ego-tiny, made for training from scratch in minutes: BEiT's zero bias tables, small layer scale and initial
# weights of 0.02 suit a wide, pretrained tower. A block is half a frame: a token attends to the five blocks around its
# own, which hold the same place one frame back and one ahead, and to one random block of the other three.
TINY_CONFIG = {
    "vision_config": {
        "image_size": 64,
        "patch_size": 16,
        "num_frames": 4,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "num_local_blocks": 5,
        "num_random_blocks": 1,
        "block_size": 8,
        "keep_rate": 0.7,
        "prune_layers": [1, 2],
        "layer_scale_init_value": 1.0,
        "relative_position_init": "directional",
        "drop_path_rate": 0.0,
        "initializer_range": 0.08,
    },
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "cls_token_id": 2,
        "mask_token_id": 4,
        "initializer_range": 0.08,
    },
    "cross_modal_config": {
        "hidden_size": 128,
        "encoder_hidden_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.08,
    },
    "projection_dim": 128,
    "initializer_range": 0.08,
    # At this learning rate a free temperature runs away before there is anything to compare.
    "temperature_init": 0.07,
    "temperature_max": 0.08,
}
WHITENING_CLIPS = 128


@dataclass
class DemoSettings:
    """
    Args:
        train_videos, test_videos (`int`): source videos of the two worlds.
        seconds_per_video (`float`): length of each.
        epochs (`float`): passes over the training clips.
        batch_size (`int`): clips of a contrastive batch.
        num_views (`int`): draws of frames and crops from each decoded clip; rows of the batch are clips times views.
        learning_rate, muon_learning_rate (`float`): peaks of the cosine schedule.
    """

    train_videos: int = 120
    test_videos: int = 16
    seconds_per_video: float = 60.0
    epochs: float = 4.5
    batch_size: int = 32
    num_views: int = 2
    learning_rate: float = 2e-3
    muon_learning_rate: float = 6e-3


QUICK = DemoSettings(train_videos=3, test_videos=6, seconds_per_video=60.0, epochs=1.0, batch_size=16)


def run_demo(output: str | os.PathLike, settings: DemoSettings | None = None, seed: int = 0) -> dict:
    """
    Runs the whole path and writes `demo_metrics.json`, `model/`, `pruning.png` and `world/` into `output`.

    Returns:
        What `demo_metrics.json` holds: for `untrained`, `trained` and `shuffled_frames` the EgoMCQ accuracies in per
        cent and the number of questions.
    """
    settings = settings or DemoSettings()
    output = Path(output)
    started = time.time()

    print("[1/5] A synthetic first-person world as mp4 files, narrated", flush=True)
    world = build_world(
        output / "world",
        {"train": settings.train_videos, "test": settings.test_videos},
        seconds_per_video=settings.seconds_per_video,
        seed=seed,
    )

    print("[2/5] svitt-ego-tiny from scratch", flush=True)
    set_seed(seed)
    table = load_egoclip(world["train"].egoclip)
    processor = build_processor(table["clip_text"])
    model = SViTTEgoModel._from_config(SViTTEgoConfig(**TINY_CONFIG))
    trainer = build_trainer(model, processor, table, world, output, settings, seed)
    whiten_patches(trainer)
    print(f"      {sum(p.numel() for p in model.parameters()):,} parameters, {len(table)} training clips", flush=True)

    print("[3/5] EgoMCQ on unseen scenes, before training", flush=True)
    evaluator = trainer.evaluator
    reports = {"untrained": evaluator(model)}

    print("[4/5] Pretraining with EgoNCE, sparse edges and nodes", flush=True)
    trainer.train()

    print("[5/5] EgoMCQ after training", flush=True)
    reports["trained"] = evaluator(model)
    reports["shuffled_frames"] = evaluator.with_settings(frame_order="shuffled")(model)
    results = {name: report.numbers() | {"scoring": report.scoring_mode} for name, report in reports.items()}

    trainer.save_model(str(output / "model"))
    write_demo_card(output / "model", reports, trainer.args, seed)
    picture, clip = output / "pruning.png", evaluator.dataset[0]
    draw_surviving_patches(model, processor, clip["video"], clip["text"]).save(picture)
    metrics = output / "demo_metrics.json"
    metrics.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    print(format_table(results))
    print(f"\nModel:   {output / 'model'}  (AutoModel.from_pretrained(…, trust_remote_code=True))")
    print(f"Picture: {picture}  (the patches that survive each pruning layer)")
    print(f"Numbers: {metrics}")
    print(f"All in {time.time() - started:.0f} s.")
    return results


def build_processor(narrations: list[str]) -> SViTTEgoProcessor:
    """The tiny model's processor, with a word vocabulary of the training narrations."""
    vision, text = TINY_CONFIG["vision_config"], TINY_CONFIG["text_config"]
    video_processor = SViTTEgoVideoProcessor(
        size={"height": vision["image_size"], "width": vision["image_size"]}, num_frames=vision["num_frames"]
    )
    tokenizer = train_tokenizer(narrations, vocab_size=text["vocab_size"])
    return SViTTEgoProcessor(video_processor, tokenizer)


def split_cores() -> tuple[int, int]:
    """(workers that decode, threads that compute): half of the cores each. Sharing them all slows both down."""
    cores = os.cpu_count() or 1
    return max(1, cores // 2), max(1, cores - cores // 2)


def build_trainer(model, processor, table, world: WorldPaths, output: Path, settings: DemoSettings, seed: int):
    workers, threads = split_cores()
    torch.set_num_threads(threads)
    frames = model.config.vision_config.num_frames
    train_set = EgoClipDataset(
        table, VideoStore(world["train"].videos), num_frames=frames, seed=seed, num_views=settings.num_views
    )
    arguments = SViTTEgoTrainingArguments(
        output_dir=str(output / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        muon_learning_rate=settings.muon_learning_rate,
        weight_decay=0.05,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=25,
        save_strategy="no",
        report_to="none",
        scene_aware_negatives=False,  # from scratch, hard negatives slow the first steps more than they help
        max_grad_norm=1.0,
        dataloader_num_workers=workers,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    evaluator = EgoMCQEvaluator(
        world["test"].egomcq, world["test"].videos, processor, frames, batch_size=64, num_workers=workers
    )
    collator = ClipCollator(processor, num_views=settings.num_views, do_random_resized_crop=True)
    return SViTTEgoTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        data_collator=collator,
        processing_class=processor,
        evaluator=evaluator,
    )


def whiten_patches(trainer: SViTTEgoTrainer) -> None:
    """Whitens the patch projection on clips from all over the training set: `WHITENING_CLIPS`, up to twice as many."""
    dataset = trainer.train_dataset
    every = max(1, len(dataset) // WHITENING_CLIPS)
    clips = trainer.data_collator([dataset[index] for index in range(0, len(dataset), every)])
    whiten_patch_projection(trainer.model.vision_model, clips["pixel_values_videos"])


def write_demo_card(
    folder: Path, reports: dict[str, EvaluationReport], arguments: SViTTEgoTrainingArguments, seed: int
) -> None:
    """The model card of the saved folder, with the accuracies as they are and with shuffled frames."""
    command = ["svitt-ego", "demo", "--seed", str(seed)]
    shown = [
        replace(reports[name], dataset="synthetic world").with_origin("model", folder, command)
        for name in ("trained", "shuffled_frames")
    ]
    data = "the synthetic first-person world of `svitt-ego demo`: rendered videos with narrations"
    write_model_card(folder, shown, arguments, training_data=data, license="apache-2.0")


def format_table(results: dict) -> str:
    """The three evaluations beside chance, in per cent."""
    some = results["trained"]
    lines = [
        "",
        f"EgoMCQ on the synthetic world: {some['num_inter']} inter and {some['num_intra']} intra questions, "
        f"{some['num_frames']} frames, dual encoder, unseen scenes",
        f"{'':24}{'inter':>8}{'intra':>8}",
        f"{'chance':24}{CHANCE:8.1f}{CHANCE:8.1f}",
    ]
    for name, label in (
        ("untrained", "untrained"),
        ("shuffled_frames", "trained, frames shuffled"),
        ("trained", "trained"),
    ):
        lines.append(f"{label:24}{results[name]['inter']:8.1f}{results[name]['intra']:8.1f}")
    return "\n".join(lines)
