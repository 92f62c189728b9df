"""Routing Lab: who goes where? 57 papers, one mechanism per file.

The parts are folders (`tokens`, `serving`, `weights`, `models`, `networks`,
`paths`), the GPU kernels are in `kernels`, and the modules beside this one
are the tools that every chapter shares.
"""
