"""VariBAD on the command line: it trains and is judged, and every mistake gets one sentence."""

import contextlib
import io
import json

import pytest

from metarl.experiments.cli import main
from metarl.vector import VectorEnv

TINY = [
    *["--num-worlds", "6", "--evaluation-tasks", "3", "--threads", "1", "--total-steps", "1"],
    *["--hidden", "6", "--embedding", "5", "--latent", "2", "--layers", "8", "--epochs", "1"],
    *["--decoder-layers", "7", "--vae-updates", "2", "--vae-batch", "4", "--capacity", "8"],
]


def call(words):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def last_json(out):
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gridnavi", "--family.episodes 2"),
        ("bandit", "--family.episodes 6 --task-weight 0.5"),
        ("point-dense", "--family.episodes 2 --family.horizon 8 --beliefs 9 --decodes 8"),
        ("maze", "--family.size 7 --family.horizon 9 --family.episodes 2 --beliefs 0 --decodes 0"),
        ("tabular-mdp", "--family.episodes 3 --beliefs 0 --decodes 0 --encoder-gradients"),
        ("half-cheetah-dir", "--family.episodes 1 --state-weight 0.1 --num-worlds 2"),
    ],
)
def test_it_trains_and_is_judged(tmp_path, family, options):
    words = ["train", "varibad", family, *TINY, *options.split(), "--run-dir", str(tmp_path / "r")]
    code, out, err = call([*words, "--json"])
    assert code == 0, err
    assert isinstance(last_json(out)["return_last"], float)
    asked = ["--tasks", "3", "--episodes", "1", "--ablations", "--json"]
    code, out, err = call(["evaluate", str(tmp_path / "r"), *asked])
    assert code == 0, err
    figures = last_json(out)
    assert len(figures["mean"]) == 1
    assert set(figures["ablations"]) == {"belief-fixed", "belief-reset-every-episode"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("half-cheetah-vel --reward-decoder heads", "reward_decoder heads is for rewards with two"),
        ("point-sparse --reward-decoder heads", "choose regression or none"),
        ("gridnavi --family.observation xy", "reward_decoder heads is for rewards with two"),
        ("gridnavi --beliefs 62", "4 episodes of 15 steps has fewer beliefs than 62; choose 0"),
        ("gridnavi --decodes 61", "fewer decodes than 61; choose 0 (all) to 60"),
        ("half-cheetah-vel --family.episodes 1 --beliefs 202", "choose 0 (all) to 201"),
        ("maze --task-weight 0.5", "task_weight must be 0 for this family"),
        ("gridnavi --reward-decoder none", "there is nothing to decode; choose reward_decoder"),
        ("bandit --reward-weight 0", "there is nothing to decode"),
        ("bandit --reward-decoder head", "'head'"),
        ("bandit --reward-weight -1", "reward_weight must be a finite number of at least 0"),
        ("bandit --latent 0", "latent must be a finite number of at least 1, got 0"),
        ("bandit --latent -3", "latent"),
        ("bandit --beliefs -1", "beliefs must be a finite number of at least 0, got -1"),
        ("bandit --decodes 2.5", "--decodes: '2.5' is not a whole number"),
        ("bandit --kl-weight -0.1", "kl_weight"),
        ("bandit --kl-weight inf", "kl_weight must be a finite number of at least 0, got inf"),
        ("bandit --vae-batch 0", "vae_batch must be a finite number of at least 1, got 0"),
        ("bandit --vae-updates 0", "vae_updates"),
        ("bandit --vae-learning-rate 0", "vae_learning_rate must be a finite number above 0"),
        ("bandit --capacity 0", "capacity"),
        ("bandit --decoder-layers 8 0", "decoder_layers"),
        ("bandit --beleifs 3", "unknown option --beleifs, did you mean --beliefs"),
    ],
)
def test_a_mistake_gets_one_sentence_before_anything_is_made(
    tmp_path, monkeypatch, words, sentence
):
    monkeypatch.setattr(VectorEnv, "__init__", lambda *_, **__: pytest.fail("worlds were made"))
    code, out, err = call(["train", "varibad", *words.split(), "--run-dir", str(tmp_path / "r")])
    assert (code, out) == (2, "")
    assert err.startswith("metarl: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sentence in err
    assert not list(tmp_path.iterdir())
