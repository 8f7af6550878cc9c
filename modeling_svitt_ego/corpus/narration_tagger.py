"""The verb and noun groups of a narration, found by rules. No model, no download; the same text, the same groups."""

import re
from collections import defaultdict

from ..data.taxonomy import Taxonomy


def _stems(word: str) -> set[str]:
    """The word and what it may be a form of: cups -> cup, dries -> dry, closing -> clos, close, stopped -> stop."""
    stems = {word}
    for ending, replacements in (
        ("ies", ("y",)),
        ("es", ("", "e")),
        ("s", ("",)),
        ("ied", ("y",)),
        ("ed", ("", "e")),
        ("ing", ("", "e")),
    ):
        if word.endswith(ending) and len(word) - len(ending) >= 2 and not word.endswith("ss"):
            stem = word[: -len(ending)]
            stems.update(stem + replacement for replacement in replacements)
            if ending in ("ed", "ing") and stem[-1] == stem[-2]:  # stopped -> stop
                stems.add(stem[:-1])
    return stems


def _tokens(text: str) -> list[str]:
    text = re.sub(r"#\s*(unsure|c\s+c|c|o)\b", " ", text.lower())  # who acts, and words not understood
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[,.]", text)


_CLAUSE_STARTS = {"and", "while", "then", ",", "."}


class NarrationTagger:
    """Finds the verb and noun groups of a narration by rules.

    * Words are compared by their forms (picks, picking, picked = pick).
    * A noun entry must occur word by word; longer entries win (cutting board over board).
    * The words of a verb entry may have others in between (slide the cup to the left = slide left); longer entries
      win. A verb counts only at the start of a clause: as its first word that any verb entry begins with. So `book` in
      `picks up the book` is not a verb; `and`, `while`, `then`, a comma or a full stop start a new clause.

    EgoVLP's own tags were made with a parser that was not released; ambiguous words can differ from them.
    """

    def __init__(self, verbs: Taxonomy, nouns: Taxonomy):
        self._verbs = self._index(verbs)
        self._nouns = self._index(nouns)

    @staticmethod
    def _index(taxonomy: Taxonomy) -> dict[str, list[tuple[tuple[str, ...], int]]]:
        """First word -> (all words, group) of the entries that begin with it."""
        index = defaultdict(list)
        for group, words in enumerate(taxonomy.words):
            for word in words:
                entry = tuple(re.findall(r"[a-z]+(?:'[a-z]+)?", word.lower()))
                if entry:
                    index[entry[0]].append((entry, group))
        return dict(index)

    @staticmethod
    def _candidates(index, stems):
        """(words, group) of the entries that begin with a form of this word, longest first."""
        found = {entry for stem in stems for entry in index.get(stem, ())}
        return sorted(found, key=lambda entry: (-len(entry[0]), entry))

    def tag(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the verb groups and the noun groups, each in order of appearance and without repeats."""
        tokens = [_stems(token) for token in _tokens(text)]
        verbs: list[int] = []
        nouns: list[int] = []
        is_verb = [False] * len(tokens)
        clause_open = True  # no verb found yet in this clause
        for i, stems in enumerate(tokens):
            clause_open = clause_open or bool(stems & _CLAUSE_STARTS)
            group = self._verb_at(tokens, i) if clause_open else None
            if group is not None:
                clause_open = False
                is_verb[i] = True
                verbs.append(group)
        i = 0
        while i < len(tokens):
            length, group = (1, None) if is_verb[i] else self._noun_at(tokens, i)
            if group is not None:
                nouns.append(group)
            i += length
        return list(dict.fromkeys(verbs)), list(dict.fromkeys(nouns))

    def _verb_at(self, tokens, i):
        end = next((k for k in range(i + 1, len(tokens)) if tokens[k] & _CLAUSE_STARTS), len(tokens))
        for entry, group in self._candidates(self._verbs, tokens[i]):
            place = i
            for word in entry[1:]:
                place = next((k for k in range(place + 1, end) if word in tokens[k]), None)
                if place is None:
                    break
            if place is not None:
                return group
        return None

    def _noun_at(self, tokens, i):
        for entry, group in self._candidates(self._nouns, tokens[i]):
            window = tokens[i : i + len(entry)]
            if len(window) == len(entry) and all(word in stems for word, stems in zip(entry, window)):
                return len(entry), group
        return 1, None


def tag_narration(text: str, verbs: Taxonomy, nouns: Taxonomy) -> tuple[list[int], list[int]]:
    """The verb and noun groups of one narration. For many, make one `NarrationTagger` and call its `tag`."""
    return NarrationTagger(verbs, nouns).tag(text)
