"""Plants known mistakes in a copy of the package, one at a time, and lists those that no test notices.

    python tests/plant_faults.py              # all of them
    python tests/plant_faults.py local nms    # those whose name contains a word

A mistake is one line of the package and its wrong replacement; the tests named with it are run on the copy. A line
that is no longer in the file is reported too: then adapt the list below. Exit status 1 if a mistake survived.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """One mistake: in `file` of the package, `right` is replaced by `wrong`; `tests` should then fail."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str  # files or folders below tests/, separated by spaces


FAULTS = [
    # What ships: sparsity and towers.
    Fault("local blocks on one side", "model/sparsity.py",
          "torch.arange(count, device=device) - count // 2", "torch.arange(count, device=device)",
          "model/test_sparsity.py model/test_vision.py"),
    Fault("kept tokens out of order", "model/sparsity.py",
          "scores.topk(num_kept, dim=-1).indices.sort(dim=-1).values", "scores.topk(num_kept, dim=-1).indices",
          "model/test_sparsity.py model/test_vision.py"),
    Fault("the lowest tokens are kept", "model/sparsity.py",
          "scores.topk(num_kept, dim=-1)", "scores.topk(num_kept, dim=-1, largest=False)",
          "model/test_sparsity.py model/test_vision.py"),
    Fault("[CLS] counted as a patch", "model/sparsity.py",
          "nn.functional.pad(kept + 1, (1, 0))", "nn.functional.pad(kept, (1, 0))",
          "model/test_sparsity.py model/test_vision.py"),
    Fault("drop path of the last layer too low", "model/vision.py",
          "max(1, config.num_hidden_layers - 1)", "max(1, config.num_hidden_layers)", "model/test_vision.py"),
    Fault("video pruning off while training", "model/vision.py",
          "prunes = index in config.prune_layers and config.keep_rate < 1.0",
          "prunes = index in config.prune_layers and config.keep_rate < 1.0 and not self.training",
          "model/test_vision.py model/test_modeling.py"),
    Fault("video tokens ranked in half precision", "model/text.py",
          "torch.promote_types(q.dtype, torch.float32)", "q.dtype", "model/test_text_and_fusion.py"),
    Fault("released neighbours take keys and values of one block", "model/sparsity.py",
          "block_ids[..., :num_mirrored].flip(-1)", "block_ids[..., :num_mirrored]", "model/test_sparsity.py"),
    Fault("text-guided pruning off while training", "model/fusion.py",
          "prunes = index in config.prune_layers and config.keep_rate < 1.0",
          "prunes = index in config.prune_layers and config.keep_rate < 1.0 and not self.training",
          "model/test_text_and_fusion.py model/test_modeling.py"),
    Fault("pooling with [CLS]", "model/vision.py",
          "hidden_states[:, 1:].mean(1)", "hidden_states.mean(1)", "model/test_vision.py model/test_parity.py"),
    Fault("no position embeddings of text", "model/text.py",
          "self.layernorm(embeddings + self.position_embeddings(positions))", "self.layernorm(embeddings)",
          "model/test_text_and_fusion.py"),
    Fault("bias tables stretched the wrong way", "model/resampling.py",
          "(offsets * frames / new_frames)", "(offsets * new_frames / frames)", "model/test_resize_frames.py"),
    Fault("bias of [CLS] lost when resampling", "model/resampling.py",
          "return torch.cat([resampled.flatten(0, 1), table[-3:]])",
          "return torch.cat([resampled.flatten(0, 1), torch.zeros_like(table[-3:])])", "model/test_resize_frames.py"),
    Fault("spans overlap with exclusive ends", "model/temporal_grounding_svitt_ego.py",
          "left = left[shared <= threshold * union]", "left = left[shared < threshold * union]",
          "features/test_temporal_grounding.py"),
    Fault("suppression by twice the overlap", "model/temporal_grounding_svitt_ego.py",
          "(spans[best, 1] - spans[best, 0]) - shared", "(spans[best, 1] - spans[best, 0]) - 2 * shared",
          "features/test_temporal_grounding.py"),
    Fault("highlighted cells count once", "model/temporal_grounding_svitt_ego.py",
          "weights = mask * (1.0 + target)", "weights = mask * 1.0", "features/test_temporal_grounding.py"),
    # Losses.
    Fault("InfoNCE in one direction", "model/losses.py",
          "F.cross_entropy(_wide(logits_per_video), targets) + F.cross_entropy(_wide(logits_per_text), targets)",
          "2 * F.cross_entropy(_wide(logits_per_video), targets)", "model/test_losses.py"),
    Fault("a shared verb or noun is enough", "model/losses.py",
          "((verbs > 0) & (nouns > 0))", "((verbs > 0) | (nouns > 0))", "model/test_losses.py"),
    Fault("the mean over positives is a sum", "model/losses.py",
          "(log_probabilities.sum(-1) / positives.sum(-1)).mean()", "log_probabilities.sum(-1).mean()",
          "model/test_losses.py"),
    Fault("hard negatives that are positives", "model/losses.py",
          "logits.detach().float().masked_fill(positives, float(\"-inf\"))", "logits.detach().float()",
          "model/test_losses.py"),
    Fault("[CLS] is masked", "model/losses.py",
          "eligible = input_ids != cls_token_id", "eligible = torch.ones_like(input_ids, dtype=torch.bool)",
          "model/test_losses.py"),
    Fault("nine of ten selected tokens are masked", "model/losses.py",
          "masked = selected & draw(0.8)", "masked = selected & draw(0.95)", "model/test_losses.py"),
    Fault("the temperature may grow", "model/modeling_svitt_ego.py",
          "clamp_(self.config.temperature_min, self.config.temperature_max)",
          "clamp_(self.config.temperature_min, 1e9)", "model/test_modeling.py model/test_losses.py"),
    Fault("each segment is read at its start", "model/clip_times.py",
          "return [start + (i + u) * segment", "return [start + (i + 0 * u) * segment",
          "model/test_clip_reading.py model/test_video_processing.py data/test_clips.py"),
    # Metrics.
    Fault("a tie counts as right", "evaluation/egomcq_metrics.py",
          "(hit & (num_best == 1))", "(hit & (num_best >= 1))", "evaluation/test_metrics.py"),
    Fault("IoU at the threshold is a hit", "evaluation/egonlq_metrics.py",
          "(overlap[:rank] > threshold)", "(overlap[:rank] >= threshold)", "evaluation/test_metrics.py"),
    Fault("relevance is a product", "evaluation/ek100_metrics.py",
          "return (same_verb + overlap) / 2", "return same_verb * overlap", "evaluation/test_metrics.py"),
    Fault("discount one rank late", "evaluation/ek100_metrics.py",
          "np.log2(np.arange(relevance.shape[1]) + 2)", "np.log2(np.arange(relevance.shape[1]) + 3)",
          "evaluation/test_metrics.py"),
    Fault("intervals of 90 per cent", "evaluation/bootstrap.py",
          "tail = 100 * (1 - confidence) / 2", "tail = 100 * (1 - confidence)", "evaluation/test_metrics.py"),
    # Data.
    Fault("a clip is its own partner", "data/sampling.py",
          "drawn += drawn >= place", "drawn += 0", "data/test_sampling.py"),
    Fault("scenes are rounded, not cut", "data/sampling.py",
          "window = np.floor(columns", "window = np.round(columns", "data/test_sampling.py"),
    Fault("every epoch in the same order", "data/sampling.py",
          "np.random.default_rng([self.seed, epoch])", "np.random.default_rng([self.seed, 0])",
          "data/test_sampling.py"),
    # Training.
    Fault("other dropout in the second pass", "training/gradient_caching.py",
          "with part.random_state.replayed():", "if True:", "training/test_gradient_caching.py"),
    Fault("weight decay on every parameter", "training/parameter_groups.py",
          "weight_decay if name in decayed else 0.0", "weight_decay", "training/test_weights_in_training.py"),
    Fault("weight decay on norms and biases", "training/trainer.py",
          "p.dim() >= 2 and not name.endswith(without)", "not name.endswith(without)", "training/test_trainer.py"),
    Fault("a changed file of a checkpoint passes", "training/manifest.py",
          "return None if content_hash(path).hex() == saved[\"sha256\"] else", "return None if True else",
          "training/test_resuming.py"),
    Fault("a shortened file of a checkpoint passes", "training/manifest.py",
          "if (size := path.stat().st_size) != saved[\"size\"]:", "if (size := path.stat().st_size) < 0:",
          "training/test_resuming.py"),
    # Features, weights, files, hub, export.
    Fault("moments reach to the bottom", "features/search.py",
          "high = free & (scores >= (scores[peak] + floor) / 2)", "high = free & (scores >= floor)",
          "features/test_search.py"),
    Fault("a fingerprint without the configuration", "weights/fingerprint.py",
          "digest.update(_canonical(model.config.to_dict()))", "pass",
          "features/test_temporal_grounding.py features/test_extraction.py evaluation/test_evaluators.py"),
    Fault("the card takes any weights", "hub/card.py",
          "for other in expected - {found}:", "for other in set():", "hub/test_card.py"),
    Fault("a pipe breaks the card's table", "hub/card_results.py", "[&<>|`*_", "[&<>`*_", "hub/test_card.py"),
    Fault("directories on a public page", "hub/card_results.py",
          "_DIRECTORIES.sub('', command)", "command", "hub/test_card.py"),
    Fault("an exported file that nobody compared", "export/onnx.py",
          "if not exported.max_error <= TOLERANCE:", "if False:", "export/test_export.py"),
    Fault("text length baked into an export", "export/onnx.py",
          "{0: \"batch\", 1: \"length\"}", "{0: \"batch\"}", "export/test_export.py"),
]  # fmt: skip


def plant(fault: Fault, folder: Path) -> str | None:
    """Applies a mistake to a copy of the repository in `folder`; returns why it could not be applied."""
    path = folder / "modeling_svitt_ego" / fault.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(fault.right) != 1:
        return f"the line is {text.count(fault.right)} times in {fault.file}"
    path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    return None


def is_noticed(fault: Fault, folder: Path) -> bool:
    """Whether a test fails on the copy."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment.setdefault("SVITT_EGO_SHARED", str(REPO.parent / "shared"))
    tests = [str(folder / "tests" / name) for name in fault.tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{fault.name}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.returncode == 1


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    if not chosen:
        print(f"No mistake is called like {' or '.join(words)}.")
        return 2
    survived = []
    for number, fault in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "repository"
            shutil.copytree(
                REPO, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv", "svitt-ego-demo")
            )
            start = time.monotonic()
            problem = plant(fault, copy)
            if problem is None and not is_noticed(fault, copy):
                problem = f"SURVIVED {fault.tests}"
        print(
            f"[{number}/{len(chosen)}] {fault.name}: {problem or 'noticed'} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
        if problem:
            survived.append(fault.name)
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} mistakes noticed" + (f"; not: {survived}" if survived else "")
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
