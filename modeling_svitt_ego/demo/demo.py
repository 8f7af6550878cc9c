"""`svitt-ego demo`: the package's whole path on a synthetic world, in minutes on a CPU.

World → EgoClip table → pretraining with EgoNCE → EgoMCQ on mp4 files, before and after → a folder for the Hub.

Training is chaotic: a changed bit anywhere ends in another model. So what differs between machines is kept out of it
where that can be done: training clips are drawn into memory and pass through no codec, one thread computes, and
`svitt-ego demo` fixes the instruction set before torch is loaded. The same commit, libraries and kind of CPU then
give the same bits, on any number of cores.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.trainer_utils import set_seed

from ..data.clips import ClipCollator
from ..data.egoclip import load_egoclip
from ..evaluation.egomcq import CHANCE, EgoMCQEvaluator
from ..evaluation.kept_patches import draw_surviving_patches
from ..evaluation.report import EvaluationReport
from ..hub.card import write_model_card
from ..hub.configs import hub_config
from ..model.modeling_svitt_ego import SViTTEgoModel
from ..model.processing_svitt_ego import SViTTEgoProcessor
from ..model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from ..training.arguments import SViTTEgoTrainingArguments
from ..training.patch_whitening import whiten_patch_projection
from ..training.trainer import SViTTEgoTrainer
from ..weights.tokenizer import train_tokenizer
from .rendered_clips import ClipsInMemory, render_clips
from .synthetic_world import WorldPaths, build_world, plan_videos

WHITENING_CLIPS = 128
HEIGHT, FPS = 96, 10  # of the world's frames; the model sees crops of them at 64 px
FRAMES_PER_CLIP = 8  # drawn, for the 4 that training takes
# One thread computes while another process reads: the order of a sum depends on the number of threads. Two processes
# draw the world, where every frame is drawn alone.
NUM_WORKERS, NUM_THREADS = 2, 1


@dataclass
class DemoSettings:
    """
    Args:
        train_videos, test_videos (`int`): source videos of the two worlds.
        seconds_per_video (`float`): length of each.
        epochs (`float`): passes over the training clips.
        batch_size (`int`): clips of a contrastive batch.
        training_videos (`bool`): write the training videos as mp4 too, as the scripts in examples/ need them.
        learning_rate, muon_learning_rate (`float`): peaks of the cosine schedule.
    """

    train_videos: int = 120
    test_videos: int = 16
    seconds_per_video: float = 60.0
    epochs: float = 12.0
    batch_size: int = 64
    training_videos: bool = False
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

    print("[1/5] A synthetic first-person world, narrated", flush=True)
    world = build_world(
        output / "world",
        {"train": settings.train_videos, "test": settings.test_videos},
        settings.seconds_per_video,
        seed,
        HEIGHT,
        FPS,
        NUM_WORKERS,
        None if settings.training_videos else ["test"],
    )

    print("[2/5] svitt-ego-tiny from scratch", flush=True)
    set_seed(seed)
    table = load_egoclip(world["train"].egoclip)
    plans = plan_videos(seed, 0, settings.train_videos, settings.seconds_per_video)
    frames = render_clips(plans, table, FRAMES_PER_CLIP, HEIGHT, FPS, output / "training_clips.npy", NUM_WORKERS)
    processor = build_processor(table["clip_text"])
    model = SViTTEgoModel._from_config(hub_config("svitt-ego-tiny"))
    clips = ClipsInMemory(table, frames, num_frames=4, seed=seed)
    trainer = build_trainer(model, processor, clips, world, output, settings, seed)
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

    _print_results(results, output, started)
    return results


def _print_results(results: dict, output: Path, started: float) -> None:
    print(format_table(results))
    print(f"\nModel:   {output / 'model'}  (AutoModel.from_pretrained(…, trust_remote_code=True))")
    print(f"Picture: {output / 'pruning.png'}  (the patches that survive each pruning layer)")
    print(f"Numbers: {output / 'demo_metrics.json'}")
    print(f"All in {time.time() - started:.0f} s.")


def build_processor(narrations: list[str]) -> SViTTEgoProcessor:
    """The tiny model's processor, with a word vocabulary of the training narrations."""
    config = hub_config("svitt-ego-tiny")
    vision = config.vision_config
    video_processor = SViTTEgoVideoProcessor(
        size={"height": vision.image_size, "width": vision.image_size}, num_frames=vision.num_frames
    )
    tokenizer = train_tokenizer(narrations, vocab_size=config.text_config.vocab_size)
    return SViTTEgoProcessor(video_processor, tokenizer)


def build_trainer(
    model: SViTTEgoModel,
    processor: SViTTEgoProcessor,
    clips: ClipsInMemory,
    world: WorldPaths,
    output: Path,
    settings: DemoSettings,
    seed: int,
) -> SViTTEgoTrainer:
    torch.set_num_threads(NUM_THREADS)
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
        dataloader_num_workers=1,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    test = world["test"]
    evaluator = EgoMCQEvaluator(test.egomcq, test.videos, processor, clips.num_frames, batch_size=64, num_workers=1)
    collator = ClipCollator(processor, do_random_resized_crop=True)
    trainer = SViTTEgoTrainer(
        model=model,
        args=arguments,
        train_dataset=clips,
        data_collator=collator,
        processing_class=processor,
        evaluator=evaluator,
    )
    trainer.resume_hint = None  # the demo starts from its beginning
    return trainer


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
    """A table of the three evaluations and chance, in per cent."""
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
