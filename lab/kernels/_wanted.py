"""Which gradients of an operator are asked for.

A gradient that nobody needs is not computed: the tokens' when only the
experts learn, the experts' when they are frozen. An operator can return only
tensors, so it returns an empty one for an unwanted gradient; autograd expects
None.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor


def wanted(ctx, *positions: int) -> list[bool]:
    """Whether autograd needs the gradients of the inputs at ``positions``."""
    return [ctx.needs_input_grad[position] for position in positions]


def or_none(
    gradients: Iterable[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients, with None for each that is not ``wanted``."""
    return [g if w else None for g, w in zip(gradients, wanted, strict=True)]


def like(inputs: Iterable[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """A contiguous tensor for each gradient, empty where not ``wanted``."""
    return [
        x.new_empty(x.shape if w else 0)
        for x, w in zip(inputs, wanted, strict=True)
    ]
