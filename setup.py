"""Packaging. Install with `pip install -e .`; tests with `pip install -e ".[test]"`."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "modeling_svitt_ego" / "__init__.py").read_text())[1]


class BuildWithData(build_py):
    """Puts MODEL_CARD.md and hub_configs/, whose one source is the top level, into the installed package."""

    def data(self):
        return [HERE / "MODEL_CARD.md", *sorted((HERE / "hub_configs").glob("*/*.json"))]

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            for file in self.data():
                target = Path(self.build_lib) / "modeling_svitt_ego" / file.relative_to(HERE)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))

    def get_source_files(self):  # what a source distribution must hold
        return [*super().get_source_files(), *(str(file.relative_to(HERE)) for file in self.data())]


setup(
    name="modeling-svitt-ego",
    version=VERSION,
    description="SViTT-Ego: a sparse video-text transformer for first-person video, for the Hugging Face Hub",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["modeling_svitt_ego", "modeling_svitt_ego.*"]),
    package_data={
        "modeling_svitt_ego": ["py.typed"],
        "modeling_svitt_ego.evaluation": ["evaluate_modules/*/*.py"],
        "modeling_svitt_ego.hub": ["templates/*.py"],
    },
    cmdclass={"build_py": BuildWithData},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        # 5.17 cannot resume several processes on a CPU: it asks torch.load for the device cpu:0
        # 5.24 asks for PEFT 0.22 to load adapters, and the newest PEFT is 0.21.2 (November 2026)
        "transformers>=5.18,!=5.24.*",
        "huggingface_hub>=1.31",  # as transformers 5.18
        "accelerate>=1.3",
        "datasets>=4.0",
        "evaluate>=0.4.5",
        # before 0.20, model.load_adapter finds no key of ours and leaves the adapter random, with a warning only
        "peft>=0.20",
        "numpy>=2.1",
        "safetensors>=0.8",
        "pyyaml>=6.0.2",
        "pyarrow>=18",
        "pillow>=11",
        "tqdm>=4.66.3",
        # index_entries: where frames begin, without decoding
        "av>=17.0",
        # Only where it is named; its wheels are for x86-64 Linux and Windows.
        "decord>=0.6; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    ],
    extras_require={
        "benchmark": ["matplotlib>=3.10"],  # benchmarks/attention.py --plot
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"],  # svitt-ego export
        "torchcodec": ["torchcodec>=0.17"],  # a third video decoder; needs the shared libraries of FFmpeg 4 to 9
        "hdf5": ["h5py>=3.12"],  # svitt-ego extract --layout hdf5
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy>=1.14",
            "scipy",
            "sentence-transformers>=6",
            "mteb>=2.26; python_version >= '3.11'",  # examples/mteb_encoder.py
            "faiss-cpu",
            "onnx>=1.18",
            "onnxscript>=0.5",
            "onnxruntime>=1.22",
            "setuptools>=64",
            "tensorboard",
            "torchdata",
            "h5py>=3.12",
        ],
    },
    entry_points={"console_scripts": ["svitt-ego=modeling_svitt_ego.cli:main"]},
)
