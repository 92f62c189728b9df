"""The blind alternative to every adaptive router: mix top-1 and top-2.

Sending a share s of the tokens to a top-2 model and the rest to a top-1 model
costs 1 + s experts per token, and moves the bits a share s of the way from
top-1's to top-2's, along a straight line. Choosing the number by token is
worth something only below that line.
"""


def bits_above_mixing(
    bits: float, experts: float, top_1_bits: float, top_2_bits: float
) -> float:
    """Bits per character lost against the mixture of as many ``experts``.

    ``experts`` is the mean per token; below 1 and above 2 the line continues.
    """
    share = experts - 1
    return bits - (top_1_bits + share * (top_2_bits - top_1_bits))
