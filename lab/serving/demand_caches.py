"""Caches that know nothing ahead: LRU in each layer, and no cache at all.

They are the baselines of `lab.serving.prefetch_cache` and take the same
visits. On demand, the link is idle until the gate has spoken; the experts that
are there run meanwhile, and each missing one runs when it has arrived.
"""

from lab.serving.prefetch_cache import UNIT, Costs, Served


def lru_by_layer(
    needs: list[list[int]], layers: int, slots: int, costs: Costs = UNIT
) -> Served:
    """Every layer keeps the ``slots`` experts that it used last.

    Of experts used in one visit, those with the lower numbers stay. A visit
    that needs more than ``slots`` experts may pass some of them through a
    slot that is not counted, in favour of this baseline.
    """
    if slots < 1:
        raise ValueError(
            f"slots={slots} leave a layer without a cache; use 1 or more"
        )
    stacks = [[] for _ in range(layers)]  # the expert used last comes first
    hits, time = 0, 0.0
    for visit, needed in enumerate(needs):
        stack = stacks[visit % layers]
        here = len({*needed} & {*stack[:slots]})
        hits += here
        time += demand_time(here, len(needed) - here, costs)
        old = [x for x in stack if x not in needed]
        stacks[visit % layers] = sorted(needed) + old
    total = sum(map(len, needs))
    return Served(len(needs), total, hits, total - hits, time, [])


def demand_time(here: int, missing: int, costs: Costs) -> float:
    """Time of a visit that finds ``here`` experts and must load the others."""
    end = here * costs.expert
    for i in range(1, missing + 1):
        end = max(end, i * costs.transfer) + costs.expert
    return costs.attention + end


def load_all(
    needs: list[list[int]], experts: int, costs: Costs = UNIT
) -> Served:
    """All experts of the next layer are loaded while this one works."""
    whole = experts * costs.transfer
    time = sum(
        max(whole, costs.attention + len(needed) * costs.expert)
        for needed in needs
    )
    total = sum(map(len, needs))
    return Served(len(needs), total, total, experts * len(needs), time, [])
