"""BERT-style tokenizers: from a vocabulary, or trained on a small corpus."""

import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000, add_sep: bool = True) -> PreTrainedTokenizerFast:
    """
    A WordPiece tokenizer for a small corpus, lower-cased; the same texts give the same one, in any order.

    The vocabulary is the corpus' most frequent words, and single characters to spell all others with. (The trainer of
    `tokenizers` also finds pieces of words, but numbers them differently from run to run.)

    Args:
        texts (iterable of `str`): The corpus, for example the narrations of the training videos.
        vocab_size (`int`): Upper bound of the vocabulary, the five special tokens and the characters included.
        add_sep (`bool`): As in [`build_tokenizer`].
    """
    splitter = _wordpiece({})
    words = Counter()
    for text in texts:
        normal = splitter.normalizer.normalize_str(text)
        words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal))
    characters = sorted({*string.ascii_lowercase, *string.digits, *"".join(words)})
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    if len(tokens) > vocab_size:
        raise ValueError(f"vocab_size ({vocab_size}) must be at least {len(tokens)}: special tokens and characters.")
    tokens += sorted(words.keys() - set(tokens), key=lambda word: (-words[word], word))
    return build_tokenizer({token: i for i, token in enumerate(tokens[:vocab_size])}, add_sep)


def build_tokenizer(vocab: dict[str, int] | str, add_sep: bool = True) -> PreTrainedTokenizerFast:
    """
    A BERT tokenizer that survives `save_pretrained` with or without the closing [SEP].

    Args:
        vocab (`dict[str, int]` or `str`):
            Token to id, or the path of a `vocab.txt` (bert-base-uncased's, say) with one token per line.
        add_sep (`bool`):
            Whether a text becomes `[CLS] text [SEP]`, as in BERT, or `[CLS] text`, as in the SViTT release. It is kept
            in `tokenizer.json`; `BertTokenizer` would put the [SEP] back when loading.
    """
    if isinstance(vocab, str):
        with open(vocab, encoding="utf-8") as file:
            vocab = {token.rstrip("\n"): i for i, token in enumerate(file)}
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise ValueError(f"The vocabulary of {len(vocab)} tokens lacks {', '.join(missing)}.")
    tokenizer = _wordpiece(vocab)
    end = " [SEP]" if add_sep else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"[CLS] $A{end}",
        pair=f"[CLS] $A{end} $B:1{end and end + ':1'}",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def _wordpiece(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer
