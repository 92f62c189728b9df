"""Parameter values as one writes them on the command line."""

import pytest

from lab.grid import combinations, declared, parse


def test_the_parameters_cell_is_read_with_types_and_help(tiny_notebook):
    known = declared(tiny_notebook())
    assert list(known) == ["top_k", "alpha", "loss", "fast", "out"]
    assert known["top_k"].type == "int"
    assert known["top_k"].help == "experts per token"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("top_k=4", [4]),
        ("top_k=1:4", [1, 2, 3, 4]),
        ("top_k=1:9:2", [1, 3, 5, 7, 9]),
        ("top_k=0,4,8", [0, 4, 8]),
        ("top_k=1:3,8,8,2", [1, 2, 3, 8]),
        ("top_k=-2:0", [-2, -1, 0]),
        ("alpha=0.1:0.5:0.1", [0.1, 0.2, 0.3, 0.4, 0.5]),
        # 0.6 / 0.1 is a little less than 6
        ("alpha=0.1:0.7:0.2", [0.1, 0.3, 0.5, 0.7]),
        ("alpha=0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        ("alpha=1:3", [1.0, 2.0, 3.0]),
        ("alpha=1e-4,0.02", [1e-4, 0.02]),
        ("loss=null,ordinary", ["null", "ordinary"]),
        ("loss=a:b", ["a:b"]),
        ('loss="k = 2, learned", frozen', ["k = 2, learned", "frozen"]),
        ('loss="say ""a, b"""', ['say "a, b"']),
        ("fast=true,False", [True, False]),
    ],
)
def test_values_and_ranges(tiny_notebook, text, values):
    grid = parse([text], tiny_notebook())
    (got,) = grid.values()
    assert got == values
    assert [type(v) for v in got] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("loss=k = 2, learned", ["k = 2, learned"]),
        ('loss="k = 2, learned"', ["k = 2, learned"]),
        ("top_k=1,2", [1, 2]),
    ],
)
def test_a_text_is_not_split_where_one_value_is_wanted(
    tiny_notebook, text, values
):
    (got,) = parse([text], tiny_notebook(), single=True).values()
    assert got == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("topk=4", r"no parameter topk; did you mean top_k\? \(top_k, alpha"),
        ("top_k", "-p top_k is not name=value"),
        ("top_k=", "is not name=value"),
        ("top_k=three", "top_k=three is not a whole number; .* default is 2"),
        ("top_k=2.5", "is not a whole number"),
        ("top_k=4:1", "empty range"),
        ("top_k=1:4:0", "empty range"),
        ("top_k=1:2:3:4", "is not a range"),
        ("top_k=1:100000", "has more than 10000 values; make the range"),
        ("alpha=0:1e308:1e-10", "has more than 10000 values"),
        (f"top_k=0:1{'0' * 400}", "has more than 10000 values"),
        ('loss="a, b', "has a missing or mis.* 'loss=\"one, two\",three'$"),
        ('loss="a"b,c', "has a missing or misplaced quote"),
        ("alpha=0.1:0.5", "is not a range; write low:high:step, or low:high"),
        ("alpha=nan", "not finite"),
        ("fast=maybe", "is not true or false"),
        ("out=x.json", "out is set by the runner"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(tiny_notebook, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse([text], tiny_notebook())
    assert "\n" not in str(caught.value)


def test_a_run_is_not_shown_an_example_that_it_would_refuse(tiny_notebook):
    with pytest.raises(ValueError, match="example -p top_k=4$"):
        parse(["top_k"], tiny_notebook(), single=True)


def test_a_name_given_twice_is_refused(tiny_notebook):
    with pytest.raises(ValueError, match="top_k is given twice"):
        parse(["top_k=1", "top_k=2"], tiny_notebook())


def test_combinations_keep_the_order_of_the_names():
    assert combinations({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_a_grid_too_large_is_refused_before_it_is_built():
    many = list(range(1000))
    with pytest.raises(ValueError, match="1000000000 combinations"):
        combinations({"a": many, "b": many, "c": many})


def test_a_notebook_without_parameters_says_how_to_write_them(tmp_path):
    import nbformat

    path = tmp_path / "bare.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)
    with pytest.raises(ValueError, match="declares no parameters; tag one"):
        declared(path)
