"""The next token: against transformers' processors, in their order, and against what each setting promises."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.llama.sampling import Sampling

RNG = np.random.default_rng(0)
SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.4},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "logit_bias": {3: 2.5, 9: -4.0, 40: -np.inf}, "repetition_penalty": 1.5},
    {"temperature": 1.0, "logit_bias": {7: 1.5}, "repetition_penalty": 0.7, "top_k": 10, "top_p": 0.7, "min_p": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_probabilities_are_those_of_transformers(settings):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
    torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
    logits = RNG.normal(0, 3, 50).astype(np.float32)
    prompt = [3, 9, 9, 40]
    scores = torch.tensor(logits[None])
    ids = torch.tensor([prompt])
    if "logit_bias" in settings:
        bias = [[[token], value] for token, value in settings["logit_bias"].items()]
        scores = transformers.SequenceBiasLogitsProcessor(bias)(ids, scores)
    steps = [
        ("repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor),
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ]
    for name, processor in steps:
        if name in settings:
            scores = processor(settings[name])(ids, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    sampling = Sampling(**settings)
    kept, weights = sampling._kept(sampling._penalised(logits.copy(), prompt, []) / np.float32(settings["temperature"]))
    ours = np.zeros(50)
    ours[kept] = weights / weights.sum()
    assert np.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("prompt", [[], [3, 9, 9, 40]])
def test_presence_and_frequency_as_openai_states_them(prompt):
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, c[j]: how often j was written so far; the
    prompt does not count (platform.openai.com, "Frequency and presence penalties"). Behind the repetition penalty."""
    logits, generated = RNG.normal(0, 3, 50).astype(np.float32), [4, 4, 4, 9, 11]
    sampling = Sampling(presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.3)
    expected = logits.astype(np.float64)
    for j in {*prompt, *generated}:
        expected[j] = expected[j] / 1.3 if expected[j] > 0 else expected[j] * 1.3
    for j in range(50):
        c = generated.count(j)
        expected[j] += -c * 0.4 - float(c > 0) * 0.7
    assert np.allclose(sampling._penalised(logits.copy(), prompt, generated), expected, atol=1e-6)


def test_draws_follow_the_probabilities():
    sampling, logits = Sampling(temperature=1.0), np.log(np.array([0.1, 0.6, 0.3], np.float32))
    draws = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount([sampling.choose(logits, [], [], float(draw)) for draw in draws], minlength=3)
    assert counts.tolist() == [100, 600, 300]
    assert sampling.choose(logits, [], [], 1 - 1e-12) == 0  # the least likely comes last


def test_greedy_takes_the_first_of_the_likeliest():
    assert Sampling().choose(np.array([0, 2, 2, 1], np.float32), [], [], 0.5) == 1


def test_penalties_and_bias():
    logits = np.array([1.0, 0.9, -1.0, 0.0], np.float32)
    assert Sampling(presence_penalty=0.2).choose(logits, [0], [], 0) == 0  # of the prompt nothing is taken
    assert Sampling(presence_penalty=0.2).choose(logits, [], [0], 0) == 1
    assert Sampling(frequency_penalty=0.06).choose(logits, [], [0], 0) == 0
    assert Sampling(frequency_penalty=0.06).choose(logits, [], [0, 0], 0) == 1
    assert Sampling(repetition_penalty=1.2).choose(logits, [0], [], 0) == 1
    assert Sampling(logit_bias={2: 3.0}).choose(logits, [], [], 0) == 2
    assert logits.tolist() == pytest.approx([1.0, 0.9, -1.0, 0.0])  # the caller's are as they were


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 2}, {"top_k": -1},
                                   {"repetition_penalty": 0}])  # fmt: skip
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
