"""Training of the dual encoder: launches, the memory plan, a cached step of thousands of clips, JPEG shards."""

import tempfile
import time
from pathlib import Path

import torch

from modeling_svitt_ego import SViTTEgoConfig, SViTTEgoModel
from modeling_svitt_ego.training.gradient_caching import CachedStep
from modeling_svitt_ego.training.memory_plan import training_batch, training_memory

from .bench import Bench, kernels
from .tower_figures import TINY, Tower

TEXT_LENGTH = 30
GIB = 2**30


def dual_config(bench: Bench, num_frames: int = 4) -> SViTTEgoConfig:
    if not bench.is_dry:
        return SViTTEgoConfig(vision_config={"num_frames": num_frames})
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40, "num_hidden_layers": 1}
    text = {"vocab_size": 99, "max_position_embeddings": 32, "cls_token_id": 1, "mask_token_id": 2}
    return SViTTEgoConfig(
        vision_config=TINY | {"num_frames": 2},
        text_config=small | text,
        cross_modal_config=small | {"encoder_hidden_size": 32},
        projection_dim=16,
    )


def dual_encoder(bench: Bench, checkpointing: bool = False):
    torch.manual_seed(0)
    model = SViTTEgoModel._from_config(dual_config(bench), attn_implementation="sdpa").train().to(bench.device)
    if checkpointing:
        model.activation_checkpointing_enable()
    return model, torch.optim.AdamW(model.parameters(), fused=not bench.is_dry)


def batch_of(bench: Bench, config, batch_size: int) -> dict[str, torch.Tensor]:
    num_frames = config.vision_config.num_frames
    batch = training_batch(config, batch_size, num_frames, 4 if bench.is_dry else TEXT_LENGTH)
    batch["pixel_values_videos"].normal_()
    return {name: x.to(bench.device) for name, x in batch.items()}


def backward(bench: Bench, model, batch) -> None:
    with kernels(True, bench.device):
        with bench.autocast():
            loss = model(**batch, return_loss=True).loss
        loss.backward()


def launches(bench: Bench):
    """Kernel launches of a step: of the tower, and of the whole dual encoder without the optimizer."""
    num_frames, batch_size = (2, 2) if bench.is_dry else (4, 32)
    yield "video tower", bench.launches(Tower(bench, "both", num_frames, batch_size).step)
    model, _ = dual_encoder(bench)
    batch = batch_of(bench, model.config, batch_size)
    yield "dual encoder", bench.launches(lambda: backward(bench, model, batch))
    bench.release()


def memory_plan(bench: Bench):
    """`svitt-ego plan` against the peak of real steps; the second of two backwards that accumulate."""
    for checkpointing in (False,) if bench.is_dry else (False, True):
        bench.needs(20)
        with kernels(False, "cpu"):  # it counts tensors without data, of plain operations
            planned = training_memory(dual_config(bench), text_length=TEXT_LENGTH, checkpointing=checkpointing)
        for batch_size in (2,) if bench.is_dry else (8, 32, 64):
            model, optimizer = dual_encoder(bench, checkpointing)
            batch = batch_of(bench, model.config, batch_size)
            backward(bench, model, batch)
            optimizer.step()
            if not bench.is_dry:
                torch.cuda.reset_peak_memory_stats()
            backward(bench, model, batch)
            measured = None if bench.is_dry else torch.cuda.max_memory_allocated() / 1e9
            figures = {"planned GB": round(planned.peak(batch_size) / 1e9, 2), "measured GB": measured}
            yield f"B={batch_size}{' checkpointing' if checkpointing else ''}", figures
            model = optimizer = batch = None
            bench.release()


class RandomMicroBatches:
    """Micro-batches that are drawn on the device when they are asked for, the same each time."""

    def __init__(self, bench: Bench, config, count: int, size: int):
        self.bench, self.config, self.count, self.size = bench, config, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if number >= self.count:
            raise IndexError(number)
        torch.manual_seed(number)
        return batch_of(self.bench, self.config, self.size)

    def __iter__(self):
        return (self[number] for number in range(self.count))

    def release(self, number: int) -> None:
        """Nothing is kept."""


def cached_step(bench: Bench):
    """One exact contrastive step of 4,096 clips in micro-batches of 32, under an allocator limit of 8 GiB."""
    count, size = (2, 2) if bench.is_dry else (128, 32)
    bench.needs(45)
    model, optimizer = dual_encoder(bench)
    batches = RandomMicroBatches(bench, model.config, count, size)

    def call(**arguments):
        with bench.autocast():
            return model(**arguments)

    if not bench.is_dry:
        torch.cuda.set_per_process_memory_fraction(8 * GIB / torch.cuda.get_device_properties(0).total_memory)
        torch.cuda.reset_peak_memory_stats()
    try:
        begin = time.monotonic()
        with kernels(True, bench.device):
            step = CachedStep(call, model, batches)
            step.start()
            while not step.is_done:
                step.advance()
            optimizer.step()
        if not bench.is_dry:
            torch.cuda.synchronize()
        seconds = None if bench.is_dry else round(time.monotonic() - begin, 1)
        peak = None if bench.is_dry else round(torch.cuda.max_memory_allocated() / GIB, 2)
        yield f"{count * size} clips", {"seconds": seconds, "peak GiB": peak}
    finally:
        if not bench.is_dry:
            torch.cuda.set_per_process_memory_fraction(1.0)


def trainer(bench: Bench):
    """Clips per second of SViTTEgoTrainer from JPEG shards. This figure alone needs av, datasets and accelerate."""
    from modeling_svitt_ego.data.clip_shards import ShardSettings, write_clip_shards
    from modeling_svitt_ego.data.clips import ClipCollator
    from modeling_svitt_ego.data.shard_dataset import ClipShardDataset
    from modeling_svitt_ego.model.processing_svitt_ego import SViTTEgoProcessor
    from modeling_svitt_ego.model.video_processing_svitt_ego import SViTTEgoVideoProcessor
    from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
    from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
    from modeling_svitt_ego.weights.tokenizer import train_tokenizer

    bench.needs(60)
    num_clips, batch_size, steps = (8, 2, 2) if bench.is_dry else (1024, 64, 40)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = _write_world(root, num_clips, 32 if bench.is_dry else 256)
        settings = ShardSettings(frames_per_clip=4, clips_per_shard=256, short_side=32 if bench.is_dry else 256)
        write_clip_shards(root / "egoclip.csv", root / "videos", root / "shards", settings, cache_dir=str(root / "c"))
        config = dual_config(bench)
        vision = config.vision_config
        side = {"height": vision.image_size, "width": vision.image_size}
        video_processor = SViTTEgoVideoProcessor(size=side, num_frames=vision.num_frames)
        tokenizer = train_tokenizer(texts, vocab_size=99)
        processor = SViTTEgoProcessor(video_processor, tokenizer)
        arguments = SViTTEgoTrainingArguments(
            output_dir=str(root / "run"), max_steps=steps, per_device_train_batch_size=batch_size, bf16=True,
            dataloader_num_workers=0 if bench.is_dry else 12, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=bench.is_dry, logging_steps=steps,
        )  # fmt: skip
        run = SViTTEgoTrainer(
            model=SViTTEgoModel._from_config(config, attn_implementation="sdpa"),
            args=arguments,
            train_dataset=ClipShardDataset(str(root / "shards"), num_frames=vision.num_frames),
            data_collator=ClipCollator(processor),
            processing_class=processor,
        )
        with kernels(not bench.is_dry, bench.device):
            metrics = run.train().metrics
    clips = None if bench.is_dry else round(metrics["train_samples_per_second"], 1)
    yield f"B={batch_size}, {steps} steps", {"clips/s": clips}


def _write_world(root: Path, num_clips: int, side: int) -> list[str]:
    """Videos of noise and an EgoClip table of one-second clips of them; returns the narrations."""
    import av
    import numpy as np

    (root / "videos").mkdir(parents=True)
    generator, per_video, rows = np.random.default_rng(0), 64, []
    columns = (
        "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text "
        "tag_verb tag_noun"
    ).split()
    for first in range(0, num_clips, per_video):
        uid = f"video-{first}"
        with av.open(str(root / "videos" / f"{uid}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.height = stream.width = side
            stream.pix_fmt = "yuv420p"
            for _ in range(8 * (per_video + 2)):
                small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                picture = small.repeat(side // 8, 0).repeat(side // 8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        for place in range(min(per_video, num_clips - first)):
            number = first + place
            text = f"#C C picks item {number % 50}"
            row = (number, uid, per_video + 2.0, "narration_pass_1", number, place + 0.5, place, place + 1.0, text)
            rows.append([*row, [number % 5], [number % 7]])
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    (root / "egoclip.csv").write_text("\n".join(lines) + "\n")
    return [row[8] for row in rows]
