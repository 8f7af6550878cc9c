"""A collection on the Hub that holds the variants of one model."""

from collections.abc import Iterable

from huggingface_hub import Collection, HfApi


def collect_models(
    title: str, models: Iterable[str], namespace: str | None = None, private: bool = False, token: str | None = None
) -> Collection:
    """
    Makes the collection, or finds the one of that title, and adds the models that are not in it yet.

    Args:
        models (iterable of `str`): Hub names, such as `"USER/svitt-ego-base"`.
        namespace (`str`, *optional*): user or organisation; the token's user by default.
    """
    models = list(models)
    wrong = [name for name in models if name.count("/") != 1]
    if wrong or not models:
        raise ValueError(f"Give the names of models on the Hub (USER/MODEL); got {wrong or 'none'}.")
    api = HfApi(token=token)
    namespace = namespace or api.whoami()["name"]
    collection = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
    for name in models:
        api.add_collection_item(collection.slug, item_id=name, item_type="model", exists_ok=True)
    return api.get_collection(collection.slug)
