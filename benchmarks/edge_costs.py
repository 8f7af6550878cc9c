"""What edge patterns cost at 4 to 64 frames, computed and not timed: attended keys, matrix FLOPs and bytes.

    python benchmarks/edge_costs.py --output benchmarks/results/edge_costs.json

The base model on tensors without data (torch's fake tensors), so 64 frames need no memory. FLOPs are those of the
matrix products of one clip's forward through the video tower, as torch counts them (a multiply-add is two). Bytes are
of a training step of the dual encoder with one clip in bfloat16 autocast: what is kept for the backward and the most
that is alive at once, without weights, gradients and optimizer. They are those of attention in plain operations; the
GPU kernels keep the same but have smaller temporary tensors.
"""

import argparse
from pathlib import Path

import torch
from experiment_parts.costs import IN_PLACE
from experiment_parts.plan import edges
from experiment_parts.records import origin
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from modeling_svitt_ego import SViTTEgoConfig, SViTTEgoVisionConfig, SViTTEgoVisionModel
from modeling_svitt_ego.files.writing import write_json
from modeling_svitt_ego.training.memory_plan import count_bytes

FRAMES = (4, 8, 16, 32, 64)
# (K_l, K_t, K_r, G)
PATTERNS = {
    "dense": None,
    "edges (1, 0, 3, 56), the paper's": (1, 0, 3, 56),
    "edges (1, 2, 1, 49), svitt-ego-base-temporal's": (1, 2, 1, 49),
    "edges (3, 2, 1, 49)": (3, 2, 1, 49),
}
# K_t by frames, so that temporal blocks span the clip: up to half of it away, at distances that double.
SPANNING = {4: 2, 8: 6, 16: 8, 32: 10, 64: 12}
TEXT_LENGTH = 30


def settings(num_frames: int) -> dict[str, dict]:
    """Name to fields of the video tower: each pattern without and with pruned nodes."""
    spanning = {"edges (3, 2 to 12, 1, 49), spanning the clip": (3, SPANNING[num_frames], 1, 49)}
    return {
        f"{name}{suffix}": {**edges(pattern), "keep_rate": rate}
        for name, pattern in (PATTERNS | spanning).items()
        for suffix, rate in (("", 1.0), ("; nodes 0.7", 0.7))
    }


def forward_flops(config: SViTTEgoVisionConfig) -> int:
    """Of one clip of `config.num_frames` frames."""
    with FakeTensorMode(), torch.no_grad():
        with no_init_weights():
            model = SViTTEgoVisionModel._from_config(config, attn_implementation="sdpa").eval()
        clip = torch.zeros(1, config.num_frames, config.num_channels, config.image_size, config.image_size)
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            model(clip)
    return counter.get_total_flops()


def cost(fields: dict, num_frames: int, sizes: dict | None = None, with_bytes: bool = True) -> dict:
    """Attended patch keys of a query in the first layer, FLOPs and bytes; `sizes` are fields of a smaller tower."""
    vision = SViTTEgoVisionConfig(num_frames=num_frames, **fields, **(sizes or {}))
    tokens = num_frames * vision.patches_per_frame
    blocks = vision.num_local_blocks + vision.num_temporal_blocks + (vision.num_random_blocks or 0)
    row = {
        "attended_keys": tokens if vision.num_random_blocks is None else blocks * vision.block_size,
        "tokens": tokens,
        "forward_flops": forward_flops(vision),
    }
    if with_bytes:
        config = SViTTEgoConfig(vision_config=vision, cross_modal_config={"encoder_hidden_size": vision.hidden_size})
        row["saved_bytes"], row["peak_bytes"] = count_bytes(config, 1, num_frames, TEXT_LENGTH, checkpointing=False)
    return row


def table(rows: list[dict]) -> str:
    """Markdown: one column per number of frames, each FLOPs, their share of dense attention's, and bytes."""
    frames = sorted({row["num_frames"] for row in rows})
    names = list(dict.fromkeys(row["setting"] for row in rows))
    at = {(row["setting"], row["num_frames"]): row for row in rows}
    lines = [f"| | {' | '.join(f'{count} frames' for count in frames)} |", "|---" * (1 + len(frames)) + "|"]
    for name in names:
        cells = []
        for count in frames:
            row, dense = at[name, count], at[names[0], count]
            cell = f"{row['forward_flops'] / 1e9:,.0f} GFLOP ({row['forward_flops'] / dense['forward_flops']:.2f})"
            if "saved_bytes" in row:
                cell += f", {row['saved_bytes'] / 1e6:,.0f} / {row['peak_bytes'] / 1e6:,.0f} MB"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--frames", type=int, nargs="+", choices=FRAMES, default=FRAMES)
    parser.add_argument("--no-bytes", action="store_true", help="FLOPs only, which takes a fifth of the time")
    options = parser.parse_args(argv)
    rows = [
        {"setting": name, "num_frames": count, **cost(fields, count, with_bytes=not options.no_bytes)}
        for count in options.frames
        for name, fields in settings(count).items()
    ]
    write_json(options.output, {**origin(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
