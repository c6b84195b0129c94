"""Timings are consistent, and impossible requests are refused before the model runs."""

import pytest
import torch

from helpers import timing
from helpers.errors import PromptError, TokenCountError


def call(wall=2.0, ttft=0.5, user=1.5, system=0.25, n=4):
    return timing.Call(user=user, sys=system, wall=wall, ttft=ttft, new_tokens=n)


def test_definitions():
    one = call()
    assert one.cpu_total == 1.75 and one.decode == 1.5 and one.tpot == 0.5
    assert call(n=1).tpot is None


def test_medians_are_of_the_warm_calls_only():
    result = timing.Timing(call(wall=90), [call(wall=w) for w in (2.0, 5.0, 3.5)], "p", 2, 4, "t")
    assert result.median("wall") == 3.5 and result.median("tpot") == 1.0 and result.decode_rate == 1.0
    assert result.iqr("wall") == pytest.approx(1.5)
    assert "3.50 s" in str(result) and "90.0 s" in str(result)


def test_no_repeats_no_medians():
    result = timing.Timing(call(), [], "p", 2, 4, "t")
    assert result.median("wall") is None and result.iqr("wall") is None and result.decode_rate is None
    assert "cold" in str(result)


@pytest.mark.parametrize(
    ("value", "text"), [(16.4, "16.4 s"), (4.7, "4.70 s"), (0.351, "351 ms"), (0.0852, "85.2 ms"), (8.52e-5, "85.2 µs"), (0, "0 s"), (None, "-")]
)
def test_seconds(value, text):
    assert timing.seconds(value) == text


@pytest.mark.parametrize(("user", "text"), [(5.0, "several threads"), (0.1, "waited"), (1.9, "as one core does")])
def test_explain_follows_the_numbers(user, text):
    assert text in timing.explain(call(user=user))


def test_measure_a_real_model(models):
    _, model, tokenizer = models[2]
    result = timing.measure(model, tokenizer, new_tokens=5, warmups=1, repeats=3)
    assert len(result.warm) == 3 and len(result.token_ids) == 5 == result.new_tokens
    assert all(c.wall >= c.ttft > 0 and c.new_tokens == 5 for c in [result.cold, *result.warm])
    assert result.prompt_tokens == len(tokenizer(timing.PROMPT).input_ids)
    assert tokenizer.decode(result.token_ids, skip_special_tokens=True) == result.text
    assert result.peak_rss > 0


def test_tokens_are_those_of_a_plain_loop(models):
    """Greedy decoding by hand, without cache, gives the same tokens."""
    _, model, tokenizer = models[2]
    _, new = timing.generate_once(model, tokenizer, new_tokens=8)
    ids = tokenizer(timing.PROMPT, return_tensors="pt").input_ids.to(model.device)
    with torch.no_grad():
        for _ in range(8):
            scores = model(ids).logits[0, -1]
            scores[model.generation_config.eos_token_id] = -torch.inf  # min_new_tokens keeps the end away
            ids = torch.cat([ids, scores.argmax().view(1, 1)], dim=1)
    assert ids[0, -8:].tolist() == new


@pytest.mark.parametrize("prompt", ["", None, 3])
def test_empty_prompt(models, prompt):
    with pytest.raises(PromptError, match="prompt is empty"):
        timing.generate_once(*models[2][1:], prompt=prompt)


def test_long_prompt(models):
    with pytest.raises(PromptError, match="more than the model's context"):
        timing.generate_once(*models[2][1:], prompt="gardening " * 2000)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None])
def test_bad_token_count(models, count):
    with pytest.raises(TokenCountError, match="1 or more"):
        timing.generate_once(*models[2][1:], new_tokens=count)


def test_bad_repeats(models):
    with pytest.raises(TokenCountError, match="0 or more"):
        timing.measure(*models[2][1:], repeats=-1)
