"""Push and pull with huggingface_hub's real client, against a double of the Hub on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http

from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor
from modeling_svitt_ego.cli import main
from modeling_svitt_ego.hub.card import write_model_card
from modeling_svitt_ego.hub.upload import PushError, find_parts, push_folder
from tests.helpers.hub_double import READ_TOKEN, WRITE_TOKEN, HubDouble
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_folder import NARRATIONS, save_tiny_folder

NAME = "someone/svitt-ego-tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its card, and next to them what a training leaves behind."""
    folder = save_tiny_folder(tmp_path_factory.mktemp("push") / "model")
    write_model_card(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-10").mkdir()
    return folder


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Points the installed client at an address: `client(url, token)`. No Xet, no waiting between its retries."""

    def point(url, token=None):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        return url

    return point


@pytest.fixture
def hub(client):
    with HubDouble() as hub:
        client(hub.url, WRITE_TOKEN)
        yield hub


def contents(folder, names) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


# ---------------------------------------------------------------------------------------------------------------- push


def test_push_writes_weights_code_processor_and_card_in_one_commit(folder, hub, capsys):
    """Catches a commit per part, a part that is left out, and a pickle that is sent."""
    assert main(["push", str(folder), NAME, "--private", "--message", "first"]) == 0
    out = capsys.readouterr().out
    (commit,) = hub.pushes(NAME)
    assert commit.message == "first" and hub.repos[NAME].private and commit.sha in out
    assert "training_args.bin" in out and "checkpoint-10/" in out  # named as not sent
    pushed = commit.files.keys() - {".gitattributes"}
    made = {"README.md", "handler.py", "notebook.ipynb"}
    assert pushed == {*find_parts(folder).files, *made}
    kinds = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "modeling_svitt_ego.py")
    assert pushed >= {*kinds, "sparsity.py", "video_processing_svitt_ego.py"}
    assert contents(folder, pushed - made) == {name: commit.files[name] for name in pushed - made}
    card = commit.files["README.md"].decode()
    assert f'name = "{NAME}"' in card and "USER/MODEL" not in card
    assert hub.repos[NAME].lfs.keys() == {oid for oid, _ in hub.uploads} and len(hub.uploads) == 1


def test_an_existing_repository_gets_one_commit_more_and_keeps_its_other_files(folder, hub):
    """Catches an error for a repository that is there, lost files, and unchanged weights that are sent again."""
    hub.create(NAME).commit("main", "notes", {"notes.md": b"by hand", ".gitattributes": b""})
    push_folder(folder, NAME)
    changed = push_folder(folder, NAME, evaluations=[{"benchmark": "egomcq", "metrics": {"intra": 20.0}}])
    assert [c.message for c in hub.pushes(NAME)] == ["notes"] + ["Upload model, code, processor and card"] * 2
    assert changed.oid == hub.pushes(NAME)[-1].sha
    assert hub.pushes(NAME)[-1].files["notes.md"] == b"by hand"
    assert b"| EgoMCQ | intra |" in hub.pushes(NAME)[-1].files["README.md"]
    assert len(hub.uploads) == 1


def test_pushing_the_same_again_makes_no_empty_commit(folder, hub):
    """Catches a history full of commits that change nothing."""
    first = push_folder(folder, NAME)
    again = push_folder(folder, NAME)
    assert again.oid == first.oid and len(hub.pushes(NAME)) == 1


def test_push_to_a_branch_makes_it_and_leaves_main_alone(folder, hub):
    """Catches a revision that is ignored."""
    push_folder(folder, NAME, revision="trial")
    assert len(hub.pushes(NAME, "trial")) == 1 and not hub.pushes(NAME, "main")


def test_weights_of_an_earlier_push_under_another_name_go_in_the_same_commit(folder, hub, tmp_path):
    """Catches old weights that are loaded after a push of new ones: whole files win over shards."""
    push_folder(folder, NAME)
    sharded = save_tiny_folder(tmp_path / "sharded", max_shard_size="50KB", temperature_init=0.1)
    push_folder(sharded, NAME)
    assert len(hub.pushes(NAME)) == 2
    weights = {name for name in hub.pushes(NAME)[-1].files if "safetensors" in name}
    assert weights == {path.name for path in sharded.glob("*safetensors*")}
    assert "model.safetensors" not in weights and "model.safetensors.index.json" in weights


def test_push_to_hub_of_model_and_processor(hub, folder):
    """Catches save_pretrained writing what the library's own push does not send."""
    SViTTEgoModel.from_pretrained(folder).push_to_hub(NAME)
    SViTTEgoProcessor.from_pretrained(folder).push_to_hub(NAME)
    model, processor = hub.pushes(NAME)  # one commit each
    parts = ("model.safetensors", "config.json", "modeling_svitt_ego.py", "vision.py", "README.md")
    assert model.files.keys() >= {*parts}
    assert processor.files.keys() >= {*find_parts(folder).files} - {"tokenizer_config.json"}
    assert model.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_folder_without_a_card_gets_one_that_claims_nothing(hub, tmp_path):
    """Catches a card missing on the Hub, a folder that pushing changes, and options that do not reach the card."""
    bare = save_tiny_folder(tmp_path / "bare")
    assert main(["push", str(bare), NAME, "--license", "apache-2.0", "--training-data", "nothing at all"]) == 0
    card = hub.pushes(NAME)[0].files["README.md"].decode()
    assert "license: apache-2.0" in card and "Data: nothing at all." in card and "| not measured |" in card
    assert f'name = "{NAME}"' in card and not (bare / "README.md").exists()


# ---------------------------------------------------------------------------------------------------------------- pull

CLEAN_PROCESS = f"""
NARRATIONS = {NARRATIONS}

import sys
sys.modules["modeling_svitt_ego"] = None  # an import of the package fails
try:
    import modeling_svitt_ego
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported: this process proves nothing")
import torch
from transformers import AutoModel, AutoProcessor
name, video, output = sys.argv[1:]
model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
assert all("transformers_modules" in type(part).__module__ for part in (model, processor))
inputs = processor(videos=[(video, 1.0, 3.0)], text=NARRATIONS, return_tensors="pt")
with torch.no_grad():
    torch.save(model(**inputs).logits_per_video, output)
"""


def test_from_pretrained_from_the_hub_where_the_package_is_not_installed(folder, hub, tmp_path):
    """Catches what only works from a local folder: private repository, token, remote code and processor."""
    push_folder(folder, NAME, private=True)
    video = write_video(tmp_path / "clip.mp4", num_frames=40)
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": READ_TOKEN, "HF_HUB_DISABLE_XET": "1", "PATH": os.defpath}
    env |= {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLEAN_PROCESS, NAME, str(video), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    inputs = SViTTEgoProcessor.from_pretrained(folder)(
        videos=[(video, 1.0, 3.0)], text=NARRATIONS, return_tensors="pt"
    )
    with torch.no_grad():
        expected = SViTTEgoModel.from_pretrained(folder).eval()(**inputs).logits_per_video
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)


# ----------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("token, status", [("hf_wrong", 401), (None, 401), (READ_TOKEN, 403)], ids=str)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_a_token_that_may_not_write_is_one_clear_line(folder, client, capsys, token, status, exists):
    """Catches a stack trace, and a line that does not say whether to log in or to ask for rights."""
    with HubDouble() as hub:
        client(hub.url)
        if exists:
            hub.create(NAME)
        arguments = ["push", str(folder), NAME] + (["--token", token] if token else [])
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1 and f"({status}: " in error
        assert ("hf auth login" if status == 401 else f"may not write to {NAME}") in error
        assert not hub.uploads and (not hub.pushes(NAME) if exists else NAME not in hub.repos)


def test_no_network_is_one_clear_line(folder, client, capsys):
    """Catches a stack trace or minutes of retries where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = client(f"http://127.0.0.1:{free.getsockname()[1]}", WRITE_TOKEN)
    assert main(["push", str(folder), NAME]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and url in error and "failed" in error


def test_half_an_upload_commits_nothing_and_the_next_push_sends_only_the_rest(hub, tmp_path):
    """Catches a half-pushed repository, and finished files that are sent twice."""
    sharded = save_tiny_folder(tmp_path / "sharded", max_shard_size="50KB")
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    size = {path.stat().st_size for path in sharded.glob("*.safetensors")}
    assert len(shards) > 2
    hub.drop_after = 1  # the first file arrives, then every connection breaks half-way
    with pytest.raises(PushError, match="Nothing was committed; run it again") as error:
        push_folder(sharded, NAME)
    assert hub.url in str(error.value) and "safetensors" in str(error.value)
    assert not hub.pushes(NAME)
    arrived = set(hub.repos[NAME].lfs)
    assert len(arrived) == 1
    assert {sent for _, sent in hub.uploads} <= size

    hub.drop_after, hub.uploads[:] = None, []
    push_folder(sharded, NAME)
    assert len(hub.pushes(NAME)) == 1
    assert not {oid for oid, _ in hub.uploads} & arrived and len(hub.uploads) == len(shards) - 1
    assert all(hub.pushes(NAME)[0].files[name] == (sharded / name).read_bytes() for name in shards)


def test_a_connection_that_breaks_once_is_retried_within_the_push(folder, hub):
    """Catches a push that gives up at the first hiccup, or sends half a file as a whole one."""
    hub.drop_uploads = 1
    push_folder(folder, NAME)
    assert len(hub.pushes(NAME)) == 1 and len(hub.uploads) == 2
    assert hub.pushes(NAME)[0].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_commit_that_the_hub_refuses_leaves_nothing(folder, hub):
    """Catches a failure at the very end that is reported as success."""
    hub.refuse_commit = 503
    with pytest.raises(PushError, match=f"answered 503 for {NAME}.*Nothing was committed"):
        push_folder(folder, NAME)
    assert not hub.pushes(NAME)


def break_config(folder):
    (folder / "config.json").unlink()


def break_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_code(folder):
    (folder / "sparsity.py").unlink()  # not in an auto_map: only imports lead to it


def break_pipeline(folder):
    (folder / "pipeline_svitt_ego.py").unlink()


def break_processor(folder):
    (folder / "processor_config.json").unlink()
    (folder / "tokenizer.json").unlink()


def break_auto_map(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"], config["custom_pipelines"]
    (folder / "config.json").write_text(json.dumps(config))


def break_everything(folder):
    break_weights(folder)
    break_code(folder)
    break_processor(folder)


@pytest.mark.parametrize(
    "damage, named",
    [
        (break_config, ["config.json"]),
        (break_weights, ["weights as safetensors: model.safetensors (pytorch_model.bin would be a pickle)"]),
        (break_code, ["code: sparsity.py"]),
        (break_pipeline, ["code: pipeline_svitt_ego.py"]),
        (break_processor, ["processor: processor_config.json", "tokenizer: tokenizer.json"]),
        (break_auto_map, ["code: config.json has no auto_map"]),
        (break_everything, ["weights", "sparsity.py", "processor_config.json", "tokenizer.json"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_folder_that_lacks_parts_is_refused_with_a_list_before_anything_is_sent(
    folder, hub, tmp_path, capsys, damage, named
):
    """Catches a repository that nobody can load."""
    broken = shutil.copytree(folder, tmp_path / "broken")
    damage(broken)
    assert main(["push", str(broken), NAME]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and str(broken) in error and all(part in error for part in named)
    assert not hub.requests


def test_a_lora_adapter_is_refused_with_what_to_do(hub, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert main(["push", str(tmp_path), "USER/MODEL"]) == 2
    error = capsys.readouterr().err
    assert "is a PEFT adapter" in error and "merge_and_unload" in error and "PeftModel.push_to_hub" in error


@pytest.mark.parametrize("reference", ["/tmp/x/secret.Y", "../secret.Y", "a/../../secret.Y", "..secret.Y"])
def test_a_configuration_cannot_name_code_outside_the_folder(folder, hub, tmp_path, reference):
    """Catches a stranger's config.json that makes a file of this machine public."""
    copy = tmp_path / "a" / "copy"
    shutil.copytree(folder, copy)
    (tmp_path / "secret.py").write_text("token = 1")
    content = json.loads((copy / "config.json").read_text())
    content["auto_map"]["AutoModel"] = reference
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not the name of a module in the folder"):
        push_folder(copy, NAME)
    assert not hub.repos


@pytest.mark.parametrize(
    "line", ["from ./../../secret import y", "from .sub.secret import y", "import ./../../secret"]
)
def test_code_cannot_import_from_outside_the_folder(folder, hub, tmp_path, line):
    copy = tmp_path / "a" / "copy"
    shutil.copytree(folder, copy)
    (tmp_path / "secret.py").write_text("token = 1")
    with open(copy / "modeling_svitt_ego.py", "a") as file:
        file.write(f"\nif False:\n    {line}\n")
    with pytest.raises(ValueError, match="is not the name of a module in the folder"):
        push_folder(copy, NAME)
    assert not hub.repos


@pytest.mark.parametrize(
    "name",
    ["README.md", "config.json", "vision.py", "model.safetensors", "tokenizer_config.json", "processor_config.json"],
)
def test_links_out_of_the_folder_are_not_followed(folder, hub, tmp_path, name):
    """Catches a link to a file of this machine; one into the blobs of the Hub's cache is a part like others."""
    copy = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(folder, copy)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    shutil.move(copy / name, blobs / "abcd")
    (copy / name).symlink_to("../../blobs/abcd")
    assert find_parts(copy).files == find_parts(folder).files
    shutil.move(blobs / "abcd", tmp_path / "secret")
    (copy / name).unlink()
    (copy / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name}' is a link to .*secret', outside its folder"):
        push_folder(copy, NAME)
    assert not hub.repos


@pytest.mark.parametrize("name", ["../secret.safetensors", "/tmp/secret.safetensors", 7])
def test_an_index_of_weights_cannot_name_files_outside_the_folder(folder, hub, tmp_path, name):
    copy = tmp_path / "a" / "copy"
    shutil.copytree(folder, copy)
    shutil.move(copy / "model.safetensors", tmp_path / "a" / "secret.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ValueError, match="is not a plain file name"):
        push_folder(copy, NAME)
    assert not hub.repos


def test_truncated_weights_a_wrong_name_and_a_bad_card_are_refused(folder, hub, tmp_path):
    """Catches what the Hub would take and its users could not use."""
    with pytest.raises(ValueError, match="USER/MODEL, got 'svitt'"):
        push_folder(folder, "svitt")
    with pytest.raises(ValueError, match="nowhere' is not a folder"):
        push_folder(tmp_path / "nowhere", NAME)
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        push_folder(broken, NAME)
    with pytest.raises(ValueError, match="license would render .*README.md again, without the numbers"):
        push_folder(folder, NAME, license="mit")
    assert not hub.requests
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / "README.md").write_text("---\ntags: [1, 2]\n---\n# A card\n")
    with pytest.raises(ValueError, match='"tags" must be an array of strings'):
        push_folder(bad, NAME)
    assert not hub.uploads and not hub.pushes(NAME)


def test_the_double_is_talked_to_by_the_installed_client(hub):
    """Catches a patched-out client: the tests above would prove nothing."""
    assert huggingface_hub.HfApi().endpoint == hub.url
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        huggingface_hub.HfApi().model_info("someone/else")
    assert hub.requests == ["GET /api/models/someone/else"]
