"""`svitt-ego plan`: which micro-batch fits a card."""

import argparse

from .arguments import non_negative_float, positive_float, positive_int


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu-memory", type=positive_float, help="GiB of your card; a table of usual cards otherwise")
    parser.add_argument("--model", help="folder or Hub name whose configuration to plan for; the base size otherwise")
    parser.add_argument("--num-frames", type=positive_int, help="frames of a clip; the configuration's otherwise")
    parser.add_argument("--text-length", type=positive_int, default=30, help="tokens of a narration")
    parser.add_argument("--reserve", type=non_negative_float, help="GiB left to CUDA and the allocator (assumed 1)")


def run_plan(arguments: argparse.Namespace) -> None:
    from ..model.configuration_svitt_ego import SViTTEgoConfig
    from ..training.memory_plan import CARDS_GIB, GIB, RESERVE_GIB, training_memory
    from ..weights.loading import load_config

    config = SViTTEgoConfig()
    if arguments.model:
        config = load_config(arguments.model)
    num_frames = arguments.num_frames or config.vision_config.num_frames
    reserve = RESERVE_GIB if arguments.reserve is None else arguments.reserve
    memories = [
        training_memory(config, num_frames, arguments.text_length, checkpointing, desc=desc)
        for checkpointing, desc in ((False, "counting"), (True, "counting, with checkpointing"))
    ]
    plain = memories[0]
    print(
        f"Training {arguments.model or 'the base size'}: {plain.num_parameters / 1e6:.1f} M parameters, clips of "
        f"{num_frames} frames, EgoNCE, AdamW, bf16 autocast.\n"
        f"Weights, gradients and AdamW: {plain.states / GIB:.2f} GiB. Each clip more: "
        f"{plain.per_clip / 2**20:.0f} MiB, {memories[1].per_clip / 2**20:.0f} with checkpointing.\n"
    )
    print("card      largest micro-batch   with checkpointing")
    for gib in CARDS_GIB if arguments.gpu_memory is None else (arguments.gpu_memory,):
        cells = [memory.largest_batch(gib, reserve) for memory in memories]
        print(f"{gib:3g} GiB   {cells[0] or 'none':>19}   {cells[1] or 'none':>18}")
    print(
        "\nNot checked on a GPU: what a step has alive is counted on tensors without data, and "
        f"{reserve:g} GiB is set\naside for CUDA and its allocator. A larger contrastive batch costs no memory on the "
        "card:\ncontrastive_batch_size (gradient caching)."
    )
