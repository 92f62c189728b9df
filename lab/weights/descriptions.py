"""What experts and queries are about, in words, and how alike two texts are.

In GLIDER a language model writes these sentences, and a sentence embedder
turns them into vectors. Here all of them were written by hand
(`data/glider/README.md`), and a vector is TF-IDF: how often a text has each
word of the experts' descriptions (tf), times how rare the word is among the N
descriptions (idf), divided by the vector's length:

    idf(w) = ln((1 + N) / (1 + df(w))) + 1      df: descriptions that have w

Words that more than half of the descriptions have are left out, since they say
nothing about which expert is meant, and so are little ones such as "the". But
for these, the rules are those of scikit-learn's `TfidfVectorizer(max_df=0.5)`.
Unlike an embedder, TF-IDF knows no synonyms. A text without a known word is
the zero vector, and its cosines are set to 0.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.data import read_json
from lab.weights.names import EXPERTS, HELD_OUT, TITLES

KINDS = ("held-in", "held-out", "two named", "half named", "vague")
WORDINGS = 3  # of each query
# neighbours on a ring, so that every expert is named first once
PAIRS = tuple(zip(EXPERTS, EXPERTS[1:] + EXPERTS[:1], strict=True))
WORD = re.compile(r"\w\w+")
# they stand in any sentence
LITTLE = frozenset(
    "an and are as at be by each for from go he his how in is it its me my of"
    " on or our out she that the their them they this to us we what which who"
    " with you your".split()
)


class Vocabulary(NamedTuple):
    """The words that tell descriptions apart, and how rare each is."""

    words: tuple[str, ...]
    idf: Tensor  # [words]


def words_of(text: str) -> list[str]:
    """The words of at least two letters, in lower case, no little ones."""
    return [w for w in WORD.findall(text.lower()) if w not in LITTLE]


def learn(texts: Sequence[str], most: float = 0.5) -> Vocabulary:
    """The vocabulary of ``texts``: words in at most a share of them."""
    if not texts:
        raise ValueError("there is no description; give one for each expert")
    N = len(texts)
    df = Counter(word for text in texts for word in set(words_of(text)))
    words = tuple(sorted(word for word in df if df[word] <= most * N))
    counts = torch.tensor([float(df[word]) for word in words])
    return Vocabulary(words, ((1 + N) / (1 + counts)).log() + 1)


def embed(vocabulary: Vocabulary, texts: Sequence[str]) -> Tensor:
    """A row of length 1 for each text, [texts, words], or 0 if no word of it
    is known."""
    tf = torch.zeros(len(texts), len(vocabulary.words))
    place = {word: i for i, word in enumerate(vocabulary.words)}
    for row, text in enumerate(texts):
        for word in words_of(text):
            if word in place:
                tf[row, place[word]] += 1
    return F.normalize(tf * vocabulary.idf, dim=1)


def cosines(query: Tensor, experts: Tensor) -> Tensor:
    """How alike a query [D] and the experts' rows [N, D] are, [N]; 0 for a
    row of zeros, which has no direction."""
    if query.ndim != 1 or experts.ndim != 2 or len(query) != experts.shape[1]:
        raise ValueError(
            f"a query {tuple(query.shape)} and experts"
            f" {tuple(experts.shape)} do not fit; give [D] and [N, D]"
        )
    return F.normalize(experts, dim=1) @ F.normalize(query, dim=0)


class Query(NamedTuple):
    """A text to read, and what somebody says about it."""

    kind: str  # one of KINDS
    languages: tuple[str, ...]  # of the text; two take turns, line by line
    said: str


@cache
def written() -> dict:
    """All descriptions, as they are in `data/glider`."""
    return read_json("glider/descriptions.json")


@cache
def queries(kind: str, wording: int = 0) -> tuple[Query, ...]:
    """The six queries of a kind, in one of three wordings."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    if not 0 <= wording < WORDINGS:
        raise ValueError(
            f"wording={wording} does not exist; use 0 to {WORDINGS - 1}"
        )
    said = written()[kind]
    if kind in ("held-in", "held-out"):
        return tuple(
            Query(kind, (language,), said[language][wording])
            for language in (EXPERTS if kind == "held-in" else HELD_OUT)
        )
    return tuple(
        Query(kind, pair, said[wording].format(*(TITLES[e] for e in pair)))
        for pair in PAIRS
    )


@cache
def vocabulary() -> Vocabulary:
    """The words of the six experts' descriptions."""
    return learn([written()["experts"][e] for e in EXPERTS])


@cache
def _experts() -> Tensor:
    return embed(vocabulary(), [written()["experts"][e] for e in EXPERTS])


def alike(said: str) -> Tensor:
    """The cosine of what is said with each expert's description, [6]."""
    return cosines(embed(vocabulary(), [said])[0], _experts())


def known(said: str) -> list[str]:
    """The words of what is said that some expert's description has."""
    return [word for word in words_of(said) if word in vocabulary().words]
