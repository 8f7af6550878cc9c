"""`svitt-ego plan`: computes which micro-batch fits into the memory of a card."""

import argparse

from .arguments import non_negative_float, positive_float, positive_int


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--gpu-memory",
        type=positive_float,
        metavar="GIB",
        help="memory of your card in GiB; without it, a table of common cards is printed",
    )
    add("--model", metavar="NAME", help="folder or Hub name of a model to plan for; the base size if not given")
    add("--num-frames", type=positive_int, metavar="T", help="frames per clip; the number of the model if not given")
    add("--text-length", type=positive_int, default=30, metavar="N", help="number of tokens of a narration")
    add(
        "--reserve",
        type=non_negative_float,
        metavar="GIB",
        help="memory set aside for CUDA and its allocator; if not given, 1, which is assumed and not measured",
    )


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
        f"Weights, gradients and AdamW: {plain.states / GIB:.2f} GiB. Each additional clip: "
        f"{plain.per_clip / 2**20:.0f} MiB, or {memories[1].per_clip / 2**20:.0f} MiB with checkpointing.\n"
    )
    print("card      largest micro-batch   with checkpointing")
    for gib in CARDS_GIB if arguments.gpu_memory is None else (arguments.gpu_memory,):
        cells = [memory.largest_batch(gib, reserve) for memory in memories]
        print(f"{gib:3g} GiB   {cells[0] or 'none':>19}   {cells[1] or 'none':>18}")
    print(
        "\nNot checked on a GPU: the memory of a step is counted on tensors without data, and "
        f"{reserve:g} GiB is set\naside for CUDA and its allocator. With gradient caching "
        "(--contrastive_batch_size), a larger contrastive batch\nneeds no more memory on the card."
    )
