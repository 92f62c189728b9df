"""Simulated moves against plain lists that are really reversed.

Three voices agree: a loop over Python lists, the reference, the kernel. And
a move that is carried out shortens the tour by its gain, to the last unit.
"""

import pytest
import torch
from on_device import on_device

from lab.kernels.kopt_simulate import (
    DECLARATION,
    NO_GAIN,
    kopt_simulate,
    kopt_simulate_triton,
)
from lab.paths.tours import lengths, reversed_prefixes

OPTIONS = [
    {"B": 2, "n": 23, "C": 5, "S": 35, "D": 7, "holes": 20},
    {"B": 1, "n": 6, "C": 5, "S": 9, "D": 12},
    {"B": 3, "n": 40, "C": 12, "S": 5, "D": 20},
]


def inputs(options):
    return DECLARATION.inputs(5, "cpu", torch.float32, **options)


def by_lists(tour, candidates, potentials, d, draws):
    """One simulation on a path that is cut and reversed for real."""
    n = len(tour)
    cut = draws[0] * n >> 31
    path = tour[cut + 1 :] + tour[: cut + 1]
    first, gain = path[-1], d[path[-1]][path[0]]
    best, depth, prefixes, tried = NO_GAIN, 0, [], []
    for draw in draws[1:]:
        end = path[0]
        allowed = [
            (a, w)
            for a, w in zip(candidates[end], potentials[end], strict=True)
            if a not in (-1, first, path[1]) and w > 0
        ]
        if not allowed:
            break
        left = draw * sum(w for _, w in allowed) >> 31
        for a, w in allowed:
            if left < w:
                p = path.index(a)
                break
            left -= w
        gain += d[path[p - 1]][a] - d[end][a]
        path = path[:p][::-1] + path[p:]
        prefixes.append(p)
        tried.append(end * n + a)
        closing = gain - d[path[0]][first]
        if closing > best:
            best, depth = closing, len(prefixes)
        if closing > 0:
            break
    return best, depth, prefixes, tried


@pytest.mark.parametrize(
    "simulate", [kopt_simulate, on_device(kopt_simulate_triton)]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_simulations_are_those_of_reversed_lists(simulate, options):
    given = inputs(options)
    found = simulate(**given)
    lists = {name: tensor.tolist() for name, tensor in given.items()}
    for b in range(options["B"]):
        tour, *rest = (lists[name][b] for name in lists if name != "draws")
        for s, draws in enumerate(lists["draws"][b]):
            gain, depth, prefixes, tried = by_lists(tour, *rest, draws)
            assert found.gain[b, s] == gain
            assert found.depth[b, s] == depth
            t = len(prefixes)
            assert found.prefixes[b, s, :t].tolist() == prefixes
            assert found.tried[b, s, :t].tolist() == tried
            assert not found.prefixes[b, s, t:].any()
            assert (found.tried[b, s, t:] == -1).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_every_gain_is_what_the_tour_loses(options):
    given = inputs(options)
    found = kopt_simulate(**given)
    B, S, D = found.prefixes.shape
    n = options["n"]
    at = (found.start[:, :, None].long() + torch.arange(n)) % n
    paths = given["tours"].long()[:, None].expand(B, S, n).gather(2, at)
    done = torch.arange(D) < found.depth[:, :, None]
    moved = reversed_prefixes(
        paths.flatten(0, 1), found.prefixes.where(done, 0).flatten(0, 1)
    )
    assert (moved.sort(1)[0] == torch.arange(n)).all()
    d = given["distances"].repeat_interleave(S, 0)
    lost = lengths(paths.flatten(0, 1), d) - lengths(moved, d)
    some = found.depth.flatten() > 0
    assert some.sum() > B * S / 2
    assert torch.equal(lost[some], found.gain.flatten()[some].long())


def test_the_draw_follows_the_potentials():
    # city 0 is the free end; its candidates 2, 3, 4 weigh 1, 2 and 5
    n, S = 6, 4000
    tours = torch.arange(n)[None].int()
    candidates = torch.tensor([2, 3, 4]).expand(1, n, 3).int()
    potentials = torch.tensor([1, 2, 5]).expand(1, n, 3).int()
    distances = torch.ones(1, n, n).int()
    draws = torch.randint(
        2**31, (1, S, 2), generator=torch.Generator().manual_seed(0)
    )
    draws[:, :, 0] = 2**31 - 1  # a_1 is the last city
    found = kopt_simulate(
        tours, candidates, potentials, distances, draws.int()
    )
    chosen = torch.bincount(found.tried[0, :, 0].long(), minlength=n) / S
    expected = torch.tensor([0, 0, 1, 2, 5, 0]) / 8
    # four standard errors of a share
    assert (chosen - expected).abs().max() < 4 * (0.25 / S) ** 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tours": torch.zeros(2, 23).long()}, "tours are torch.int64"),
        ({"potentials": torch.zeros(2, 23, 4).int()}, "potentials have shape"),
        ({"distances": torch.zeros(2, 9, 9).int()}, "distances have shape"),
        ({"draws": torch.zeros(2, 5, 1).int()}, "0 steps"),
        ({"tours": torch.zeros(2, 4).int()}, "a tour of 4 cities"),
        ({"tours": torch.zeros(2, 46341).int()}, "a tour of 46341 cities"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        kopt_simulate(**inputs(OPTIONS[0]) | change)
