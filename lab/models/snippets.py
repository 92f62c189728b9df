"""Eight kinds of real text, the prompts of chapter 29.

Code is Python's standard library (`data/text`), school problems are GSM8K's,
and the other six kinds are questions of MMLU, put together by subject
(`data/llm-routing`). A text has 160 to 400 characters, and a prompt is the
first 160 of them.

Two texts that begin with the same 160 characters would let an expert meet a
test prompt in training. MMLU has many: history quotes one passage for several
questions. So of such texts one is kept. `moral_scenarios` is left out: 895
questions begin with the same sentence.
"""

import lzma
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lab.data import data_path
from lab.models import recorded
from lab.tokens.text import encode

PROMPT = 160  # characters of a prompt
LONGEST = 400  # characters of a text, of which experts may learn all
CODE_TEXTS = 2000  # evenly spread over the library's source
NO_CHARACTER = -1  # past the end of a text

SUBJECTS = {
    "law": "professional_law international_law jurisprudence",
    "medicine": "professional_medicine clinical_knowledge college_medicine"
    " anatomy medical_genetics virology nutrition",
    "history": "high_school_european_history high_school_us_history"
    " high_school_world_history prehistory",
    "business": "professional_accounting marketing management econometrics"
    " high_school_macroeconomics high_school_microeconomics",
    "psychology": "professional_psychology high_school_psychology",
    "morals": "moral_disputes philosophy business_ethics",
}
DOMAINS = ("code", "school", *SUBJECTS)


class Snippets(NamedTuple):
    """All texts, in the order of their domains."""

    ids: Tensor  # [N, LONGEST] int64, index into ALPHABET, or NO_CHARACTER
    domain: Tensor  # [N] int64, index into DOMAINS

    @property
    def prompts(self) -> Tensor:
        """The beginning of every text, [N, PROMPT]."""
        return self.ids[:, :PROMPT]


@cache
def load() -> Snippets:
    """Every text once; 9 268 of them."""
    of_subject = recorded.mmlu_texts()
    texts, domain = [], []
    for place, name in enumerate(DOMAINS):
        found = distinct(_texts(name, of_subject))
        texts += found
        domain += [place] * len(found)
    return Snippets(padded(texts), torch.tensor(domain))


def distinct(texts: list[str]) -> list[str]:
    """The texts that are long enough, one of those that begin alike."""
    first = {}
    for text in texts:
        if len(text) >= PROMPT:
            first.setdefault(text[:PROMPT], text[:LONGEST])
    return list(first.values())


def padded(texts: list[str]) -> Tensor:
    """The texts as rows of numbers, [N, LONGEST]."""
    lengths = torch.tensor([len(text) for text in texts])
    inside = torch.arange(LONGEST) < lengths[:, None]
    ids = torch.full((len(texts), LONGEST), NO_CHARACTER)
    ids[inside] = encode("".join(texts))
    return ids


def _texts(name: str, of_subject: list[tuple[str, str]]) -> list[str]:
    if name == "code":
        packed = data_path("text/code.txt.xz").read_bytes()
        source = lzma.decompress(packed).decode("utf-8")
        step = len(source) // CODE_TEXTS
        starts = range(0, step * CODE_TEXTS, step)
        return [source[start : start + LONGEST] for start in starts]
    if name == "school":
        return list(recorded.load("gsm8k").prompts)
    wanted = SUBJECTS[name].split()
    return [text for subject, text in of_subject if subject in wanted]
