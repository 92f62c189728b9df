"""One model in several processes, its experts shared out, all bytes counted.

Each of G processes stands for a GPU. It holds the experts that a placement
gives it and a copy of the rest of the model; the tokens are shared out in
equal runs. N tokens can pass through L layers in two ways, both on
`torch.distributed` (gloo):

    two all-to-alls a layer   a token is sent to its expert and the answer is
                              sent home, since only home has its context
    one all-to-all a layer    every process has the context of all tokens, so
                              a token stays where its expert is; at the end
                              an all-gather shares the new context (ExFlow)

What leaves a process is counted on the tensors themselves; `ROW` says how many
bytes a row of each kind should have. The sizes that processes tell each other
first, 8 bytes a pair, are counted separately; what sockets add is not counted.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lab.kernels.topk_gate import topk_gate
from lab.tokens.char_lm import DIM, CharLM
from lab.tokens.routers import TopKRouter

FLOWS = ("two", "one")  # all-to-alls a layer
CONTEXTS = ("symbol", "hidden", "layers")
ROW = {
    "dispatch": 4 * DIM + 4,  # normed vector, expert
    "combine": 4 * DIM,  # the expert's answer
    "move": 4 * DIM + 12,  # vector, gate weight, token, expert
    "symbol": 8,  # token, predicted symbol
    "hidden": 4 * DIM + 8,  # vector, token, layer
}
SECONDS = 120  # until a run is given up


class Run(NamedTuple):
    """What the processes did together."""

    logits: Tensor  # [N, symbols], in the order of the tokens
    rows: dict[str, int]  # rows that changed the process, by kind
    bytes: dict[str, int]  # and their bytes
    header_bytes: int  # of the sizes told before each exchange
    seconds: float  # of the slowest process, without its start


def homes(tokens: int, gpus: int) -> Tensor:
    """The GPU that each token starts on, [N]: equal runs of tokens."""
    return torch.arange(tokens) * gpus // max(1, tokens)


def traffic(
    routes: Tensor,
    placement: Tensor,
    gpus: int,
    flow: str,
    context: str = "hidden",
) -> dict[str, int]:
    """Bytes between GPUs, by kind, for routes [N, L] and placement [L, E].

    Counted on the trace; a run of the processes counts the same.
    ``context`` says what the all-gather shares of a token: its new "symbol",
    its last "hidden" vector, or the vectors that entered all "layers".
    """
    _check(flow, context)
    N, L = routes.shape
    layers = torch.arange(L)
    at = placement[layers, routes.long()].long()  # [N, L]
    home = homes(N, gpus)[:, None]
    if flow == "two":
        away = int((at != home).sum())
        rows = {"dispatch": away, "combine": away}
    else:
        path = torch.cat([home, at], dim=1)
        shared = N * (gpus - 1) * (L if context == "layers" else 1)
        rows = {"move": int((path[:, 1:] != path[:, :-1]).sum())}
        rows["symbol" if context == "symbol" else "hidden"] = shared
    return {kind: number * ROW[kind] for kind, number in rows.items()}


def run(
    model: CharLM,
    contexts: Tensor,
    placement: Tensor,
    gpus: int,
    flow: str,
    context: str = "hidden",
) -> Run:
    """Send contexts [N, 12] through the model in ``gpus`` processes.

    The model needs top-1 routers. The first run of a session takes some
    seconds to start the processes, mostly to import PyTorch.
    """
    _check(flow, context)
    routers = [layer.router for layer in model.layers]
    if any(not isinstance(r, TopKRouter) or r.k != 1 for r in routers):
        raise ValueError("the flows follow one expert a token; use k = 1")
    experts = model.layers[0].w_up.shape[0]
    if placement.shape != (len(routers), experts):
        raise ValueError(
            f"placement of shape {tuple(placement.shape)} does not fit"
            f" {len(routers)} layers of {experts} experts"
        )
    with tempfile.TemporaryDirectory() as folder:
        job = dict(
            weights={k: w.cpu() for k, w in model.state_dict().items()},
            contexts=contexts.cpu(),
            placement=placement.cpu(),
            flow=flow,
            context=context,
        )
        torch.save(job, Path(folder) / "job.pt")
        _start(folder, gpus)
        parts = [torch.load(Path(folder) / f"{r}.pt") for r in range(gpus)]
    logits = torch.empty(len(contexts), model.leave.out_features)
    for part in parts:
        logits[part["tokens"]] = part["logits"]

    def total(what: str) -> dict[str, int]:
        kinds = parts[0][what]
        return {kind: sum(p[what][kind] for p in parts) for kind in kinds}

    return Run(
        logits,
        total("rows"),
        total("bytes"),
        sum(part["header"] for part in parts),
        max(part["seconds"] for part in parts),
    )


def _check(flow: str, context: str) -> None:
    if flow not in FLOWS or context not in CONTEXTS:
        raise ValueError(
            f"flow={flow!r} with context={context!r} is not known; use a flow"
            f" of {FLOWS} and a context of {CONTEXTS}"
        )


def _start(folder: str, gpus: int) -> None:
    """Run `_work` in ``gpus`` processes and wait for all of them."""
    # children of a fresh server: a fork of this process would inherit threads
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload([__name__])
    workers = [
        start.Process(target=_work, args=(rank, gpus, folder), daemon=True)
        for rank in range(gpus)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    if any(codes):
        raise RuntimeError(
            f"the {gpus} processes ended with exit codes {codes}; the first"
            " error is printed above"
        )
    if None in codes:
        raise TimeoutError(
            f"the processes did not end within {SECONDS} s; try fewer of them"
        )


def _work(rank: int, gpus: int, folder: str) -> None:
    """The life of one process: join, compute, write what came out."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # a machine's own name may lead nowhere, its loopback always works
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    job = torch.load(Path(folder) / "job.pt")
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(Path(folder) / "store"), gpus),
        rank=rank,
        world_size=gpus,
        timeout=timedelta(seconds=SECONDS),
    )
    with torch.no_grad():
        result = Process(job, rank, gpus).go()
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Process:
    """One process: its tokens, its experts, and what it has sent."""

    def __init__(self, job: dict, rank: int, gpus: int) -> None:
        self.rank, self.gpus = rank, gpus
        self.flow, self.context = job["flow"], job["context"]
        self.placement = job["placement"].long()
        layers, experts = self.placement.shape
        self.model = CharLM(
            lambda _: TopKRouter(DIM, experts, 1), experts, 0, layers
        )
        self.model.load_state_dict(job["weights"])
        self.model.eval()
        for layer, row in zip(self.model.layers, self.placement, strict=True):
            # other processes hold these experts: reading one here gives NaN
            layer.w_up[row != rank] = float("nan")
            layer.w_down[row != rank] = float("nan")
        home = homes(len(job["contexts"]), gpus)
        self.tokens = (home == rank).nonzero().flatten()
        self.characters = job["contexts"][self.tokens]
        self.rows, self.bytes, self.header = {}, {}, 0

    def go(self) -> dict:
        """All layers; the logits of the tokens that end here."""
        dist.barrier()
        start = time.perf_counter()
        embedded = self.model.embedding(self.characters).flatten(1)
        x, history = self.model.enter(embedded), []
        layer_step = dict(two=self._there_and_back, one=self._move_on)
        for number in range(len(self.placement)):
            history.append((self.tokens, x))
            x = layer_step[self.flow](number, x)
        logits = self.model.leave(self.model.norm(x))
        if self.flow == "one":
            self._share(logits, x, history)
        return dict(
            tokens=self.tokens,
            logits=logits,
            rows=self.rows,
            bytes=self.bytes,
            header=self.header,
            seconds=time.perf_counter() - start,
        )

    def _there_and_back(self, number: int, x: Tensor) -> Tensor:
        """Dispatch to the experts, combine at home."""
        layer = self.model.layers[number]
        tokens, expert, weight, order, sizes = self._routed(number, x)
        row = _packed(tokens, expert)[order]
        sent = self._exchange("dispatch", row, sizes)
        tokens, expert = _unpacked(sent.rows, 1)
        answer = _experts(layer, tokens, expert[:, 0])
        # as many come back as were sent
        back = self._exchange("combine", answer, sent.sizes, sizes).rows
        y = torch.empty_like(x)
        y[order] = back
        return x + weight[:, None] * y

    def _move_on(self, number: int, x: Tensor) -> Tensor:
        """Send the token itself to its expert, and leave it there."""
        layer = self.model.layers[number]
        _, expert, weight, order, sizes = self._routed(number, x)
        whole = torch.cat([x, weight[:, None]], dim=1)
        row = _packed(whole, self.tokens, expert)[order]
        whole, names = _unpacked(self._exchange("move", row, sizes).rows, 2)
        self.tokens, expert = names.long().unbind(1)
        x, weight = whole[:, :-1], whole[:, -1:]
        return x + weight * _experts(layer, layer.norm(x), expert)

    def _share(self, logits, x, history) -> None:
        """Give every process the new context of every token."""
        if self.context == "symbol":
            row = _packed(logits[:, :0], self.tokens, logits.argmax(dim=1))
            kind = "symbol"
        else:
            last = [(self.tokens, x)]
            kept = history if self.context == "layers" else last
            row = torch.cat([
                _packed(vectors, tokens, torch.full_like(tokens, depth))
                for depth, (tokens, vectors) in enumerate(kept)
            ])  # fmt: skip
            kind = "hidden"
        # an all-gather of uneven sizes, by way of an all-to-all
        sizes = torch.full((self.gpus,), len(row))
        self._exchange(kind, row.repeat(self.gpus, 1), sizes)

    def _routed(self, number: int, x: Tensor):
        layer = self.model.layers[number]
        tokens = layer.norm(x)
        gate = topk_gate(tokens @ layer.router.weight, 1, renormalize=False)
        expert, weight = gate.experts[:, 0], gate.weights[:, 0]
        goal = self.placement[number][expert.long()]
        order = goal.argsort(stable=True)
        sizes = torch.bincount(goal, minlength=self.gpus)
        return tokens, expert, weight, order, sizes

    def _exchange(self, kind: str, rows: Tensor, sizes: Tensor, incoming=None):
        """Send ``sizes[r]`` of the rows to process r and take what comes."""
        if incoming is None:
            incoming = torch.empty_like(sizes)
            dist.all_to_all_single(incoming, sizes)
            self.header += 8 * (self.gpus - 1)
        taken = rows.new_empty(int(incoming.sum()), rows.shape[1])
        dist.all_to_all_single(
            taken, rows.contiguous(), incoming.tolist(), sizes.tolist()
        )
        leaving = int(sizes.sum() - sizes[self.rank])
        self.rows[kind] = self.rows.get(kind, 0) + leaving
        size = rows.shape[1] * rows.element_size()
        self.bytes[kind] = self.bytes.get(kind, 0) + leaving * size
        return Exchange(taken, incoming)


class Exchange(NamedTuple):
    """What came in one exchange."""

    rows: Tensor
    sizes: Tensor  # [G], how many came from each process


def _experts(layer, tokens: Tensor, expert: Tensor) -> Tensor:
    """Send each token [n, D] through its own expert [n]."""
    y = torch.empty_like(tokens)
    for e in expert.unique().tolist():
        mine = expert == e
        y[mine] = (tokens[mine] @ layer.w_up[e]).relu() @ layer.w_down[e]
    return y


def _packed(vectors: Tensor, *names: Tensor) -> Tensor:
    """Vectors [n, C] and whole numbers [n] as one row of 4-byte words."""
    numbers = torch.stack(names, dim=1).int()
    return torch.cat([vectors, numbers.view(torch.float32)], dim=1)


def _unpacked(rows: Tensor, names: int) -> tuple[Tensor, Tensor]:
    """The vectors [n, C] and the last ``names`` words as whole numbers."""
    numbers = rows[:, rows.shape[1] - names :].contiguous()
    return rows[:, : rows.shape[1] - names], numbers.view(torch.int32)
