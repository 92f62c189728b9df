"""Small trained models in `data/char_lm/`, so that pictures need no training.

A checkpoint holds the weights in half precision and how they were trained.
`lab train 01` makes a chapter's checkpoints again: each chapter that keeps
some has a function ``train_checkpoints(progress)``, in `<its name>_recorded`
if there is such a file.
"""

from lab import half_precision
from lab.kernels.runtime import device
from lab.tokens.char_lm import CharLM, evaluate

FOLDER = "char_lm"


def save(name: str, model: CharLM, domain: str = "prose", **about) -> None:
    """Write the weights of ``model`` and the facts ``about`` its training.

    The model's bits per character on the test text of ``domain`` are measured
    here and kept with those facts.
    """
    about["bits_per_character"] = evaluate(model, domain).bits_per_character
    half_precision.write_halves(_file(name), model.state_dict(), **about)


def load(name: str, model: CharLM) -> CharLM:
    """Put the recorded weights into ``model`` and the model on the device.

    The model is changed in place and returned. If its shapes differ from the
    recorded ones, or the name is unknown, an error says what to do.
    """
    weights = half_precision.read_halves(_file(name))
    expected = {k: tuple(w.shape) for k, w in model.state_dict().items()}
    found = {k: tuple(w.shape) for k, w in weights.items()}
    if expected != found:
        differ = sorted(
            key
            for key in expected.keys() | found.keys()
            if expected.get(key) != found.get(key)
        )
        raise ValueError(
            f"checkpoint {name} does not fit this model at {differ[0]}:"
            f" it holds {found.get(differ[0])}, the model"
            f" {expected.get(differ[0])}; build the model with the sizes that"
            " the checkpoint was trained with"
        )
    model.load_state_dict(weights)
    return model.to(device())


def about(name: str) -> dict:
    """How the checkpoint was trained: arguments, seed, bits per character."""
    return half_precision.about(_file(name))


def _file(name: str) -> str:
    return f"{FOLDER}/{name}.npz"
