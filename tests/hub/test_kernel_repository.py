"""The folder of a kernel repository: what `kernels` looks for, and a package that stands without this one."""

import json
import subprocess
import sys

import pytest

from modeling_svitt_ego.hub.kernel_repository import write_kernel_repository
from modeling_svitt_ego.model.kernel_launches import Launch, launches_from_json, launches_to_json, use_launches

LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("kernel_under_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["kernel_under_test"] = module
spec.loader.exec_module(module)
assert not any(name.startswith("modeling_svitt_ego") for name in sys.modules), "it imports this package"
assert callable(module.triton_attention)
print(module.use_tuned_launches("Some card"), module.use_tuned_launches("Another card"))
"""


@pytest.fixture
def folder(tmp_path):
    tuned = {("patches_forward", False, 64): Launch(64, 64, 8, 2)}
    (tmp_path / "launches").mkdir()
    (tmp_path / "launches" / "Some_card.json").write_text(json.dumps(launches_to_json(tuned)))
    write_kernel_repository(tmp_path / "repository", "user/kernel", tmp_path / "launches")
    return tmp_path / "repository"


@pytest.mark.parametrize("place", ["", "svitt_ego_attention"], ids=["package", "compatibility"])
def test_the_built_package_loads_alone_and_finds_the_values_of_its_card(folder, place, tmp_path):
    """Catches a file that is left out, an import of this package, and tuned values that are read by no one."""
    entry = folder / "build" / "torch-cuda" / place / "__init__.py"
    command = [sys.executable, "-c", LOAD, str(entry)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False"]


def test_the_layout_is_that_of_a_noarch_kernel(folder):
    metadata = json.loads((folder / "build" / "torch-cuda" / "metadata.json").read_text())
    assert metadata["name"] == "svitt-ego-attention" and metadata["backend"] == {"type": "cuda"}
    source, built = folder / "torch-ext" / "svitt_ego_attention", folder / "build" / "torch-cuda"
    names = {path.name for path in source.glob("*.py")}
    assert names == {path.name for path in built.glob("*.py")} and "edge_gradient_kernels.py" in names
    assert "[torch-noarch]" in (folder / "build.toml").read_text()
    assert "Some card" in (folder / "README.md").read_text()


def test_a_folder_that_holds_something_and_a_foreign_json_are_refused(folder, tmp_path):
    with pytest.raises(FileExistsError, match="is not empty"):
        write_kernel_repository(folder, "user/kernel")
    (tmp_path / "launches" / "other.json").write_text('{"patches_forward": {"half-64": {"tile": 3}}}')
    with pytest.raises(ValueError, match="other.json"):
        write_kernel_repository(tmp_path / "new", "user/kernel", tmp_path / "launches")


def test_launches_survive_json_and_unknown_kernels_are_refused():
    launches = {("key_gradients", True, 32): Launch(16, 32), ("table_gradient", False, 64): Launch(64, 16, 8, 2)}
    assert launches_from_json(launches_to_json(launches)) == launches
    with pytest.raises(ValueError, match="no_kernel"):
        use_launches({("no_kernel", False, 64): Launch(16, 16)})
