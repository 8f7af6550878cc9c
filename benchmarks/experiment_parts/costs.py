"""What a training step of a setting costs: FLOPs, bytes saved for the backward pass, peak memory, time.

Accuracy comes from training runs, costs from here: synthetic input, nothing else in the process, the settings in turn,
so that a noisy machine disturbs all alike.
"""

import multiprocessing
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from modeling_svitt_ego import SViTTEgoConfig, SViTTEgoForPreTraining, SViTTEgoModel
from modeling_svitt_ego.training.run_summary import peak_memory
from modeling_svitt_ego.weights.warm_start import TOWER_CONFIGS, split_fields

from .plan import Setting
from .pruning import install_pruner
from .training import tiny_config

# torch's counter leaves this one out (2.15); block_attention.py computes the scores with it.
IN_PLACE = {torch.ops.aten.baddbmm_: lambda sum_shape, a_shape, b_shape, **_: bmm_flop(a_shape, b_shape)}
TEXT_LENGTH = 12  # tokens: about a narration's


def config_of(setting: Setting, scale: str, num_frames: int) -> SViTTEgoConfig:
    """The base scale's is the configuration's default: the shape of BEiT and BERT base, with random weights."""
    if scale == "tiny":
        return tiny_config(setting.fields, num_frames)
    given = split_fields({**setting.fields, "vision_num_frames": num_frames})
    return SViTTEgoConfig(**given[""], **{key: given[tower] for tower, key in TOWER_CONFIGS.items()})


class Step:
    """Forward and backward of the contrastive loss on fixed random input.

    Args:
        batch_size (`int`): clips.
        device (`torch.device`): of model and input.
    """

    def __init__(self, setting: Setting, scale: str, num_frames: int, batch_size: int, device: torch.device):
        torch.manual_seed(0)
        config = config_of(setting, scale, num_frames)
        self.model = (SViTTEgoForPreTraining if setting.fusion else SViTTEgoModel)._from_config(config).to(device)
        install_pruner(self.model.vision_model, setting.pruner)
        if setting.attention is not None:
            self.model.vision_model.set_attn_implementation(setting.attention)
        size, length = config.vision_config.image_size, TEXT_LENGTH
        self.inputs = {
            "pixel_values_videos": torch.randn(batch_size, num_frames, 3, size, size, device=device),
            "input_ids": torch.randint(5, config.text_config.vocab_size, (batch_size, length), device=device),
            "attention_mask": torch.ones(batch_size, length, dtype=torch.int64, device=device),
            "verb_tags": torch.eye(batch_size, device=device),
            "noun_tags": torch.eye(batch_size, device=device),
        }
        self.device = device

    def loss(self) -> torch.Tensor:
        return self.model(**self.inputs, return_loss=True).loss

    def run(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()

    def seconds(self) -> float:
        """CPU seconds of this process, or seconds of the device: what other processes do counts little."""
        if self.device.type == "cuda":
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            self.run()
            ended.record()
            torch.cuda.synchronize()
            return begun.elapsed_time(ended) / 1000
        begun = time.process_time()
        self.run()
        return time.process_time() - begun

    def flops(self) -> int:
        """
        Of the matrix products of forward and backward, as torch counts them (a multiply-add is two): as computed, with
        what the backward pass computes again.
        """
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            self.run()
        return counter.get_total_flops()

    def saved_bytes(self) -> int:
        """Of what autograd keeps for the backward pass: each storage once, without parameters and input."""
        known = [*self.model.parameters(), *self.model.buffers(), *self.inputs.values()]
        not_counted = {tensor.untyped_storage().data_ptr() for tensor in known}
        sizes, held = {}, []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in not_counted:
                sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # a freed storage's address would be given to the next
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.loss()
        return sum(sizes.values())


def measure(settings: list[Setting], scale: str, frames: list[int], batch_size: int, rounds: int = 5) -> list[dict]:
    """
    Costs of a training step of each setting at each number of frames per clip.

    Returns:
        Per setting and number of frames: `flops`, `saved_bytes`, `peak_bytes` (above what stood before the first step:
        of the device, or of a separate process), `seconds` (the median of `rounds` rounds) and all `rounds`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs_of = {count: [(setting, scale, count, batch_size, device) for setting in settings] for count in frames}
    # Peaks first: a process that has run the autograd engine had better not be forked.
    peaks_of = {
        count: [_peak(job) if device.type == "cuda" else _in_a_child(_peak, job) for job in jobs]
        for count, jobs in jobs_of.items()
    }
    rows = []
    for num_frames, jobs in jobs_of.items():
        steps = [Step(*job) for job in jobs]
        seconds: list[list[float]] = [[] for _ in steps]
        for number in range(1 + rounds):
            for step, measured in zip(steps, seconds):
                taken = step.seconds()
                if number:  # the first round warms up
                    measured.append(taken)
        for setting, step, peak, measured in zip(settings, steps, peaks_of[num_frames], seconds):
            rows.append(
                {
                    "setting": setting.name,
                    "num_frames": num_frames,
                    "batch_size": batch_size,
                    "flops": step.flops(),
                    "saved_bytes": step.saved_bytes(),
                    "peak_bytes": peak,
                    "seconds": statistics.median(measured),
                    "rounds": measured,
                    "unit_of_time": "seconds of the device" if device.type == "cuda" else "CPU seconds",
                }
            )
    return rows


def _peak(job: tuple) -> int:
    step = Step(*job)
    before, _ = peak_memory()
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(2):
        step.run()
    return peak_memory()[0] - before


def _in_a_child(function, argument) -> int:
    # "forkserver" would have to import torch each time; the parent has run nothing yet that breaks in a fork.
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(function, argument, send))
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise RuntimeError(f"The process that measured {argument[0].name!r} died ({child.exitcode}).") from None
    finally:
        child.join()


def _send(function, argument, send) -> None:
    send.send(function(argument))
