"""Triton reads its switches when it is imported, and the lab sets them."""

import lab.kernels  # noqa: F401  before any test module imports Triton
