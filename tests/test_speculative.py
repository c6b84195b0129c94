"""Several tokens from one pass: the same text, as many passes as a plain loop says, the formula, and the floor of a pass."""

import random
import time
from fractions import Fraction

import pytest
import torch
from support.book import functions
from transformers import DynamicCache

from helpers import ledger, limits, loading, plots, timing
from helpers.errors import LibraryError
from helpers.models import choose

BOOK = functions("17", DynamicCache=DynamicCache, limits=limits, timing=timing, ends=2)
NEW, K = 24, 4


@pytest.fixture(scope="module")
def pair():
    """(target, [its GPTQ twin, a smaller model], tokenizer, ten prompts); in float32, where no sum's order decides between two tokens."""
    target, tokenizer = loading.load(choose.get_step("13b-bf16"))
    drafts = [loading.load(choose.get_step(key))[0] for key in (4, 2)]
    target.float()
    drafts[1].float()
    prompts = timing.prompt_ids(target, tokenizer, 17, batch=8).split(1)
    again = torch.cat([prompts[0], *3 * [prompts[0][:, 1:]]], 1)
    return target, drafts, tokenizer, [*prompts, again, tokenizer("1 + 1 = 2; 2 + 2 =", return_tensors="pt").input_ids]


@torch.no_grad()
def choice(model, ids):
    """The most likely next token of ``ids`` (a list), without any cache; not the end of the text."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    logits[model.generation_config.eos_token_id] = -torch.inf
    return logits.argmax().item()


@pytest.fixture(scope="module")
def plain(pair):
    """The target's answers to the ten prompts, one token a pass, by a loop of our own."""
    answers = []
    for prompt in pair[3]:
        ids = prompt[0].tolist()
        for _ in range(NEW):
            ids.append(choice(pair[0], ids))
        answers.append(ids[prompt.shape[1] :])
    return answers


WAYS = {"alone": {}, "draft 0": {"num_assistant_tokens": K}, "draft 1": {"num_assistant_tokens": 9}, "lookup": {"prompt_lookup_num_tokens": 10}}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_tokens_for_ten_prompts(pair, plain, way):
    target, drafts, tokenizer, prompts = pair
    options = WAYS[way] | ({"assistant_model": drafts[int(way[-1])]} if "draft" in way else {})
    passes = []
    for prompt, answer in zip(prompts, plain):
        call, new = timing.generate_once(target, tokenizer, prompt, NEW, **options)
        assert new == answer and call.new_tokens == NEW
        passes.append(call.passes)
    assert all(count == NEW for count in passes) if way == "alone" else min(passes) < NEW >= max(passes)


@pytest.mark.parametrize("k", [0, 1, K, 60])
def test_by_hand_the_same_tokens_too(pair, plain, k):
    target, drafts, _, prompts = pair
    for prompt, answer in zip(prompts, plain):
        ids, passes = BOOK["speculate"](target, drafts[0], prompt, NEW, k)
        assert ids[0, prompt.shape[1] :].tolist() == answer and sum(equal + 1 for equal, _ in passes) == NEW


@pytest.mark.parametrize("itself", [False, True])
def test_passes_are_those_of_a_plain_loop(pair, plain, itself):
    """By hand and by the library: as many as a loop says that asks both models at each place, without caches."""
    target, drafts, tokenizer, prompts = pair
    draft = target if itself else drafts[1]
    for prompt, answer in list(zip(prompts, plain))[::4]:
        start, text, rounds = prompt.shape[1], prompt[0].tolist() + answer, []
        place = start
        while place < len(text):
            count, proposed = min(K, len(text) - place - 1), text[:place]
            for _ in range(count):
                proposed.append(choice(draft, proposed))
            equal = next((n for n in range(count) if proposed[place + n] != text[place + n]), count)
            rounds.append((equal, count))
            place += equal + 1
        assert BOOK["speculate"](target, draft, prompt, NEW, K)[1] == rounds
        if not itself:  # its passes would count as the target's
            assert timing.generate_once(target, tokenizer, prompt, NEW, assistant_model=draft, num_assistant_tokens=K)[0].passes == len(rounds)
        assert not itself or all(equal == count for equal, count in rounds)
        refused = sum(equal < count for equal, count in rounds)
        assert BOOK["acceptance"](rounds) == sum(equal for equal, _ in rounds) / (sum(equal for equal, _ in rounds) + refused)


def test_an_8_bit_target(pair):
    """Without outliers each token is quantised by itself: the same text. With them it depends on the tokens beside it, as notebook 17 says."""
    token, neighbour = torch.full((1, 1, 256), 0.5, dtype=torch.float16), torch.full((1, 1, 256), 0.25, dtype=torch.float16)
    token[..., ::3], neighbour[..., 5] = -0.3, 20.0
    for key in (1, "int8-no-outliers"):
        target, tokenizer = loading.load(choose.get_step(key))
        layer = target.model.layers[0].self_attn.q_proj
        alone, together = layer(token)[0, 0], layer(torch.cat([neighbour, token], 1))[0, 1]
        assert torch.equal(alone, together) == (key != 1)
    plain, expected = timing.generate_once(target, tokenizer, new_tokens=NEW)
    call, new = timing.generate_once(target, tokenizer, new_tokens=NEW, assistant_model=pair[1][1], num_assistant_tokens=K)
    assert new == expected and call.passes < plain.passes == NEW


def test_a_call_leaves_no_traces(pair):
    """Hooks and configurations are as before, after a failed call too, and no setting of the draft's own checkpoint counts."""
    target, (draft, _), tokenizer, prompts = pair
    options = {"assistant_model": draft, "num_assistant_tokens": K}
    before, own = timing.generate_once(target, tokenizer, prompts[0], NEW, **options)[0], (target.generation_config, draft.generation_config)
    draft.generation_config.repetition_penalty = 9.0
    try:
        assert timing.generate_once(target, tokenizer, prompts[0], NEW, **options)[0].passes == before.passes
        with pytest.raises(LibraryError, match="batch"):
            timing.generate_once(target, tokenizer, torch.cat(prompts[:2]), NEW, **options)
    finally:
        draft.generation_config.repetition_penalty = None
    assert (target.generation_config, draft.generation_config) == own and not target._forward_hooks


def test_the_first_token_is_the_targets(pair):
    """TTFT ends with the first pass of the target, for which the draft's passes are waited; not with the draft's own first logits."""
    target, (draft, _), tokenizer, prompts = pair
    slow = draft.register_forward_hook(lambda *_: time.sleep(0.5))
    try:
        call, _ = timing.generate_once(target, tokenizer, prompts[0], 6, assistant_model=draft, num_assistant_tokens=K)
    finally:
        slow.remove()
    assert call.ttft > K * 0.5


@pytest.mark.parametrize(("alpha", "k"), [(0.3, 1), (0.8, 4), (0.95, 10), (1, 5), (0, 3)])
def test_the_formula_is_that_of_a_simulation(alpha, k):
    dice, rounds, c, v = random.Random(1), 40_000, 0.3, 1.2
    tokens = sum(next((n for n in range(k) if dice.random() >= alpha), k) + 1 for _ in range(rounds))
    assert BOOK["tokens_a_round"](alpha, k) == pytest.approx(tokens / rounds, rel=0.01)
    assert BOOK["tokens_a_round"](alpha, k) == pytest.approx(sum(alpha**n for n in range(k + 1)))
    assert BOOK["speed_up"](alpha, k, c, v) == pytest.approx(tokens / (rounds * (k * c + v)), rel=0.01)
    assert BOOK["speed_up"](alpha, k, 1) <= 1  # a draft as slow as the target never pays


def test_the_rule_gives_the_targets_chances():
    dice = random.Random(2)
    for size in (2, 3, 7):
        p, q = ([Fraction(n, sum(parts)) for n in parts] for parts in ([dice.randint(1, 50) for _ in range(size)] for _ in range(2)))
        found, rate = BOOK["outcome"](p, q)
        assert found == p and rate == 1 - sum(abs(a - b) for a, b in zip(p, q)) / 2  # one minus their distance
    assert BOOK["outcome"](p, p) == (p, 1)


def row(passes, pass_time, tokens=41):
    """A row of a model of 1 GB at 10 GB/s: no pass takes less than a tenth of a second."""
    wall = 0.5 + pass_time * (passes - 1)
    call = timing.Call(0.0, 0.0, wall, 0.5, tokens, 0.0, passes)
    found = ledger.measured(timing.Timing(call, [call], "p", 2, tokens, "t"))
    return found | {"title": "large", "device": "CPU", "read_bytes": 10**9, "bandwidth_bytes_per_s": 1e10, "peak_rss_bytes": 2 * 10**9}


def test_the_floor_is_a_passes():
    """A token may take less than reading the weights; a pass that does is refused."""
    quick = row(passes=11, pass_time=0.11)  # 4 tokens a pass
    assert quick["tokens_per_pass"] == 4 and quick["pass_s"] == pytest.approx(0.11) and quick["tpot_s"] == pytest.approx(0.0275)
    assert ledger.refusal(quick) == ""
    assert "80.0 ms a pass is less than the 100 ms" in ledger.refusal(row(passes=11, pass_time=0.08))
    one_a_pass = row(passes=41, pass_time=0.0275)
    assert one_a_pass["tokens_per_pass"] == 1 and "27.5 ms a token is less than the 100 ms" in ledger.refusal(one_a_pass)
    (floored,) = limits.with_floor([quick], "cpu", [(10**10, 1e10)])
    assert floored["bandwidth_bytes_per_s"] >= 1e10  # this machine may read faster
    assert floored["floor_tpot_s"] == pytest.approx(10**9 / floored["bandwidth_bytes_per_s"] / 4)
    shown = plots.times(floored)
    assert shown["GB/s"] == f"{floored['bandwidth_bytes_per_s'] / 1e9:.1f}" and float(shown["TPOT / floor"]) >= 1


def test_rows_without_a_count_have_one_token_a_pass():
    """Those of earlier ledgers and of other engines."""
    call = timing.Call(0.0, 0.0, 2.0, 0.5, 4)
    assert call.pass_time == call.tpot == 0.5 and call.tokens_per_pass == 1
    assert timing.Call(0.0, 0.0, 2.0, 0.5, 1).pass_time is None


def test_noise_of_passes_is_their_own():
    """Comparisons of pass times take the spread of the passes."""
    calls = [timing.Call(0.0, 0.0, 0.5 + 0.11 * 10 * factor, 0.5, 41, 0.0, 11) for factor in (1, 1.3, 1.6)]
    found = ledger.measured(timing.Timing(calls[0], calls, "p", 2, 41, "t"))
    assert found["pass_s"] == pytest.approx(0.11 * 1.3) and ledger.difference([found], [found], "pass_s").why


def test_a_kept_prefix_gives_the_same_token(pair):
    target, _, tokenizer, _ = pair
    text = timing.prompt_ids(target, tokenizer, 96)
    before, kept = text[:, :64], DynamicCache()
    with torch.no_grad():
        target(before, past_key_values=kept)
    book = functions("17", timing=timing, target=target, tokenizer=tokenizer, before=before, prefix=64)
    for question in text[:, 64:].split(16, 1):
        (whole, expected), (rest, new) = book["ask"](question), book["ask"](question, kept)
        assert new == expected == [choice(target, torch.cat([before, question], 1)[0].tolist())] and kept.get_seq_length() == 64
        assert whole.passes == rest.passes == 1
