"""The real text that the character models learn, and its alphabet.

There are two domains, so that a chapter can train on one and adapt to the
other: the reference prose of Python's `help()` and the source of its standard
library (`data/text/README.md` has origin and licence).
"""

import lzma
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import data_path

# printable ASCII, the line break, and one symbol for everything else
ALPHABET = (
    "".join(map(chr, range(32, 127))) + "\n" + "\N{REPLACEMENT CHARACTER}"
)
DOMAINS = ("prose", "code")


class Split(NamedTuple):
    """A text as numbers: the first nine tenths to train, the rest to test."""

    train: Tensor  # [characters] int64, index into ALPHABET
    test: Tensor  # [characters] int64


@cache
def split(domain: str) -> Split:
    """The characters of ``domain`` ("prose" or "code") as numbers, 90 / 10."""
    if domain not in DOMAINS:
        raise ValueError(f"domain={domain!r} is not one of {DOMAINS}")
    packed = data_path(f"text/{domain}.txt.xz").read_bytes()
    ids = encode(lzma.decompress(packed).decode("utf-8"))
    cut = len(ids) * 9 // 10
    return Split(ids[:cut], ids[cut:])


def encode(text: str) -> Tensor:
    """The characters of ``text`` as indices into `ALPHABET`, [characters]."""
    index = {character: i for i, character in enumerate(ALPHABET)}
    other = len(ALPHABET) - 1
    return torch.tensor([index.get(c, other) for c in text])


def decode(ids: Tensor) -> str:
    """The text that ``ids`` [characters] stand for."""
    return "".join(ALPHABET[i] for i in ids.tolist())
