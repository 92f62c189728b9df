"""What the claims of a chapter measure for seed 0, now and when recorded."""

from lab import ledger


def measured(chapter, but=()):
    """The effects of the claims `chapter.CLAIMS` by their names, anew.

    Those out of reach are not measured, nor those named in `but`.
    """
    return {
        claim.slug: claim.experiment(0, **claim.parameters)
        for claim in chapter.CLAIMS
        if claim.experiment and claim.slug not in but
    }


def in_the_ledger(chapter):
    """The same effects as the ledger has them."""
    return {
        claim.slug: ledger.recorded(claim).effects[0]
        for claim in chapter.CLAIMS
        if claim.experiment
    }
