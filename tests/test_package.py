"""Importing the package: light, complete, and the Auto classes know it whatever is imported first."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_svitt_ego


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_every_public_name_is_there():
    """Catches a name whose home has moved."""
    for name in modeling_svitt_ego.__all__:
        assert getattr(modeling_svitt_ego, name).__name__ == name
    assert set(modeling_svitt_ego.__all__) <= set(dir(modeling_svitt_ego))
    with pytest.raises(AttributeError, match="no attribute 'SViTTEgo'"):
        modeling_svitt_ego.SViTTEgo  # noqa: B018


def test_type_checkers_see_the_same_names():
    """Catches a public name that is only in one of the two lists of __init__.py."""
    tree = ast.parse(Path(modeling_svitt_ego.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    assert homes == modeling_svitt_ego._HOMES


def test_the_import_and_the_help_load_no_heavy_library():
    """Catches an import at the top of a command or of the package: `svitt-ego --help` took 5.6 s."""
    code = (
        "import sys, contextlib, io\n"
        "from modeling_svitt_ego.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'huggingface_hub', 'PIL', 'av', 'decord', 'peft'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import modeling_svitt_ego\nfrom transformers import AutoConfig",
        "from transformers import AutoConfig\nimport modeling_svitt_ego",
        "from modeling_svitt_ego.model.vision import SViTTEgoVisionModel\nfrom transformers import AutoConfig",
        "import modeling_svitt_ego, importlib.util\nimportlib.util.find_spec('transformers')\n"
        "from transformers import AutoConfig",
        "from modeling_svitt_ego.training.trainer import SViTTEgoTrainer\nfrom transformers import AutoConfig",
    ],
    ids=["package", "transformers", "one file", "asked for first", "trainer"],
)
def test_the_auto_classes_know_the_model_whatever_comes_first(first):
    """Catches a registration that is missed, or that meets a half-imported module."""
    assert run(f"{first}\nprint(type(AutoConfig.for_model('svitt_ego')).__name__)") == "SViTTEgoConfig"


def test_peft_learns_its_defaults_when_it_is_imported():
    """Catches defaults that need PEFT to be imported with the package, and a lookup that uses up the hook."""
    code = (
        "import sys, modeling_svitt_ego\n"
        "from transformers.utils import is_peft_available\n"
        "print(is_peft_available(), 'peft.utils' in sys.modules)\n"
        "from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as defaults\n"
        "print(defaults['svitt_ego'])"
    )
    assert run(code).splitlines() == ["True False", "['q_proj', 'v_proj']"]


def test_a_missing_library_is_named_with_the_remedy():
    """Catches a package that cannot be imported where only torch, transformers and av are installed."""
    code = (
        "import sys\n"
        "for name in ('datasets', 'evaluate', 'accelerate', 'peft', 'decord', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "import modeling_svitt_ego\n"
        "from modeling_svitt_ego import SViTTEgoModel, SViTTEgoProcessor\n"
        "try:\n"
        "    modeling_svitt_ego.load_egoclip\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert run(code) == (
        "modeling_svitt_ego.load_egoclip needs the package 'datasets', which is not installed: pip install datasets"
    )
