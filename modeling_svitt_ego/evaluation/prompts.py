"""Prompts of classes for zero-shot classification: sentences made of templates and of the words of a class.

The verb is in the third person, as in EgoClip's narrations.
"""

import string
from collections.abc import Sequence

from ..data.taxonomy import Taxonomy

TEMPLATES = {
    "verb": ("#C C {verb} something", "#C C {verb} it", "#C C {verb} the object"),
    "noun": ("#C C uses the {noun}", "#C C picks up the {noun}", "#C C holds a {noun}"),
    "action": ("#C C {verb} the {noun}", "#C C {verb} a {noun}"),
    "label": ("#C C {label}", "{label}"),
}
# The placeholders that a template of each task must have.
PLACEHOLDERS = {"verb": ("verb",), "noun": ("noun",), "action": ("verb", "noun"), "label": ("label",)}
WORDS_PER_PROMPT = 5  # of a class's words, the first ones: Ego4D's groups have up to dozens, most of them rare


def check_template(template: str, *names: str) -> str:
    """
    Returns the template if its placeholders are exactly `names` (an empty name is `{}`).

    Without the placeholder, every class would get the same sentence, and the accuracy would be that of chance.

    Raises:
        ValueError: A placeholder is missing or unknown, or the braces do not match.
    """
    wanted = " and ".join(f"{{{name}}}" for name in names)
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"The template {template!r} is not a format string ({error}); it needs {wanted}.") from None
    found = {name for _, name, _, _ in fields if name is not None}
    unknown = sorted(found - set(names))
    if unknown or any(spec or conversion for _, _, spec, conversion in fields):
        shown = f"{{{unknown[0]}}}" if unknown else "a format"
        raise ValueError(f"The template {template!r} has {shown}; its only placeholder must be {wanted}.")
    if found != set(names):
        raise ValueError(f"The template {template!r} must have the placeholder {wanted}.")
    return template


def third_person(verb: str) -> str:
    """`"pick up"` → `"picks up"`, `"wash"` → `"washes"`, `"carry"` → `"carries"`, as in narrations."""
    first, *rest = verb.split()
    if first.endswith(("s", "sh", "ch", "x", "z", "o")):
        first += "es"
    elif first.endswith("y") and first[-2:-1] not in ("", "a", "e", "i", "o", "u"):
        first = first[:-1] + "ies"
    else:
        first += "s"
    return " ".join([first, *rest])


def plain_words(name: str) -> str:
    """Class names as a person says them: `"chopping board"` for `"board:chopping"`, `"turn on"` for `"turn-on"`."""
    return " ".join(reversed(name.split(":"))).replace("-", " ").replace("_", " ").strip()


def class_words(taxonomy: Taxonomy) -> list[list[str]]:
    """The words of each class, without repetition; the name of the class comes first."""
    result = []
    for label, group in zip(taxonomy.labels, taxonomy.words):
        # Ego4D writes some names as "take_(pick,_grab,_get)".
        names = [label.split("_(")[0], *group]
        result.append(list(dict.fromkeys(plain_words(name) for name in names if plain_words(name))))
    return result


def make_prompts(
    templates: Sequence[str], verbs: Sequence[str] = ("",), nouns: Sequence[str] = ("",), label: str = ""
) -> list[str]:
    """Every template with every verb (in the third person) and every noun of one class, each sentence once."""
    sentences = [
        template.format(verb=third_person(verb) if verb else "", noun=noun, label=label)
        for template in templates
        for verb in verbs[:WORDS_PER_PROMPT]
        for noun in nouns[:WORDS_PER_PROMPT]
    ]
    return list(dict.fromkeys(sentences))
