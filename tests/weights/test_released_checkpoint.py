"""SViTT(-Ego) checkpoints in every wrapping, strict both ways; configurations off shapes; starting from BEiT, BERT.

The published files cannot be fetched where this was written: the recorded tiny models (tests/test_parity.py) and the
key lists at full size stand for them.
"""

import argparse
import json
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BeitConfig, BeitModel, BertConfig, BertForMaskedLM, BertModel, ViTConfig, ViTModel

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoForVideoTextRetrieval, SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.commands.convert import read_vocabulary
from modeling_svitt_ego.weights.released_checkpoint import (
    convert_state_dict,
    load_original_checkpoint,
    to_original_state_dict,
)
from modeling_svitt_ego.weights.released_config import (
    RELEASES,
    config_from_shapes,
    fields_from_settings,
    original_config,
)
from modeling_svitt_ego.weights.released_files import read_checkpoint
from modeling_svitt_ego.weights.tokenizer import build_tokenizer

SETTINGS = dict(num_random_blocks=3, num_local_blocks=1, block_size=12, keep_rate=0.7, prune_layers=[1, 3],
                fusion_keep_rate=0.5, fusion_prune_layers=[0])  # fmt: skip


@pytest.fixture(scope="module")
def state(shared_dir):
    """A pretraining file of the SViTT code: 5 + 2 + 2 layers, 4 heads, 4 frames of 48 px, 200 words."""
    tensors = load_file(shared_dir / "golden" / "A_dense.safetensors")
    return {key[11:]: tensor for key, tensor in tensors.items() if key.startswith("state_dict.")}


@pytest.fixture(scope="module")
def retrieval(state):
    return {key.replace("bert.", ""): x for key, x in state.items() if ".cls." not in key}


@torch.no_grad()
def outputs(model, frames=4):
    torch.manual_seed(1)
    video, ids = torch.randn(2, frames, 3, 48, 48), torch.randint(5, 200, (2, 7))
    out = model(video, ids)
    texts, videos = out.text_model_output.last_hidden_state, out.vision_model_output.last_hidden_state
    vtm_logits = model.match(texts, None, videos)
    return torch.cat([x.flatten() for x in (out.video_embeds, out.text_embeds, out.logits_per_video, vtm_logits)])


# --------------------------------------------------------------------------------------------------------- full size


def full_size(shared_dir, variant):
    """The release's keys, shapes and dtypes, without memory."""
    spec = json.loads((shared_dir / "golden" / f"state_dict_full_{variant}.json").read_text())
    return {key: torch.empty(x["shape"], dtype=getattr(torch, x["dtype"]), device="meta") for key, x in spec.items()}


@pytest.mark.parametrize(
    "variant,model_class,parameters",
    [("pretrain", SViTTEgoForPreTraining, 203_394_653), ("retrieval", SViTTEgoForVideoTextRetrieval, 202_772_003)],
)
def test_the_release_at_full_size_converts_with_nothing_left_over(variant, model_class, parameters, shared_dir):
    """203,394,653 is the count of the published code's model. Back again: its very keys, shapes and dtypes."""
    original = full_size(shared_dir, variant)
    model = load_original_checkpoint(original, num_frames=4)
    assert type(model) is model_class and not model.training
    assert model.num_parameters() == parameters
    describe = lambda tensors: {key: (tuple(x.shape), x.dtype) for key, x in tensors.items()}  # noqa: E731
    assert describe(to_original_state_dict(model)) == describe(original)


def test_the_release_has_the_published_settings(shared_dir):
    config = load_original_checkpoint(full_size(shared_dir, "pretrain")).config
    vision, text, fusion = config.vision_config, config.text_config, config.cross_modal_config
    assert (vision.num_local_blocks, vision.num_random_blocks, vision.block_size) == (1, 5, 56)
    assert (vision.keep_rate, vision.prune_layers, vision.num_frames) == (0.7, [3, 6, 9], 4)
    assert (fusion.keep_rate, fusion.prune_layers) == (0.1, [0])
    assert (text.num_hidden_layers, fusion.num_hidden_layers, config.projection_dim) == (9, 3, 256)
    assert vision.released_attention and config.temperature_init == 0.18

    config = load_original_checkpoint(full_size(shared_dir, "pretrain"), release="svitt", keep_rate=0.6).config
    assert (config.vision_config.num_random_blocks, config.vision_config.keep_rate) == (3, 0.6)
    assert (config.cross_modal_config.keep_rate, config.contrastive_loss) == (1.0, "info_nce")


# ------------------------------------------------------------------------------------------------------- strictness


def test_every_key_of_the_file_counts(state):
    """Leaving out any key, or adding one, is an error that names it; not so for buffers and tied tensors."""
    model = load_original_checkpoint(state, **SETTINGS)
    ours = model.state_dict()
    dropped = {key for key in state if key.endswith(("relative_position_index", "position_ids")) or ".decoder." in key}
    assert len(dropped) == 5 + 1 + 2
    for key in state:
        rest = {name: tensor for name, tensor in state.items() if name != key}
        if key in dropped:
            assert convert_state_dict(rest, ours, 2).keys() == ours.keys()
        else:
            with pytest.raises(ValueError, match=f"(?s)does not have.*{key}"):
                convert_state_dict(rest, ours, 2)
    for key in ("text_encoder.bert.pooler.dense.weight", "vision_encoder.encoder.layer.5.lambda_1", "queue"):
        with pytest.raises(ValueError, match=f"not known.*{key}"):
            convert_state_dict(state | {key: torch.zeros(1)}, ours, 2)


def test_a_tensor_of_another_shape_is_named(state):
    wrong = state | {"itm_head.weight": torch.zeros(3, 48)}
    with pytest.raises(ValueError, match=r"differ: itm_head.weight \(3, 48\) for vtm_head.weight \(2, 48\)"):
        load_original_checkpoint(wrong, **SETTINGS)


# ------------------------------------------------------------------------------------------------------- wrappings


TORCH = [(suffix, wrap) for suffix in (".pth", ".pt") for wrap in ("bare", "model", "state_dict", "model + module")]


@pytest.mark.parametrize("suffix,wrap", [*TORCH, (".safetensors", "bare"), (".safetensors", "module")])
def test_every_wrapping_gives_the_same_model(suffix, wrap, state, tmp_path):
    content = {f"module.{key}": x for key, x in state.items()} if "module" in wrap else state
    if "model" in wrap.split() or wrap == "state_dict":
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5}]}
        content = {wrap.split()[0]: content, "optimizer": optimizer, "epoch": 9, "global_step": 10}
    path = tmp_path / f"svitt{suffix}"
    if suffix == ".safetensors":
        save_file({key: tensor.clone() for key, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    expected = outputs(load_original_checkpoint(state, **SETTINGS))
    assert torch.equal(outputs(load_original_checkpoint(path, **SETTINGS)), expected)
    assert torch.equal(outputs(load_original_checkpoint(str(path), num_frames=4, **SETTINGS)), expected)


def test_files_from_before_the_zip_format_are_read(state, tmp_path):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth").state_dict.keys() == state.keys()


@torch.no_grad()
def test_retrieval_files_and_stripped_pretraining_files_are_read(state, retrieval):
    """Without `bert.` in the names; and so with the leftover MLM head, as the code's own renaming leaves it."""
    full = load_original_checkpoint(state, **SETTINGS)
    model = load_original_checkpoint(retrieval, **SETTINGS)
    assert type(model) is SViTTEgoForVideoTextRetrieval
    assert torch.equal(outputs(model), outputs(full))
    stripped = {key.replace("bert.", ""): x for key, x in state.items()}
    again = load_original_checkpoint(stripped, **SETTINGS)
    assert type(again) is SViTTEgoForPreTraining
    assert all(map(torch.equal, again.state_dict().values(), full.state_dict().values()))


def test_the_model_shares_no_memory_with_the_given_tensors(state):
    before = {key: tensor.clone() for key, tensor in state.items()}
    model = load_original_checkpoint(state, **SETTINGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_the_mlm_decoder_stays_tied(state):
    model = load_original_checkpoint(state, **SETTINGS)
    assert model.mlm_head.decoder.weight is model.text_model.embeddings.word_embeddings.weight


class Run:
    """Runs code when unpickled without weights_only."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_pickle_that_runs_code_is_refused_and_not_run(state, tmp_path):
    torch.save({"model": state, "config": Run(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="holds Python objects besides tensors.*refused"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    with pytest.raises(ValueError, match=r"\(argparse.Namespace\).*weights_only=False"):
        read_checkpoint(tmp_path / "args.pth")


def test_round_trip_through_the_old_names_is_bit_equal(state, retrieval):
    """A file of theirs comes back whole, buffers included; ours after training does too."""
    for original in (state, retrieval):
        model = load_original_checkpoint(original, **SETTINGS)
        back = to_original_state_dict(model)
        assert back.keys() == original.keys()
        for key, tensor in original.items():
            assert back[key].dtype == tensor.dtype and torch.equal(back[key], tensor), key

        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        again = load_original_checkpoint(to_original_state_dict(model, buffers=False), image_size=48, **SETTINGS)
        assert again.config.to_dict() == model.config.to_dict()
        for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values()):
            assert torch.equal(ours, theirs), name


# ---------------------------------------------------------------------------------------------------- configuration


def test_the_configuration_is_read_off_the_shapes(state):
    config = original_config(state, **SETTINGS)
    vision, text, fusion = config.vision_config, config.text_config, config.cross_modal_config
    assert (vision.num_frames, vision.image_size, vision.patch_size) == (4, 48, 8)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (48, 5, 4)
    assert (text.num_hidden_layers, fusion.num_hidden_layers, text.num_attention_heads) == (2, 2, 4)
    assert (text.vocab_size, text.max_position_embeddings, config.projection_dim) == (200, 40, 32)


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(num_frames=8), "made for 4 frames of 48 px, not for num_frames=8.*resize_frames"),
        (dict(image_size=224), "made for 4 frames of 48 px, not for image_size=224"),
        (dict(hidden_size=768), "vision_config.hidden_size is 48 in the checkpoint's weights, not 768"),
        (dict(num_attention_heads=6), "vision_config.num_attention_heads is 4"),
        (dict(num_hidden_layers=12), "vision_config.num_hidden_layers is 5"),
        (dict(projection_dim=256), "projection_dim is 32"),
        (dict(text_num_hidden_layers=9), "text_config.num_hidden_layers is 2"),
        (dict(cross_modal_config={"num_hidden_layers": 3}), "cross_modal_config.num_hidden_layers is 2"),
        (dict(keep_rates=0.7), "no configuration field 'keep_rates'; the nearest is 'keep_rate'"),
        (dict(release="svitt-large"), "must be one of svitt-ego, svitt"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_the_user_says_is_checked_against_the_shapes(fields, message, state):
    with pytest.raises(ValueError, match=message):
        load_original_checkpoint(state, **SETTINGS | fields)


def test_frames_are_found_without_the_position_index(shared_dir, state):
    """5106 rows also fit 32 frames of 80 px, 284 of 32 px …: 224 px is meant unless one says otherwise."""
    index = lambda tensors: {k: x for k, x in tensors.items() if not k.endswith("_index")}  # noqa: E731
    full = index(full_size(shared_dir, "pretrain"))
    assert config_from_shapes(full)["vision"]["num_frames"] == 4
    with pytest.raises(ValueError, match="made for 4 frames of 224 px, not for num_frames=32"):
        config_from_shapes(full, num_frames=32)
    assert config_from_shapes(full, 32, 80)["vision"]["num_frames"] == 32
    for known in (dict(num_frames=4), dict(image_size=48)):
        assert config_from_shapes(index(state), **known)["vision"]["image_size"] == 48
    with pytest.raises(ValueError, match="fits 424 frames of 8 px or 4 frames of 48 px: say which by image_size"):
        config_from_shapes(index(state))


@pytest.mark.parametrize("rows", [850 + 1, 3, 0])
def test_a_table_that_fits_nothing_is_refused(rows, state):
    key = "vision_encoder.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table"
    with pytest.raises(ValueError, match=f"has {rows} rows.*no number of square frames fits"):
        config_from_shapes(state | {key: torch.zeros(rows, 4)})


def test_sparsity_left_open_is_off_and_said_where_no_release_fits(state, caplog):
    """A tiny file is no release of 12 layers: its settings must not be guessed silently."""
    logger = logging.getLogger("modeling_svitt_ego.weights.released_config")
    logger.addHandler(caplog.handler)
    try:
        config = original_config(state, num_random_blocks=3, block_size=12)
    finally:
        logger.removeHandler(caplog.handler)
    assert config.vision_config.keep_rate == config.cross_modal_config.keep_rate == 1.0
    assert "vision_config.keep_rate" in caplog.text and "num_random_blocks" not in caplog.text


PUBLISHED_YAML = """
vit_type: beit
vision_encoder_args:
  token_keep_rate: 0.7
  token_keep_strategy: cls_attn
  token_drop_loc: [3, 6, 9]
  sparse_local_attn: 1
  sparse_random_attn: 3
  attn_block_size: 56
joint_encoder_args:
  token_keep_rate: 0.1
  token_drop_loc_xmodal: [1]
image_res: 224
embed_dim: 256
video_input: {num_frames: 4, reader: decord}
temp: 0.07
mlm_prob: 0.5
loss_weight: {itc: 1.0, mlm: 1.0, itm: 1.0}
optimizer: {lr: 3e-5}
"""


def test_a_run_configuration_means_what_the_code_does_with_it(shared_dir):
    """joint_encoder_args is read by no line of the SViTT code, so it prunes nothing."""
    settings = yaml.safe_load(PUBLISHED_YAML)
    config = original_config(full_size(shared_dir, "pretrain"), settings=settings)
    assert (config.vision_config.num_random_blocks, config.vision_config.keep_rate) == (3, 0.7)
    assert (config.cross_modal_config.keep_rate, config.temperature_init) == (1.0, 0.07)

    settings["text_encoder_args"] = {"token_keep_rate": 0.1, "token_drop_loc": [9, 10]}
    fields = fields_from_settings(settings, fusion_layer=9)
    assert (fields["fusion_keep_rate"], fields["fusion_prune_layers"]) == (0.1, [0, 1])

    settings["video_input"]["num_frames"] = 8
    with pytest.raises(ValueError, match="num_frames is 4 in the checkpoint's weights, but the run .* says 8"):
        original_config(full_size(shared_dir, "pretrain"), settings=settings)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"vision_encoder_args": {"token_3d_order": "zcurve"}}, "token_3d_order can only be 'none'"),
        ({"vision_encoder_args": {"keep_rate": 0.7}}, "not known: vision_encoder_args.keep_rate"),
        ({"vit_type": "deit"}, "only 'beit'"),
    ],
)
def test_a_run_configuration_that_we_cannot_follow_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fields_from_settings({"vision_encoder_args": {}} | change, 9)


def test_a_training_checkpoints_own_configuration_is_used(state, tmp_path):
    settings = {"vision_encoder_args": {"sparse_random_attn": 2, "attn_block_size": 24}, "image_res": 48}
    torch.save({"model": state, "config": settings}, tmp_path / "run.pth")
    vision = load_original_checkpoint(tmp_path / "run.pth").config.vision_config
    assert (vision.num_random_blocks, vision.block_size, vision.keep_rate) == (2, 24, 1.0)
    vision = load_original_checkpoint(tmp_path / "run.pth", num_random_blocks=1).config.vision_config
    assert vision.num_random_blocks == 1


# ------------------------------------------------------------------------------------------------- the convert command


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "svitt-tiny.pth"
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "c", "picks", "up", "the", "cup", "#", "'", "s"]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(words + [f"word{i}" for i in range(200 - len(words))]) + "\n")
    return path


OPTIONS = ["--num-random-blocks", "3", "--num-local-blocks", "1", "--block-size", "12", "--keep-rate", "0.7",
           "--prune-layers", "1", "3", "--fusion-keep-rate", "0.5", "--fusion-prune-layers", "0"]  # fmt: skip


def run(*arguments):
    return main(["convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def converted(checkpoint, vocabulary, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "deep" / "tiny"
    assert run(checkpoint, out, "--tokenizer", vocabulary, *OPTIONS) == 0
    return out


FRESH_PROCESS = """
import sys, torch
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor
folder, inputs, result = sys.argv[1:]
assert "modeling_svitt_ego" not in sys.modules
model = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True).eval()
dual = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
batch = torch.load(inputs)
with torch.no_grad():
    out = model(**batch)
    assert torch.equal(dual(**batch).logits_per_video, out.logits_per_video)
text = processor(text=["#C C picks up the cup's #cup!"])["input_ids"]
torch.save({"video": out.video_embeds, "logits": out.logits_per_video, "text": text}, result)
"""


def test_the_folder_loads_in_a_process_without_this_package(converted, state, vocabulary, tmp_path):
    """AutoModel, AutoModelForPreTraining and AutoProcessor from the folder alone, with the same outputs."""
    batch = {"pixel_values_videos": torch.randn(2, 4, 3, 48, 48), "input_ids": torch.randint(5, 200, (2, 7))}
    torch.save(batch, tmp_path / "in.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    script = tmp_path / "fresh.py"
    script.write_text(FRESH_PROCESS)
    subprocess.run(
        [sys.executable, script, converted, tmp_path / "in.pt", tmp_path / "out.pt"],
        check=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    result = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        expected = load_original_checkpoint(state, **SETTINGS)(**batch)
    assert torch.equal(result["video"], expected.video_embeds)
    assert torch.equal(result["logits"], expected.logits_per_video)
    # [CLS] c c picks up the cups cup: lower case, without punctuation and without [SEP]
    ids = {word: i for i, word in enumerate(vocabulary.read_text().split())}
    assert list(result["text"][0]) == [ids[w] for w in ("[CLS]", "c", "c", "picks", "up", "the", "[UNK]", "cup")]


def test_the_folder_records_how_the_release_behaves(converted):
    config = json.loads((converted / "config.json").read_text())
    assert config["vision_config"]["released_attention"] is True
    assert (config["text_config"]["cls_token_id"], config["text_config"]["mask_token_id"]) == (2, 4)
    processor = json.loads((converted / "processor_config.json").read_text())
    video = processor["video_processor"]
    assert processor["text_cleaning"] == "svitt" and video["antialias"] is False
    assert video["size"] == {"height": 48, "width": 48} and video["num_frames"] == 4
    assert video["image_mean"] == video["image_std"] == [0.5, 0.5, 0.5]
    assert set(config["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoModelForPreTraining"}


def test_convert_re_bases_to_more_frames(checkpoint, tmp_path, capsys, state):
    """`--num-frames 8 --keep-rate 0.4` is the temporal expansion; the video processor samples 8 frames."""
    options = [*OPTIONS, "--num-frames", "8", "--keep-rate", "0.4", "--tokenizer", "none"]
    assert run(checkpoint, tmp_path / "out", *options, "--time-mode", "released") == 0
    assert "resampled from 4 to 8 frames (released)" in capsys.readouterr().out
    model = SViTTEgoForPreTraining.from_pretrained(tmp_path / "out").eval()
    expected = load_original_checkpoint(state, **SETTINGS).resize_frames(8, "released", 0.4)
    assert torch.equal(outputs(model, 8), outputs(expected, 8))
    (saved,) = (tmp_path / "out").glob("*processor*config.json")
    assert json.loads(saved.read_text())["num_frames"] == 8


def test_convert_reads_a_run_configuration(checkpoint, tmp_path, capsys):
    edges = {"sparse_random_attn": 2, "attn_block_size": 24}
    content = {"vision_encoder_args": edges, "video_input": {"num_frames": 4}}
    options = ["--tokenizer", "none", "--overwrite"]
    for name, text in (("run.yaml", yaml.safe_dump(content)), ("run.json", json.dumps(content))):
        (tmp_path / name).write_text(text)
        assert run(checkpoint, tmp_path / "out", "--config", tmp_path / name, *options) == 0
        assert "(K_l, K_r, G) = (1, 2, 24)" in capsys.readouterr().out


def test_dense_attention_can_be_asked_for(checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "out", "--num-random-blocks", "none", "--tokenizer", "none") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["num_random_blocks"] is None


def truncated(path, source):
    path.write_bytes(source.read_bytes()[:-1000])


def resnet(path, source):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, path)


def text_file(path, source):
    path.write_text("<html>404</html>")


def empty(path, source):
    torch.save({}, path)


def one_tensor(path, source):
    torch.save(torch.zeros(3), path)


def pickled(path, source):
    with open(path, "wb") as file:
        pickle.dump({"a": 1}, file, protocol=2)


def zip_file(path, source):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no tensors")


def numbers(path, source):
    torch.save({"model": {"epoch": 3}}, path)


def other_width(path, source):
    state = torch.load(source)["model"]
    torch.save(state | {"text_proj.weight": torch.zeros(32, 64)}, path)


def folder(path, source):
    path.mkdir()


def nothing(path, source):
    pass


def text_only(path, source):
    torch.save({k: x for k, x in torch.load(source)["model"].items() if k.startswith("text_encoder")}, path)


@pytest.mark.parametrize(
    "make,message",
    [
        (truncated, "is damaged or not a PyTorch file"),
        (resnet, "Not a SViTT checkpoint: among its 2 keys (conv1.weight, layer1.0.conv1.weight"),
        (text_file, "is damaged or not a PyTorch file"),
        (empty, "holds no state dict but nothing"),
        (one_tensor, "holds no state dict but Tensor"),
        (pickled, "is damaged or not a PyTorch file"),
        (zip_file, "is damaged or not a PyTorch file"),
        (numbers, "holds no state dict: epoch"),
        (other_width, "shapes that differ: text_proj.weight (32, 64)"),
        (folder, "is a folder; give the checkpoint file"),
        (nothing, "does not exist"),
        (text_only, "Not a SViTT checkpoint"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_bad_files_give_one_clear_line_and_leave_nothing(make, message, checkpoint, tmp_path, capsys):
    path, out = tmp_path / "file.pth", tmp_path / "out"
    make(path, checkpoint)
    before = sorted(tmp_path.iterdir())
    assert run(path, out, *OPTIONS, "--tokenizer", "none") == 2
    error = capsys.readouterr().err
    assert error.startswith("svitt-ego convert: ") and error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def test_three_local_blocks_are_converted_with_the_released_pairing_and_a_note(checkpoint, tmp_path, capsys):
    """Catches a converted model that differs from the SViTT code without a word."""
    options = [*OPTIONS, "--tokenizer", "none"]
    assert run(checkpoint, tmp_path / "one", *options) == 0
    assert "note: with" not in capsys.readouterr().out
    assert run(checkpoint, tmp_path / "three", *options, "--num-local-blocks", "3", "--num-random-blocks", "1") == 0
    assert "note: with 3 local blocks the SViTT code" in capsys.readouterr().out
    config = AutoConfig.from_pretrained(tmp_path / "three").vision_config
    assert config.released_attention and config.num_mirrored_blocks == 3


def test_bad_safetensors_and_other_files_are_refused(state, tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file({key: tensor.clone() for key, tensor in state.items()}, whole)
    for name, content, message in (
        ("cut.safetensors", whole.read_bytes()[:-1000], "is damaged or not a safetensors file"),
        ("page.safetensors", b"<html>404</html>", "is damaged or not a safetensors file"),
        ("weights.zip", whole.read_bytes(), "is not a checkpoint by its name"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--keep-rate", "1.5"], "--keep-rate (1.5) must be above 0 and at most 1"),
        (["--prune-layers", "9"], "prune_layers names layer 9, but there are 5 layers"),
        (["--num-frames", "0"], "--num-frames (0) must be at least 1"),
        (["--image-size", "224"], "made for 4 frames of 48 px, not for image_size=224"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["--tokenizer", "/absent/folder"], "tokenizer '/absent/folder' cannot be loaded"),
        (["--num-local-blocks", "2"], "num_local_blocks (2) must be odd or 0"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_bad_options_give_one_clear_line_and_leave_nothing(options, message, checkpoint, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "out", *OPTIONS, "--tokenizer", "none", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_cannot_be_fetched_is_one_clear_line(checkpoint, tmp_path, capfd, monkeypatch):
    """The default comes from the Hub: without a network that must say what to do, and leave nothing."""

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    assert run(checkpoint, tmp_path / "out", *OPTIONS) == 2
    error = capfd.readouterr().err
    assert "'bert-base-uncased' cannot be loaded" in error and "--tokenizer" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_vocabulary_comes_from_files_folders_and_saved_tokenizers(vocabulary, tmp_path):
    """vocab.txt, its folder, and what save_pretrained wrote give the same ids."""
    saved = tmp_path / "saved"
    build_tokenizer(str(vocabulary)).save_pretrained(saved)
    expected = {token: i for i, token in enumerate(vocabulary.read_text().split())}
    for source in (vocabulary, vocabulary.parent, saved):
        assert read_vocabulary(str(source)) == expected


def test_a_tokenizer_of_another_model_is_refused(checkpoint, tmp_path, capsys):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(300))]
    build_tokenizer({token: i for i, token in enumerate(tokens)}).save_pretrained(tmp_path / "large")
    assert run(checkpoint, tmp_path / "out", *OPTIONS, "--tokenizer", tmp_path / "large") == 2
    assert "ids up to 304, but the checkpoint embeds 200 tokens" in capsys.readouterr().err
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert run(checkpoint, tmp_path / "out", *OPTIONS, "--tokenizer", tmp_path / "vocab.txt") == 2
    assert "lacks [PAD], [CLS], [MASK]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept_unless_asked(converted, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for options, message in (([], "--overwrite replaces it"), (["--overwrite"], "is not the folder of a model")):
        assert run(checkpoint, out, *OPTIONS, "--tokenizer", "none", *options) == 2
        assert message in capsys.readouterr().err
        assert (out / "notes.txt").read_text() == "mine"
    (out / "config.json").write_text("{}")
    assert run(checkpoint, out, *OPTIONS, "--tokenizer", "none", "--overwrite") == 0
    assert not (out / "notes.txt").exists() and (out / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_while_writing_leaves_the_old_folder(checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")

    def full(self, folder, **kwargs):
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(SViTTEgoForPreTraining, "save_pretrained", full)
    assert run(checkpoint, out, *OPTIONS, "--tokenizer", "none", "--overwrite") == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["config.json"] and list(tmp_path.iterdir()) == [out]


# ------------------------------------------------------------------------------------------------- from BEiT and BERT


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders that transformers itself saved: BEiT of 3 layers with random tables, BERT of 4."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    layer = dict(hidden_size=32, num_attention_heads=4, intermediate_size=64, initializer_range=0.2)
    vision = dict(num_hidden_layers=3, image_size=32, patch_size=8, use_relative_position_bias=True)
    beit = BeitModel(BeitConfig(**layer, **vision))
    bert = BertForMaskedLM(BertConfig(**layer, num_hidden_layers=4, vocab_size=150))
    with torch.no_grad():
        for model in (beit, bert):
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    beit.save_pretrained(folder / "beit")
    bert.save_pretrained(folder / "bert")
    bert.bert.save_pretrained(folder / "bert-without-head")
    return folder


DENSE = dict(num_random_blocks=None, keep_rate=1.0, prune_layers=[])


@torch.no_grad()
def test_one_frame_without_sparsity_is_beit(encoders):
    model = SViTTEgoModel.from_encoders(str(encoders / "beit"), str(encoders / "bert"), num_frames=1, **DENSE).eval()
    beit = BeitModel.from_pretrained(encoders / "beit").eval()
    image = torch.randn(2, 3, 32, 32)
    expected = beit(image, output_hidden_states=True)
    out = model.vision_model(image[:, None], output_hidden_states=True)
    for ours, theirs in zip(out.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layers", [3, 1])
def test_the_text_tower_is_bert_cut(layers, encoders):
    """3 of 4 is the default (BERT-base: 9 of 12); padding included."""
    more = {} if layers == 3 else {"num_text_layers": layers}
    vision, text = str(encoders / "beit"), str(encoders / "bert")
    model = SViTTEgoForPreTraining.from_encoders(vision, text, 4, **more, **DENSE).eval()
    assert len(model.text_model.layers) == layers and len(model.fusion_model.layers) == 4 - layers
    bert = BertModel.from_pretrained(encoders / "bert", add_pooling_layer=False).eval()
    ids = torch.randint(5, 150, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    out = model.text_model(ids, attention_mask=mask).last_hidden_state
    expected = bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states[layers]
    torch.testing.assert_close(out[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)
    fused, cut = model.fusion_model.layers[0].attention, bert.encoder.layer[layers].attention
    assert torch.equal(fused.q_proj.weight, cut.self.query.weight)


@torch.no_grad()
def test_the_mlm_head_is_berts(encoders):
    model = SViTTEgoForPreTraining.from_encoders(str(encoders / "beit"), str(encoders / "bert"), 4, **DENSE)
    bert = BertForMaskedLM.from_pretrained(encoders / "bert")
    states = torch.randn(2, 5, 32)
    torch.testing.assert_close(model.mlm_head(states), bert.cls(states), rtol=0, atol=1e-5)
    assert model.mlm_head.decoder.weight is model.text_model.embeddings.word_embeddings.weight


def test_new_parameters_are_named(encoders):
    """Exactly what neither encoder has; a BERT without its head adds the MLM head's transform."""
    vision, text = str(encoders / "beit"), str(encoders / "bert")
    dual = SViTTEgoModel.from_encoders(vision, text, 4, **DENSE)
    modules = ("vision_model.layernorm", "video_projection", "text_projection")
    expected = {f"{module}.{part}" for module in modules for part in ("weight", "bias")} | {"temperature"}
    assert set(dual.new_parameters) == expected

    full = SViTTEgoForPreTraining.from_encoders(vision, text, 4, **DENSE)
    more = set(full.new_parameters) - expected
    assert more == {name for name, _ in full.named_parameters() if ".cross_attention." in name or "vtm_head" in name}

    headless = SViTTEgoForPreTraining.from_encoders(vision, str(encoders / "bert-without-head"), 4, **DENSE)
    assert set(headless.new_parameters) - set(full.new_parameters) == {
        "mlm_head.dense.weight", "mlm_head.dense.bias", "mlm_head.layernorm.weight", "mlm_head.layernorm.bias",
        "mlm_head.decoder.bias",
    }  # fmt: skip


@torch.no_grad()
def test_four_equal_frames_see_beits_bias_between_any_two(encoders):
    """2-D to 3-D: every dt repeats BEiT's table; another picture size resizes it by BEiT's rule."""
    beit = BeitModel.from_pretrained(encoders / "beit")
    table = beit.layers[1].relative_position_bias.relative_position_bias_table
    sparse = dict(num_random_blocks=1, block_size=8, keep_rate=0.7, prune_layers=[1], fusion_keep_rate=0.5)
    model = SViTTEgoModel.from_encoders(str(encoders / "beit"), str(encoders / "bert"), num_frames=4, **sparse)
    ours = model.vision_model.layers[1].attention.relative_position_bias_table
    assert torch.equal(ours, torch.cat([table[:-3]] * 7 + [table[-3:]]))
    assert (model.config.vision_config.keep_rate, model.config.cross_modal_config.keep_rate) == (0.7, 0.5)
    larger = SViTTEgoModel.from_encoders(str(encoders / "beit"), str(encoders / "bert"), 1, image_size=48, **DENSE)
    assert len(larger.vision_model.layers[0].attention.relative_position_bias_table) == 11**2 + 3


def test_encoders_that_do_not_fit_are_refused(encoders, tmp_path):
    vision, text = str(encoders / "beit"), str(encoders / "bert")
    tiny = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32)
    ViTModel(ViTConfig(**tiny)).save_pretrained(tmp_path / "vit")
    absolute = BeitConfig(**tiny, patch_size=8, use_absolute_position_embeddings=True)
    BeitModel(absolute).save_pretrained(tmp_path / "absolute")
    for arguments, fields, message in (
        ((str(tmp_path / "vit"), text), {}, "is a 'vit' model; this needs a 'beit' one"),
        ((text, vision), {}, "is a 'bert' model; this needs a 'beit' one"),
        ((str(tmp_path / "absolute"), text), {}, "absolute position embeddings"),
        ((vision, text), {"num_text_layers": 5}, "must be from 1 to 4"),
        ((vision, text), {"text_num_attention_heads": 8}, "text_config.num_attention_heads is 4 in the encoder"),
        ((vision, text), {"keeprate": 0.5}, "nearest is 'keep_rate'"),
    ):
        with pytest.raises(ValueError, match=message):
            SViTTEgoModel.from_encoders(*arguments, **DENSE | fields)


def test_incomplete_encoder_weights_are_refused(encoders, tmp_path):
    for file in (encoders / "bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.2.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not complete: bert.encoder.layer.2.output.dense.weight missing"):
        SViTTEgoModel.from_encoders(str(encoders / "beit"), str(tmp_path), **DENSE)


def test_a_model_from_encoders_survives_saving(encoders, tmp_path):
    model = SViTTEgoForPreTraining.from_encoders(str(encoders / "beit"), str(encoders / "bert"), 4, **DENSE)
    model.save_pretrained(tmp_path)
    again = SViTTEgoForPreTraining.from_pretrained(tmp_path)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_the_releases_are_known_by_their_published_names():
    assert set(RELEASES) == {"svitt-ego", "svitt"}
