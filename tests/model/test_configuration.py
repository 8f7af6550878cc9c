"""The configurations: published defaults, values that cannot work, unknown keys, saving and loading."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_svitt_ego import SViTTEgoConfig, SViTTEgoFusionConfig, SViTTEgoTextConfig, SViTTEgoVisionConfig
from modeling_svitt_ego.model import configuration_base
from modeling_svitt_ego.model.configuration_svitt_ego import num_kept_tokens
from tests.helpers.tiny_model import FUSION, TEXT, VISION, tiny_config, tiny_vision_config


def test_defaults_are_the_published_settings():
    """Catches a default that drifts from the paper: (K_l, K_r, G), q_v, q_m, tower depths, projection."""
    config = SViTTEgoConfig()
    vision, text, fusion = config.vision_config, config.text_config, config.cross_modal_config
    assert (vision.num_local_blocks, vision.num_random_blocks, vision.block_size) == (1, 3, 56)
    assert vision.num_temporal_blocks == 0
    assert (vision.keep_rate, vision.prune_layers, vision.num_frames, vision.image_size) == (0.7, [3, 6, 9], 4, 224)
    assert (fusion.keep_rate, fusion.prune_layers, config.projection_dim) == (0.1, [0], 256)
    assert (vision.num_hidden_layers, text.num_hidden_layers, fusion.num_hidden_layers) == (12, 9, 3)
    assert not vision.released_attention


def test_tokens_per_layer_are_those_of_the_published_model():
    """Catches a wrong rounding or a pruning layer off by one: 784, 549, 385, 270 tokens."""
    config = SViTTEgoVisionConfig()
    assert config.tokens_per_layer() == [784] * 4 + [549] * 3 + [385] * 3 + [270] * 2
    assert config.tokens_per_layer(1)[-1] == 68
    assert num_kept_tokens(1, 0.01) == 1


@pytest.mark.parametrize(
    ("make", "fields", "says"),
    [
        (tiny_vision_config, {"hidden_size": 30}, ["hidden_size (30)", "num_attention_heads (4)"]),
        (tiny_vision_config, {"image_size": 30}, ["image_size (30)", "patch_size (8)"]),
        (tiny_vision_config, {"num_frames": 0}, ["num_frames (0)", "1"]),
        (tiny_vision_config, {"num_local_blocks": 2}, ["num_local_blocks (2)", "odd or 0"]),
        (tiny_vision_config, {"num_local_blocks": -1}, ["num_local_blocks (-1)", "odd or 0"]),
        (tiny_vision_config, {"num_random_blocks": -1}, ["num_random_blocks (-1)", "0"]),
        (tiny_vision_config, {"num_random_blocks": 8}, ["1 + 0 + 8 = 9", "8 blocks", "64 tokens", "block_size 8"]),
        (tiny_vision_config, {"num_temporal_blocks": 1}, ["num_temporal_blocks (1)", "even"]),
        (tiny_vision_config, {"num_temporal_blocks": -2}, ["num_temporal_blocks (-2)", "even"]),
        (tiny_vision_config, {"num_temporal_blocks": 6}, ["1 + 6 + 3 = 10", "8 blocks"]),
        (
            tiny_vision_config,
            {"num_temporal_blocks": 2, "released_attention": True},
            ["num_temporal_blocks (2)", "released_attention"],
        ),
        (tiny_vision_config, {"block_size": 0}, ["block_size (0)", "1"]),
        (tiny_vision_config, {"keep_rate": 0.0}, ["keep_rate (0.0)", "(0, 1]"]),
        (tiny_vision_config, {"keep_rate": 1.5}, ["keep_rate (1.5)", "(0, 1]"]),
        (tiny_vision_config, {"prune_layers": [1, 2]}, ["layer 2", "2 layers"]),
        (tiny_vision_config, {"prune_layers": [1, 0]}, ["[1, 0]", "increasing"]),
        (tiny_vision_config, {"prune_layers": [-1]}, ["[-1]", "zero-based"]),
        (tiny_vision_config, {"keep_strategy": "avg_attn"}, ["avg_attn", "cls_attn, random"]),
        (tiny_config, {"text": {"hidden_size": 33}}, ["hidden_size (33)", "num_attention_heads (4)"]),
        (tiny_config, {"fusion": {"keep_strategy": "random"}}, ["random", "cls_attn, avg_attn"]),
        (tiny_config, {"fusion": {"prune_layers": [2]}}, ["layer 2", "2 layers"]),
        (tiny_config, {"text": {"hidden_size": 64}}, ["cross_modal_config.hidden_size (32)", "(64)"]),
        (tiny_config, {"vision": {"hidden_size": 64}}, ["encoder_hidden_size (32)", "(64)"]),
        (tiny_config, {"temperature_init": 0.7}, ["temperature_init (0.7)", "[0.001, 0.5]"]),
        (tiny_config, {"temperature_min": 0.0}, ["[0.0, 0.5]", "above 0"]),
        (tiny_config, {"contrastive_loss": "nce"}, ["nce", "ego_nce"]),
        (tiny_config, {"ego_nce_form": "mean"}, ["mean", "log_sum"]),
        (tiny_config, {"mlm_probability": 1.0}, ["mlm_probability (1.0)", "(0, 1)"]),
        (tiny_config, {"vtm_weight": -1.0}, ["vtm_weight (-1.0)", "negative"]),
        (tiny_vision_config, {"keep_rate": "0.7"}, ["keep_rate", "str"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_values_that_cannot_work_are_refused_with_both_numbers(make, fields, says):
    """Catches a check that is gone, or a message from which one cannot tell what to change."""
    with pytest.raises(StrictDataclassError) as error:
        make(**fields)
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize("attended", [(1, 7), (7, 1), (0, 8)])
def test_every_block_may_be_attended(attended):
    """Catches a bound off by one, or one that looks at the blocks left after pruning: there, all are attended."""
    local, random = attended
    tiny_vision_config(num_local_blocks=local, num_random_blocks=random, keep_rate=0.1)


def test_dense_attention_has_no_blocks_to_check():
    """Catches dense models being refused for the block fields that they do not use."""
    assert tiny_vision_config(num_random_blocks=None, block_size=10_000).num_random_blocks is None


@pytest.mark.parametrize(
    ("make", "key", "nearest"),
    [
        (SViTTEgoVisionConfig, "keep_rat", "keep_rate"),
        (SViTTEgoVisionConfig, "num_random_block", "num_random_blocks"),
        (SViTTEgoTextConfig, "vocabsize", "vocab_size"),
        (SViTTEgoFusionConfig, "prune_layer", "prune_layers"),
        (SViTTEgoConfig, "mlm_wheight", "mlm_weight"),
        (SViTTEgoConfig, "num_random_blocks", "vision_config's 'num_random_blocks'"),
        (SViTTEgoConfig, "vocab_sise", "text_config's 'vocab_size'"),
        (lambda **fields: SViTTEgoConfig(vision_config=fields), "token_keep_rate", "keep_rate"),
        (SViTTEgoConfig, "fusion_config", "cross_modal_config"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_field(make, key, nearest):
    """Catches a misspelt sparsity field being stored and read nowhere: pruning silently off."""
    with pytest.raises(ValueError, match=f"{nearest}") as error:
        make(**{key: 0.5})
    assert key in str(error.value)


def test_save_and_load_give_the_same_configuration(tmp_path):
    """Catches a field lost or changed on the way through config.json."""
    config = tiny_config(vision={"num_random_blocks": None, "keep_rate": 0.5}, mlm_weight=0, num_labels=5)
    config.save_pretrained(tmp_path)
    loaded = SViTTEgoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_config.num_random_blocks is None and loaded.num_labels == 5
    assert SViTTEgoVisionConfig.from_pretrained(tmp_path).keep_rate == 0.5
    again = SViTTEgoConfig.from_pretrained(tmp_path, vision_config={"keep_rate": 0.25})
    assert (again.vision_config.keep_rate, again.vision_config.hidden_size) == (0.25, 32)


@pytest.mark.parametrize("load", [SViTTEgoConfig.from_pretrained, AutoConfig.from_pretrained], ids=["own", "auto"])
def test_a_keyword_at_loading_is_a_field_or_is_named(tmp_path, load, monkeypatch):
    """Catches a misspelt field that from_pretrained drops without a word, and a loading argument taken for one."""
    tiny_config().save_pretrained(tmp_path)
    for key in ("num_randm_blocks", "num_random_blocks"):
        with pytest.raises(ValueError, match=f"no field '{key}'; the nearest field is vision_config's 'num_random_b"):
            load(tmp_path, **{key: 3})
    assert load(tmp_path, mlm_weight=0.5, trust_remote_code=False).mlm_weight == 0.5
    config, unused = load(tmp_path, num_randm_blocks=3, return_unused_kwargs=True)
    assert unused == {"num_randm_blocks": 3}  # whoever asks for them decides: AutoModel refuses them itself
    messages = []
    monkeypatch.setattr(configuration_base.logger, "warning", messages.append)
    load(tmp_path, low_cpu_mem_usage=True)
    assert messages == ["SViTTEgoConfig has no field 'low_cpu_mem_usage': it is ignored."]


def test_nested_dicts_and_nested_configurations_are_the_same():
    """Catches nested dicts that stay dicts, or defaults in their place."""
    nested = SViTTEgoConfig(
        vision_config=SViTTEgoVisionConfig(**VISION),
        text_config=SViTTEgoTextConfig(**TEXT),
        cross_modal_config=SViTTEgoFusionConfig(**FUSION),
        projection_dim=16,
        initializer_range=0.2,
    )
    assert nested.to_dict() == tiny_config().to_dict()


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [("vision_config", "keep_rate", 2.0), ("vision_config", "keep_rat", 0.5), (None, "loss", "ego_nce")],
)
def test_a_file_with_a_wrong_value_or_key_is_refused_at_loading(tmp_path, where, key, value):
    """Catches validation that runs in Python only, and lets an edited config.json through."""
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    (content[where] if where else content)[key] = value
    file.write_text(json.dumps(content))
    with pytest.raises((ValueError, StrictDataclassError), match=key):
        SViTTEgoConfig.from_pretrained(tmp_path)


def test_a_value_made_wrong_afterwards_is_refused_at_saving(tmp_path):
    """Catches a broken configuration reaching a checkpoint."""
    config = tiny_config()
    config.vision_config.keep_rate = 2.0
    with pytest.raises(StrictDataclassError, match="keep_rate"):
        config.vision_config.save_pretrained(tmp_path)


def test_what_others_put_on_the_object_does_not_make_the_file_unreadable(tmp_path):
    """Catches a checkpoint that cannot be loaded because a script has set config.use_cache = False."""
    config = tiny_config()
    config.use_cache = False
    config.vision_config.batch_norm_eps = 1.0
    config.save_pretrained(tmp_path)
    assert "use_cache" not in (tmp_path / "config.json").read_text()
    assert SViTTEgoConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
