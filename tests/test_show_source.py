"""The source that is shown is that of the file, with its place."""

import functools
import inspect

import pytest

from lab.data import ROOT
from lab.figures import histogram
from lab.kernels import topk_gate as gate
from lab.parameters import Rule, check_parameters
from lab.source import show_source


def line_of(source):
    name, line = source.place.split(", line ")
    return (ROOT / name).read_text().splitlines()[int(line) - 1]


def test_a_function_is_shown_with_its_place():
    source = show_source(check_parameters)
    assert source.place.startswith("lab/parameters.py, line ")
    assert source.code.startswith("def check_parameters(")
    assert line_of(source) == source.code.splitlines()[0]


def test_a_class_is_shown():
    assert "class Rule:" in show_source(Rule).code


def test_a_kernel_is_shown_with_its_decorator():
    source = show_source(gate.topk_gate_kernel)
    assert source.place.startswith("lab/kernels/topk_gate.py, line ")
    assert source.code.startswith("@triton.jit\ndef topk_gate_kernel(")
    assert line_of(source) == "@triton.jit"


def test_the_function_inside_wrappers_is_shown():
    partial = functools.partial(histogram, [1, 2])
    cached = functools.cache(histogram)
    for wrapped in (partial, cached):
        assert show_source(wrapped).code.startswith("def histogram(")


def test_a_notebook_gets_markdown_and_a_terminal_plain_text():
    source = show_source(histogram)
    markdown = source._repr_markdown_()
    assert markdown.startswith(f"`{source.place}`\n\n```python\ndef hist")
    assert repr(source).startswith("# lab/figures/choices.py, line ")


def test_a_method_is_shown_without_its_indentation():
    class Example:
        def method(self):
            return 1

    assert show_source(Example.method).code == (
        "def method(self):\n    return 1"
    )


@pytest.mark.parametrize("nothing", [3, len, "text"])
def test_what_has_no_source_is_refused(nothing):
    with pytest.raises(ValueError, match="has no Python source to show"):
        show_source(nothing)


def test_all_of_the_function_is_shown():
    assert show_source(histogram).code == inspect.getsource(histogram).rstrip()
