"""The processor: clips and narrations to one batch; text cleaning; tokenizers; saving."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

import modeling_svitt_ego  # noqa: F401  registers the Auto classes
from modeling_svitt_ego.model.processing_svitt_ego import SViTTEgoProcessor, clean_text
from modeling_svitt_ego.model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from modeling_svitt_ego.weights.tokenizer import build_tokenizer, train_tokenizer
from tests.model.test_video_processing import VIDEO_FILES, frames_of, run_without_package

TEXTS = [
    "#C C picks up the red cup",
    "#C C puts down the knife",
    "#C C pushes the box to the left",
    "#O A man X walks around",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=200)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return SViTTEgoProcessor(SViTTEgoVideoProcessor(size={"height": 32, "width": 32}), tokenizer)


def test_one_batch_of_clips_and_narrations(processor):
    batch = processor(videos=[frames_of(8), frames_of(4)], text=TEXTS[:2], return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values_videos"} == set(processor.model_input_names)
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    lengths = batch["attention_mask"].sum(1).tolist()
    for text, ids, length in zip(TEXTS, batch["input_ids"], lengths):
        assert processor.tokenizer.decode(ids[1 : length - 1]).replace(" ", "") == text.lower().replace(" ", "")
        assert (ids[length:] == processor.tokenizer.pad_token_id).all()


def test_either_side_alone_and_settings_of_each(processor):
    assert set(processor(text="#C C walks", return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(videos=frames_of(4), return_tensors="pt")) == {"pixel_values_videos"}
    batch = processor(
        videos=frames_of(9), text=TEXTS[0], num_frames=3, padding="max_length", max_length=20, return_tensors="pt"
    )
    assert batch["pixel_values_videos"].shape[1] == 3 and batch["input_ids"].shape == (1, 20)


@pytest.mark.parametrize("nested", [True, False])
def test_generator_draws_again_in_every_call(processor, nested):
    """transformers copies a processor's arguments: each epoch would see the same frames."""
    generator = torch.Generator().manual_seed(0)
    settings = {"sampling": "random", "generator": generator}
    settings = {"videos_kwargs": settings} if nested else settings
    first, second = (processor(videos=frames_of(200), return_tensors="pt", **settings) for _ in range(2))
    assert not torch.equal(first["pixel_values_videos"], second["pixel_values_videos"])


def test_long_text_is_cut_to_32_tokens(processor):
    ids = processor(text=" ".join(TEXTS * 4), return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 32) and ids[0, -1] == processor.tokenizer.sep_token_id


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "text 0 has no words: ''"),
        (["#C C walks", " \n"], "text 1 has no words"),
        (["#C C walks", None], "text 1 must be a string, got NoneType"),
        ([["a", "b"]], "text 0 must be a string, got list"),
        (7, "got int"),
    ],
)
def test_texts_without_words_are_errors_with_their_index(processor, text, message):
    """A zero-length text would be trained on as [CLS] [SEP]."""
    with pytest.raises(ValueError, match=message):
        processor(text=text, videos=frames_of(4))


def test_cleaning_equals_the_release(shared_dir, tokenizer):
    for text, cleaned in json.loads((shared_dir / "golden" / "J_recipe.json").read_text())["pre_text"]:
        assert clean_text(text) == cleaned
    processor = SViTTEgoProcessor(SViTTEgoVideoProcessor(), tokenizer, text_cleaning="svitt")
    ids = processor(text="#C C, picks-up the red cup!")["input_ids"]
    assert ids == tokenizer("c c picks up the red cup")["input_ids"]
    with pytest.raises(ValueError, match="text 0 has no words: '#!'"):
        processor(text="#!")
    with pytest.raises(ValueError, match="'SViTT'"):
        SViTTEgoProcessor(SViTTEgoVideoProcessor(), tokenizer, text_cleaning="SViTT")


def test_defaults_leave_the_callers_text_alone(processor):
    texts = list(TEXTS)
    processor(text=texts)
    assert texts == TEXTS


# ----------------------------------------------------------------------------------------------------------- tokenizer


def test_training_a_tokenizer_is_deterministic(tokenizer):
    """Another vocabulary in each run would make a checkpoint and its tokenizer disagree."""
    for texts in (TEXTS, TEXTS[::-1], iter(TEXTS)):
        assert train_tokenizer(texts, vocab_size=200).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.tokenize("#C C picks UP, zebra") == "# c c picks up [UNK] z ##e ##b ##r ##a".split()
    # the most frequent words stay when there is no room for all
    small = train_tokenizer(TEXTS, vocab_size=len(tokenizer) - 10)
    assert len(small) == len(tokenizer) - 10
    assert small.tokenize("the") == ["the"] and small.tokenize("walks") == "w ##a ##l ##k ##s".split()
    with pytest.raises(ValueError, match=r"vocab_size \(50\) must be at least"):
        train_tokenizer(TEXTS, vocab_size=50)


@pytest.mark.parametrize("add_sep", [True, False])
def test_tokenizer_with_and_without_sep_survives_saving(tmp_path, tokenizer, add_sep):
    """BertTokenizer puts [SEP] back when loading; the release's weights never saw one."""
    made = build_tokenizer(tokenizer.get_vocab(), add_sep=add_sep)
    made.save_pretrained(tmp_path)
    for loaded in (made, AutoTokenizer.from_pretrained(tmp_path)):
        ids = loaded("picks up")["input_ids"]
        expected = ["[CLS]", "picks", "up"] + ["[SEP]"] * add_sep
        assert loaded.convert_ids_to_tokens(ids) == expected
        assert set(loaded("picks up")) == {"input_ids", "attention_mask"}
        assert (loaded.pad_token, loaded.mask_token, loaded.cls_token, loaded.sep_token) == (
            "[PAD]",
            "[MASK]",
            "[CLS]",
            "[SEP]",
        )


def test_build_tokenizer_reads_a_vocabulary_file(tmp_path, tokenizer):
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    made = build_tokenizer(str(tmp_path / "vocab.txt"))
    assert made.get_vocab() == tokenizer.get_vocab() and made(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
        build_tokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3})


# -------------------------------------------------------------------------------------------------------------- saving


def test_round_trip(tmp_path, tokenizer):
    processor = SViTTEgoProcessor(SViTTEgoVideoProcessor(num_frames=7), tokenizer, text_cleaning="svitt")
    processor.save_pretrained(tmp_path)
    for loaded in (SViTTEgoProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is SViTTEgoProcessor and loaded.to_dict() == processor.to_dict()
        assert loaded.text_cleaning == "svitt" and loaded.video_processor.num_frames == 7
        assert loaded(text=TEXTS)["input_ids"] == processor(text=TEXTS)["input_ids"]


def test_saved_processor_works_without_the_package(tmp_path, tokenizer):
    folder = tmp_path / "saved"
    made = build_tokenizer(tokenizer.get_vocab(), add_sep=False)
    processor = SViTTEgoProcessor(SViTTEgoVideoProcessor(num_frames=2), made, text_cleaning="svitt")
    processor.save_pretrained(folder)
    copied = {path.name for path in folder.glob("*.py")}
    assert copied == VIDEO_FILES | {"processing_svitt_ego.py"}
    np.save(tmp_path / "clip.npy", frames_of(5))
    code = f"""
import numpy as np
from transformers import AutoProcessor, AutoTokenizer
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
batch = processor(videos=np.load("clip.npy"), text={TEXTS[0]!r}, return_tensors="pt")
print(batch["input_ids"].tolist(), batch["pixel_values_videos"].double().sum().item())
print(AutoTokenizer.from_pretrained({str(folder)!r})({TEXTS[1]!r})["input_ids"])
processor.save_pretrained("again")
"""
    here = processor(videos=frames_of(5), text=TEXTS[0], return_tensors="pt")
    lines = run_without_package(code, tmp_path).splitlines()
    assert lines[0] == f"{here['input_ids'].tolist()} {here['pixel_values_videos'].double().sum().item()}"
    assert lines[1] == str(made(TEXTS[1])["input_ids"])
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == copied
