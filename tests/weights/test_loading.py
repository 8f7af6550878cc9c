"""Saved models are loaded whole, or refused in one sentence at once."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from modeling_svitt_ego import SViTTEgoModel
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.weights import loading
from modeling_svitt_ego.weights.loading import load_checkpoint, load_config, load_processor, local_folder
from tests.helpers.tiny_folder import save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("loading") / "my-model")


@pytest.fixture
def hub_is_not_asked(monkeypatch):
    def ask(*_, **__):
        pytest.fail("the Hub was asked for a path")

    monkeypatch.setattr(HfApi, "model_info", ask)
    monkeypatch.setattr(loading, "snapshot_download", ask)


def test_a_misspelt_folder_is_said_at_once(folder, tmp_path, monkeypatch, hub_is_not_asked, capsys):
    """Catches a minute of questions to the Hub about a folder with a typing error."""
    with pytest.raises(FileNotFoundError, match="There is no folder .*my-modle.*did you mean .*my-model'"):
        local_folder(folder.parent / "my-modle")
    monkeypatch.chdir(folder.parents[1])
    with pytest.raises(FileNotFoundError, match="no folder .*did you mean"):
        local_folder(f"{folder.parent.name}/my-mdel")
    with pytest.raises(FileNotFoundError, match="not a name on the Hub"):
        local_folder("nothing")
    with pytest.raises(NotADirectoryError, match="is a file"):
        local_folder(folder / "config.json")
    assert local_folder(folder) == folder
    Path("v").touch()  # the video is looked for first
    for line in (["search", "v", "q", "--model"], ["extract", "v", "o", "--model"], ["plan", "--model"]):
        assert main([*line, str(folder.parent / "my-modle")]) == 2
        assert "There is no folder" in capsys.readouterr().err


def test_an_unknown_name_is_said_when_the_hub_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(FileNotFoundError, match="no folder 'some/model'.*could not be asked.*no network"):
        local_folder("some/model")


def test_a_folder_without_configuration_or_of_another_kind_is_refused(folder, tmp_path, capsys):
    """Catches `plan` for the base size under the name of a folder that has no config.json."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no readable config.json"):
        load_config(tmp_path / "empty")
    assert main(["plan", "--model", str(tmp_path / "empty")]) == 2
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'"):
        load_config(tmp_path / "empty")
    with pytest.raises(ValueError, match="'bert'.*SViTTEgoModel"):
        load_checkpoint(tmp_path / "empty", "dual")
    assert load_config(folder).vision_config.num_frames == 4
    assert type(load_checkpoint(folder, "dual")) is SViTTEgoModel


def test_a_model_without_processor_names_the_remedy(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="saved without its processor.*processor.save_pretrained"):
        load_processor(tmp_path)
    assert load_processor(folder).video_processor.num_frames == 4
