"""The blind alternative to every adaptive router: mix top-1 and top-2.

A share s of the tokens served by a top-2 model and the rest by a top-1 model
costs 1 + s experts per token and loses s of the way between their bits.
Choosing the number by token is worth something only below that line.
"""


def bits_above_mixing(
    bits: float, experts: float, top_1_bits: float, top_2_bits: float
) -> float:
    """Bits per character lost against the mixture with as many ``experts``.

    ``experts`` is the mean per token; beyond 1 and 2 the line goes on.
    """
    share = experts - 1
    return bits - (top_1_bits + share * (top_2_bits - top_1_bits))
