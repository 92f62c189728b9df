"""A small Decision Transformer, and travellers who follow it.

Chen et al.'s model (2021): a line of tokens (return-to-go, state, action) for
each step; causal attention; the action is predicted from the state's token, so
it knows what is still asked for, and all that happened, but not the future.

    x = LN(e[token] + p[step]);  x = x + attention(LN x);  x = x + MLP(LN x)
    scores of the action = W LN(x)

Here it has one layer, one head, width 32 and a context of the whole
trajectory. The authors' have three layers or more, and contexts of 20 to 50
steps. Like theirs, it subtracts each reward from what is asked for. Returns
are divided by the largest one logged. Without returns (``blind``), the same
model clones.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.paths.route_worlds import Trajectories, World

WIDTH = 32
STEPS = 600
BATCH = 128
RATE = 3e-3


class DecisionTransformer(nn.Module):
    """The model of a world; a return of ``scale`` points is 1 to it."""

    def __init__(self, one: World, scale: float, seed: int = 0) -> None:
        super().__init__()
        H, S, A = one.roads.shape
        self.scale = scale
        self.register_buffer("roads", one.roads, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.asked = nn.Linear(1, WIDTH)
            self.state = nn.Embedding(S, WIDTH)
            self.action = nn.Embedding(A, WIDTH)
            self.step = nn.Embedding(H, WIDTH)
            self.mix = nn.Linear(WIDTH, 3 * WIDTH)
            self.out = nn.Linear(WIDTH, WIDTH)
            self.up = nn.Linear(WIDTH, 4 * WIDTH)
            self.down = nn.Linear(4 * WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, A)
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(
        self, to_go: Tensor, states: Tensor, actions: Tensor
    ) -> Tensor:
        """Scores [N, L, A] of the actions of L steps.

        ``to_go`` and ``states`` are [N, L]; of ``actions`` [N, L] each step
        sees only those before it. A road that is not there scores minus
        infinity.
        """
        L = states.shape[1]
        step = self.step.weight[:L]
        asked = self.asked(to_go[..., None] / self.scale) + step
        state = self.state(states) + step
        action = self.action(actions) + step
        # [N, 3 L, WIDTH], in the order asked, state, action
        x = torch.stack((asked, state, action), dim=2).flatten(1, 2)
        x = self.norms[0](x)
        q, k, v = self.mix(self.norms[1](x)).chunk(3, dim=-1)
        x = x + self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
        )
        x = x + self.down(F.gelu(self.up(self.norms[2](x))))
        scores = self.head(self.norms[3](x[:, 1::3]))
        roads = self.roads[torch.arange(L), states]
        return scores.masked_fill(~roads, float("-inf"))


def train(
    one: World,
    logged: Trajectories,
    seed: int,
    steps: int = STEPS,
    progress: Callable[[Iterable], Iterable] = iter,
) -> DecisionTransformer:
    """A model that has learned which action followed in the logged data."""
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing; use 1 or more")
    to_go = logged.to_go.float()
    model = DecisionTransformer(one, max(1.0, to_go.abs().max().item()), seed)
    states, actions = logged.states[:, :-1], logged.actions
    dice = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps + 1, pct_start=0.1
    )
    for _ in progress(range(steps)):
        at = torch.randint(len(actions), (BATCH,), generator=dice)
        scores = model(to_go[at], states[at], actions[at])
        loss = F.cross_entropy(scores.flatten(0, 1), actions[at].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def follow(
    model: DecisionTransformer, one: World, asked: Tensor, seed: int
) -> Trajectories:
    """A traveller for each number of points ``asked`` for [N].

    Actions are drawn by their probabilities; what is asked for falls by the
    points of each step.
    """
    H, N = len(one.chances), len(asked)
    dice = torch.Generator().manual_seed(seed)
    states = torch.full((N, H + 1), one.start)
    actions = torch.zeros(N, H, dtype=torch.int64)
    rewards = torch.zeros(N, H, dtype=torch.int64)
    to_go = asked[:, None].float().repeat(1, H)
    for h in range(H):
        seen = slice(h + 1)
        # the action of this step is a blank; causality hides it anyway
        scores = model(to_go[:, seen], states[:, seen], actions[:, seen])[
            :, -1
        ]
        a = torch.multinomial(scores.softmax(1), 1, generator=dice)[:, 0]
        row = one.chances[h, states[:, h], a]
        t = torch.multinomial(row, 1, generator=dice)[:, 0]
        points = one.pays[h, states[:, h], a, t]
        actions[:, h], rewards[:, h], states[:, h + 1] = a, points, t
        to_go[:, h + 1 :] -= points[:, None]
    return Trajectories(states, actions, rewards)


def mean_returns(
    model: DecisionTransformer, one: World, asked: list, number: int, seed: int
) -> Tensor:
    """The mean return of ``number`` travellers for each number of points."""
    every = torch.tensor(asked).repeat_interleave(number)
    returns = follow(model, one, every, seed).returns
    return returns.view(len(asked), number).double().mean(1)
