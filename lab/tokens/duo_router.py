"""Big or small: the learned routers of Duo-LLM (chapter 07).

Alizadeh et al. 2024: every layer has a big and a small network, trained to
replace each other, and a linear router says which one a token takes.

    in training    P = softmax(x W / tau), y = P_big big(x) + P_small small(x)
                   loss = alpha (mean of P_big - budget)^2
    at inference   the more probable one, with weight 1

The mean runs over the tokens and all layers, so a layer may spend what
another saves. tau falls from 1 to 0.1, so that training ends close to the
hard choice.

`LearnedRoutes` is the paper's method: its networks are first trained, with a
random choice, and then frozen. `DuoRouter` brings the idea to a layer of equal
experts, which the other routers of this part have too: the last expert is the
small network, and all others together are the big one. With 8 experts of 32
hidden units that is 224 against 32, 7 to 1 where the paper has 16 to 1, and
networks and router are trained together. Each layer adds its mean of P_big to
a sum that is handed on as memory, and the last layer turns it into the loss.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.kernels.topk_gate import Gate
from lab.tokens.char_lm import DIM, train
from lab.tokens.duo_char_lm import DuoCharLM
from lab.tokens.routers import Router, Routing

SMALL, BIG = 0, 1  # the router's columns
TEMPERATURES = (1.0, 0.1)  # at the first and the last step
BUDGET_WEIGHT = 10.0  # alpha
ROUTER_STEPS = 200


def temperature(done: float) -> float:
    """tau after the share ``done`` of the steps; it falls geometrically."""
    first, last = TEMPERATURES
    return first * (last / first) ** min(1.0, done)


class DuoRouter(Router):
    """Chooses all experts but the last (big), or the last alone (small).

    ``budget`` is the share that shall be big. ``layer`` counts from 0 to
    ``layers`` - 1; tau reaches its last value after ``steps`` training steps.
    A budget of 1/6 with 8 experts costs as many expert calls as top-2.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        layer: int,
        layers: int = 3,
        budget: float = 1 / 6,
        steps: int = 600,
    ) -> None:
        super().__init__(dim, 2)
        if experts < 2:
            raise ValueError(
                f"experts={experts} is too few for a big and a small network;"
                " use 2 or more"
            )
        if not 0 <= budget <= 1:
            raise ValueError(f"budget={budget} is not a share; use 0 to 1")
        if not 0 <= layer < layers:
            raise ValueError(f"layer={layer} is not within 0 to {layers - 1}")
        self.experts, self.layer, self.layers = experts, layer, layers
        self.budget, self.steps = budget, steps
        self.step = 0

    def forward(self, hidden: Tensor, memory: Any = None) -> Routing:
        tau = temperature(self.step / self.steps if self.training else 1.0)
        self.step += self.training
        share = (hidden @ self.weight / tau).softmax(dim=1)
        memory = share[:, BIG].mean() + (0 if memory is None else memory)
        loss = hidden.new_zeros(())
        if self.layer == self.layers - 1:
            over = memory / self.layers - self.budget
            loss = BUDGET_WEIGHT * over**2
        # as scores of all experts: the big network's parts divide its score
        parts = self.experts - 1
        big = share[:, [BIG]].expand(-1, parts) / parts
        scores = torch.cat([big, share[:, [SMALL]]], dim=1)
        return Routing(self.gate(share), scores, loss, memory)

    def gate(self, share: Tensor) -> Gate:
        """Turn the shares [T, 2] of both networks into experts and weights.

        In training both networks are mixed; at inference only the one with
        the larger share runs, and the big one if the shares are equal.
        """
        if not self.training:
            big = share[:, BIG] >= share[:, SMALL]
            share = torch.stack([~big, big], dim=1).to(share)
        column = torch.full((self.experts,), BIG, device=share.device)
        column[-1] = SMALL
        weights = share[:, column]
        experts = torch.arange(self.experts, device=share.device).int()
        experts = experts.where(weights > 0, -1)
        return Gate(experts, weights)


class LearnedRoutes(nn.Module):
    """A frozen copy of ``model`` with a linear router before every layer.

    ``budget`` counts big layers, 0 to L.
    """

    def __init__(self, model: DuoCharLM, budget: float) -> None:
        super().__init__()
        layers = len(model.layers)
        if not 0 <= budget <= layers:
            raise ValueError(f"budget={budget} is not within 0 to {layers}")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.weight = nn.Parameter(torch.zeros(layers, DIM, 2))
        self.budget = budget
        self.tau = temperature(0.0)

    @property
    def leave(self) -> nn.Linear:
        return self.model.leave

    def mixed(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and mean P_big; every token passes through both networks."""
        x, shares = self.model.start(context), []
        for layer, weight in zip(self.model.layers, self.weight, strict=True):
            share = (layer.norm(x) @ weight / self.tau).softmax(dim=1)
            shares.append(share[:, BIG].mean())
            big, small = layer.big(x), layer.small(x)
            x = x + share[:, [BIG]] * big + share[:, [SMALL]] * small
        return self.model.finish(x), torch.stack(shares).mean()

    @torch.no_grad()
    def routes(self, context: Tensor) -> Tensor:
        """The route that each token takes at inference, [T] int64."""
        x = self.model.start(context)
        route = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for place, layer in enumerate(self.model.layers):
            logits = layer.norm(x) @ self.weight[place]
            big = logits[:, BIG] > logits[:, SMALL]
            route += big.long() << place
            x = layer(x, big)
        return route


def learn(
    model: DuoCharLM,
    budget: float,
    steps: int = ROUTER_STEPS,
    seed: int = 0,
    progress: Callable = iter,
) -> LearnedRoutes:
    """Train routers for a trained model to spend ``budget`` big layers."""
    routed = LearnedRoutes(model, budget)

    def objective(routed, context, target):
        logits, big = routed.mixed(context)
        over = big - budget / len(routed.weight)
        loss = F.cross_entropy(logits, target) + BUDGET_WEIGHT * over**2
        return None, loss

    def cool(step: int, _) -> None:
        routed.tau = temperature((step + 1) / steps)

    return train(
        routed,
        "prose",
        steps,
        seed,
        progress=progress,
        on_step=cool,
        objective=objective,
    )
