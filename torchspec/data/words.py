"""Prompts as words, for comparison: letters and digits in lower case, however the tokenizer cuts them; and hashes of their n-grams.

ids      [<|im_start|>]  [user] [\\n] [What] [ is] [ A] [I] [?]
text          ␣           user   ⏎   what    is    a   i   ?      ids -> bytes by a table, all prompts of a chunk at once
words                    user       what    is    ai              spans of bytes -> hashes -> spans of words -> hashes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from torchspec.data.dataset import PromptDataset
from torchspec.target.language_config import vocab_size

GRAM = 13  # words: long enough that two people do not write the same ones, short enough to survive an edit
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
LETTER = np.array([chr(byte).isalnum() or byte >= 0x80 for byte in range(256)])
VALUES = np.random.default_rng(0).integers(2**64, size=256, dtype=np.uint64)  # of a byte in a hash
WIDE = 0xE0  # first byte of a character of three or more, as Chinese has and no alphabet with spaces: each is a word


@dataclass(frozen=True)
class Spelling:
    """Every id's text in lower case, as UTF-8; a special token is a space."""

    text: np.ndarray  # uint8, of all ids end to end
    starts: np.ndarray  # [V]
    sizes: np.ndarray  # [V]

    @classmethod
    def of(cls, target: Path, trust_remote_code: bool = False) -> "Spelling":
        tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=trust_remote_code)
        ids, special = sorted(tokenizer.get_vocab().values()), set(tokenizer.all_special_ids)
        before = tokenizer("a", add_special_tokens=False).input_ids[-1]  # some tokenizers drop a text's first space
        skipped = len(tokenizer.decode([before]))
        texts = [b" "] * max(vocab_size(target), ids[-1] + 1)
        for i, text in zip(ids, tokenizer.batch_decode([[before, i] for i in ids]), strict=True):
            texts[i] = b" " if i in special else text[skipped:].lower().encode()
        sizes = np.array([len(text) for text in texts])
        return cls(np.frombuffer(b"".join(texts), np.uint8), np.cumsum(sizes) - sizes, sizes)


def prompts(dataset: PromptDataset, spelling: Spelling, every: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each chunk of n samples: hashes of their whole prompts [n], 0 for one without words, and of their grams [G] with the sample in
    the chunk [G] that holds each. every: grams whose hash is a multiple of it.

    A prompt is all text of a sample that is not supervised: its turns of the user, the system prompt, the template's own words.
    """
    for ids, lengths in dataset.unsupervised():
        words, samples = _words(ids, lengths, spelling)
        counts = np.bincount(samples, minlength=len(lengths))
        ends = np.cumsum(counts)
        grams = np.maximum(counts - GRAM + 1, 0)
        owners = np.repeat(np.arange(len(lengths)), grams)
        starts = (ends - counts)[owners] + np.arange(len(owners)) - (np.cumsum(grams) - grams)[owners]
        hashes = _hashes(words, starts, starts + GRAM)
        chosen = hashes % np.uint64(every) == 0
        yield _hashes(words, ends - counts, ends), owners[chosen], hashes[chosen]


def _words(ids: np.ndarray, lengths: np.ndarray, spelling: Spelling) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every word [W], and its sample [W]."""
    sizes = spelling.sizes[ids]
    text = spelling.text[np.repeat(spelling.starts[ids] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())]
    samples = np.repeat(np.repeat(np.arange(len(lengths)), lengths), sizes)
    places = np.flatnonzero(LETTER[text])
    text, samples = text[places], samples[places]
    within = (text & 0xC0) == 0x80  # of a character, not its first byte
    wide = text[np.maximum.accumulate(np.where(within, 0, np.arange(len(text))))] >= WIDE
    apart = (np.diff(places, prepend=-2) > 1) | wide | np.concatenate(([False], wide[:-1]))
    starts = np.flatnonzero((np.diff(samples, prepend=-1) > 0) | (apart & ~within))
    return _hashes(VALUES[text], starts, np.append(starts[1:], len(text))), samples[starts]


def _hashes(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum of v[start + j] BASE^(j + 1) modulo 2^64 of each span, by sums from the beginning: any span costs the same."""
    powers = np.cumprod(np.full(len(values), BASE, np.uint64))
    back = np.cumprod(np.concatenate((np.ones(1, np.uint64), np.full(len(values), INVERSE, np.uint64))))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(values * powers)))
    return (sums[ends] - sums[starts]) * back[starts]
