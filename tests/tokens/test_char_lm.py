"""The character model: its text, its training, its recorded weights."""

import hashlib
import lzma

import pytest
import torch

from lab import half_precision
from lab.data import data_path
from lab.tokens import checkpoints
from lab.tokens.char_lm import (
    CONTEXT,
    DIM,
    CharLM,
    evaluate,
    look,
    train,
    windows,
)
from lab.tokens.routers import TopKRouter
from lab.tokens.text import ALPHABET, decode, encode, split


def model(k=2, experts=4, seed=0):
    return CharLM(lambda _: TopKRouter(DIM, experts, k), experts, seed)


def test_the_text_is_the_one_the_licence_note_names():
    note = data_path("text/README.md").read_text()
    for domain in ("prose", "code"):
        packed = data_path(f"text/{domain}.txt.xz").read_bytes()
        digest = hashlib.sha256(lzma.decompress(packed)).hexdigest()
        assert digest in note


def test_the_alphabet_covers_every_character():
    assert len(ALPHABET) == len(set(ALPHABET)) == 97
    assert decode(encode("a = {1}\n")) == "a = {1}\n"
    assert decode(encode("é")) == ALPHABET[-1]


def test_a_window_is_what_comes_before_its_target():
    ids = torch.arange(100)
    context, target = windows(ids, torch.tensor([12, 63]))
    assert context.shape == (2, CONTEXT)
    assert context[1].tolist() == list(range(51, 63))
    assert target.tolist() == [12, 63]


def test_train_and_test_text_share_no_position():
    train_ids, test_ids = split("prose")
    total = len(train_ids) + len(test_ids)
    assert total == 465_126
    assert len(train_ids) == total * 9 // 10


def test_training_twice_gives_the_same_bits():
    first = train(model(), "prose", 5, seed=3).state_dict()
    again = train(model(), "prose", 5, seed=3).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), name


def test_training_learns():
    before = evaluate(model(), "prose", 2048).bits_per_character
    after = train(model(), "prose", 100, seed=0)
    # 97 symbols, all alike, would cost log2(97) = 6.6 bits
    assert evaluate(after, "prose", 2048).bits_per_character < 4 < before


def test_models_of_one_seed_start_equal_whatever_the_router():
    one, two = model(k=1).state_dict(), model(k=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_evaluation_counts_experts_by_token_and_layer():
    seen = evaluate(model(k=3), "prose", 100)
    assert seen.experts.shape == (100, 3)
    assert seen.mean_experts == 3
    # every token chose 3 of 4 experts, so the shares add up to 3
    torch.testing.assert_close(seen.load.sum(dim=1), torch.full((3,), 3.0))


def test_look_reads_the_passage_of_the_pictures():
    seen = look(model())
    assert len(seen.text) == len(seen.passage.token_loss) == 248
    assert len(seen.sample.token_loss) == 1024


def test_look_sees_what_evaluate_sees():
    seen, whole = look(model()).sample, evaluate(model(), "prose", 1024)
    torch.testing.assert_close(seen.token_loss, whole.token_loss)
    assert torch.equal(seen.load, whole.load)
    assert all(map(torch.equal, seen.chosen, whole.chosen))


def test_a_checkpoint_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(half_precision, "DATA", tmp_path)
    monkeypatch.setattr("lab.data.DATA", tmp_path)
    trained = train(model(), "prose", 3, seed=0)
    checkpoints.save("small", trained, steps=3)
    back = checkpoints.load("small", model(seed=1))
    for name, weight in trained.state_dict().items():
        # half precision keeps eleven bits
        torch.testing.assert_close(
            back.state_dict()[name], weight, rtol=1e-3, atol=1e-4
        )
    assert checkpoints.about("small")["steps"] == 3
    with pytest.raises(ValueError, match="does not fit this model"):
        checkpoints.load("small", model(experts=5))
    with pytest.raises(FileNotFoundError, match="no data/char_lm/other"):
        checkpoints.load("other", model())
    assert [p.name for p in (tmp_path / "char_lm").iterdir()] == ["small.npz"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: split("verse"), "domain='verse' is not one of"),
        (lambda: train(model(), "prose", 0, 0), "steps=0 trains nothing"),
        (lambda: evaluate(model(), "prose", 0), "positions=0 is not within"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_deeper_model_starts_as_the_shallow_one_where_they_agree():
    def make(**more):
        return CharLM(lambda _: TopKRouter(DIM, 4, 1), 4, 3, **more)

    three, six = make(), make(layers=6)
    assert len(three.layers) == 3 and len(six.layers) == 6
    for name, weight in three.layers.named_parameters():
        assert torch.equal(weight, six.layers.get_parameter(name)), name
