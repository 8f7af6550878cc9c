"""examples/pretrain_egoclip.py and `svitt-ego pretrain`: alone, under `torchrun`, interrupted, and misused."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor

from modeling_svitt_ego import SViTTEgoForPreTraining
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from tests.helpers.fsdp_on_cpu import __file__ as on_cpu
from tests.helpers.run_examples_in_turn import __file__ as in_turn
from tests.helpers.tiny_data import egoclip_row, egomcq_item, write_egoclip, write_json
from tests.helpers.tiny_pretraining import CHECKPOINTING, GENEROUS, free_port, make_corpus, small_config

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "examples" / "pretrain_egoclip.py"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]  # what `torchrun` runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """
    Logged losses of runs of the script by name. 16 clips; two processes with 4 each, also checkpointed; two that share
    a contrastive batch of 12 in micro-batches of 4 and 2; one with 8, and with 12.
    """
    root = make_corpus(tmp_path_factory.mktemp("corpus"))
    # The temperature wants to rise and must not: it begins at its maximum.
    small_config(lively=False, temperature_max=0.07).save_pretrained(root / "config")
    common = ["--egoclip", root / "e.csv", "--videos", root / "videos", "--from_scratch", root / "config"]
    common += "--use_cpu --max_steps 3 --logging_steps 1 --report_to none --disable_tqdm true --vtm_weight 0".split()
    common += "--mlm_weight 0 --scene_aware_negatives false --learning_rate 1e-4".split()

    def line(name, **options):
        pairs = [(f"--{option}", value) for option, value in options.items()]
        return [str(x) for x in (*common, "--output_dir", root / name, *(x for pair in pairs for x in pair))]

    items = [egomcq_item(["video-a"] * 5, answer=i, text=f"#C C picks item {i}", start=float(i)) for i in range(2)]
    items.append(egomcq_item(["video-a", "video-b"] * 2 + ["video-b"], types=1))
    write_json(root / "egomcq.json", {str(i): item for i, item in enumerate(items)})  # three: not even over two
    asked = {"egomcq": root / "egomcq.json", "eval_strategy": "steps", "eval_steps": 2}
    stages = {"temporal_stages": "0:4:0.7:3,0.5:8:0.6:3"}
    two = {
        "two": {"per_device_train_batch_size": 4, **asked},
        "two-objectives": {"per_device_train_batch_size": 4, "vtm_weight": 0.5, "mlm_weight": 2},
        "two-checkpointed": {"per_device_train_batch_size": 4, CHECKPOINTING: "true"},
        "two-cached": {"per_device_train_batch_size": 4, "contrastive_batch_size": 12},
        "two-stages": {"per_device_train_batch_size": 4, **stages},
    }
    one = {
        "one": {"per_device_train_batch_size": 8, "save_steps": 2, "report_to": "tensorboard", **asked},
        "one-of-12": {"per_device_train_batch_size": 12},
        "one-stages": {"per_device_train_batch_size": 8, **stages},
        "resumed": {"per_device_train_batch_size": 8, "save_steps": 2, "max_steps": 4},
    }
    for name, settings, launch in (
        ("two", two, [*TWO, "--master-port", free_port()]),
        ("one", one, [sys.executable]),
    ):
        lines = [line(name, **options) for name, options in settings.items()]
        if name == "one":
            lines[-1] = [*line("one", **one["resumed"]), "--resume", "true"]
        (root / f"{name}.json").write_text(json.dumps(lines))
        (root / f"{name}.log").write_text(run([*launch, in_turn, SCRIPT, root / f"{name}.json"]))
    (root / "common.json").write_text(json.dumps([str(x) for x in common]))
    return root


def run(line) -> str:
    """What it printed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(x) for x in line], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def logged(folder, key="loss", prefix="checkpoint-3"):
    state = json.loads((folder / prefix / "trainer_state.json").read_text())
    return [entry[key] for entry in state["log_history"] if key in entry]


@pytest.mark.parametrize("name", ["two", "two-checkpointed"])
def test_two_processes_have_the_loss_curve_of_one_with_the_doubled_batch(name, runs):
    """Catches other clips per step, rows compared with half only, and DDP waiting for unused parameters."""
    losses = logged(runs / name)
    assert losses == pytest.approx(logged(runs / "one"), rel=1e-3) and len(losses) == 3
    assert len(set(losses)) == 3
    assert logged(runs / name, "grad_norm") == pytest.approx(logged(runs / "one", "grad_norm"), rel=5e-3)


def test_two_processes_train_all_three_objectives(runs):
    """Catches an objective that is not logged or not weighted, and a process that waits for the other in vain."""
    state = json.loads((runs / "two-objectives/checkpoint-3/trainer_state.json").read_text())
    for entry in state["log_history"][:3]:
        assert entry["loss"] == pytest.approx(entry["contrastive"] + 0.5 * entry["vtm"] + 2 * entry["mlm"], rel=1e-3)
    # The second step is the last before the first update: warm-up begins at 0.
    assert logged(runs / "two-objectives", "contrastive")[:2] == pytest.approx(logged(runs / "one")[:2], rel=1e-3)


def test_each_question_counts_once_over_two_processes(runs):
    """Catches padded or dropped questions while training, and a run without its curve of EgoMCQ."""
    for key in ("eval_num_questions", "eval_inter", "eval_intra"):
        assert logged(runs / "two", key) == logged(runs / "one", key) != [], key
    assert set(logged(runs / "two", "eval_num_questions")) == {3}
    for name in ("one", "two"):
        assert (runs / name / "egomcq.png").stat().st_size > 1000


def test_two_processes_share_a_cached_batch_in_uneven_micro_batches(runs):
    """Catches micro-batches dealt to the wrong process, and a cached step that is not the plain one's."""
    assert logged(runs / "two-cached") == pytest.approx(logged(runs / "one-of-12"), rel=1e-3)
    assert logged(runs / "two-cached", "grad_norm") == pytest.approx(logged(runs / "one-of-12", "grad_norm"), rel=5e-3)


@pytest.mark.slow
def test_the_sharding_configuration_trains_saves_and_resumes_on_two_processes(runs):
    """Catches parameters that FSDP 2 cannot shard, losses of other clips, a checkpoint without the model's code."""
    common, fsdp = json.loads((runs / "common.json").read_text()), str(runs / "fsdp")
    four, cached = ["--per_device_train_batch_size", "4"], ["--contrastive_batch_size", "12"]
    lines = [
        ["--output_dir", fsdp, *four],
        ["--output_dir", fsdp, *four, "--max_steps", "4", "--resume", "true"],
        ["--output_dir", f"{fsdp}-cached", *four, *cached],
        ["--output_dir", f"{fsdp}-objectives", *four, *cached, "--vtm_weight", "1", "--mlm_weight", "1"],
    ]
    (runs / "fsdp.json").write_text(json.dumps([common + line for line in lines]))
    launch = [*ACCELERATE, "--config_file", REPO / "examples" / "fsdp.yaml", "--num_processes", "2"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    log = run([*launch, on_cpu, in_turn, SCRIPT, runs / "fsdp.json"])
    assert log.count("ran as DistributedType.FSDP on cpu") == 2 and "Resuming from" in log
    assert logged(runs / "fsdp", prefix="checkpoint-4") == pytest.approx(
        logged(runs / "one", prefix="checkpoint-4"), rel=1e-3
    )
    assert logged(runs / "fsdp-cached") == pytest.approx(logged(runs / "one-of-12"), rel=1e-3)
    entries = json.loads((runs / "fsdp-objectives/checkpoint-3/trainer_state.json").read_text())["log_history"][:3]
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["contrastive"] + entry["vtm"] + entry["mlm"], rel=1e-3)
    weights = [
        AutoModel.from_pretrained(runs / name / "model", trust_remote_code=True).state_dict()
        for name in ("fsdp", "one")
    ]
    assert weights[0].keys() == weights[1].keys()
    # It is clamped before each step, so only the last one's update may lie above; without clamping, all of them would.
    assert weights[0]["temperature"].item() == pytest.approx(weights[1]["temperature"].item(), rel=1e-5)
    assert logged(runs / "fsdp", "temperature") == pytest.approx([0.07] * 3)


def test_two_processes_go_through_stages_together(runs):
    """Catches bias tables of a new stage that DDP does not know of."""
    losses = logged(runs / "two-stages")
    assert losses == pytest.approx(logged(runs / "one-stages"), rel=1e-3) and len(losses) == 3
    config = json.loads((runs / "two-stages" / "model" / "config.json").read_text())
    assert config["vision_config"]["num_frames"] == 8


def test_the_recipe_resumes_and_leaves_a_model_a_summary_and_curves(runs):
    """Catches a --resume that starts over, and an end without anything to look at."""
    assert "Resuming from" in (runs / "one.log").read_text()
    assert logged(runs / "one", prefix="checkpoint-4")[:3] == logged(runs / "one")
    assert type(AutoModel.from_pretrained(runs / "one" / "model")).__name__ == "SViTTEgoModel"
    summary = json.loads((runs / "one" / "run_summary.json").read_text())
    assert summary["clips"] == 8 and sum(summary["shares"].values()) == pytest.approx(1, abs=0.02)
    assert (runs / "one" / "loss.png").stat().st_size > 1000
    assert list((runs / "one").rglob("events.out.tfevents*")), "TensorBoard by report_to"
    summary = json.loads((runs / "two" / "run_summary.json").read_text())
    assert summary["clips"] == 24, "clips of both processes"


def test_the_recipe_is_the_published_one():
    """Catches a default that drifts from AdamW 3e-5, weight decay 0.02, cosine to 1 %, 10 epochs, 32 per device."""
    import runpy

    recipe = runpy.run_path(str(SCRIPT))["Recipe"](output_dir="x", report_to="none", use_cpu=True)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.num_train_epochs) == (3e-5, 0.02, 10)
    assert recipe.optim == "adamw_torch_fused" or recipe.optim == "adamw_torch"
    assert recipe.lr_scheduler_type == "cosine_with_min_lr" and recipe.lr_scheduler_kwargs == {"min_lr_rate": 0.01}
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert recipe.per_device_train_batch_size == 32 and recipe.max_grad_norm == 0


# ------------------------------------------------------------------------------------------------- svitt-ego pretrain


@pytest.fixture
def pretrain(tmp_path, capfd):
    """Runs `svitt-ego pretrain` on 16 clips; gives its exit code and what it printed to stderr."""
    root = make_corpus(tmp_path)
    small_config().save_pretrained(root / "config")
    items = [egomcq_item(["video-a"] * 5, answer=i, text=f"#C C picks item {i}", start=float(i)) for i in range(2)]
    write_json(root / "egomcq.json", {str(i): item for i, item in enumerate(items)})
    common = "--use_cpu --max_steps 2 --logging_steps 1 --report_to none --disable_tqdm true"
    common = common.split() + ["--per_device_train_batch_size", "4", "--save_steps", "1"]

    def run(**options):
        paths = {"egoclip": root / "e.csv", "videos": root / "videos", "output_dir": root / "run"}
        pairs = [(f"--{name}", str(value)) for name, value in (paths | options).items() if value is not None]
        capfd.readouterr()
        code = main(["pretrain", *common, *(part for pair in pairs for part in pair)])
        return code, capfd.readouterr().err

    run.root = root
    return run


def test_pretraining_goes_on_from_a_saved_model(pretrain):
    """Catches weights that are started over, another vocabulary, and frames that the model alone knows of."""
    root = pretrain.root
    scratch = {"from_scratch": root / "config", "output_dir": root / "scratch", "learning_rate": 0.0}
    assert pretrain(**scratch)[0] == 0
    start = SViTTEgoForPreTraining.from_pretrained(root / "scratch" / "model").state_dict()
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}", clip_text=f"#C C opens box {i}") for i in range(16)]
    write_egoclip(root / "e.csv", rows)
    code, _ = pretrain(model=root / "scratch" / "model", learning_rate=0.0, num_frames=8)
    assert code == 0
    saved = SViTTEgoForPreTraining.from_pretrained(root / "run" / "model")
    for name, value in saved.state_dict().items():
        assert "bias_table" in name or value.equal(start[name]), name
    processors = [AutoProcessor.from_pretrained(root / name / "model") for name in ("scratch", "run")]
    assert processors[0].tokenizer.get_vocab() == processors[1].tokenizer.get_vocab()
    assert saved.config.vision_config.num_frames == processors[1].video_processor.num_frames == 8


def test_a_resumed_run_from_scratch_keeps_its_vocabulary_and_refuses_another_table(pretrain):
    """Catches a tokenizer trained again on a changed csv, under the checkpoint's embeddings."""
    root = pretrain.root
    assert pretrain(from_scratch=root / "config")[0] == 0
    before = AutoProcessor.from_pretrained(root / "run" / "checkpoint-2").tokenizer.get_vocab()
    rows = [egoclip_row(i, video_uid=f"video-{'ab'[i % 2]}", clip_text=f"#C C opens box {i}") for i in range(16)]
    write_egoclip(root / "e.csv", rows)
    again = {"from_scratch": root / "config", "resume": "true", "max_steps": 3}
    code, said = pretrain(**again)
    assert code == 2 and "data: 16 rows" in said and said.count("svitt-ego pretrain: ") == 1
    assert pretrain(**again, resume_changed="true")[0] == 0
    assert AutoProcessor.from_pretrained(root / "run" / "model").tokenizer.get_vocab() == before


def test_egomcq_is_run_once_on_the_last_weights(pretrain):
    asked = {"egomcq": pretrain.root / "egomcq.json", "eval_strategy": "steps", "eval_steps": 1}
    assert pretrain(from_scratch=pretrain.root / "config", **asked)[0] == 0
    state = json.loads((pretrain.root / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    evaluated = [entry["step"] for entry in state["log_history"] if "eval_intra" in entry]
    assert evaluated == [1, 2]
    saved = json.loads((pretrain.root / "run" / "eval_results.json").read_text())
    assert saved["eval_intra"] == [entry["eval_intra"] for entry in state["log_history"] if "eval_intra" in entry][-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"egoclip": "nope.csv"}, "--egoclip: there is no file 'nope.csv'"),
        ({"videos": "nope"}, "--videos: there is no folder 'nope'"),
        (
            {"from_scratch": "nope"},
            "--from_scratch: 'nope' is neither a folder with a config.json nor one of svitt-ego-",
        ),
        ({"model": "nope"}, "There is no folder 'nope'"),
        ({"model": "nope", "from_scratch": "nope"}, "not both"),
        ({"from_scratch": "svitt-ego-tiny", "temporal_stages": "0:4:0.7:3,0.5:8:1.6:5"}, "stage from 0.5 on"),
        ({"from_scratch": "svitt-ego-tiny", "contrastive_batch_size": 3}, "contrastive_batch_size (3)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_mistake_is_answered_in_one_line_before_anything_is_trained(options, said, pretrain):
    code, printed = pretrain(**options)
    assert code == 2 and said in printed and "Traceback" not in printed
    assert not list(pretrain.root.glob("run/checkpoint-*"))


def test_missing_and_unreadable_videos_are_said_once(pretrain):
    """Catches a traceback of each worker, a guess at memory, and a list of failures in the temporary folder."""
    from_scratch = {"from_scratch": pretrain.root / "config"}
    video = pretrain.root / "videos" / "video-b" / "0.mp4"
    content = video.read_bytes()
    video.unlink()
    code, said = pretrain(**from_scratch)
    assert code == 2 and "1 of 2 videos, with 8 of 16 clips, are missing" in said and "doctor" in said
    assert len([line for line in said.splitlines() if "svitt-ego pretrain" in line]) == 1
    video.write_bytes(content[:2000])
    code, said = pretrain(**from_scratch, dataloader_num_workers=2, max_steps=30)
    assert code == 2 and "Traceback" not in said and "memory" not in said
    assert "max_failure_share=0.05 allows" in said and "video-b/0.mp4" in said
    assert (pretrain.root / "run" / "clip_failures.jsonl").read_text().count("video-b/0.mp4")


def test_a_full_disk_is_said_in_one_line(pretrain, monkeypatch):
    def full(self, model, trial):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", full)
    code, said = pretrain(from_scratch=pretrain.root / "config")
    (line,) = [line for line in said.splitlines() if line.startswith("svitt-ego pretrain: ")]
    assert code == 2 and "checkpoint-1 could not be written" in line and "No space left on device" in line


def test_ctrl_c_saves_and_the_same_command_goes_on(runs, tmp_path):
    """Catches tracebacks of the workers, which a terminal's Ctrl-C reaches as well, and processes that stay."""
    common = json.loads((runs / "common.json").read_text())
    line = [sys.executable, str(SCRIPT), *common, "--output_dir", str(tmp_path / "run"), "--max_steps", "2000"]
    line += ["--dataloader_num_workers", "2", "--per_device_train_batch_size", "4"]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    hear = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    line = [sys.executable, "-c", hear, *line]  # tests in the background ignore Ctrl-C
    with subprocess.Popen(line, env=environment, start_new_session=True, **streams) as process:
        too_long = threading.Timer(GENEROUS, process.kill)
        too_long.start()
        printed = []
        for text in process.stdout:
            printed.append(text)
            if "'loss'" in text and "'signalled'" not in printed:
                os.killpg(process.pid, signal.SIGINT)
                printed.append("'signalled'")
        too_long.cancel()
    log = "".join(printed)
    assert process.returncode == 130, log
    assert "Ctrl-C: left after step " in log and "--resume continues" in log and "Traceback" not in log
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_processes_that_a_launcher_starts_and_that_do_not_join_are_refused(monkeypatch, tmp_path):
    """Catches two runs of one job in one folder, and one process where two were asked for."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.accelerator.is_available", lambda *_: False)
        assert SViTTEgoTrainingArguments(str(tmp_path)).use_cpu, "torchrun on a CPU needs no --use_cpu"
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "True")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(ValueError, match="one process, whatever --num_processes says.*torchrun"):
            SViTTEgoTrainingArguments(str(tmp_path))
