"""Seven domains of real text, for chapters in which the domain matters.

150 000 characters each: Python source, C headers, reference prose, CSV
tables, code-page tables, type stubs and docstrings. `data/domains/README.md`
has origin and licence. The alphabet is that of `lab.tokens.text`.
"""

import lzma
from functools import cache

import torch
from torch import Tensor

from lab.data import data_path
from lab.tokens.char_lm import CONTEXT, windows
from lab.tokens.text import Split, encode

DOMAINS = (
    "python",
    "headers",
    "prose",
    "tables",
    "code pages",
    "stubs",
    "docstrings",
)


@cache
def split(domain: str) -> Split:
    """The characters of one of `DOMAINS` as numbers, split 90 / 10.

    The last tenth holds every tenth block of the text, so that all of its
    documents are tested.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain={domain!r} is not one of {DOMAINS}")
    name = domain.replace(" ", "-")
    packed = data_path(f"domains/{name}.txt.xz").read_bytes()
    ids = encode(lzma.decompress(packed).decode("utf-8"))
    cut = len(ids) * 9 // 10
    return Split(ids[:cut], ids[cut:])


def mixture(
    each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``each`` training characters of every domain.

    Returns contexts [7 each, 12], targets [7 each] and the domains' numbers
    [7 each].
    """
    drawn = []
    for domain in DOMAINS:
        ids = split(domain).train
        at = torch.randint(CONTEXT, len(ids), (each,), generator=generator)
        drawn.append(windows(ids, at))
    context, target = map(torch.cat, zip(*drawn, strict=True))
    return context, target, torch.arange(len(DOMAINS)).repeat_interleave(each)


def passage(
    domain: str, characters: int, part: str = "test"
) -> tuple[Tensor, Tensor]:
    """Contexts and targets of the first ``characters`` of a part."""
    ids = getattr(split(domain), part)
    if not 1 <= characters <= len(ids) - CONTEXT:
        raise ValueError(
            f"characters={characters} is not within 1 to"
            f" {len(ids) - CONTEXT}, the number available in {domain}"
        )
    return windows(ids, torch.arange(CONTEXT, CONTEXT + characters))
