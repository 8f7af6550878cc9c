"""A corpus and a trainer for tests of pretraining: 16 clips of grey noise, a model with all randomness on."""

import dataclasses
import os
import socket
import sys

import multiprocess  # that of datasets
import torch

from modeling_svitt_ego import SViTTEgoConfig, SViTTEgoModel
from modeling_svitt_ego.data.clips import ClipCollator, EgoClipDataset
from modeling_svitt_ego.data.egoclip import load_egoclip
from modeling_svitt_ego.data.layouts import VideoStore
from modeling_svitt_ego.demo.demo import build_processor
from modeling_svitt_ego.hub.configs import hub_config
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.training.trainer import SViTTEgoTrainer
from tests.helpers.tiny_data import egoclip_row, write_egoclip, write_video

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
LIVELY = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


# The argument of the Trainer; transformers 5.23 renamed it, and warns of the old name.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(SViTTEgoTrainingArguments)}
)
# Seconds after which a process counts as hanging, also on a busy machine.
GENEROUS = 1800


def free_port() -> str:
    """For a launcher on this machine. accelerate 1.3 waits for ever if it is asked to choose one itself (0)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def small_config(lively=True, **fields) -> SViTTEgoConfig:
    """Dropout, drop path and random edges if `lively`; else each of the 8 blocks is attended and nothing is drawn."""
    tiny = hub_config("svitt-ego-tiny").to_dict()
    towers = {name: tiny[name] | SMALL for name in ("vision_config", "text_config", "cross_modal_config")}
    towers["vision_config"] |= {"num_local_blocks": 5, "num_temporal_blocks": 0, "block_size": 8}
    towers["vision_config"] |= {"drop_path_rate": 0.2} if lively else {"num_random_blocks": 3}
    towers["cross_modal_config"] |= {"encoder_hidden_size": 32}
    for name in ("text_config", "cross_modal_config"):
        towers[name] |= LIVELY if lively else STILL
    return SViTTEgoConfig.from_dict(tiny | towers | {"projection_dim": 16} | fields)


def make_corpus(root):
    """With noise: equal patches would tie in pruning, and rounding would decide which of them stay."""
    for first, uid in enumerate(("video-a", "video-b")):
        write_video(root / "videos" / uid / "0.mp4", 200, first=5 * first, noise=16)
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}") for i in range(16)]
    write_egoclip(root / "e.csv", rows)
    return root


def make_trainer(root, output, cls=SViTTEgoModel, lively=True, evaluator=None, config=(), dataset=None, **arguments):
    """Trains on the corpus of `make_corpus` in `root`, or on another `dataset`."""
    if dataset is None:
        table = load_egoclip(root / "e.csv", cache_dir=str(root / "c"))
        dataset = EgoClipDataset(table, VideoStore(root / "videos"))
    torch.manual_seed(0)
    processor = build_processor(dataset.table["clip_text"])
    model = cls._from_config(small_config(lively, **dict(config)))
    settings = dict(
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=1,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return SViTTEgoTrainer(
        model=model,
        args=SViTTEgoTrainingArguments(output_dir=str(output), **(settings | arguments)),
        train_dataset=dataset,
        data_collator=ClipCollator(processor),
        processing_class=processor,
        evaluator=evaluator,
    )


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def in_a_child(run, log) -> int:
    """
    Exit code of `run()` in a process of its own (negative: killed by that signal); what it prints is in `log`.

    That process is forked from one that has imported everything and computed nothing: torch refuses autograd in a fork
    of a process whose autograd has made threads, as some other test's may have. dill, because `run` is a closure.
    """
    context = multiprocess.get_context("forkserver")
    context.set_forkserver_preload(["modeling_svitt_ego.demo.demo"])
    process = context.Process(target=_run_with_log, args=(run, log, torch.get_num_threads()))
    process.start()
    process.join(GENEROUS)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"still running after {GENEROUS} s; see {log}")
    return process.exitcode


def _run_with_log(run, log, num_threads) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    torch.set_num_threads(num_threads)
    run()
