"""Loading and saving: every class from every checkpoint, every Auto class, and the library's loading options."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
)

import modeling_svitt_ego as package
from modeling_svitt_ego import (
    SViTTEgoConfig,
    SViTTEgoForMultipleChoice,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
    SViTTEgoTextModel,
    SViTTEgoVisionModel,
)
from tests.helpers.tiny_model import HEADS, tiny_batch, tiny_clips, tiny_config, tiny_model

AUTO = {
    AutoModel: SViTTEgoModel,
    AutoModelForPreTraining: SViTTEgoForPreTraining,
    AutoModelForMultipleChoice: SViTTEgoForMultipleChoice,
    AutoModelForVideoClassification: SViTTEgoForVideoClassification,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One saved checkpoint per class."""
    folders = {}
    for cls in HEADS:
        folders[cls] = tmp_path_factory.mktemp(cls.__name__)
        tiny_model(cls, num_labels=3).save_pretrained(folders[cls])
    return folders


@pytest.mark.parametrize("loaded", HEADS, ids=lambda cls: cls.__name__)
def test_a_key_that_no_class_knows_is_reported(folders, tmp_path, loaded):
    """Catches patterns so wide that a renamed weight is dropped in silence."""
    shutil.copytree(folders[SViTTEgoForPreTraining], tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    strange = {"vision_model.encoder.gamma": torch.zeros(1), "vtm_heads.weight": torch.zeros(1)}
    save_file(load_file(path) | strange, path, metadata={"format": "pt"})
    _, info = loaded.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert set(info["unexpected_keys"]) == strange.keys()


@pytest.mark.parametrize("saved", HEADS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("loaded", HEADS, ids=lambda cls: cls.__name__)
def test_any_class_loads_from_the_checkpoint_of_any_other(folders, saved, loaded):
    """Catches parts under different names: exactly what the other class does not have is new, the rest is equal."""
    model, info = loaded.from_pretrained(folders[saved], output_loading_info=True)
    theirs, ours = tiny_model(saved, num_labels=3).state_dict(), model.state_dict()
    tied = {"mlm_head.decoder.weight"} if "text_model.embeddings.word_embeddings.weight" in theirs else set()
    assert info["missing_keys"] == ours.keys() - theirs.keys() - tied
    assert not info["unexpected_keys"], "parts of another class are expected"
    assert not info["mismatched_keys"]
    for name in ours.keys() & theirs.keys():
        assert torch.equal(ours[name], theirs[name]), name
    assert all(tensor.isfinite().all() for tensor in ours.values())


@pytest.mark.parametrize("tower", [SViTTEgoVisionModel, SViTTEgoTextModel], ids=["vision", "text"])
def test_a_tower_loads_from_a_whole_checkpoint_and_alone(folders, tower, tmp_path):
    """Catches a tower that starts over because its prefix is not stripped."""
    name = tower.base_model_prefix
    whole = getattr(tiny_model(SViTTEgoForPreTraining), name).state_dict()
    model, info = tower.from_pretrained(folders[SViTTEgoForPreTraining], output_loading_info=True)
    assert not info["missing_keys"]
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is tower
    for loaded in (model, tower.from_pretrained(tmp_path)):
        assert loaded.state_dict().keys() == whole.keys()
        assert all(torch.equal(value, whole[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("saved", HEADS, ids=lambda cls: cls.__name__)
def test_config_json_lists_every_head_whichever_class_was_saved(folders, saved):
    """Catches transformers' own behaviour: auto_map names only the class that was saved, the others cannot load."""
    listed = json.loads((folders[saved] / "config.json").read_text())["auto_map"]
    assert listed == {"AutoConfig": "configuration_svitt_ego.SViTTEgoConfig"} | {
        auto.__name__: f"modeling_svitt_ego.{cls.__name__}" for auto, cls in AUTO.items()
    }


def test_auto_classes_with_the_package_imported(folders):
    """Catches a class that is not registered: no trust_remote_code is needed here."""
    folder = folders[SViTTEgoForPreTraining]
    assert type(AutoConfig.from_pretrained(folder)) is SViTTEgoConfig
    for auto, cls in AUTO.items():
        assert type(auto.from_pretrained(folder)) is cls
        assert type(auto.from_config(tiny_config())) is cls


CLEAN_PROCESS = """
import sys
sys.modules["modeling_svitt_ego"] = None  # an import of the package fails
try:
    import modeling_svitt_ego
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported: this process proves nothing")
import torch
import transformers
saved, again = sys.argv[1:]
inputs = torch.load(saved + "/inputs.pt")
config = transformers.AutoConfig.from_pretrained(saved, trust_remote_code=True)
assert config.vision_config.num_random_blocks == 3
torch.set_num_threads(1)
results = {}
for name in ("AutoModel", "AutoModelForPreTraining", "AutoModelForMultipleChoice", "AutoModelForVideoClassification"):
    model = getattr(transformers, name).from_pretrained(saved, trust_remote_code=True).eval()
    assert "transformers_modules" in type(model).__module__
    with torch.no_grad():
        out = model(**inputs[name])
    results[name] = type(model).__name__, out["logits_per_video" if "logits_per_video" in out else "logits"]
model.save_pretrained(again)
reloaded = transformers.AutoModelForVideoClassification.from_pretrained(again, trust_remote_code=True).eval()
with torch.no_grad():
    results["again"] = type(reloaded).__name__, reloaded(**inputs[name])["logits"]
torch.save(results, saved + "/results.pt")
"""


def test_remote_code_loads_every_auto_class_where_the_package_is_not_installed(folders, tmp_path):
    """Catches a file missing from the Hub folder, and an import that works only where the package is installed."""
    saved = folders[SViTTEgoForVideoClassification]  # the class with the fewest parts
    batch = {key: value for key, value in tiny_batch(2).items() if not key.endswith("tags")}
    choice = batch | {"pixel_values_videos": tiny_clips(6).unflatten(0, (2, 3))}
    clips = {"pixel_values_videos": batch["pixel_values_videos"]}
    inputs = dict(zip([auto.__name__ for auto in AUTO], (batch, batch, choice, clips)))
    torch.save(inputs, saved / "inputs.pt")
    clean = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", CLEAN_PROCESS, str(saved), str(tmp_path / "again")]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(saved / "results.pt")
    assert [results[auto.__name__][0] for auto in AUTO] == [cls.__name__ for cls in AUTO.values()]
    local = SViTTEgoForVideoClassification.from_pretrained(saved).eval()
    with torch.no_grad():
        expected = local(**clips).logits
    torch.testing.assert_close(results["AutoModelForVideoClassification"][1], expected)
    torch.testing.assert_close(results["again"][1], expected)


# ----------------------------------------------------------------------------------------------------- loading options


def test_sharded_saving(tmp_path):
    """Catches tied or shared tensors that get lost between shards."""
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded, info = SViTTEgoForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [{"device_map": "auto"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"low_cpu_mem_usage": True}],
    ids=str,
)
def test_device_map_and_memory_options_give_the_same_model(folders, options):
    """Catches values computed in __init__ that the meta device turns into garbage."""
    device = "cuda" if options.get("device_map") == "auto" and torch.cuda.is_available() else "cpu"
    batch = {key: value.to(device) for key, value in tiny_batch().items()}
    cls = SViTTEgoForVideoTextRetrieval
    model = cls.from_pretrained(folders[cls], **options).eval()
    with torch.no_grad():
        out, expected = model(**batch), tiny_model(cls, num_labels=3)(**tiny_batch())
    for name in ("vtm_logits", "logits_per_video"):
        torch.testing.assert_close(out[name].cpu(), expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "auto"], ids=str)
def test_dtype_at_loading(folders, dtype, tmp_path):
    """Catches a parameter or buffer that stays in another type, so that the first product fails."""
    folder = folders[SViTTEgoForPreTraining]
    if dtype == "auto":
        folder = tmp_path
        tiny_model().bfloat16().save_pretrained(folder)
    model = SViTTEgoForPreTraining.from_pretrained(folder, dtype=dtype).train()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    loss = model(**tiny_batch(), return_loss=True).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attn_implementation_reaches_every_tower(folders, implementation):
    """Catches a tower whose sub-configuration keeps None: padding would be ignored there."""
    cls = SViTTEgoForVideoTextRetrieval
    model = cls.from_pretrained(folders[cls], attn_implementation=implementation).eval()
    for tower in (model.vision_model, model.text_model, model.fusion_model):
        assert tower.config._attn_implementation == implementation
        assert {m.config._attn_implementation for m in tower.modules() if hasattr(m, "config")} == {implementation}
    with torch.no_grad():
        out, expected = model(**tiny_batch()), tiny_model(cls, num_labels=3)(**tiny_batch())
    torch.testing.assert_close(out.vtm_logits, expected.vtm_logits, rtol=1e-3, atol=1e-4)


def test_attn_implementation_per_tower(folders):
    """Catches a dict of implementations being flattened to one."""
    model = SViTTEgoModel.from_pretrained(
        folders[SViTTEgoModel], attn_implementation={"vision_config": "eager", "text_config": "sdpa"}
    )
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.text_model.config._attn_implementation == "sdpa"


def test_num_labels_and_label_names_survive(tmp_path):
    """Catches a classifier that comes back with two classes."""
    names = {0: "cut", 1: "wash", 2: "open"}
    model = SViTTEgoForVideoClassification(tiny_config(id2label=names, label2id={v: k for k, v in names.items()}))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == names and loaded.classifier.out_features == 3


def test_every_public_name_exists():
    """Catches __all__ naming what is gone."""
    assert all(hasattr(package, name) for name in package.__all__)
