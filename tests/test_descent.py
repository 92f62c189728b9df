"""The one loop that trains every model of the lab."""

import pytest
import torch

from lab.descent import one_cycle_adam

TARGET = torch.tensor([3.0, -1.0])


def descended(steps, **more):
    weight = torch.zeros(2, requires_grad=True)
    one_cycle_adam(
        [weight], lambda _: (weight - TARGET).square().sum(), steps, 0.1,
        **more,
    )  # fmt: skip
    return weight.detach()


@pytest.mark.parametrize("fused", [False, True])
def test_it_arrives(fused):
    torch.testing.assert_close(
        descended(400, fused=fused), TARGET, rtol=0, atol=1e-3
    )


def test_the_rate_rises_to_its_peak_and_falls():
    # Adam's first steps have the size of its rate, whatever the slope
    weight, path = torch.zeros(1, requires_grad=True), []

    def slope(_):
        path.append(weight.item())
        return -weight.sum()

    one_cycle_adam([weight], slope, 100, 0.1)
    lengths = [b - a for a, b in zip(path, path[1:], strict=False)]
    # the cycle moves Adam's momentum too, so the peak is not met exactly
    assert max(lengths) == pytest.approx(0.1, rel=0.05)
    assert lengths[0] < 0.01 and lengths[-1] < 0.01


def test_steps_are_counted_and_shown():
    seen, shown = [], []

    def progress(steps):
        for step in steps:
            shown.append(step)
            yield step

    weight = torch.zeros(1, requires_grad=True)
    one_cycle_adam(
        [weight], lambda step: seen.append(step) or weight.sum(), 5, 0.1,
        progress,
    )  # fmt: skip
    assert seen == shown == [0, 1, 2, 3, 4]
