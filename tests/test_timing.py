"""Timings are consistent, and impossible requests are refused before the model runs."""

import numpy
import pytest
import torch

from helpers import timing
from helpers.errors import CourseError, PromptError, TokenCountError


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


@pytest.mark.parametrize("count", [-1, "2", 1.5, None, True, [3]])
@pytest.mark.parametrize("name", ["warmups", "repeats"])
def test_bad_repeats(models, name, count):
    with pytest.raises(TokenCountError, match=f"{name} is .*0 or more"):
        timing.measure(*models[2][1:], **{name: count})


@pytest.mark.parametrize("count", [0, -1, "3", 1.5, None, True, [3]])
def test_bad_lengths_of_prompts(models, count):
    for name in ("tokens", "batch"):
        with pytest.raises(TokenCountError, match=f"{name} is .*1 or more"):
            timing.prompt_ids(*models[2][1:], **{"tokens": 8} | {name: count})
    assert timing.prompt_ids(*models[2][1:], numpy.int64(8), 2).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"foo": 1}, "correct what generate was told (foo), or leave it out"), ({"num_beams": 0}, "told (num_beams)"), ({"num_beams": "2"}, "told (num_beams)"),
     ({"cache_implementation": "x"}, "told (cache_implementation)"), ({"num_return_sequences": 3}, "told (num_return_sequences)"), ({"pad_token_id": "x"}, "told (pad_token_id)"),
     ({"assistant_model": 5}, "which is no model"), ({"attention_mask": None}, "leave it out of the options"), ({"inputs": 3}, "generate has its inputs")],
)  # fmt: skip
def test_options_that_generate_does_not_take(models, options, words):
    """Nothing is wrong with the kernel then, and it need not be restarted."""
    with pytest.raises(CourseError) as error:
        timing.generate_once(*models[2][1:], new_tokens=2, **options)
    assert words in str(error.value) and "restart" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"return_dict_in_generate": True}, {"cache_implementation": "dynamic"}, {"num_beams": 1}])
def test_options_that_it_takes(models, options):
    model, tokenizer = models[2][1:]
    assert timing.generate_once(model, tokenizer, new_tokens=4, **options)[1] == timing.generate_once(model, tokenizer, new_tokens=4)[1]
