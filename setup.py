"""Packaging. Install with `pip install -e .`; tests with `pip install -e ".[test]"`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "modeling_svitt_ego" / "__init__.py").read_text())[1]

setup(
    name="modeling-svitt-ego",
    version=VERSION,
    description="SViTT-Ego: a sparse video-text transformer for first-person video, for the Hugging Face Hub",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["modeling_svitt_ego", "modeling_svitt_ego.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "transformers>=5.17",
        "huggingface_hub>=1.0",
        "accelerate>=1.1",
        "datasets>=4.0",
        "evaluate>=0.4.5",
        "peft>=0.18",
        "numpy",
        "safetensors",
        "pyyaml",
        "pyarrow",
        "pillow",
        "tqdm",
        "av>=14",
        # decord has wheels for x86-64 Linux and Windows only; PyAV reads the same frames elsewhere.
        "decord>=0.6; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-timeout", "hypothesis", "ruff", "scipy"],
    },
    entry_points={"console_scripts": ["svitt-ego=modeling_svitt_ego.cli:main"]},
)
