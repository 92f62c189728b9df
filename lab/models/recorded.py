"""Which real model answered which real prompt, and how well.

Three recorded benchmarks; no model is called. Sources, licences and known
artefacts: ``data/llm-routing/README.md``.

=========  ======================================================
``nine``   4 997 prompts of 12 tasks, nine open models of 7 to 70 B
``gsm8k``  1 319 school problems, Mixtral-8x7B and GPT-4, with
           Mixtral's full answers
``mmlu``   3 990 questions, 70 of each of 57 subjects, the same pair
=========  ======================================================
"""

import csv
import gzip
import io
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.data import data_path, read_arrays, read_json

FOLDER = "llm-routing"
NAMES = ("nine", "gsm8k", "mmlu")
# GPT-4 scores 0.03 there: its answers were not parsed
BROKEN_SUBJECT = "high_school_mathematics"
# columns and display names of the two-model files, the cheap one first
PAIR = {"mixtral_8x7b": "Mixtral-8x7B", "gpt4_1106": "GPT-4"}


class Recorded(NamedTuple):
    """Prompts, and what each model of the pool made of them."""

    models: tuple[str, ...]  # M names
    scores: Tensor  # [N, M] float64 within 0 to 1
    embeddings: Tensor  # [N, 384] float32, unit rows
    group: Tensor  # [N] int64, the task or the subject
    groups: tuple[str, ...]  # names of the groups
    prompts: tuple[str, ...]  # "" where the licence withholds the text
    answers: tuple[str, ...]  # of the first model; () if not recorded
    prices: Tensor | None  # [M] USD per million tokens, where listed


@cache
def load(name: str) -> Recorded:
    """One of the recorded benchmarks "nine", "gsm8k" and "mmlu"."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is not one of {', '.join(NAMES)}")
    return {"nine": _nine, "gsm8k": _gsm8k, "mmlu": _mmlu}[name]()


def _nine() -> Recorded:
    models = read_json(f"{FOLDER}/llm_routing_9models.json")
    names = [model["name"] for model in models]
    rows = _rows("llm_routing_9models.csv.gz")
    return Recorded(
        models=tuple(names),
        scores=_scores(rows, names),
        embeddings=_embeddings("llm_routing_9models_minilm_i8.npy"),
        **_grouped([row["task"] for row in rows]),
        prompts=tuple(row["text"] for row in rows),
        answers=(),
        prices=torch.tensor(
            [model["price_per_m_tokens"] for model in models],
            dtype=torch.float64,
        ),
    )


def _gsm8k() -> Recorded:
    rows = _rows("gsm8k_mixtral_gpt4.csv.gz")
    return Recorded(
        models=tuple(PAIR.values()),
        scores=_scores(rows, PAIR),
        embeddings=_embeddings("gsm8k_minilm_i8.npy"),
        **_grouped(["school problems"] * len(rows)),
        prompts=tuple(row["prompt"] for row in rows),
        answers=tuple(row["mixtral_response"] for row in rows),
        prices=None,
    )


def _mmlu() -> Recorded:
    arrays = read_arrays(f"{FOLDER}/mmlu_minilm_i8.npz")
    rows = _rows("mmlu_mixtral_gpt4.csv.gz")
    rows = [rows[i] for i in arrays["row"]]
    return Recorded(
        models=tuple(PAIR.values()),
        scores=_scores(rows, PAIR),
        embeddings=unit(arrays["prompt"]),
        **_grouped([row["subject"] for row in rows]),
        prompts=tuple(row["prompt"] for row in rows),
        answers=(),
        prices=None,
    )


def mmlu_texts() -> list[tuple[str, str]]:
    """Subject and prompt of all 14 042 questions, most without a vector."""
    rows = _rows("mmlu_mixtral_gpt4.csv.gz")
    return [(row["subject"], row["prompt"]) for row in rows]


def unit(vectors: np.ndarray) -> Tensor:
    """The int8 vectors [N, D] as float32 rows of length 1."""
    return torch.nn.functional.normalize(torch.from_numpy(vectors).float())


def _embeddings(file: str) -> Tensor:
    return unit(read_arrays(f"{FOLDER}/{file}")["array"])


def _rows(file: str) -> list[dict[str, str]]:
    with gzip.open(data_path(f"{FOLDER}/{file}"), "rb") as packed:
        # answers and prompts hold line breaks of their own
        text = io.TextIOWrapper(packed, encoding="utf-8", newline="")
        return list(csv.DictReader(text))


def _scores(rows: list[dict[str, str]], names) -> Tensor:
    table = [[float(row[name]) for name in names] for row in rows]
    return torch.tensor(table, dtype=torch.float64)


def _grouped(labels: list[str]) -> dict:
    names = tuple(dict.fromkeys(labels))
    place = {name: i for i, name in enumerate(names)}
    return {
        "group": torch.tensor([place[label] for label in labels]),
        "groups": names,
    }
