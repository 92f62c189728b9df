"""One task per language: to continue the names of the world's places.

The names of languages, countries and currencies in twenty languages, from
Unicode's CLDR (`data/cldr_names/README.md`), in lower case, one name a line.
Tasks differ in nothing but the language. A base model learns eight languages,
six experts learn one each, and six more are held out: no model has seen them.
"""

import json
import lzma
from functools import cache
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from lab.data import data_path

BASE = ("en", "hu", "lv", "is", "tr", "et", "id", "sq")
EXPERTS = ("es", "fr", "it", "de", "sv", "pl")
HELD_OUT = ("pt", "ca", "nl", "lb", "da", "hr")
TITLES = {
    "es": "Spanish", "fr": "French", "it": "Italian", "de": "German",
    "sv": "Swedish", "pl": "Polish", "pt": "Portuguese", "ca": "Catalan",
    "nl": "Dutch", "lb": "Luxembourgish", "da": "Danish", "hr": "Croatian",
}  # fmt: skip


class Split(NamedTuple):
    """A language as numbers; no key is in both parts, in any language.

    Some spellings are in both, since keys may share one: "palau" is a state
    and its language. So experts have learned 10 of the 1044 lines of `mixed`.
    """

    train: Tensor  # [characters] int64, index into the alphabet
    test: Tensor  # [characters] int64


@cache
def alphabet() -> str:
    """Every character of the data, the line break first."""
    seen = {c for names in _names().values() for c in "".join(names.values())}
    return "\n" + "".join(sorted(seen))


@cache
def split(language: str) -> Split:
    """The names of ``language``, five sixths to learn, the rest to test.

    A name's key decides, so that a name held back in one language is held
    back in all. The order is a fixed shuffle.
    """
    if language not in _names():
        raise ValueError(
            f"language={language!r} is not one of {', '.join(_names())}"
        )
    order = sorted(
        _names()[language].items(), key=lambda i: crc32(i[0][::-1].encode())
    )
    held = [[], []]
    for key, name in order:
        held[crc32(key.encode()) % 6 == 0].append(name)
    return Split(*(encode("\n".join(names) + "\n") for names in held))


class Mixed(NamedTuple):
    """Test names in the languages of several experts in turn, a line each."""

    ids: Tensor  # [characters] int64, index into the alphabet
    language: Tensor  # [characters] int64, index into EXPERTS


@cache
def mixed(languages: tuple[str, ...] = EXPERTS) -> Mixed:
    """A task made of several languages; no expert has seen a second one."""
    for language in languages:
        if language not in EXPERTS:
            raise ValueError(
                f"language={language!r} has no expert; use"
                f" {', '.join(EXPERTS)}"
            )
    places = [EXPERTS.index(language) for language in languages]
    lines = [decode(split(e).test).splitlines() for e in languages]
    turns = [
        (place, line + "\n")
        for row in zip(*lines, strict=False)
        for place, line in zip(places, row, strict=True)
    ]
    whose = [place for place, line in turns for _ in line]
    return Mixed(
        encode("".join(line for _, line in turns)), torch.tensor(whose)
    )


def encode(text: str) -> Tensor:
    """The characters of ``text`` as indices into `alphabet`."""
    place = {character: i for i, character in enumerate(alphabet())}
    return torch.tensor([place[character] for character in text])


def decode(ids: Tensor) -> str:
    """The text that ``ids`` [characters] stand for."""
    return "".join(alphabet()[i] for i in ids.tolist())


@cache
def _names() -> dict[str, dict[str, str]]:
    packed = data_path("cldr_names/names.json.xz").read_bytes()
    names = json.loads(lzma.decompress(packed))
    return {
        language: {key: name.lower() for key, name in table.items()}
        for language, table in names.items()
    }
