"""A transformer with one layer and one head that learns to write paths.

    x = e[token] + p[place]
    x = x + attention(norm x);  x = x + W_2 gelu(W_1 norm x)
    scores of the next token = norm(x) e^T

There are no biases, and AdamW trains it, as in code that descends from the
authors'; here it is narrower, and learns for fewer steps at a higher rate. The
tokens are the nodes and one that ends a line.

Two tables like those of the simplified transformer can be read out of it.
`weight_tables` takes them from its weights, as the paper does: the embedding
of the current node and what the feed-forward part adds to it; and what
attention would bring if it looked at nothing but the target, and what the
feed-forward part adds to that.
`effect_tables` takes them from its scores instead: what the current node and
the target do to them on average.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.paths.path_data import Paths

WIDTH = 48
STEPS = 1500
BATCH = 128
PEAK_RATE = 5e-3


class Read(NamedTuple):
    scores: Tensor  # [N, L, V + 1]
    attention: Tensor  # [N, L, L], rows add up to 1


class PathGPT(nn.Module):
    """The model for V nodes and lines of up to L tokens."""

    def __init__(self, nodes: int, length: int, seed: int = 0) -> None:
        super().__init__()
        self.nodes, self.length = nodes, length
        self.token = nn.Parameter(torch.empty(nodes + 1, WIDTH))
        self.place = nn.Parameter(torch.empty(length, WIDTH))
        self.query = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.key = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.value = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.out = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.up = nn.Parameter(torch.empty(WIDTH, 4 * WIDTH))
        self.down = nn.Parameter(torch.empty(4 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(
            nn.LayerNorm(WIDTH, bias=False) for _ in range(3)
        )
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                matrix = name not in ("token", "place")
                std = len(weight) ** -0.5 if matrix else 0.1
                nn.init.normal_(weight, std=std, generator=generator)

    def forward(self, tokens: Tensor) -> Read:
        """Read lines [N, L]; every place sees itself and what came before."""
        L = tokens.shape[1]
        x = self.token[tokens] + self.place[:L]
        y = self.norms[0](x)
        near = (y @ self.query) @ (y @ self.key).transpose(1, 2)
        later = torch.ones(L, L, dtype=torch.bool).triu(1)
        near = near.masked_fill(later, float("-inf")) * WIDTH**-0.5
        attention = near.softmax(dim=2)
        x = x + attention @ (y @ self.value) @ self.out
        x = x + self.feed(x)
        return Read(self.norms[2](x) @ self.token.T, attention)

    def feed(self, x: Tensor) -> Tensor:
        return F.gelu(self.norms[1](x) @ self.up) @ self.down

    @torch.no_grad()
    def weight_tables(self) -> tuple[Tensor, Tensor]:
        """By current node and by target [V, V], as the paper reads them."""
        nodes = self.token[: self.nodes]
        by_current = (nodes + self.feed(nodes)) @ nodes.T
        target = self.norms[0](nodes + self.place[1])
        brought = target @ self.value @ self.out
        return by_current, (brought + self.feed(brought)) @ nodes.T

    @torch.no_grad()
    def effect_tables(self) -> tuple[Tensor, Tensor, float]:
        """By current node and by target [V, V], and the share they explain.

        Over all lines "i j i", each score is a sum of an effect of i, one of
        j and a rest. The share is that of the scores' variance, constants of
        a line left out, which is not in the rest.
        """
        V = self.nodes
        i, j = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T
        scores = self(torch.stack([i, j, i], dim=1)).scores[:, -1, :V]
        scores = scores.view(V, V, V)
        scores = scores - scores.mean(dim=2, keepdim=True)
        overall = scores.mean(dim=(0, 1))
        by_current, by_target = scores.mean(dim=1), scores.mean(dim=0)
        rest = scores - by_current[:, None] - by_target + overall
        share = 1 - rest.square().sum() / (scores - overall).square().sum()
        return by_current, by_target - overall, share.item()


def lines(paths: Paths) -> Tensor:
    """The training paths [N, L + 1] as tokens: V ends a line, -1 pads it."""
    ended = F.pad(paths.sequences, (0, 1), value=-1)
    first = (ended >= 0).sum(1, keepdim=True)
    return ended.scatter(1, first, len(paths.edges))


def train(
    paths: Paths,
    seed: int,
    steps: int = STEPS,
    progress: Callable[[Iterable], Iterable] = iter,
) -> PathGPT:
    """A model that has learned to write the training paths.

    It learns every token of a line at its place, the header too, as the paper
    has it. Weights decay by 0.1 times the rate, which rises for a twentieth of
    the steps and falls to almost nothing.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    known = lines(paths)
    # a path that it writes may be longer than all that it has seen
    model = PathGPT(len(paths.edges), known.shape[1] + 8, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1,
        fused=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps + 1, pct_start=0.05
    )
    for _ in progress(range(steps)):
        at = torch.randint(len(known), (BATCH,), generator=generator)
        batch = known[at]
        scores = model(batch[:, :-1].clamp_min(0)).scores
        loss = F.cross_entropy(
            scores.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def attention_on_target(model: PathGPT, paths: Paths) -> float:
    """Mean attention on the target where the training paths are written."""
    known = lines(paths)[:, :-1]
    attention = model(known.clamp_min(0)).attention
    # from the source on, up to the node before the target
    writing = known[:, 1:] < model.nodes
    writing &= known[:, 1:] >= 0
    writing[:, :2] = False
    return attention[:, :-1, 1][writing].mean().item()


@torch.no_grad()
def right_paths(
    model: PathGPT,
    edges: Tensor,
    source: Tensor,
    target: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """For which pairs [N] the model writes a path of true edges, and no more.

    It writes the most likely token, or with a ``generator`` a random one, by
    its probabilities. The line must end after the target.
    """
    line = torch.stack([source, target, source], dim=1)
    right = torch.zeros(len(source), dtype=torch.bool)
    alive = torch.arange(len(source))
    while len(alive) and line.shape[1] < model.length:
        scores = model(line).scores[:, -1]
        if generator is None:
            new = scores.argmax(1)
        else:
            chances = scores.softmax(1)
            new = torch.multinomial(chances, 1, generator=generator)[:, 0]
        here = line[:, -1]
        arrived = here == target[alive]
        ends = new == model.nodes
        right[alive[arrived & ends]] = True
        valid = edges[here, new.clamp_max(model.nodes - 1)]
        on = valid & ~ends & ~arrived
        line = torch.cat([line, new[:, None]], dim=1)[on]
        alive = alive[on]
    return right
