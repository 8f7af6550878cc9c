"""Sparsity turned after training: accuracy against latency, without a further step of training."""

import statistics
import time

import torch
from transformers import AutoProcessor

from modeling_svitt_ego import SViTTEgoModel

from .plan import INFERENCE_KEEP_RATES, PATTERNS, Setting, edges, settings_of
from .training import Budget, Corpus, build_evaluator, evaluate, model_folder

LATENCY_CLIPS = 32


def trained_settings(scale: str) -> list[Setting]:
    """Of experiment 1: trained dense, and trained with sparse edges and nodes."""
    both = [{**edges(pattern), "keep_rate": 0.7} for pattern in PATTERNS[scale]]
    return [s for s in settings_of("1", scale) if s.name == "dense" or s.fields in both]


def inference_settings(scale: str) -> list[Setting]:
    """Every keep rate with dense and with sparse edges."""
    return [
        Setting(f"{pattern or 'dense'} edges, q_v = {rate}", {**edges(pattern), "keep_rate": rate})
        for pattern in (None, *PATTERNS[scale])
        for rate in INFERENCE_KEEP_RATES
    ]


def sweep(trained: Setting, seed: int, corpus: Corpus, budget: Budget, workers: int) -> dict:
    """EgoMCQ of a trained model at every inference setting, by its name."""
    model, processor = load(trained, seed, corpus, budget)
    evaluator = build_evaluator(corpus, budget, processor, workers)
    results = {}
    for setting in inference_settings(budget.scale):
        apply(model, setting)
        results[setting.name] = evaluate(evaluator, model)
    return results


def latency(trained: Setting, seed: int, corpus: Corpus, budget: Budget, rounds: int = 7) -> dict:
    """Milliseconds per clip of the video tower by inference setting: CPU time or the device's, in turn, medians."""
    model, _ = load(trained, seed, corpus, budget)
    device = next(model.parameters()).device
    size = model.config.vision_config.image_size
    clips = torch.randn(LATENCY_CLIPS, budget.num_frames, 3, size, size, device=device)
    settings = inference_settings(budget.scale)
    measured = {setting.name: [] for setting in settings}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    with torch.no_grad():
        for number in range(1 + rounds):
            for setting in settings:
                apply(model, setting)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                begun = clock()
                model.get_video_features(clips)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    measured[setting.name].append(1000 * (clock() - begun) / LATENCY_CLIPS)
    return {
        "unit": "ms per clip, of the device" if device.type == "cuda" else "CPU ms per clip",
        "clips_at_once": LATENCY_CLIPS,
        "median": {name: statistics.median(values) for name, values in measured.items()},
        "rounds": measured,
    }


def load(trained: Setting, seed: int, corpus: Corpus, budget: Budget):
    folder = model_folder(corpus, trained, budget, seed)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: experiment 4 takes the models that 1 left in the same --work.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return SViTTEgoModel.from_pretrained(folder).to(device).eval(), AutoProcessor.from_pretrained(folder)


def apply(model: SViTTEgoModel, setting: Setting) -> None:
    """None of these fields adds parameters: the weights stay as trained."""
    for name, value in setting.fields.items():
        setattr(model.config.vision_config, name, value)
