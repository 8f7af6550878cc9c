"""Is `svitt-ego plan` right? The peak of real training steps against the one it counts.

    python benchmarks/training_memory.py --output benchmarks/results/training_memory.json --batch-sizes 1 4 16

A step is that of the dual encoder in base size with random weights: EgoNCE, fused AdamW, bf16 autocast on a GPU and
float32 on a CPU, most of which take minutes for the former. What is measured is the second backward of two that
accumulate, so that weights, gradients and AdamW's moments are all there. On a GPU `max_memory_allocated` is asked, and
the planned number is what `svitt-ego plan` compares with the card, without its reserve. On a CPU it is the resident
memory above what is there before the model is made, and the planned number is counted with a CPU's smaller chunks of
attention scores. Each batch is measured in a process of its own.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from attention import PeakResident, machine, write_record

from modeling_svitt_ego import SViTTEgoConfig, SViTTEgoModel
from modeling_svitt_ego.training.memory_plan import training_batch, training_memory

TEXT_LENGTH = 30


def config_of(model: str | None) -> SViTTEgoConfig:
    return SViTTEgoConfig.from_pretrained(model) if model else SViTTEgoConfig()


def measure(model: str | None, batch_size: int, num_frames: int, checkpointing: bool, device: str) -> int:
    """Bytes at the peak, weights and batch included."""
    # The first step of a process loads libraries, which are not the model's.
    torch.nn.functional.linear(torch.ones(64, 64, device=device), torch.ones(64, 64, device=device))
    resident = PeakResident() if device == "cpu" else None
    config = config_of(model)
    model = SViTTEgoModel(config).train().to(device)
    if checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = training_batch(config, batch_size, num_frames, TEXT_LENGTH)
    batch = {name: x.to(device) for name, x in batch.items()}
    for step in range(2):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**batch, return_loss=True).loss
        loss.backward()
        if step == 0:
            optimizer.step()
            gc.collect()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident.stop()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="benchmarks/results/training_memory.json")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--model", help="folder or Hub name of the configuration; the base size otherwise")
    parser.add_argument("--num-frames", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(measure(*json.loads(arguments.measure)))
        return
    rows, precision = [], "bf16 autocast" if arguments.device == "cuda" else "fp32"
    on_gpu = arguments.device == "cuda"
    # As the command counts; a CPU's step has other chunks of attention scores and another precision.
    counting = {} if on_gpu else {"bf16": False, "on_cpu": True}
    for checkpointing in (False, True):
        plan = training_memory(
            config_of(arguments.model), arguments.num_frames, TEXT_LENGTH, checkpointing, **counting
        )
        for batch_size in arguments.batch_sizes:
            case = (arguments.model, batch_size, arguments.num_frames, checkpointing, arguments.device)
            command = [sys.executable, __file__, "--measure", json.dumps(case), "--threads", str(arguments.threads)]
            # Otherwise glibc keeps freed memory for later, and resident memory shows what once was.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
            row = {
                "model": arguments.model or "base size",
                "batch_size": batch_size,
                "num_frames": arguments.num_frames,
                "checkpointing": checkpointing,
            }
            row |= {"measured_bytes": int(done.stdout.split()[-1]), "planned_bytes": round(plan.peak(batch_size))}
            row["planned_over_measured"] = row["planned_bytes"] / row["measured_bytes"]
            print(row, flush=True)
            rows.append(row)
            about = machine(arguments.device, precision, arguments.threads)
            write_record(Path(arguments.output), {"rows": rows, "machine": about})


if __name__ == "__main__":
    main()
