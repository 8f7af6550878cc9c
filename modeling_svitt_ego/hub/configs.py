"""The configurations in `hub_configs/`, which are part of the installed package."""

from pathlib import Path

from ..model.configuration_svitt_ego import SViTTEgoConfig


def hub_configs_folder() -> Path:
    """The folder of all variants: inside the installed package (setup.py puts it there), else of the checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "hub_configs", package.parent / "hub_configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"hub_configs is neither in {package} nor in {package.parent}: install the package again.")


def hub_config_names() -> list[str]:
    """Names of the variants, such as `"svitt-ego-base"`."""
    return sorted(path.parent.name for path in hub_configs_folder().glob("*/config.json"))


def hub_config(name: str, **fields) -> SViTTEgoConfig:
    """
    The configuration of a variant; the model made from it has new weights.

    ```python
    model = AutoModel.from_config(hub_config("svitt-ego-tiny"))
    ```

    Args:
        name (`str`): one of [`hub_config_names`].
        fields: fields of [`SViTTEgoConfig`] with other values than the variant's.
    """
    if name not in hub_config_names():
        raise ValueError(f"There is no configuration {name!r}; there are {', '.join(hub_config_names())}.")
    return SViTTEgoConfig.from_pretrained(hub_configs_folder() / name, **fields)
