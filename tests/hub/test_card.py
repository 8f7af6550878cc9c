"""The model card: what it says, what it refuses, what the Hub makes of its metadata, and that its snippet runs."""

import ast
import html
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from modeling_svitt_ego import SViTTEgoForVideoClassification
from modeling_svitt_ego.evaluation.report import EvaluationReport
from modeling_svitt_ego.hub.card import (
    count_parameters,
    find_template,
    render_model_card,
    write_model_card,
)
from modeling_svitt_ego.training.arguments import SViTTEgoTrainingArguments
from modeling_svitt_ego.weights.provenance import weight_files, weights_sha256
from tests.helpers.hub_double import metadata_errors
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import save_tiny_folder

REPO = Path(__file__).resolve().parents[2]
# As `svitt-ego evaluate` writes it.
RECORD = {
    "benchmark": "egomcq",
    "metrics": {"inter": 91.25, "intra": 60.125},
    "num_frames": 4,
    "scoring_mode": "dual",
    "num_items": 39_000,
    "command": "svitt-ego evaluate egomcq model egomcq.json videos",
    "package_version": "0.1.0",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "date": "2026-11-23",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny_folder(tmp_path_factory.mktemp("card") / "tiny-svitt")
    RECORD["checkpoint_sha256"] = weights_sha256(folder)  # as `svitt-ego evaluate` of this folder writes it
    return folder


def rows(card) -> list[list[str]]:
    lines = [line for line in str(card).splitlines() if line.startswith("| Ego") or line.startswith("| EPIC")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def metadata(card) -> dict:
    return yaml.safe_load(str(card).split("---\n")[1])


def test_without_an_evaluation_no_number_is_ours(folder):
    """Catches a published number that slips into the column of this model, and an invented training."""
    card = render_model_card(folder)
    assert rows(card) == [
        ["EgoMCQ", "inter", "92.9", "not measured", *["–"] * 6],
        ["EgoMCQ", "intra", "65.9", "not measured", *["–"] * 6],
    ]
    assert "model-index" not in metadata(card) and "datasets" not in metadata(card)
    assert "Data: not recorded." in str(card) and "Training arguments: not recorded." in str(card)
    assert "Weights: not recorded." in str(card)


def test_own_numbers_stand_beside_the_published_ones_with_their_protocol(folder):
    """Catches swapped columns and a number that lost its script, commit, frames, scoring mode or date."""
    card = render_model_card(folder, [RECORD])
    protocol = [
        "39,000",
        "4",
        "dual",
        "2026-11-23",
        "0123456789, version 0.1.0",
        "<code>svitt-ego evaluate egomcq model egomcq.json videos</code>",
    ]
    assert rows(card) == [
        ["EgoMCQ", "inter", "92.9", "91.2", *protocol],
        ["EgoMCQ", "intra", "65.9", "60.1", *protocol],
    ]


@pytest.mark.parametrize(
    "changes, said, unsaid",
    [
        ({"num_random_blocks": None, "keep_rate": 1.0}, ["| dense |", "dense attention"], ["Edge", "Node"]),
        (
            {},
            [
                "| 1, 0, 2, 4 |",
                "its neighbours and to a few random blocks.",
                "drop the tokens to which [CLS] attends least.",
            ],
            ["frames before and"],
        ),
        (
            {"num_temporal_blocks": 2, "keep_strategy": "motion"},
            [
                "| 1, 2, 2, 4 |",
                "its neighbours and to the same place in the frames before and after and to a few random blocks.",
                "that differ least from the same place",
            ],
            ["[CLS]"],
        ),
    ],
    ids=["dense", "published", "temporal"],
)
def test_the_card_describes_the_sparsity_of_its_own_configuration(folder, tmp_path, changes, said, unsaid):
    """Catches a card without temporal edges, and one that names another rule by which tokens are dropped."""
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    sparsity = {"num_local_blocks": 1, "num_temporal_blocks": 0, "num_random_blocks": 2, "block_size": 4}
    config["vision_config"] |= {
        **sparsity,
        "keep_rate": 0.7,
        "prune_layers": [1],
        "keep_strategy": "cls_attn",
        **changes,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    text = str(render_model_card(tmp_path / "model"))
    assert all(part in text for part in said), text
    assert not any(part in text.split("## Use")[0] for part in unsaid), text


@pytest.mark.parametrize(
    "changes",
    [{"num_items": 1024}, {"num_items": None}, {"dataset": "synthetic world"}, {"condition": "frames shuffled"}],
    ids=str,
)
def test_numbers_on_another_set_stand_apart_from_the_published_ones(folder, changes):
    """Catches a synthetic 91 next to a real 92.9 in one row, as if they were comparable."""
    found = rows(render_model_card(folder, [RECORD | changes]))
    assert [row[2:4] for row in found] == [
        ["–", "91.2"],
        ["–", "60.1"],
        ["92.9", "not measured"],
        ["65.9", "not measured"],
    ]


def test_what_an_evaluation_did_not_record_is_called_so(folder):
    """Catches a default or a guess in the place of a missing field."""
    card = render_model_card(folder, [{"benchmark": "egomcq", "metrics": {"intra": 50.0}}])
    assert rows(card)[0] == ["EgoMCQ", "intra", "–", "50.0 (weights not recorded)", *["not recorded"] * 6]


def test_metadata_is_what_the_hub_takes(folder):
    """Catches metadata that the Hub refuses or that its client cannot read back."""
    shuffled = RECORD | {"condition": "frames shuffled", "metrics": {"inter": 1.0}}
    card = render_model_card(
        folder, [RECORD, shuffled], repo_id="user/svitt", license="apache-2.0", datasets=["user/egoclip"]
    )
    assert metadata_errors(str(card)) == []
    data = ModelCard(str(card)).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "video-classification")
    assert (data.license, data.datasets, data.model_name) == ("apache-2.0", ["user/egoclip"], "svitt")
    assert "arxiv:2406.09462" in data.tags
    results = {r.metric_name: (r.metric_value, r.metric_args) for r in data.eval_results}
    args = {"num_frames": 4, "scoring_mode": "dual"}
    assert results == {"EgoMCQ inter": (91.25, args), "EgoMCQ intra": (60.125, args)}  # not the shuffled 1.0


def test_a_number_of_unknown_weights_stays_out_of_the_metadata(folder):
    """Catches an evaluation without the hash of its weights that is published as this model's."""
    unknown = {name: value for name, value in RECORD.items() if name != "checkpoint_sha256"}
    card = render_model_card(folder, [unknown])
    assert rows(card)[0][3] == "91.2 (weights not recorded)" and "model-index" not in metadata(card)
    assert "model-index" in metadata(render_model_card(folder, [RECORD]))


def test_a_number_of_other_weights_is_refused(folder):
    """Catches the card of one checkpoint with the numbers of another."""
    right = RECORD | {"checkpoint_sha256": weights_sha256(folder)}
    assert rows(render_model_card(folder, [right]))[0][3] == "91.2"
    with pytest.raises(ValueError, match="holds the weights .* an evaluation is of"):
        render_model_card(folder, [right, RECORD | {"checkpoint_sha256": "0" * 64}])


def test_every_field_that_an_evaluation_writes_reaches_the_card(folder, tmp_path):
    """Catches the two drifting apart: a field renamed there would be "not recorded" here."""
    report = EvaluationReport(
        benchmark="egomcq",
        metrics={"inter": 50.0, "intra": 40.0, "intra_ties_by_expectation": 41.0},
        primary_metrics=["inter", "intra"],
        intervals={"intra": [38.04, 42.0]},
        num_items=1024,
        counts={"num_inter": 600, "num_intra": 424},
        num_frames=4,
        scoring_mode="dual",
        failures={"num_failed": 3},
        dataset="synthetic world",
    ).with_origin("model", folder, ["svitt-ego", "evaluate", "egomcq", "model"])
    report.save(tmp_path / "result.json")
    assert rows(render_model_card(folder, [tmp_path / "result.json"])) == rows(render_model_card(folder, [report]))
    inter, intra, *published = rows(render_model_card(folder, [report]))
    assert intra[:4] == ["EgoMCQ, synthetic world", "intra", "–", "40.0 [38.0, 42.0]"]
    assert intra[4:8] == ["424 (3 clips unreadable)", "4", "dual", report.date]
    assert inter[4] == "600 (3 clips unreadable)"
    assert intra[9] == "<code>svitt-ego evaluate egomcq model</code>" and report.package_version in intra[8]
    assert [row[3] for row in published] == ["not measured"] * 2


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ({"metrics": {"intra": 1.0}}, "no 'benchmark'"),
        ({"benchmark": "egomcq"}, "no 'metrics'"),
        ({"benchmark": "egomcq", "metrics": {"intra": "65.9"}}, "'intra' must be a finite number, got '65.9'"),
        ({"benchmark": "egomcq", "metrics": {"intra": math.nan}}, "finite number, got nan"),
        (RECORD | {"num_frames": 0}, "'num_frames' must be a positive whole number, got 0"),
        (RECORD | {"num_items": "39000"}, "'num_items' must be a positive whole number"),
        (RECORD | {"primary_metrics": ["mean"]}, r"\['mean'\] are not among the metrics"),
        (RECORD | {"date": 2026}, "'date' must be text, got 2026"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_evaluation_is_refused_by_name(tmp_path, content, message):
    """Catches a wrong file that becomes an empty or misleading table."""
    path = tmp_path / "result.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        EvaluationReport.read(path)
    assert str(path) in str(error.value)


def test_training_arguments_are_shown_and_kept_without_paths_and_tokens(folder, tmp_path):
    """Catches a token or a home directory in a public card, and arguments lost when the card is rendered again."""
    secret = "hf_secret"
    arguments = SViTTEgoTrainingArguments(
        output_dir=str(tmp_path / "private"), hub_token=secret, learning_rate=2e-3, use_cpu=True, report_to="none"
    )
    target = save_tiny_folder(tmp_path / "model")
    text = write_model_card(target, [], arguments).read_text(encoding="utf-8")
    saved = (target / "training_arguments.json").read_text()
    assert "| learning_rate | 0.002 |" in text and "| scene_aware_negatives | True |" in text
    for content in (text, saved):
        assert secret not in content and "private" not in content
    assert json.loads(saved)["learning_rate"] == 2e-3
    record = RECORD | {"checkpoint_sha256": weights_sha256(target)}
    again = write_model_card(target, [record]).read_text(encoding="utf-8")
    assert "| learning_rate | 0.002 |" in again


def test_nothing_in_an_evaluation_becomes_markup(folder):
    """Catches a table broken by a pipe, and a script, a picture or a link from somebody's JSON on a public page."""
    record = RECORD | {
        "command": "`x` <img src=x onerror=alert(1)> | [a](javascript:b) \u202e",
        "dataset": "</code><script>alert(1)</script>",
        "condition": "*bold* _it_",
    }
    card = str(render_model_card(folder, [record], training_data="<b>**mine**</b>"))
    text = html.unescape(card)
    for bad in ("<script", "<img", "<b>", "](javascript", "*bold*", "`x`", "\u202e"):
        assert bad not in card, bad
    assert "<script>alert(1)</script>" in text and "[a](javascript:b)" in text and "<b>**mine**</b>" in text
    assert len(rows(card)[0]) == len(rows(str(render_model_card(folder, [RECORD])))[0])


def test_a_card_names_no_directories(folder):
    """Catches user names and private paths on a public page; the names of the files stay."""
    command = r"svitt-ego evaluate egomcq /home/jane/runs/model --annotations ~/ego/q.json C:\data\v runs/out"
    card = html.unescape(str(render_model_card(folder, [RECORD | {"command": command}])))
    assert "svitt-ego evaluate egomcq model --annotations q.json v runs/out" in card and "jane" not in card


def test_the_card_describes_the_saved_weights(folder, tmp_path):
    """Catches sizes and hashes of something else than the files: sharded and whole, by torch and by header."""
    whole = load_file(folder / "model.safetensors")
    assert count_parameters(folder) == sum(tensor.numel() for tensor in whole.values())
    assert f"| parameters | {count_parameters(folder):,} |" in str(render_model_card(folder))
    sharded = save_tiny_folder(tmp_path / "sharded", max_shard_size="50KB")
    assert len(weight_files(sharded)) > 2
    assert count_parameters(sharded) == count_parameters(folder)
    before = weights_sha256(sharded)
    shard = weight_files(sharded)[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert weights_sha256(sharded) != before


@pytest.mark.parametrize("classifier", [False, True], ids=["dual-encoder", "classifier"])
def test_the_cards_snippet_runs(tmp_path, classifier):
    """Catches a card whose example fails for its first reader: run as written, where the package is not installed."""
    names = {"id2label": {0: "cut", 1: "wash"}, "label2id": {"cut": 0, "wash": 1}}
    options = {"cls": SViTTEgoForVideoClassification} | names
    target = save_tiny_folder(tmp_path / "model", **(options if classifier else {}))
    card = write_model_card(target).read_text(encoding="utf-8")
    (snippet,) = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    assert snippet.count('"USER/MODEL"') == 1
    write_video(tmp_path / "my_video.mp4", num_frames=135, fps=10)
    hidden = 'import sys; sys.modules["modeling_svitt_ego"] = None\n'
    code = hidden + snippet.replace("USER/MODEL", str(target))
    clean = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert len(answer) == (2 if classifier else 3) and sum(answer.values()) == pytest.approx(1.0, abs=1e-5)
    assert ("cut" in answer) is classifier


def test_the_template_is_found_in_a_checkout_and_where_the_package_is_installed(tmp_path):
    """Catches an installed package without MODEL_CARD.md: built as pip builds it, then asked in a new process."""
    assert find_template() == REPO / "MODEL_CARD.md"
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py"]
    subprocess.run([*command, "--build-lib", str(tmp_path)], cwd=REPO, check=True, capture_output=True)
    code = "from modeling_svitt_ego.hub import card; print(card.__file__); print(card.find_template())"
    env = {"PYTHONPATH": str(tmp_path), "PATH": os.defpath, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    installed = tmp_path / "modeling_svitt_ego"
    assert done.stdout.split() == [str(installed / "hub" / "card.py"), str(installed / "MODEL_CARD.md")]
    assert (installed / "MODEL_CARD.md").read_bytes() == (REPO / "MODEL_CARD.md").read_bytes()
