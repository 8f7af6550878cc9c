"""A saved folder to the Hub in one commit: weights as safetensors, the code of trust_remote_code, processor and card.

The folder is checked before anything is sent, and only these parts are sent: a folder of a training also holds pickles
(`training_args.bin`, optimizer states) that nobody should load.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers.dynamic_module_utils import get_relative_imports

from ..evaluation.report import EvaluationReport
from ..files.plain_names import check_plain_name, file_inside
from .card import (
    PLACEHOLDER_NAME,
    TRAINING_ARGUMENTS_NAME,
    count_parameters,
    render_model_card,
    weight_files,
)
from .extras import endpoint_handler, is_dual_encoder, leaderboard_results, notebook

PROCESSOR_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# Sent where they are; nothing depends on them.
OPTIONAL_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    TRAINING_ARGUMENTS_NAME,
)
# In the repository but not in the push they would be loaded together with or instead of what is pushed.
STALE_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")

# httpx or httpx2, whichever the installed client is built on.
_HTTPError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


class PushError(OSError):
    """The Hub refused or could not be reached: one line that says what to do."""


@dataclass(frozen=True)
class FolderParts:
    """
    What of a folder goes to the Hub, as file names in it.

    Args:
        files (`list[str]`): weights, code, processor, configuration, sorted; without the card.
        has_card (`bool`): whether there is a README.md.
        left_out (`list[str]`): files of the folder that are not sent.
    """

    files: list[str]
    has_card: bool
    left_out: list[str]


def find_parts(folder: str | os.PathLike) -> FolderParts:
    """The parts of a saved model.

    Raises:
        ValueError: Parts are missing, which are all listed, or one of them is outside of the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder.")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is a PEFT adapter without the weights of its base model. Merge it (model = PeftModel"
            ".from_pretrained(base_model, folder).merge_and_unload()), save model and processor with save_pretrained "
            "into a new folder and push that one; or upload the adapter alone with PeftModel.push_to_hub."
        )
    missing: list[str] = []
    files = _weights(folder, missing) | _processor(folder, missing)
    if _has(folder, "config.json"):
        files.add("config.json")
    else:
        missing.append("config.json")
    files |= _code(folder, files & {"config.json", *PROCESSOR_FILES}, missing)
    if missing:
        raise ValueError(
            f"{folder} cannot be pushed, it lacks: {'; '.join(missing)}. save_pretrained of the model and of the "
            "processor write all of it."
        )
    files |= {name for name in OPTIONAL_FILES if _has(folder, name)}
    there = {path.name + "/" * path.is_dir() for path in folder.iterdir()}
    return FolderParts(sorted(files), _has(folder, "README.md"), sorted(there - files - {"README.md"}))


def _has(folder: Path, name: str) -> bool:
    """Whether the folder has this file. A name or a link that leads out of the folder is an error: the configuration
    may be a stranger's, and must not make other files of this machine public."""
    check_plain_name(name, "the part", repr(str(folder)))
    return (folder / name).is_file() and file_inside(folder, name, "the part").is_file()


def _weights(folder: Path, missing: list[str]) -> set[str]:
    paths = weight_files(folder)
    absent = [path.name for path in paths if not _has(folder, path.name)]
    if not absent:
        count_parameters(folder)  # reads every header: a truncated file is an error here, not for those who load it
        index = {"model.safetensors.index.json"} if len(paths) > 1 or paths[0].name != "model.safetensors" else set()
        return {path.name for path in paths} | index
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    note = f" ({', '.join(pickles)} would be a pickle)" if pickles else ""
    missing.append(f"weights as safetensors: {', '.join(absent)}{note}")
    return set()


def _processor(folder: Path, missing: list[str]) -> set[str]:
    found = {name for name in PROCESSOR_FILES if _has(folder, name)}
    if "processor_config.json" not in found:
        missing.append("processor: processor_config.json")
    tokenizer = {name for name in TOKENIZER_FILES if _has(folder, name)}
    if not tokenizer:
        missing.append("tokenizer: tokenizer.json")
    return found | tokenizer


def _code(folder: Path, configs: set[str], missing: list[str]) -> set[str]:
    """The modules that `auto_map` and `custom_pipelines` name and what they import, as transformers follows it."""
    modules: set[str] = set()
    for name in sorted(configs):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        named = _class_references(content)
        if not named:
            missing.append(f"code: {name} has no auto_map")
        modules |= {reference.split("--")[-1].split(".")[0] for reference in named}
    found: set[str] = set()
    queue = sorted(modules)
    while queue:
        module = queue.pop()
        if not module.isidentifier():  # transformers joins it to the folder: "/tmp/x/secret", "/../../x"
            raise ValueError(f"{str(folder)!r}: the code {ascii(module)} is not the name of a module in the folder.")
        file = f"{module}.py"
        if file in found:
            continue
        if not _has(folder, file):
            missing.append(f"code: {file}")
            continue
        found.add(file)
        queue += get_relative_imports(folder / file)
    return found


def _class_references(content) -> list[str]:
    """`module.Class` of every `auto_map` and `custom_pipelines`, the nested ones too."""
    if not isinstance(content, dict):
        return []
    found = [entry for entry in (content.get("auto_map") or {}).values() if isinstance(entry, str)]
    found += [pipeline["impl"] for pipeline in (content.get("custom_pipelines") or {}).values()]
    return found + [entry for value in content.values() for entry in _class_references(value)]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    evaluations: Iterable[str | os.PathLike | dict] = (),
    leaderboards: dict[str, str] | None = None,
    **card_options,
) -> CommitInfo:
    """
    Pushes a saved model in one commit; the repository and the branch are made if they do not exist.

    What was already sent is not sent again, so a push that broke off is simply repeated.

    Args:
        private (`bool`): of a new repository; an existing one stays as it is.
        revision (`str`): branch; `main` by default.
        token (`str`): with write access; by default the one that `hf auth login` stored, or `HF_TOKEN`.
        evaluations: files of `svitt-ego evaluate`; the card is rendered from them. Without, the folder's README.md is
            sent with its name filled in, and a folder without one gets a card that says "not measured".
        leaderboards (`dict[str, str]`): benchmark to the data set on the Hub whose leaderboard its evaluation goes to.
        card_options: of [`render_model_card`], for a card that is rendered.

    Raises:
        ValueError: a part is missing, or the card's metadata is not valid; nothing was sent.
        PushError: the token was refused, the Hub cannot be reached, or the connection broke; nothing was committed.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"The name on the Hub must be USER/MODEL, got '{repo_id}'.")
    parts = find_parts(folder)
    additions = _additions(Path(folder), parts, repo_id, list(evaluations), leaderboards or {}, card_options)
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, token=token)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True, token=token)
        return api.create_commit(
            repo_id,
            additions + _stale_weights(api, repo_id, revision, token, parts.files),
            commit_message=commit_message or "Upload model, code, processor and card",
            revision=revision,
            token=token,
        )
    except FileNotFoundError:  # of the folder, while it was read
        raise
    except (_HTTPError, OSError, RuntimeError) as error:
        raise PushError(_explain(error, repo_id, api.endpoint)) from error


def _additions(
    folder: Path, parts: FolderParts, repo_id: str, evaluations: list, leaderboards: dict[str, str], card_options: dict
) -> list[CommitOperationAdd]:
    """The folder's parts, the card, and what a repository has besides a model."""
    if parts.has_card and card_options and not evaluations:
        raise ValueError(
            f"{', '.join(card_options)} would render {folder / 'README.md'} again, without the numbers in it: give "
            "the evaluations as well, or edit README.md."
        )
    if parts.has_card and not evaluations:
        card = ModelCard.load(folder / "README.md").content.replace(PLACEHOLDER_NAME, repo_id)
    else:
        card = render_model_card(folder, evaluations, repo_id=repo_id, **card_options).content
    made = {"README.md": card.encode("utf-8")}
    made |= leaderboard_results([EvaluationReport.read(source) for source in evaluations], leaderboards)
    if is_dual_encoder(folder):
        made |= {"handler.py": endpoint_handler(), "notebook.ipynb": notebook(repo_id)}
    return [CommitOperationAdd(name, folder / name) for name in parts.files] + [
        CommitOperationAdd(name, content) for name, content in made.items()
    ]


def _stale_weights(api: HfApi, repo_id: str, revision: str | None, token, pushed: list[str]) -> list:
    names = api.list_repo_files(repo_id, revision=revision, token=token)
    stale = [name for name in names if "/" not in name and name.endswith(STALE_WEIGHTS) and name not in pushed]
    return [CommitOperationDelete(name) for name in stale]


def _explain(error: BaseException, repo_id: str, endpoint: str) -> str:
    """One line for what the client raised; uploads wrap the reason, so look for it in the causes."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return f"HF_HUB_OFFLINE is set, so nothing can be pushed to {endpoint}."
    # The answer of the Hub if there was one; else the connection broke.
    answer = next((e for e in reversed(chain) if isinstance(e, HfHubHTTPError)), None)
    again = "Nothing was committed; run it again: what has arrived is not sent a second time."
    if answer is None:
        reason = " ".join(str(chain[-1]).split()) or type(chain[-1]).__name__
        where = " ".join(str(error).split()) if len(chain) > 1 and isinstance(error, RuntimeError) else ""
        return f"The connection to {endpoint} failed ({reason}). {where + ' ' if where else ''}{again}"
    status = answer.response.status_code
    said = answer.response.headers.get("X-Error-Message") or answer.response.reason_phrase
    if status == 401:
        return (
            f"{endpoint} did not accept the token ({status}: {said}). Log in by `hf auth login`, set HF_TOKEN or give "
            "--token, with a token that may write."
        )
    if status == 403:
        return f"The token may not write to {repo_id} on {endpoint} ({status}: {said})."
    then = again if status >= 500 else "Nothing was committed."
    return f"{endpoint} answered {status} for {repo_id}: {said}. {then}"


__all__ = ["FolderParts", "PushError", "find_parts", "push_folder"]
