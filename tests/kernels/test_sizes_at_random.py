"""Every kernel at sizes and strides that nobody chose, from its declaration.

Hypothesis draws them, the same ones at each run (derandomized). Examples hold
only what their author thought of, and not a list that overflows at some sizes
alone, or ties that only some rows have.
"""

import pytest
import torch
from guarded import Guarded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_declarations import (
    DEVICE,
    assert_agree,
    by_name,
    cast,
    contiguous,
    strided,
    transposed,
)
from torch import Tensor

from lab.kernels.declaration import all_declarations
from lab.kernels.expert_mlp import ACTIVATIONS

CASES = 20  # of each kernel; on a GPU each one needs a new compilation
# Triton's interpreter cuts bf16 off instead of rounding. One unit in the last
# place may be a 128th of the largest entry; the declarations' tolerances are
# meant for their own examples
ONE_UNIT = {torch.bfloat16: 2**-7}

flags = st.booleans()
shares = st.sampled_from([0.0, 0.3, 0.9, 1.0])
widths = st.integers(1, 70)
# mostly one block, sometimes several
columns = st.one_of(st.integers(1, 140), st.integers(1, 1200))


def upto(most: int, least: int = 0) -> st.SearchStrategy:
    return st.integers(least, most)


def options(**strategies) -> st.SearchStrategy:
    return st.fixed_dictionaries(strategies)


def with_part(whole: str, part: str, sizes: st.SearchStrategy, **others):
    """Options in which one size, from 1 up, is at most another one."""
    return sizes.flatmap(
        lambda n: options(**{whole: st.just(n), part: upto(n, 1)}, **others)
    )


def slots(tokens: int, experts: int, most: int, **others):
    """Tokens with at most ``most`` slots; all may go to one expert."""

    def of(E):
        only = st.one_of(st.none(), upto(E - 1))
        return options(
            T=upto(tokens), E=st.just(E), S=upto(min(E, most), 1),
            empty=shares, only=only, **others,
        )  # fmt: skip

    return upto(experts, 1).flatmap(of)


def wanted(gradients: int):
    """Which of the gradients are wanted; at least one."""
    choice = st.tuples(*[flags] * gradients)
    return choice.filter(any)


def experts(**others):
    return slots(
        120, 9, 5,
        H=widths, F=widths, activation=st.sampled_from(sorted(ACTIVATIONS)),
        **others,
    )  # fmt: skip


def adapters(**others):
    return upto(20, 1).flatmap(
        lambda N: options(
            T=upto(150), N=st.just(N), S=upto(min(N, 4), 1),
            n=widths, m=widths, r=upto(40, 1), empty=shares, by_task=flags,
            **others,
        )
    )  # fmt: skip


def mixtures():
    # inputs and outputs come in whole blocks
    return upto(12, 1).flatmap(
        lambda h: options(
            T=upto(150), J=upto(20, 1), h=st.just(h), S=upto(5, 1),
            n=upto(9, 1).map(lambda width: h * width),
            m=upto(9, 1).map(lambda width: h * width),
            r=upto(40, 1), same=flags,
        )
    )  # fmt: skip


def neighbours():
    # if the side is small, many cities are equally far away
    sides = st.sampled_from([1, 6, 12, 25, 50, 1000, 2**30])
    cities = st.one_of(upto(40, 2), upto(160, 100))
    return cities.flatmap(
        lambda n: options(
            B=upto(1), n=st.just(n), k=upto(min(n - 1, 30), 1), side=sides
        )
    )


def partial_matches():
    # each place is near, far or neither
    roles = st.lists(st.sampled_from("nf "), min_size=1, max_size=5)
    return roles.flatmap(
        lambda roles: options(
            V=upto(60, 1), T=upto(60), P=st.just(len(roles)),
            near=st.just(sum(1 << p for p, r in enumerate(roles) if r == "n")),
            far=st.just(sum(1 << p for p, r in enumerate(roles) if r == "f")),
            density=shares, cut=shares,
        )
    )  # fmt: skip


def voters():
    return upto(200, 1).flatmap(
        lambda R: options(
            N=upto(80), R=st.just(R), D=widths, k=upto(min(R, 64), 1),
            C=upto(128, 1), rising=flags, equal=flags,
        )
    )  # fmt: skip


def moves():
    return upto(60, 5).flatmap(
        lambda n: options(
            B=upto(3), n=st.just(n), C=upto(min(n - 1, 9), 1),
            S=upto(40, 1), D=upto(15, 1), holes=st.sampled_from([0, 30, 90]),
        )
    )  # fmt: skip


def placements():
    return upto(8, 1).flatmap(
        lambda gpus: options(
            K=upto(100), L=upto(6, 1), E=upto(40, gpus), gpus=st.just(gpus),
            empty=st.sampled_from([False, False, True]),
        )
    )  # fmt: skip


def samples():
    return options(
        B=upto(150), V=columns, M=upto(9, 1), N=upto(9, 1), lost=shares,
        spread=st.sampled_from([1.0, 8.0]), lone=flags,
    )  # fmt: skip


def cuts():
    # fewer entries are cut than there are
    return columns.flatmap(
        lambda n: upto(n - 1).flatmap(
            lambda below: options(
                R=upto(5), n=st.just(n), below=st.just(below),
                above=upto(n - 1 - below), ties=flags, zeros=upto(n),
            )
        )
    )  # fmt: skip


def null_gates():
    return widths.flatmap(
        lambda E: options(
            T=upto(150), E=st.just(E), k=upto(E, 1), null_experts=upto(E - 1),
            renormalize=flags, ties=flags,
        )
    )  # fmt: skip


SIZES = {
    # each function has an instance, and one instance has none
    "ap_counts": options(
        C=upto(150, 14), n=upto(80), F=upto(12, 1), several=flags,
        relu=st.sampled_from([0.0, 1.0, 99.0]),
    ),
    "chain_mc": options(
        C=upto(2), B=upto(140), H=upto(9, 1), low=st.just(0.3),
        cutoff=st.sampled_from([4, 40, 60]), limit=st.just(60),
        swap=st.sampled_from([0.8, 1.0]), longest=upto(4, 1), ragged=flags,
    ),
    # values stay sums of few binary digits
    "backward_induction": options(
        E=upto(5), H=upto(8, 1), S=upto(40, 1), A=upto(6, 1), known=shares,
        ends=shares, parts=st.sampled_from([1, 4]), pays=upto(4),
    ),
    "combine": with_part(
        "E", "S", upto(20, 1), T=upto(150), H=columns, empty=shares
    ),
    "combine_backward": options(
        T=upto(150), S=upto(18, 1), H=columns, rest=upto(9), empty=shares,
        wanted=wanted(2),
    ),
    "delay_stats": options(
        B=upto(3), T=upto(64, 1), N=upto(40, 2), groups=upto(5, 1),
        gaps=shares, hang=shares, slow=st.sampled_from([1.0, 2.0]),
    ),
    "dispatch": st.one_of(
        slots(150, 20, 20), slots(1500, 40, 6), slots(300, 400, 8)
    ),
    "duo_ffn": options(
        T=upto(300), D=upto(110, 1), F=upto(80, 1), small=upto(20, 1),
        share=shares, activation=st.sampled_from(["gelu", "relu"]),
    ),
    "expert_mlp": experts(),
    "expert_mlp_backward": experts(wanted=wanted(3)),
    "frontier": options(
        N=upto(150, 1), M=upto(64, 1), L=upto(40), by_prompt=flags, ties=flags
    ),
    "fused_monarch": options(B=upto(5), n=upto(64, 1), flat=flags),
    "gate_backward": with_part(
        "E", "S", widths, T=upto(150), renormalize=flags
    ),
    "gru_router_step": options(
        T=upto(140), P=upto(130, 1), E=upto(140, 1),
        scale=st.sampled_from([1.0, 40.0]),
    ),
    "hashed_matmul": options(
        M=upto(70), N=upto(80, 1), K=upto(80, 1), m=columns,
        offset=upto(2000), still=flags,
    ),
    "intersect": partial_matches(),
    "knn_prior": neighbours(),
    "knn_vote": voters(),
    "kopt_simulate": moves(),
    "linkload": options(
        B=upto(5), G=upto(450), L=upto(40, 1), S=upto(40, 1), empty=shares
    ),
    "mask_overlap": with_part(
        "D", "d", columns, T=upto(9), N=upto(11, 1), relu=flags
    ),
    "min_by_budget": options(
        L=upto(8), T=upto(150), ties=flags, scattered=flags,
        ban=st.sampled_from([0.0, 0.3, 1.0]),
    ),
    "mixed_factor_lora": mixtures(),
    "multi_lora": adapters(),
    "multi_lora_backward": adapters(wanted=wanted(4)),
    "nano_sim": options(
        C=upto(33), N=upto(4, 1), layers=st.just(1), alike=flags,
        nothing=shares, share=st.sampled_from([0, 200, 499]),
    ),
    "pair_aggregation": options(
        B=upto(2), n=upto(20), D=upto(140), density=shares,
    ),
    "placement_cost": placements(),
    "reach_bits": options(
        V=upto(20), degree=upto(3), hops=upto(3), D=upto(70), line=flags
    ),
    "route_select": options(
        N=upto(150), D=columns, K=upto(128, 2), ties=flags, equal=flags
    ),
    "serve_sim": options(
        C=upto(2), S=upto(1), N=upto(6, 1), instances=upto(4, 1),
        rate=st.sampled_from([2.0, 60.0]),
        memory=st.sampled_from([759, 5000]),
        colocated=flags, alike=flags, single=flags,
    ),
    "stack_distance": options(
        G=upto(3), S=upto(30), L=upto(4), E=upto(40, 1), share=shares,
        same=flags,
    ),
    "sym_kl": options(
        T=upto(40), V=columns, spread=st.sampled_from([1.0, 8.0]),
        masked=flags, equal=flags,
    ),
    "sym_kl_backward": options(
        T=upto(40), V=columns, spread=st.sampled_from([1.0, 8.0])
    ),
    "topc_select": with_part(
        "S", "c", columns, B=upto(3), n=upto(6, 1), ties=flags
    ),
    "topk_gate": null_gates(),
    "topp_gate": options(
        T=upto(150), E=widths, renormalize=flags, ties=flags,
        p=st.sampled_from([0.001, 0.25, 0.4, 0.9, 1.0]),
    ),
    "transition_counts": options(
        N=upto(400), L=upto(40, 2), E=upto(20, 1), lost=shares
    ),
    "two_sided_quantile": cuts(),
    "two_table_loss": samples(),
    "two_table_loss_backward": samples(),
    # three nodes or more, and no more chords than they leave room for
    "ue_batch": upto(9, 3).flatmap(
        lambda n: options(
            N=st.just(n), chords=upto(n - 2), B=upto(2), warm=flags,
            iterations=upto(3, 1), power=st.sampled_from([1, 2, 4]),
        )
    ),
}  # fmt: skip


def test_every_kernel_has_sizes():
    assert sorted(SIZES) == [d.name for d in all_declarations()]


@pytest.mark.parametrize(
    "declaration", all_declarations(), ids=lambda declaration: declaration.name
)
@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=CASES,
    # a failure's sizes are small already; shrinking them would take minutes
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_kernel_equals_the_reference_at_any_size(declaration, data):
    chosen = data.draw(SIZES[declaration.name], label="options")
    dtype = data.draw(st.sampled_from(list(declaration.tolerance)), "dtype")
    layout = data.draw(
        st.sampled_from([contiguous, transposed, strided]), "layout"
    )
    seed = data.draw(upto(2**31 - 1), "seed")
    inputs = declaration.inputs(seed, DEVICE, dtype, **chosen)
    memory = Guarded()
    guarded = memory.inputs(
        {
            name: layout(value) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
    )
    with memory:
        found = declaration.triton(**guarded)
    memory.check()
    wide = cast(inputs, torch.float64)
    assert_agree(
        declaration,
        by_name(declaration, found, inputs),
        by_name(declaration, declaration.reference(**wide), wide),
        max(declaration.tolerance[dtype], ONE_UNIT.get(dtype, 0.0)),
    )
