"""Colour refinement on pairs of vertices, and what may be aggregated.

A state chi(u, v) is the colour of vertex v in the copy of the graph in which u
is marked. At first it says whether u = v. In each round a pair takes its own
colour and what it hears, and becomes a new colour; equal before and equal
hearing make equal colours. The sets that can be heard (names of the authors'
code, ``src/utils.py``):

    uL  {chi(u, w)}, w in N(v)     vL  {chi(w, v)}, w in N(u)
    uG  {chi(u, w)}, every w       vG  {chi(w, v)}, every w
    uu  chi(u, u)       vv  chi(v, v)       vu  chi(v, u)

At the end, VS pools the vertices of each copy and then the copies; SV pools
copies first. A graph is the multiset that is left. Two graphs are coloured
together, with one palette, and told apart if their multisets differ.

Colours are whole numbers. A round mixes them to 64 random bits, adds up what
is heard in wrap-around arithmetic, and numbers the sums again. Two different
multisets with one sum would make a test too weak; the chance is about 2^-64
for each two of them. Tests compare with sorted lists, which cannot collide.

The Folklore tests hear pairs of colours at once, {(chi(u, w), chi(w, v))}:
over w in N(v) (LFWL), in N(u) or N(v) (SLFWL), or over every w (2-FWL). They
begin with what u and v are to each other: equal, joined or neither.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lab.kernels.pair_aggregation import pair_aggregation
from lab.paths.twisted_pairs import Pair

LOCAL, GLOBAL, POINT = ("uL", "vL"), ("uG", "vG"), ("uu", "vv", "vu")
HEARD = LOCAL + GLOBAL + POINT
FOLKLORE = ("LFWL", "SLFWL", "2-FWL")
POOLS = ("VS", "SV")
# of splitmix64
STEP = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Design(NamedTuple):
    """What is heard in a round, and what is pooled first."""

    heard: tuple[str, ...]
    pool: str = "VS"


class Round(NamedTuple):
    """The colours of both graphs after a round."""

    colours: Tensor  # [2, n, n] int64, 0, 1, ... over both graphs
    groups: Tensor  # [2, n] int64, of copies (VS) or of vertices (SV)
    count: int  # colours in use

    @property
    def apart(self) -> bool:
        """Whether the two graphs have been told apart."""
        one, other = self.groups.sort(dim=1).values
        return not torch.equal(one, other)


# the tests of the chapter, weakest first as far as they can be compared
TESTS = {
    "SWL(VS)": Design(("uL",)),
    "SWL(SV)": Design(("uL",), "SV"),
    "PSWL(VS)": Design(("uL", "vv")),
    "PSWL(SV)": Design(("uL", "vv"), "SV"),
    "GSWL": Design(("uL", "vG")),
    "SSWL": Design(("uL", "vL")),
    "LFWL": Design(("LFWL",)),
    "SLFWL": Design(("SLFWL",)),
    "2-FWL": Design(("2-FWL",)),
}


def mix(x: Tensor, key: int) -> Tensor:
    """64 bits from each whole number, other bits for every key (splitmix64).

    A number keeps its bits: equal numbers stay equal, others stay different.
    """
    x = x + _signed(key * STEP)
    x = (x ^ _right(x, 30)) * _signed(FIRST)
    x = (x ^ _right(x, 27)) * _signed(SECOND)
    return x ^ _right(x, 31)


def _signed(value: int) -> int:
    """The whole number with the same lowest 64 bits that int64 can hold."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _right(x: Tensor, places: int) -> Tensor:
    """Shift to the right, with zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def hear(x: Tensor, pair: Pair, what: str) -> Tensor:
    """What every pair [2, n, n] hears of the mixed colours x, summed."""
    if what in LOCAL:
        inside = what == "uL"
        sums = pair_aggregation(x[..., None], pair.lists, inside, not inside)
        return sums[0, ..., 0]
    own = x.diagonal(dim1=1, dim2=2)
    return {
        "uG": lambda: x.sum(2)[:, :, None],
        "vG": lambda: x.sum(1)[:, None, :],
        "uu": lambda: own[:, :, None],
        "vv": lambda: own[:, None, :],
        "vu": lambda: x.transpose(1, 2),
    }[what]()


def hear_two(x: Tensor, pair: Pair, what: str, key: int) -> Tensor:
    """The same for a Folklore test: pairs (u, w) and (w, v) at once."""
    # [2, n, n, n], by u, w, v
    both = mix(x[..., None] + mix(x, key)[:, None], key + 1)
    joined = pair.joined[:, None]
    if what == "SLFWL":
        joined = joined | pair.joined[..., None]
    if what != "2-FWL":
        both = both * joined
    return both.sum(2)


def first_colours(pair: Pair, design: Design) -> Tensor:
    """The mark: 1 where u = v. Folklore tests also see edges, as 2."""
    n = pair.size
    mark = torch.eye(n, dtype=torch.int64, device=pair.joined.device)
    if design.heard[0] in FOLKLORE:
        return mark + 2 * pair.joined
    return mark.expand(2, n, n)


def refined(
    colours: Tensor, pair: Pair, heard: tuple[str, ...], key: int = 0
) -> Tensor:
    """The colours [2, n, n] after one more round.

    ``key`` chooses the random bits. The children of a colour have neighbouring
    numbers, in the order of their parents.
    """
    heard_in_all = torch.zeros_like(colours)
    for place, what in enumerate(heard, start=1):
        mine = key + 10 * place
        x = mix(colours, mine)
        if what in FOLKLORE:
            said = hear_two(x, pair, what, mine + 1)
        else:
            said = hear(x, pair, what)
        heard_in_all += mix(said, mine + 3)
    among = heard_in_all.unique(return_inverse=True)[1]
    # its own colour first, so that no colour is given up
    both = colours * (int(among.max()) + 1) + among
    return both.unique(return_inverse=True)[1]


def pooled(colours: Tensor, pool: str, key: int = 0) -> Tensor:
    """The colours [2, n] of copies (VS) or of vertices over copies (SV)."""
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is not one of {', '.join(POOLS)}")
    sums = mix(colours, key + 5).sum(2 if pool == "VS" else 1)
    return sums.unique(return_inverse=True)[1]


def refine(pair: Pair, design: Design, most: int = 200, key: int = 0):
    """Yield a `Round` for the start and for every round that splits a colour.

    Both graphs take the same rounds. It stops after ``most`` rounds.
    """
    _known(design)
    colours = first_colours(pair, design)
    for _ in range(most + 1):
        count = int(colours.max()) + 1
        yield Round(colours, pooled(colours, design.pool, key), count)
        colours = refined(colours, pair, design.heard, key)
        if int(colours.max()) + 1 == count:
            return


def _known(design: Design) -> None:
    """Refuse a test that this file cannot run."""
    if design.heard in [(name,) for name in FOLKLORE]:
        return
    wrong = [what for what in design.heard if what not in HEARD]
    if wrong or not set(LOCAL) & set(design.heard):
        raise ValueError(
            f"heard={design.heard} is no test; use uL, vL or both, and any of"
            f" {', '.join(GLOBAL + POINT)}, or one of {', '.join(FOLKLORE)}"
        )


def told_apart(pair: Pair, design: Design, key: int = 0) -> int | None:
    """The first round after which the graphs differ, or None if they do not.

    Once apart, graphs stay apart: a colour is never given up.
    """
    for number, found in enumerate(refine(pair, design, key=key)):
        if found.apart:
            return number
    return None


def plain_wl(pair: Pair, key: int = 0) -> bool:
    """Whether the ordinary test, one colour per vertex, tells them apart."""
    joined = pair.joined.long()
    colours = joined.new_zeros(joined.shape[:2])
    count = 0
    while int(colours.max()) + 1 > count:
        count = int(colours.max()) + 1
        said = (mix(colours, key + 1)[:, None] * joined).sum(2)
        new = mix(colours, key) + mix(said, key + 2)
        colours = new.unique(return_inverse=True)[1]
    one, other = colours.sort(dim=1).values
    return not torch.equal(one, other)


def class_of(design: Design) -> str:
    """Which of the six classes a subgraph test belongs to, by the paper.

    Swapping u and v turns uL into vL, uG into vG, uu into vv, and VS into SV,
    so a test without uL is read the other way round. Hearing vu swaps them in
    every round, and is as good as both uL and vL.
    """
    _known(design)
    heard, pool = set(design.heard), design.pool
    if "vu" in heard or set(LOCAL) <= heard:
        return "SSWL"
    if "vL" in heard:
        heard = {what.translate(SWAP) for what in heard}
        pool = POOLS[1 - POOLS.index(pool)]
    if "vG" in heard:
        return "GSWL"
    return f"{'PSWL' if 'vv' in heard else 'SWL'}({pool})"


SWAP = str.maketrans("uv", "vu")
