"""`pipeline("zero-shot-video-classification")`: with the package, from a folder, and where the package is not."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForVideoClassification, AutoProcessor, pipeline

from modeling_svitt_ego import (
    ClipReadError,
    SViTTEgoForPreTraining,
    SViTTEgoModel,
    SViTTEgoProcessor,
    SViTTEgoVideoProcessor,
    ZeroShotVideoClassificationPipeline,
)
from modeling_svitt_ego.weights.tokenizer import train_tokenizer
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_model import tiny_config, tiny_model, with_weights

TASK = "zero-shot-video-classification"
LABELS = ["opens the door", "closes the door", "picks up a red cup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny model and processor."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([f"#C C {label}" for label in LABELS], vocab_size=99)
    text = {"vocab_size": len(tokenizer), "cls_token_id": tokenizer.cls_token_id}
    text |= {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    with_weights(SViTTEgoForPreTraining(tiny_config(text=text))).save_pretrained(folder)
    frames = SViTTEgoVideoProcessor(size={"height": 32, "width": 32}, num_frames=4)
    SViTTEgoProcessor(frames, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds, each frame of another grey level."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 40)


@pytest.fixture(scope="module")
def classifier(folder):
    return pipeline(model=str(folder), trust_remote_code=True, device="cpu")


def expected_scores(folder, clip, texts):
    """By the model itself, without any pipeline."""
    model, processor = SViTTEgoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(videos=[clip], text=texts, return_tensors="pt")).logits_per_video
    return logits[0].softmax(-1)


def assert_scores(result, expected, labels=LABELS):
    assert [set(entry) for entry in result] == [{"score", "label"}] * len(labels)
    assert [entry["score"] for entry in result] == sorted((entry["score"] for entry in result), reverse=True)
    by_label = {entry["label"]: entry["score"] for entry in result}
    torch.testing.assert_close(torch.tensor([by_label[label] for label in labels]), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- what it computes


def test_scores_are_the_models_softmax_over_the_labels(classifier, folder, video):
    """Catches another temperature, order, window or template than the model's own call has."""
    result = classifier(str(video), candidate_labels=LABELS, start=0.5, end=2.0)
    expected = expected_scores(folder, (str(video), 0.5, 2.0), [f"#C C {label}" for label in LABELS])
    assert_scores(result, expected)
    assert not torch.allclose(expected, expected_scores(folder, str(video), [f"#C C {label}" for label in LABELS]))


def test_hypothesis_template_and_top_k(classifier, folder, video):
    plain = classifier(str(video), candidate_labels=LABELS, hypothesis_template="{}")
    assert_scores(plain, expected_scores(folder, str(video), LABELS))
    assert classifier(str(video), candidate_labels=LABELS, hypothesis_template="{}", top_k=2) == plain[:2]
    assert plain != classifier(str(video), candidate_labels=LABELS)


def test_settings_may_be_given_once(folder, video):
    """Catches settings of the constructor that a call forgets, or that a call cannot replace."""
    once = pipeline(
        model=str(folder),
        trust_remote_code=True,
        device="cpu",
        candidate_labels=LABELS,
        hypothesis_template="{}",
        top_k=1,
    )
    expected = expected_scores(folder, str(video), LABELS)
    (best,) = once(str(video))
    assert best["label"] == LABELS[int(expected.argmax())]
    assert len(once(str(video), top_k=3)) == 3
    assert_scores(
        once(str(video), candidate_labels=LABELS[:2], top_k=2),
        expected_scores(folder, str(video), LABELS[:2]),
        LABELS[:2],
    )


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_lists_of_clips_give_one_answer_each(classifier, video, batch_size):
    """Catches answers that change with the batch, and windows that go to the wrong video."""
    windows = [(0.0, 1.0), (1.5, 2.0), (2.0, 4.0)]
    one_by_one = [classifier(str(video), candidate_labels=LABELS, start=s, end=e) for s, e in windows]
    starts, ends = zip(*windows)
    for clips, bounds in (
        ([str(video)] * 3, {"start": list(starts), "end": list(ends)}),
        ([(str(video), *window) for window in windows], {}),
        ([{"path": video, "start": s, "end": e} for s, e in windows], {}),
        (((str(video), *window) for window in windows), {}),
    ):
        results = list(classifier(clips, candidate_labels=LABELS, batch_size=batch_size, **bounds))
        for result, alone in zip(results, one_by_one, strict=True):
            assert [entry["label"] for entry in result] == [entry["label"] for entry in alone]
            assert [e["score"] for e in result] == pytest.approx([e["score"] for e in alone], abs=1e-5)
    assert len({result[0]["score"] for result in one_by_one}) == 3


def test_one_window_for_a_list_and_a_stream(classifier, video):
    alone = classifier(str(video), candidate_labels=LABELS, start=1.0)
    assert classifier([str(video), video], candidate_labels=LABELS, start=1.0) == [alone, alone]
    assert list(classifier((v for v in [video, video]), candidate_labels=LABELS, start=1.0)) == [alone, alone]


def test_decoded_frames_in_every_form_are_one_clip(classifier):
    """Catches a list of pictures taken for as many videos."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), dtype=np.uint8)
    expected = classifier(frames, candidate_labels=LABELS)
    assert len(expected) == 3 and isinstance(expected[0], dict)
    for form in (
        torch.from_numpy(frames),
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        list(frames),
        [Image.fromarray(frame) for frame in frames],
    ):
        assert classifier(form, candidate_labels=LABELS) == expected
    for batch in ([frames, frames], np.stack([frames, frames])):
        assert classifier(batch, candidate_labels=LABELS) == [expected, expected]


# --------------------------------------------------------------------------------------------------- where it is found


def test_registered_task_takes_loaded_parts(folder, video, classifier):
    """With the package imported, without trust_remote_code; a model in training mode is not left so."""
    model, processor = SViTTEgoModel.from_pretrained(folder).train(), AutoProcessor.from_pretrained(folder)
    made = pipeline(TASK, model=model, processor=processor, device="cpu")
    assert type(made) is ZeroShotVideoClassificationPipeline
    assert made(video, candidate_labels=LABELS) == classifier(video, candidate_labels=LABELS)


CLEAN_PROCESS = """
import sys
sys.modules["modeling_svitt_ego"] = None  # an import of the package fails
import json
from transformers import pipeline
folder, video, again, *labels = sys.argv[1:]
results = []
for place in (folder, again):
    classifier = pipeline(model=place, trust_remote_code=True, device="cpu")
    assert "transformers_modules" in type(classifier).__module__
    assert "transformers_modules" in type(classifier.model).__module__
    results.append(classifier(video, candidate_labels=labels, start=0.5, end=2.0))
    str(classifier.model.config)
    classifier.save_pretrained(again)
print(json.dumps(results))
"""


def test_a_folder_brings_its_pipeline_where_the_package_is_not_installed(folder, video, classifier, tmp_path):
    """Catches the pipeline's file missing from the folder; also after the pipeline saved itself."""
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", CLEAN_PROCESS, str(folder), str(video), str(tmp_path / "again"), *LABELS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = classifier(str(video), candidate_labels=LABELS, start=0.5, end=2.0)
    for result in json.loads(done.stdout.splitlines()[-1]):
        assert [entry["label"] for entry in result] == [entry["label"] for entry in expected]
        assert [e["score"] for e in result] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_config_json_names_the_pipeline_only_where_there_is_a_text_tower(folder, tmp_path):
    """Catches a classifier that offers zero-shot scores of a text tower it does not have."""
    entry = {"impl": f"pipeline_svitt_ego.{ZeroShotVideoClassificationPipeline.__name__}", "pt": ["AutoModel"]}
    named = json.loads((folder / "config.json").read_text())["custom_pipelines"]
    assert named == {TASK: entry | {"type": "multimodal"}}
    model = AutoModelForVideoClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(TypeError, match="compares clips with texts, not SViTTEgoForVideoClassification"):
        pipeline(TASK, model=model, processor=AutoProcessor.from_pretrained(folder), device="cpu")


def test_the_models_config_stays_writable(classifier):
    """Catches a class in the place of its name: pipeline() resolves "AutoModel" in the configuration it reads."""
    assert "AutoModel" in classifier.model.config.to_json_string()


# ----------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "candidate_labels must be a list of strings, got None"),
        ({"candidate_labels": []}, "candidate_labels is empty"),
        ({"candidate_labels": "opens"}, "must be a list of strings, got 'opens'"),
        ({"candidate_labels": ["opens", 3]}, "strings with words in them, got 3"),
        ({"candidate_labels": ["opens", " "]}, "strings with words in them, got ' '"),
        ({"candidate_labels": LABELS, "top_k": 0}, r"top_k \(0\) must be a positive"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a video"}, r"\('a video'\) must hold \{\}"),
        ({"candidate_labels": LABELS, "begin": 1.0}, "no argument 'begin'"),
        ({"candidate_labels": LABELS, "start": 9.0, "end": 10.0}, r"clip.mp4: window \[9.0, 10.0\) s is outside"),
        ({"candidate_labels": LABELS, "start": [0.0, 1.0]}, "One video has one value of start"),
    ],
)
def test_bad_arguments_are_one_clear_error(classifier, video, arguments, message):
    kind = ClipReadError if "outside" in message else TypeError if "begin" in message else ValueError
    # A folder's pipeline is a copy of the package's, with its own ClipReadError, which is a ValueError too.
    with pytest.raises((kind, ValueError), match=message):
        classifier(str(video), **arguments)


def test_bad_videos_are_one_clear_error(classifier, video):
    with pytest.raises(ValueError, match="No video was given"):
        classifier([], candidate_labels=LABELS)
    with pytest.raises(ValueError, match="2 values of start were given for 3 videos"):
        classifier([str(video)] * 3, candidate_labels=LABELS, start=[0.0, 1.0])
    with pytest.raises(ValueError, match="this tuple has its own window already"):
        classifier((str(video), 0.0, 1.0), candidate_labels=LABELS, start=0.5)
    with pytest.raises(ValueError, match="this ndarray is not a video file"):
        classifier(np.zeros((4, 8, 8, 3), np.uint8), candidate_labels=LABELS, end=0.5)
    with pytest.raises((ValueError, OSError), match="nowhere.mp4"):
        classifier("nowhere.mp4", candidate_labels=LABELS)


def test_missing_processor_is_one_clear_error():
    with pytest.raises(ValueError, match="needs the model's processor"):
        ZeroShotVideoClassificationPipeline(model=tiny_model(SViTTEgoModel), device="cpu")
