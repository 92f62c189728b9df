"""What claims measure for their first seed, 0 for most, and the ledger."""

from lab import ledger


def measured(chapter, but=()):
    """Measures `chapter.CLAIMS` again and returns the effects by name.

    Claims out of reach are left out, and so are those named in `but`.
    """
    return {
        claim.slug: claim.experiment(_first(claim.seeds), **claim.parameters)
        for claim in chapter.CLAIMS
        if claim.experiment and claim.slug not in but
    }


def in_the_ledger(chapter):
    """The same effects as they stand in the ledger."""
    return {
        claim.slug: ledger.recorded(claim).effects[0]
        for claim in chapter.CLAIMS
        if claim.experiment
    }


def _first(seeds):
    return seeds[0] if isinstance(seeds, range) else 0
