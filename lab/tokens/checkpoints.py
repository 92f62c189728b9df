"""Small trained models kept in `data/char_lm/`: a picture without training.

A checkpoint holds the weights in half precision (a hundredth of a percent of
the loss) and, as text, how it was trained. `lab train 01` makes a chapter's
checkpoints again: each chapter that keeps some has a function
``train_checkpoints(progress)``, in `<its name>_recorded` if that is there.
"""

import json

import numpy as np
import torch

from lab.atomic import write_arrays
from lab.data import DATA, read_arrays
from lab.kernels.runtime import device
from lab.tokens.char_lm import CharLM, evaluate

FOLDER = "char_lm"


def save(name: str, model: CharLM, domain: str = "prose", **about) -> None:
    """Write the weights of ``model`` and the facts ``about`` its training.

    Its bits per character on the test text of ``domain`` are measured here
    and kept beside them.
    """
    about["bits_per_character"] = evaluate(model, domain).bits_per_character
    arrays = {
        key: weight.detach().cpu().numpy().astype(np.float16)
        for key, weight in model.state_dict().items()
    }
    path = DATA / FOLDER / f"{name}.npz"
    write_arrays(path, about=json.dumps(about), **arrays)


def load(name: str, model: CharLM) -> CharLM:
    """Put the recorded weights into ``model`` and the model on the device.

    In place; the model is returned. Other shapes than the recorded ones, or
    a name that is not there, are refused with what to do.
    """
    arrays = read_arrays(f"{FOLDER}/{name}.npz")
    arrays.pop("about")
    weights = {
        key: torch.from_numpy(array.astype(np.float32))
        for key, array in arrays.items()
    }
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
            f" {found.get(differ[0])} against {expected.get(differ[0])};"
            " build the model with the sizes it was trained with"
        )
    model.load_state_dict(weights)
    return model.to(device())


def about(name: str) -> dict:
    """How the checkpoint was trained: arguments, seed, bits per character."""
    return json.loads(str(read_arrays(f"{FOLDER}/{name}.npz")["about"]))
