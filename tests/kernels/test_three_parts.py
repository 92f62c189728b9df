"""fp32 products through bf16 matrix units: no less exact than in fp32."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from lab.kernels import (
    _duo_ffn_triton,
    _gru_router_step_triton,
    duo_ffn,
    gru_router_step,
    interpreter,
    runtime,
)
from lab.kernels import _expert_mlp_backward_triton as backward
from lab.kernels import _expert_mlp_triton as forward
from lab.kernels._expert_mlp_examples import backward_inputs, forward_inputs
from lab.kernels._three_parts import HAVE_ROOM, splits, three_parts
from lab.kernels.expert_mlp import expert_mlp_reference, expert_mlp_triton
from lab.kernels.expert_mlp_backward import (
    expert_mlp_backward_reference,
    expert_mlp_backward_triton,
)

DEVICE = "cpu" if runtime.INTERPRETED else "cuda"
SIZES = dict(T=90, E=2, S=1, H=40, F=24, activation="swiglu", empty=0.2)
in_parts = pytest.mark.skipif(
    runtime.target(torch.empty(0, device=DEVICE)) not in HAVE_ROOM,
    reason="this GPU takes fp32 as it is",
)


@triton.jit
def parts_kernel(x_ptr, parts_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    high, middle, low = three_parts(tl.load(x_ptr + at))
    tl.store(parts_ptr + at, high)
    tl.store(parts_ptr + SIZE + at, middle)
    tl.store(parts_ptr + 2 * SIZE + at, low)


def normal(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(DEVICE)


def test_three_parts_hold_every_bit():
    x = normal(1024) * torch.exp(8 * normal(1024).flip(0))  # 1e-12 to 1e12
    x[:4] = torch.tensor([0.0, -0.0, 1e-30, 3e38])
    parts = x.new_empty(3, 1024, dtype=torch.bfloat16)
    parts_kernel[(1,)](x, parts, SIZE=1024)
    assert torch.equal(parts.double().sum(0), x.double())
    # otherwise two parts would be enough
    assert (parts[2] != 0).sum() > 500


@in_parts
@pytest.mark.parametrize("rows", [5, 200], ids=["few rows", "many rows"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_long_sum_is_as_exact_as_in_fp32(rows, transposed):
    """If products are added straight into the total, a matrix unit's errors
    all go one way: 1.4e-5 at a length of 2048, on an H200. Without the last
    part the error is 1e-5.
    """
    K = 1024 if runtime.INTERPRETED else 8192
    a, weight = normal(rows, K), normal(1, K, 128)
    if transposed:
        weight = weight.mT.contiguous().mT
    offsets = torch.tensor([0, rows], dtype=torch.int32, device=DEVICE)
    found = forward.product(a, weight, offsets)
    expected = a.double() @ weight[0].double()
    assert (found - expected).norm() / expected.norm() < 5e-7


def cutting_dot(self, a, b, total, *_):
    """A product as a matrix unit makes it: what does not fit is cut off."""
    a, b = (interpreter._in_fp32(x).data.astype(np.float64) for x in (a, b))
    exact = a @ b + total.data
    cut = exact.astype(np.float32)
    too_far = np.abs(cut) > np.abs(exact)
    cut[too_far] = np.nextafter(cut[too_far], np.float32(0))
    return TensorHandle(cut, total.dtype.scalar)


@pytest.mark.skipif(not runtime.INTERPRETED, reason="stands for a GPU")
def test_what_a_matrix_unit_cuts_off_does_not_add_up(monkeypatch):
    """With all products in one sum, the error would be 9e-6 here."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", cutting_dot)
    a, weight = normal(16, 2048), normal(1, 2048, 128)
    offsets = torch.tensor([0, 16], dtype=torch.int32)
    found = forward.product(a, weight, offsets)
    expected = a.double() @ weight[0].double()
    assert (found - expected).norm() / expected.norm() < 5e-7


@in_parts
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of inf - inf
def test_a_number_that_is_not_finite_leaves_other_rows_alone():
    a, weight = normal(3, 32), normal(1, 32, 16)
    a[1, 7] = float("inf")
    offsets = torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    found = forward.product(a, weight, offsets)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


class Switches:
    """Wraps a kernel and remembers how it is launched."""

    def __init__(self, kernel):
        self.kernel, self.split = kernel, []

    def __getitem__(self, grid):
        def launch(*arguments, SPLIT, **others):
            self.split.append(SPLIT)
            self.kernel[grid](*arguments, SPLIT=SPLIT, **others)

        return launch


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "gfx942"])
@pytest.mark.parametrize("T", [9, 90], ids=["few rows", "many rows"])
def test_each_gpu_takes_its_own_way(monkeypatch, target, T):
    monkeypatch.setattr(runtime, "target", lambda tensor: target)
    seen = []
    for module, name in (
        (forward, "expert_up_kernel"),
        (forward, "expert_product_kernel"),
        (backward, "expert_hidden_backward_kernel"),
        (backward, "expert_weight_backward_kernel"),
    ):
        kernel = Switches(getattr(module, name))
        monkeypatch.setattr(module, name, kernel)
        seen.append(kernel)
    sizes = SIZES | {"T": T}
    inputs = forward_inputs(0, DEVICE, torch.float32, **sizes)
    kept = inputs["offsets"][-1]
    found = expert_mlp_triton(**inputs)[:kept]
    expected = expert_mlp_reference(**inputs)[:kept]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    inputs = backward_inputs(0, DEVICE, torch.float32, **sizes)
    for left, right in zip(
        expert_mlp_backward_triton(**inputs),
        expert_mlp_backward_reference(**inputs),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=3e-5)
    for kernel in seen:
        assert set(kernel.split) == {target == "sm_80"}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_86", "gfx942"])
@pytest.mark.parametrize(
    "module, kernel, declaration, options",
    [
        (
            _gru_router_step_triton, "gru_router_step_kernel",
            gru_router_step.DECLARATION, {"T": 70, "P": 32, "E": 5},
        ),
        (
            _duo_ffn_triton, "duo_ffn_kernel", duo_ffn.DECLARATION,
            {"T": 150, "D": 70, "F": 40, "small": 3},
        ),
    ],
    ids=["gru_router_step", "duo_ffn"],
)  # fmt: skip
def test_each_gpu_takes_its_own_way_in_other_kernels(
    monkeypatch, target, module, kernel, declaration, options
):
    monkeypatch.setattr(runtime, "target", lambda tensor: target)
    seen = Switches(getattr(module, kernel))
    monkeypatch.setattr(module, kernel, seen)
    inputs = declaration.inputs(0, DEVICE, torch.float32, **options)
    found, expected = (
        torch.cat([part.flatten() for part in run(**inputs)])
        for run in (declaration.triton, declaration.reference)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert seen.split == [target in HAVE_ROOM]


@pytest.mark.parametrize(
    "dtype, target, copied",
    [
        (torch.float32, "sm_86", True),
        (torch.float32, "sm_90", False),
        (torch.bfloat16, "sm_86", False),
    ],
)
def test_only_whole_fp32_copies_weights(monkeypatch, dtype, target, copied):
    """Whole fp32, turned in the kernel, would wait in shared memory. Others
    are not copied: with few tokens a copy takes longer than all the rest."""
    monkeypatch.setattr(runtime, "target", lambda tensor: target)
    weight = torch.rand(2, 3, 5).to(dtype)
    turned = backward.transposed(weight)
    assert torch.equal(turned, weight.mT)
    assert (turned.data_ptr() != weight.data_ptr()) == copied
    assert turned.is_contiguous() == copied


def test_other_dtypes_and_gpus_are_not_split():
    assert splits(torch.float32, "sm_90")
    assert not splits(torch.float32, "sm_100")
    assert not splits(torch.bfloat16, "sm_90")
    assert not splits(torch.float16, "sm_80")
