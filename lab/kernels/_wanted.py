"""Which gradients of an operator somebody asked for.

Those that nobody needs are not computed: the tokens' when only the experts
learn, the experts' when they are frozen. An operator returns tensors and
nothing else, so there an unwanted gradient is an empty one; autograd takes
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
