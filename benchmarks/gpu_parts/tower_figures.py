"""The video tower: a training step, a forward and their peak, by pattern and by how attention is computed."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from transformers import TimesformerConfig, TimesformerModel, VideoMAEConfig, VideoMAEModel

from modeling_svitt_ego import SViTTEgoVisionModel
from modeling_svitt_ego.model import vision

from .bench import Bench, kernels

sys.path.insert(0, str(Path(__file__).parents[1]))
from attention import tower_flops, vision_config

SETTINGS = ((8, 32), (4, 32), (16, 16), (32, 8))  # frames, clips
TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "image_size": 32,
    "patch_size": 8,
    "block_size": 8,
    "prune_layers": [0],
    "num_random_blocks": 1,
}
# Name: pattern, attn_implementation, "kernels" | "blocks" | "flash" (dense, without the bias: what a plain ViT costs).
FORMS = {
    "both": ("both", "sdpa", "kernels"),
    "dense, flash without bias": ("dense", "sdpa", "flash"),
    "dense, flex_attention": ("dense", "flex_attention", "kernels"),
    "nodes, flash without bias": ("node", "sdpa", "flash"),
    "edges": ("edge", "sdpa", "kernels"),
    "nodes": ("node", "sdpa", "kernels"),
    "dense": ("dense", "sdpa", "kernels"),
    "both, without kernels": ("both", "sdpa", "blocks"),
    "VideoMAE": None,
    "TimeSformer": None,
}


def flash_without_bias(q, k, v, table, positions):
    """In the place of `dense_attention`; the layers that prune compute their [CLS] row themselves."""
    return F.scaled_dot_product_attention(q, k, v), None


class Tower:
    """A model of the base size with random weights, its clips, and one way to compute it."""

    def __init__(self, bench: Bench, form: str, num_frames: int, batch_size: int):
        self.bench, self.form = bench, form
        sizes = TINY if bench.is_dry else {}
        torch.manual_seed(0)
        side = sizes.get("image_size", 224)
        self.clips = torch.randn(batch_size, num_frames, 3, side, side, device=bench.device)
        self.how = "kernels"
        if FORMS[form] is None:
            few = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40, "num_hidden_layers": 1}
            size = few | {"image_size": side, "patch_size": 8} if bench.is_dry else {}
            config, cls = (
                (VideoMAEConfig, VideoMAEModel) if form == "VideoMAE" else (TimesformerConfig, TimesformerModel)
            )
            model = cls(config(num_frames=num_frames, **size))
        else:
            pattern, implementation, self.how = FORMS[form]
            config = vision_config(pattern, num_frames, **sizes)
            self.flops = tower_flops(config, num_frames) * batch_size
            model = SViTTEgoVisionModel._from_config(config, attn_implementation=implementation)
        self.model = self.call = model.train().to(bench.device)

    def within(self):
        patch = mock.patch.object(vision, "dense_attention", flash_without_bias)
        return patch if self.how == "flash" else nullcontext()

    def forward(self):
        with self.within(), kernels(self.how != "blocks", self.bench.device), self.bench.autocast():
            return self.call(self.clips).last_hidden_state

    def inference(self):
        with torch.no_grad():
            self.forward()

    def step(self):
        loss = self.forward().float().square().mean()
        with kernels(self.how != "blocks", self.bench.device):
            loss.backward()
        self.model.zero_grad(set_to_none=True)


def towers(bench: Bench):
    """The table of frames by forms: the most important form of every setting first."""
    settings = ((2, 2),) if bench.is_dry else SETTINGS
    forms = [form for form in FORMS if not (bench.is_dry and "flex" in form)]
    for group in (forms[:2], forms[2:4], forms[4:]):
        for num_frames, batch_size in settings:
            for form in group:
                bench.needs(6)
                try:
                    tower = Tower(bench, form, num_frames, batch_size)
                    found = {
                        "step ms": bench.milliseconds(tower.step),
                        "forward ms": bench.milliseconds(tower.inference),
                    }
                    found["peak MB"] = bench.peak_megabytes(tower.step)
                    if FORMS[form] is not None:
                        found["GFLOP of a forward"] = round(tower.flops / 1e9, 1)
                except torch.cuda.OutOfMemoryError:
                    found = {"error": "out of memory"}
                tower = None
                bench.release()
                yield f"T={num_frames} B={batch_size} {form}", found


def rate(bench: Bench):
    """Matrix peak of this card in bf16, by one large product, and the share of it that a step reaches."""
    size = 16 if bench.is_dry else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds = bench.milliseconds(lambda: a @ b, rounds=10)
    peak = None if milliseconds is None else 2 * size**3 / milliseconds / 1e9
    yield "matrix peak TFLOP/s", peak and round(peak)
    num_frames, batch_size = (2, 2) if bench.is_dry else (8, 32)
    for form in ("both", "dense, flash without bias"):
        tower = Tower(bench, form, num_frames, batch_size)
        milliseconds = bench.milliseconds(tower.step)
        reached = None if milliseconds is None else 3 * tower.flops / milliseconds / 1e9
        yield f"{form}: TFLOP/s of a step", reached and round(reached)
        yield f"{form}: share of the peak", reached and round(reached / peak, 3)


def batches(bench: Bench):
    """Clips per second of a training step by batch, both kinds of sparsity."""
    for num_frames in (2,) if bench.is_dry else (8, 4):
        for batch_size in (2,) if bench.is_dry else (8, 16, 32, 64, 128):
            bench.needs(5)
            tower = Tower(bench, "both", num_frames, batch_size)
            milliseconds = bench.milliseconds(tower.step)
            yield (
                f"T={num_frames} B={batch_size} clips/s",
                milliseconds and round(1e3 * batch_size / milliseconds, 1),
            )
            tower = None
            bench.release()


def compiled(bench: Bench):
    """torch.compile of the tower as one graph, in training and inference."""
    num_frames, batch_size = (2, 2) if bench.is_dry else (8, 32)
    for form in ("both",) if bench.is_dry else ("both", "dense, flash without bias"):
        bench.needs(60)
        torch._dynamo.reset()
        tower = Tower(bench, form, num_frames, batch_size)
        tower.call = torch.compile(tower.model, fullgraph=True, backend="aot_eager" if bench.is_dry else "inductor")
        begin = time.monotonic()
        tower.step()
        seconds = round(time.monotonic() - begin, 1)
        found = {"compilation s": None if bench.is_dry else seconds, "step ms": bench.milliseconds(tower.step)}
        yield form, found | {"forward ms": bench.milliseconds(tower.inference)}
        tower = None
        torch._dynamo.reset()
        bench.release()
