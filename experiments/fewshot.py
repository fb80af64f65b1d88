"""The tables of few-shot methods and data that the command line knows, and settings that work.

Nothing is imported before it is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

Options = dict[str, Any]

PREFIX = "fewshot-"
"""what the name of a method has before it in the `config.yaml` of a run"""


@dataclass(frozen=True)
class MethodEntry:
    """Where a method is found and what it is told."""

    learner: str
    """`module:Class` of the learner, built as Class(config, spec, seed=..., device=...)"""
    config: str
    """`module:Class` of its config, a frozen dataclass"""
    summary: str
    """what it is, for the help text"""

    def learner_class(self) -> Any:
        """Import and return the class of the learner."""
        return resolve_name(self.learner)

    def config_class(self) -> Any:
        """Import and return the class of the config."""
        return resolve_name(self.config)


@dataclass(frozen=True)
class DataEntry:
    """Where a data set is found."""

    data: str
    """`module:Class`, a frozen dataclass whose fields are its options"""
    kind: str
    """curves or images"""
    summary: str
    """what it is, for the help text"""

    def data_class(self) -> Any:
        """Import and return the class."""
        return resolve_name(self.data)


def _method(module: str, name: str, summary: str, config: str = "") -> MethodEntry:
    place = f"metarl.fewshot.{module}"
    return MethodEntry(f"{place}:{name}", f"{place}:{config or name + 'Config'}", summary)


METHODS: dict[str, MethodEntry] = {
    "maml": _method("maml", "MAML", "a start from which few gradient steps suffice"),
    "fomaml": _method("maml", "MAML", "the same without second derivatives", "FOMAMLConfig"),
    "reptile": _method("reptile", "Reptile", "moves the start to where plain training ends"),
    "imaml": _method("imaml", "IMAML", "implicit gradients, by conjugate gradients"),
    "meta-sgd": _method("meta_sgd", "MetaSGD", "learns a step size for every parameter, too"),
    "maml++": _method("maml_plus_plus", "MAMLPlusPlus", "MAML with what makes it stable"),
    "anil": _method("anil", "ANIL", "adapts the last layer only"),
    "cavia": _method("cavia", "CAVIA", "adapts a small context vector only"),
    "leo": _method("leo", "LEO", "adapts a latent code that the weights are drawn from"),
    "siamese": _method("siamese", "Siamese", "judges whether two inputs are of one class"),
    "prototypical": _method("prototypical", "Prototypical", "nearest class mean of embeddings"),
    "matching": _method("matching", "Matching", "attends over the support set"),
    "relation": _method("relation", "Relation", "learns how to compare embeddings"),
    "mann": _method("mann", "MANN", "a recurrent network with external memory"),
    "snail": _method("snail", "SNAIL", "temporal convolutions and attention"),
    "lstm-learner": _method("lstm_learner", "LSTMLearner", "an LSTM that makes the updates"),
    "hypernetwork": _method("conditioned", "Hypernetwork", "a network that makes the weights"),
    "film": _method("conditioned", "FiLM", "a network that scales and shifts the features"),
    "cnp": _method("neural_processes", "CNP", "conditional neural process"),
    "np": _method("neural_processes", "NP", "neural process, with a latent function"),
    "anp": _method("neural_processes", "ANP", "attentive neural process"),
    "fine-tune": _method("fine_tune", "FineTune", "plain training, then a new head on each task"),
    "scratch": _method("fine_tune", "Scratch", "no meta-learning: trains on the support set alone"),
}
DATASETS: dict[str, DataEntry] = {
    "sinusoid": DataEntry(
        "metarl.fewshot.sinusoids:Sinusoids", "curves", "sinusoids of random amplitude and phase"
    ),
    "gp": DataEntry(
        "metarl.fewshot.gaussian_processes:GPCurves",
        "curves",
        "functions from Gaussian processes, beside the exact posterior",
    ),
    "characters": DataEntry(
        "metarl.fewshot.characters:Characters",
        "images",
        "characters drawn by random strokes; made here, as many as are asked for",
    ),
    "omniglot": DataEntry(
        "metarl.fewshot.omniglot:Omniglot",
        "images",
        "handwritten characters of 50 alphabets, from --data.path",
    ),
    "images": DataEntry(
        "metarl.fewshot.image_folder:ImageFolder",
        "images",
        "any folder of folders of images, one for each class, from --data.path",
    ),
}

# Finn et al. 2017: 2 layers of 40, meta-batches of 25, one step of 0.01.
_CURVES: Options = {"meta_batch": 25, "final_learning_rate": 0.0}
_CURVES_TRAINING: Options = {"iterations": 20_000, "shots": 10, "queries": 10}
_GP_TRAINING: Options = {"iterations": 20_000, "shots": 10, "queries": 50}
# Two query images of a class in training teach as much a second as fifteen do, and cost less.
_IMAGES: Options = {"meta_batch": 8, "learning_rate": 2e-3, "final_learning_rate": 0.0}
_IMAGES_TRAINING: Options = {"iterations": 3_600, "train_queries": 2, "checkpoint_every": 200}
# A conv4 with half of the published filters: as good on these in a third of the time.
_CHARACTERS: Options = {"network": {"filters": (32, 32, 32, 32)}}
# Metric methods learn more from many ways at once (Snell et al. 2017, section 3.1).
_METRIC: Options = {"meta_batch": 1}
_METRIC_TRAINING: Options = {"train_ways": 20, "train_queries": 5}
_GRADIENT_CURVES: Options = {"learning_rate": 3e-3}
_GRADIENT_IMAGES: Options = {"inner_rate": 0.4, "test_steps": 5}

_LEARNER: dict[tuple[str, str], Options] = {
    **{(m, "curves"): _GRADIENT_CURVES for m in ("maml", "fomaml", "meta-sgd")},
    **{(m, "images"): _GRADIENT_IMAGES for m in ("maml", "fomaml", "anil")},
    **{(m, "images"): _METRIC for m in ("siamese", "prototypical", "matching")},
    ("meta-sgd", "images"): {"inner_rate": 0.4},
    ("imaml", "images"): {"inner_rate": 0.2, "strength": 0.5, "inner_steps": 8, "test_steps": 10},
    ("anil", "curves"): {**_GRADIENT_CURVES, "inner_rate": 0.03, "inner_steps": 5},
    ("cavia", "images"): {"context": 100, "inner_rate": 10.0, "test_steps": 5},
    # Its first steps without second derivatives, as on images, make curves diverge.
    ("maml++", "curves"): {"inner_rate": 0.01, "first_order_until": 0.0},
    ("reptile", "curves"): {
        "meta_batch": 5,
        "learning_rate": 0.5,
        "inner_optimizer": "sgd",
        "inner_rate": 0.02,
        "inner_steps": 8,
    },
    ("reptile", "images"): {"meta_batch": 5, "learning_rate": 1.0, "inner_rate": 3e-3},
    ("relation", "images"): {"meta_batch": 2},
    ("mann", "images"): {"meta_batch": 16, "learning_rate": 1e-3},
    ("snail", "images"): {"meta_batch": 16, "learning_rate": 1e-3},
    ("prototypical", "curves"): {"distance": "cosine"},
    ("matching", "curves"): {"full_context": True},
    ("scratch", "curves"): {"inner_rate": 0.03, "test_steps": 500},
    ("scratch", "images"): {"test_steps": 5},  # more of them remember the support set
    ("lstm-learner", "curves"): {"meta_batch": 10, "learning_rate": 5e-3, "inner_rate": 0.05},
    ("lstm-learner", "images"): {"meta_batch": 4, "learning_rate": 3e-3, "inner_rate": 0.1},
}
"""settings of a method on curves or images, beyond those of all methods"""
_TRAINING: dict[tuple[str, str], Options] = {
    **{(m, "images"): _METRIC_TRAINING for m in ("siamese", "prototypical", "matching")},
    ("relation", "images"): {"train_queries": 5},
    # Reptile splits no episode into support and query: it learns from 10 images of each class.
    ("reptile", "images"): {"train_shots": 5, "train_queries": 5},
    **{("scratch", kind): {"iterations": 1} for kind in ("curves", "images")},
}
"""the same for the trainer"""
_ITERATIONS = {
    "maml": 3_000,
    "fomaml": 2_000,
    "reptile": 2_500,
    "imaml": 700,
    "meta-sgd": 1_200,
    "maml++": 600,
    "anil": 2_300,
    "cavia": 2_400,
    "leo": 1_700,
    "siamese": 2_600,
    "prototypical": 2_600,
    "matching": 2_600,
    "relation": 4_000,
    "mann": 1_200,
    "snail": 1_200,
    "lstm-learner": 500,
    "hypernetwork": 2_500,
    "film": 1_600,
    "cnp": 2_100,
    "np": 2_200,
    "anp": 2_000,
    "fine-tune": 1_800,
}
"""on the built-in characters: 40 to 60 seconds of one core, 120 for MAML and the slower methods"""


def preset(method: str, dataset: str) -> dict[str, Options]:
    """Defaults for `method` on `dataset`: options of the learner and of the trainer."""
    kind = DATASETS[dataset].kind
    learner, training = _IMAGES, _IMAGES_TRAINING
    if kind == "curves":
        learner, training = _CURVES, _GP_TRAINING if dataset == "gp" else _CURVES_TRAINING
    if dataset == "characters":
        learner = {**learner, **_CHARACTERS}
        training = {**training, "iterations": _ITERATIONS.get(method, 1)}
    return {
        "learner": {**learner, **_LEARNER.get((method, kind), {})},
        "training": {**training, **_TRAINING.get((method, kind), {})},
    }


def configured(kind: Any, options: Mapping[str, Any]) -> Any:
    """An instance of the config dataclass `kind`, `options` over its own defaults.

    `network` is a dict of what differs from the method's usual network.
    """
    values = dict(options)
    if isinstance(values.get("network"), Mapping):
        values["network"] = dataclasses.replace(kind().network, **values["network"])
    return kind(**values)
