"""A training behind a button: progress, result, stop."""

import threading

from IPython.core.formatters import DisplayFormatter

from lab.train_again import TrainAgain, train_button


def test_the_button_trains_and_says_the_result(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    seen = []

    def train(progress):
        seen.extend(progress(range(60)))
        return "2.3 bits"

    again = train_button(train, 60, "in code")
    again._button.click()
    again.wait(10)
    assert seen == list(range(60))
    assert again.said == "2.3 bits" == again._said.value
    assert again._progress.value == 60
    assert again._button.description == "Train again"


def test_what_is_said_is_no_html(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    again = train_button(lambda progress: "a <b> & c", 60, "in code")
    again._button.click()
    again.wait(10)
    assert again._said.value == "a &lt;b&gt; &amp; c"


def test_a_training_can_be_stopped(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
    begun, go_on = threading.Event(), threading.Event()

    def train(progress):
        for _ in progress(range(10**6)):
            begun.set()
            go_on.wait(10)
        return "never"

    again = train_button(train, 10**6, "in code")
    again._button.click()
    assert begun.wait(10)
    assert again._button.description == "Stop"
    again._button.click()
    go_on.set()
    again.wait(10)
    assert again.said == ""
    assert again._said.value == "stopped, nothing was kept"


def test_the_button_is_not_shown_twice():
    again = TrainAgain(lambda progress: "", 5)
    assert DisplayFormatter().format(again) == ({}, {})


def test_a_failure_is_one_sentence():
    again = TrainAgain(lambda progress: 1 / 0, 5)
    again.start()
    again.wait(10)
    assert again.error == "ZeroDivisionError: division by zero."


def test_where_nobody_looks_the_way_in_code_is_left(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    train_button(lambda progress: "", 5, "call train_anew()")
    assert "Markdown" in capsys.readouterr().out
