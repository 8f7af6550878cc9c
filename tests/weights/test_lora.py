"""PEFT on our models: LoRA's default targets, one tower, heads, adapters on disk, merging, switching."""

import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model

from modeling_svitt_ego import (
    SViTTEgoConfig,
    SViTTEgoForPreTraining,
    SViTTEgoForVideoClassification,
    SViTTEgoForVideoTextRetrieval,
    SViTTEgoModel,
    SViTTEgoTextModel,
    SViTTEgoVisionModel,
    lora_target_modules,
)
from tests.helpers.tiny_model import HEADS, STILL, tiny_batch, tiny_clips, tiny_config, tiny_model

TOWERS = {"vision": "vision_model", "text": "text_model", "fusion": "fusion_model"}


def retrieval_model(**fields):
    return tiny_model(SViTTEgoForVideoTextRetrieval, **(STILL | fields))


def random_lora(model, seed=0, adapter="default", **fields):
    """An adapter that changes the outputs: a fresh one adds zero."""
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **fields), adapter_name=adapter).eval()


def scores(model):
    """Cosine and matching scores of a batch: what depends on every tower."""
    with torch.no_grad():
        outputs = model(**tiny_batch())
    return torch.cat([outputs.logits_per_video.flatten(), outputs.vtm_logits.flatten()])


def trainable(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


# ----------------------------------------------------------------------------------------------------- default targets


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_a_lora_config_without_target_modules_adapts_query_and_value_of_every_tower(cls):
    """Catches a model type that PEFT does not know: "Please specify `target_modules`"."""
    model = get_peft_model(tiny_model(cls, **STILL), LoraConfig(task_type="FEATURE_EXTRACTION"))
    names = trainable(model)
    assert {name.split(".lora_")[0].split(".")[-1] for name in names} == {"q_proj", "v_proj"}
    base = tiny_model(cls, **STILL)
    assert {t for t in TOWERS.values() if hasattr(base, t)} == {
        t for t in TOWERS.values() if any(f".{t}." in name for name in names)
    }


@pytest.mark.parametrize("tower", [SViTTEgoVisionModel, SViTTEgoTextModel], ids=lambda cls: cls.__name__)
def test_the_default_holds_for_a_tower_alone(tower):
    """Catches default names that only fit the whole model, and a sub-configuration's model type left out."""
    alone = getattr(tiny_model(SViTTEgoModel), tower.base_model_prefix)
    assert len(trainable(get_peft_model(alone, LoraConfig(task_type="FEATURE_EXTRACTION")))) == 2 * 2 * 2


@pytest.mark.parametrize("state", ["absent", "changed"])
def test_the_package_imports_where_peft_is_absent_or_has_changed(state):
    """Catches a hard dependency on PEFT, or on the place of its table."""
    script = {
        "absent": "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'peft' else f(name, *a)\n",
        "changed": "import peft.utils.constants as c; del c.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING\n",
    }[state]
    script += "import sys, modeling_svitt_ego; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(state == "changed")
    assert ("name them in LoraConfig" in done.stderr) == (state == "changed")


# ----------------------------------------------------------------------------------------------------------- one tower


@pytest.mark.parametrize("tower", TOWERS)
def test_lora_trains_one_tower_and_its_heads(tower, tmp_path):
    """Catches targets that reach another tower, a head that is left frozen or not saved, and a reload that differs."""
    head = {"vision": "video_projection", "text": "text_projection", "fusion": "vtm_head"}[tower]
    config = LoraConfig(
        r=2, target_modules=lora_target_modules(tower), modules_to_save=[head], task_type="FEATURE_EXTRACTION"
    )
    model = get_peft_model(retrieval_model(), config).train()
    names = trainable(model)
    assert any("lora_" in name for name in names)
    assert all((TOWERS[tower] in name and "lora_" in name) or head in name for name in names)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):  # twice: LoRA's A has no gradient while B is zero
        torch.manual_seed(seed)
        model(**tiny_batch(), return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not [name for name, value in frozen.items() if not torch.equal(value, after[name])]
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(retrieval_model(), tmp_path).eval()
    assert torch.equal(scores(loaded), scores(model))
    assert not torch.allclose(scores(loaded), scores(retrieval_model()))


def test_several_towers_and_every_linear_layer():
    targets = lora_target_modules("vision", "fusion", modules=("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"))
    names = trainable(get_peft_model(retrieval_model(), LoraConfig(r=2, target_modules=targets)))
    assert sum("vision_model" in name for name in names) == 2 * 6 * 2  # layers, linear layers, A and B
    assert sum("fusion_model" in name for name in names) == 2 * 10 * 2  # self- and cross-attention
    assert not any("text_model" in name for name in names)


@pytest.mark.parametrize(
    ("towers", "modules"), [(("video",), ("q_proj",)), ((), ("q_proj",)), (("text",), ("query",)), (("text",), "fc1")]
)
def test_a_wrong_name_is_answered_with_those_that_exist(towers, modules):
    with pytest.raises(ValueError, match="Name at least one (tower of vision, text, fusion|module of q_proj, k_proj)"):
        lora_target_modules(*towers, modules=modules)


# --------------------------------------------------------------------------------------------- merge, several, library


@pytest.mark.parametrize("tower", TOWERS)
def test_merging_and_unmerging_keep_the_outputs(tower):
    """Catches a layer that reads its projection's weight past PEFT's wrapper."""
    model = random_lora(retrieval_model(), target_modules=lora_target_modules(tower))
    adapted, plain = scores(model), scores(retrieval_model())
    assert not torch.allclose(adapted, plain, atol=1e-2)
    model.merge_adapter()
    torch.testing.assert_close(scores(model), adapted, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(scores(model), adapted, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(scores(model), plain, rtol=1e-4, atol=1e-4)


def test_a_merged_model_is_one_of_ours_and_saves_as_such(tmp_path):
    model = random_lora(retrieval_model(), modules_to_save=["vtm_head"])
    adapted = scores(model)
    merged = model.merge_and_unload()
    assert type(merged) is SViTTEgoForVideoTextRetrieval
    merged.save_pretrained(tmp_path)
    loaded, info = SViTTEgoForVideoTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(scores(loaded.eval()), adapted, rtol=1e-4, atol=1e-4)


def test_two_adapters_switch(tmp_path):
    """Catches an adapter that overwrites another's weights or head."""
    fields = {"modules_to_save": ["vtm_head"]}
    one = random_lora(retrieval_model(), 1, "one", target_modules=lora_target_modules("vision"), **fields)
    with torch.no_grad():
        one.base_model.model.vtm_head.modules_to_save["one"].weight.mul_(2)
    two = random_lora(retrieval_model(), 2, "two", target_modules=lora_target_modules("text"), **fields)
    expected = {"one": scores(one), "two": scores(two)}
    one.save_pretrained(tmp_path)
    two.save_pretrained(tmp_path)
    both = PeftModel.from_pretrained(retrieval_model(), tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", adapter_name="two")
    both.eval()
    for name in ("one", "two", "one"):
        both.set_adapter(name)
        assert torch.equal(scores(both), expected[name])


def test_two_adapters_act_at_once():
    model = random_lora(retrieval_model(), 1, "one", target_modules=lora_target_modules("vision"))
    torch.manual_seed(2)
    model.add_adapter("two", LoraConfig(r=2, init_lora_weights=False, target_modules=lora_target_modules("fusion")))
    alone = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = scores(model.eval())
    model.base_model.set_adapter(["one", "two"])
    together = scores(model.eval())
    cosines = 4 * 4  # only the vision adapter changes them; both change the matching scores
    torch.testing.assert_close(together[:cosines], alone["one"][:cosines])
    assert not torch.allclose(together[cosines:], alone["one"][cosines:])
    assert not torch.allclose(together[cosines:], alone["two"][cosines:])


def test_the_librarys_own_adapter_loading(tmp_path):
    """Catches model.load_adapter failing on our class; disabling gives the plain model back."""
    tuned = random_lora(retrieval_model(), target_modules=lora_target_modules("vision", "fusion"))
    tuned.save_pretrained(tmp_path)
    model = retrieval_model()
    plain = scores(model)
    model.load_adapter(str(tmp_path), adapter_name="kitchen")
    torch.testing.assert_close(scores(model), scores(tuned))
    model.disable_adapters()
    torch.testing.assert_close(scores(model), plain)
    model.enable_adapters()
    torch.testing.assert_close(scores(model), scores(tuned))
    model.save_pretrained(tmp_path / "again")  # the library saves the adapter alone
    assert torch.equal(scores(PeftModel.from_pretrained(retrieval_model(), tmp_path / "again").eval()), scores(tuned))


def test_add_adapter_of_the_library_knows_the_default_targets():
    model = retrieval_model()
    model.add_adapter(LoraConfig(r=2))
    assert trainable(model) and all("lora_" in name for name in trainable(model))


# ----------------------------------------------------------------------------------------------- gradients, file sizes


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_over_a_frozen_base_gives_the_same_adapter_gradients(use_reentrant):
    """Catches checkpointed layers whose inputs need no gradient: the adapters would silently learn nothing."""
    found = []
    for checkpointing in (False, True):
        model = random_lora(retrieval_model()).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(0)
        model(**tiny_batch(), return_loss=True).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = found
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_adapter_of_the_published_size_is_below_two_per_cent():
    """By parameter count; the weights stay on the meta device."""
    with torch.device("meta"):
        base = SViTTEgoForPreTraining(SViTTEgoConfig())
        size = sum(p.numel() for p in base.parameters())
        model = get_peft_model(base, LoraConfig(r=8))
    assert 0.001 < sum(p.numel() for p in model.parameters() if p.requires_grad) / size < 0.02


def test_the_adapter_file_is_below_two_per_cent_of_the_base(tmp_path):
    """A real file, at a width of 256: at the tests' own 32 an adapter of rank 2 is some 10 % of the model."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024}
    config = tiny_config(sizes, sizes | {"vocab_size": 2000}, sizes | {"encoder_hidden_size": 256})
    base = SViTTEgoForVideoTextRetrieval(config)
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=4)).save_pretrained(tmp_path / "adapter")
    adapter, whole = (
        (tmp_path / name).stat().st_size for name in ("adapter/adapter_model.safetensors", "base/model.safetensors")
    )
    assert adapter < 0.02 * whole


@pytest.mark.parametrize("loader", ["peft", "transformers"])
def test_a_classification_adapter_brings_its_head(loader, tmp_path):
    """Catches a classifier that is not part of the adapter."""
    if loader == "transformers" and Version(transformers.__version__) < Version("5.18"):
        pytest.skip("model.load_adapter leaves modules_to_save untrained (and says so) before transformers 5.18")
    cls = SViTTEgoForVideoClassification
    tuned = random_lora(tiny_model(cls, **STILL), modules_to_save=["classifier"])
    with torch.no_grad():
        tuned.base_model.model.classifier.modules_to_save["default"].weight.mul_(3)
        expected = tuned(pixel_values_videos=tiny_clips()).logits
    tuned.save_pretrained(tmp_path)
    model = tiny_model(cls, **STILL)
    with torch.no_grad():
        before = model(tiny_clips()).logits
        if loader == "transformers":
            model.load_adapter(str(tmp_path))
        else:
            model = PeftModel.from_pretrained(model, tmp_path).eval()
        torch.testing.assert_close(model(pixel_values_videos=tiny_clips()).logits, expected)
    assert not torch.allclose(before, expected)


def test_a_classifier_that_lora_leaves_frozen_is_said(caplog):
    """Catches a random head that neither trains nor is saved, as FEATURE_EXTRACTION alone leaves it."""
    transformers.utils.logging.warning_once.cache_clear()
    labels = torch.zeros(2, dtype=torch.long)

    def train_once(model):
        caplog.clear()
        model.train()(pixel_values_videos=tiny_clips(), labels=labels)
        return "modules_to_save=['classifier']" in caplog.text

    lora = {"task_type": "FEATURE_EXTRACTION", "r": 2}
    assert not train_once(tiny_model(SViTTEgoForVideoClassification))
    saved = LoraConfig(**lora, modules_to_save=["classifier"])
    assert not train_once(get_peft_model(tiny_model(SViTTEgoForVideoClassification), saved))
    probe = tiny_model(SViTTEgoForVideoClassification).requires_grad_(False)
    probe.classifier.requires_grad_(True)
    assert not train_once(probe)
    frozen = get_peft_model(tiny_model(SViTTEgoForVideoClassification), LoraConfig(**lora))
    assert train_once(frozen) and not train_once(frozen)
