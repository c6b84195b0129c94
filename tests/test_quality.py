"""Figures of quality against calculations that were written another way, and against those recorded when the models were built."""

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers
from support.book import functions

from helpers import ROOT, loading, machine, quality, timing
from helpers.errors import NotEnoughMemoryError, PromptError
from helpers.models import catalogue, choose

RECORDED = json.loads((ROOT / "data" / "quality.json").read_text(encoding="utf-8"))
SOME = quality.lines()[:12]
BOOK = functions("08", choose=choose, quality=quality, replace=replace)


def perplexity(model, tokenizer, texts):
    """(perplexity, number of scored tokens) of ``texts``."""
    figures, _ = quality.score(quality.batches(model, quality.encode(tokenizer, texts)))
    return figures["perplexity"], figures["tokens"]


@pytest.fixture(scope="module")
def small():
    """(model, tokenizer, encoded, reference) of the small embedded model in bf16; nothing may change the model."""
    model, tokenizer = loading.load(choose.get_step(2))
    encoded = quality.encode(tokenizer, quality.lines())
    return model, tokenizer, encoded, quality.keep(model, encoded)


@pytest.fixture(scope="module")
def rounded():
    """The small embedded model, rounded to nearest in float32, and its weights before."""

    model, _ = loading.load(choose.get_step(2))
    model.float()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        return quality.round_to_nearest(model), before


def test_perplexity_is_that_of_a_loop_token_by_token(small):
    """One text at a time, each token from a pass of its own over what stands before it; the softmax in plain Python, float64."""
    import torch

    model, tokenizer, _, _ = small
    total, count = 0.0, 0
    for line in SOME:
        ids = tokenizer(line)["input_ids"]
        for place in range(1, len(ids)):
            with torch.no_grad():
                last = model(torch.tensor([ids[:place]])).logits[0, -1].tolist()
            highest = max(last)
            total -= last[ids[place]] - highest - math.log(sum(math.exp(x - highest) for x in last))
            count += 1
    assert (math.exp(total / count), count) == (pytest.approx(perplexity(model, tokenizer, SOME)[0], rel=1e-3), count)
    assert perplexity(model, tokenizer, SOME)[1] == count


def test_perplexity_is_the_recorded_one(small):
    model, tokenizer, encoded, reference = small
    figures, losses = quality.score(reference)
    assert figures["tokens"] == len(losses) == RECORDED["models"]["small"]["scored_tokens"]
    assert figures["perplexity"] == pytest.approx(RECORDED["models"]["small"]["formats"]["bf16"]["perplexity"], rel=1e-3)
    assert quality.PROTOCOL in RECORDED["protocol"]


def test_a_model_does_not_differ_from_itself(small):
    model, _, encoded, reference = small
    figures, _ = quality.score(quality.batches(model, encoded[:32]), reference)
    assert figures["kl_mean"] == figures["kl_99"] == figures["change"] == figures["change_se"] == 0 and figures["same_top"] == 1


def test_a_reference_of_another_text_is_refused(small):
    model, _, encoded, reference = small
    with pytest.raises(PromptError, match="kept for another text"):
        quality.score(quality.batches(model, encoded[:20]), reference)


def test_formats_come_in_the_recorded_order(small, rounded):
    """bf16, GPTQ, rounding in perplexity and in KL divergence, although GPTQ's weights are further from bf16's than the rounded ones."""
    import torch

    _, _, encoded, reference = small
    model, before = rounded
    gptq, _ = loading.load(choose.get_step(3))
    theirs, _ = quality.score(quality.batches(gptq, encoded), reference)
    nearest, _ = quality.score(quality.batches(model, encoded), reference)
    recorded = RECORDED["models"]["small"]["formats"]
    assert nearest["perplexity"] == pytest.approx(recorded["round-to-nearest"]["perplexity"], rel=1e-3)
    assert theirs["perplexity"] == pytest.approx(recorded["gptq-bfloat16"]["perplexity"], rel=1e-3)
    assert 0 < 2 * theirs["change_se"] < theirs["change"] < nearest["change"]
    assert 0 < theirs["kl_median"] < theirs["kl_mean"] < nearest["kl_mean"] < nearest["kl_99"]
    assert nearest["same_top"] < theirs["same_top"] < 1
    layer = gptq.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        weight = layer(torch.eye(layer.in_features, dtype=gptq.dtype)).T.float()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (weight - before[name]).norm() > (model.get_parameter(name) - before[name]).norm()


def test_kl_divergence_by_hand():
    """Two tokens: p = (3/4, 1/4), q = (1/2, 1/2); then the same prediction twice."""
    import torch

    p, q = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log(), torch.tensor([[5.0, 5.0], [2.0, 2.0]]).log()
    kl, same = quality.compare(q, p)
    assert kl.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0], abs=1e-6)
    assert same.tolist() == [False, False]  # q has no top token, both times
    kl, same = quality.compare(p.flip(-1), p)  # q = (1/4, 3/4)
    assert kl[0].item() == pytest.approx(0.5 * math.log(3), abs=1e-6) and same.tolist() == [False, False]


def test_a_tie_is_no_agreement():
    """Whichever side has it, and also if both have the same one; a tie below the top does not count."""
    import torch

    tie, first, second = [2.0, 2.0, 1.0], [2.0, 1.0, 1.0], [1.0, 2.0, 1.0]
    ours = torch.tensor([tie, first, tie, first, first])
    theirs = torch.tensor([tie, tie, first, first, second])
    assert quality.compare(ours, theirs)[1].tolist() == [False, False, False, True, False]
    for notebook in ("11", "13"):
        assert functions(notebook)["same_top"](ours, theirs).tolist() == quality.compare(ours, theirs)[1].tolist()


def test_logits_are_those_of_a_head_in_float32(small, monkeypatch):
    """Against float64, from the 16-bit states before the head; the model's own logits are rounded to 16 bits and often equal at the top."""
    import torch

    model, _, encoded, reference = small
    monkeypatch.setattr(quality, "PIECE", 1000)  # the last piece is smaller
    pieces, _ = next(quality.batches(model, encoded))
    logits, targets = reference[0]
    assert logits.dtype == torch.float32 and torch.allclose(pieces, logits, atol=1e-5)
    start, ties = 0, [0, 0]
    for row in encoded[: quality.BATCH]:
        with torch.no_grad():
            output = model(torch.tensor([row]), output_hidden_states=True)
        exact = output.hidden_states[-1][0, :-1].double() @ model.lm_head.weight.double().T
        part = logits[start : start + len(row) - 1]
        assert targets[start : start + len(part)].tolist() == row[1:]
        assert (part - exact).abs().max() < 0.1  # another batch rounds another way before the head
        for n, each in enumerate((output.logits[0, :-1], part)):
            best = each.topk(2).values
            ties[n] += (best[:, 0] == best[:, 1]).sum().item()
        start += len(part)
    assert start == len(logits) and ties[0] > 0 == ties[1]
    one = torch.tensor([encoded[0]])
    with torch.no_grad():
        states = model.model(one).last_hidden_state[0, :-1]
    assert torch.allclose(quality._head(model.lm_head, states).double(), states.double() @ model.lm_head.weight.double().T, atol=1e-4)


def test_standard_error_of_a_change():
    """Differences of the losses 0.0 and 0.2: mean 0.1, deviation sqrt(0.02), two tokens."""
    import torch

    change, error = quality.change(torch.tensor([1.0, 1.2]), torch.tensor([1.0, 1.0]))
    assert change == pytest.approx(math.exp(0.1) - 1) and error == pytest.approx(math.exp(0.1) * math.sqrt(0.02 / 2))


def test_a_text_longer_than_the_context_is_refused(small):
    model, tokenizer, _, _ = small
    with pytest.raises(PromptError, match="context is 256"):
        perplexity(model, tokenizer, ["word " * 300])


@pytest.mark.parametrize("kind, settings", [("Gemma2", {"final_logit_softcapping": 3.0}), ("Granite", {"logits_scaling": 7.0})])
def test_what_a_model_does_with_its_logits_counts(kind, settings):
    """Gemma 2 caps its logits, Granite divides them: the same as its own forward in float32, and the head's own forward is there again."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}
    more = {"head_dim": 8, "query_pre_attn_scalar": 8} if kind == "Gemma2" else {}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes, **more, **settings)).eval()
    model.get_output_embeddings().weight.data.normal_(std=0.8)
    encoded = [[2, 5, 11, 17], [2, 40, 41, 42, 43, 44]]
    ((logits, targets),) = quality.keep(model, encoded)
    with torch.no_grad():
        wanted = torch.cat([model(torch.tensor([row])).logits[0, :-1] for row in encoded])
    assert targets.tolist() == [5, 11, 17, 40, 41, 42, 43, 44] and torch.allclose(logits, wanted, atol=1e-4)
    assert "forward" not in vars(model.get_output_embeddings()) and (kind != "Gemma2" or logits.abs().max() > 2)


def test_no_memory_while_scoring_is_one_sentence():
    import torch

    class Full:
        device = "cpu"

        config = transformers.LlamaConfig(max_position_embeddings=9)

        def __call__(self, **inputs):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        def get_output_embeddings(self):
            return torch.nn.Linear(1, 1)

        def modules(self):
            return []

    with pytest.raises(NotEnoughMemoryError, match="while scoring"):
        next(quality.batches(Full(), [[1, 5]]))


def test_rounded_weights_lie_on_the_grid(rounded):
    """At most 16 values a group, whole multiples of one scale; no error above half a step; nothing but the linear layers has changed."""
    model, before = rounded
    changed = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert changed == {name for name in before if "_proj" in name}
    for name in changed:
        after, old = (each.view(-1, quality.GROUP).double() for each in (model.get_parameter(name).detach(), before[name]))
        step = 2 * old.abs().amax(-1, keepdim=True) / 15
        codes = after / step
        assert (codes - codes.round()).abs().max() < 1e-4 and codes.round().min() >= -8 and codes.round().max() <= 7
        # 15 steps reach from -max to max, so the code 7.5 does not exist: the largest weight may be half a step off, and no other more
        assert ((after - old).abs() / step).max() <= 0.5 + 1e-4


def test_errors_of_blocks(small):
    """The hooks see what transformers itself reports as hidden states, without the first token; twice the output is an error of 1."""
    import torch

    model, _, encoded, _ = small
    hooks = [len(layer._forward_hooks) for layer in model.model.layers]
    found = BOOK["block_outputs"](model, encoded[:2])
    assert [len(layer._forward_hooks) for layer in model.model.layers] == hooks
    with torch.no_grad():
        states = [model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in encoded[:2]]
    for block in range(3):  # transformers normalises the last one
        assert found[block].equal(torch.cat([each[block + 1][0, 1:] for each in states]))
    assert len(found) == 4 and found[3].shape == found[0].shape
    assert BOOK["relative_errors"]([2 * each for each in found], found) == pytest.approx([1.0] * 4)


def test_the_first_different_token_is_marked(small):
    tokenizer = small[1]
    one = tokenizer("Every cook can make beef pudding.", add_special_tokens=False).input_ids
    two = tokenizer("Every cook can bake beef pudding.", add_special_tokens=False).input_ids
    text, place = timing.mark(tokenizer, two, one)
    assert place == next(n for n in range(len(one)) if one[n] != two[n])
    assert text.startswith("Every cook can⟦ ") and text.count("⟦") == text.count("⟧") == 1
    assert text.replace("⟦", "").replace("⟧", "") == "Every cook can bake beef pudding."
    assert timing.mark(tokenizer, one, one) == ("Every cook can make beef pudding.", None)


def rows():
    step = choose.get_step(2)
    figures = {"perplexity": 2.5, "tokens": 10, "change": -0.01, "change_se": 0.1, "kl_mean": -1e-9, "kl_median": 0.0, "kl_99": 0.1, "same_top": 1.0}
    return {2: quality.make_row(step, figures, 0.004), "13b-rtn": BOOK["missing_row"]("13b-rtn", "embedded", "Too large.")}


def test_rows_go_round(tmp_path, capsys):
    path = tmp_path / "quality.json"
    assert quality.read(path) == {}
    written = rows()
    quality.save(written, path)
    assert quality.read(path) == written and list(written) == [2, "13b-rtn"]
    assert quality.read(path)[2]["tpot_s"] == 0.004 and quality.read(path)["13b-rtn"]["perplexity"] is None
    assert not capsys.readouterr().err and [each.name for each in tmp_path.iterdir()] == ["quality.json"]


@pytest.mark.parametrize("keep", [0, 1, 100, -3])
def test_a_cut_off_file_is_one_sentence(tmp_path, capsys, keep):
    path = tmp_path / "quality.json"
    quality.save(rows(), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert quality.read(path) == {} and "run notebook 08 again" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "null", '{"schema": 1}', '{"schema": 1, "rows": []}', '{"schema": 2, "rows": {}}', "[" * 100_000, "\x00"])
def test_a_file_of_another_kind_is_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "quality.json"
    path.write_text(content)
    assert quality.read(path) == {} and "run notebook 08 again" in capsys.readouterr().err


WRONG = [{"perplexity": None}, {"perplexity": "2"}, {"tpot_s": True}, {"tier": "moon"}, {"title": None}, {"weight_bytes": 1.5}]


@pytest.mark.parametrize("wrong", WRONG)
def test_rows_that_could_break_a_table_are_skipped(tmp_path, capsys, wrong):
    path = tmp_path / "quality.json"
    good = rows()
    quality.save({1: good[2] | wrong, 2: good[2]}, path)
    assert list(quality.read(path)) == [2] and "1 of 2 rows" in capsys.readouterr().err


def test_not_a_number_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "quality.json"
    quality.save(rows(), path)
    with pytest.raises(ValueError):
        quality.save({2: rows()[2] | {"perplexity": math.nan}}, path)
    assert list(quality.read(path)) == [2, "13b-rtn"]


def test_what_does_not_fit_is_named_and_sized_without_the_hub():
    """A T4 has no room for 13B in bf16: its row needs no access to Meta's repository."""
    row = BOOK["missing_row"]("13b-bf16", "hub", "This step needs about 26.8 GB.")
    assert (row["title"], row["weight_bytes"], row["missing"]) == ("13B bf16", 26_031_728_640, "This step needs about 26.8 GB.")
    row = BOOK["missing_row"]("rtn", "hub", "no")
    assert (row["title"], row["weight_bytes"]) == ("7B rounded", catalogue.LLAMA_2["7B"].weight_bytes("gptq"))


def test_published_figures_name_protocol_and_source():
    published = json.loads((ROOT / "data" / "published_quality.json").read_text(encoding="utf-8"))
    for row in published["rows"]:
        assert 4 < row["perplexity"] < 10 and row["protocol"] and "https://" in published["sources"][row["source"]]
    assert {row["source"] for row in published["rows"]} == set(published["sources"])
    value = {(row["model"], row["format"]): row["perplexity"] for row in published["rows"] if "2,048" in row["protocol"]}
    assert value["Llama-2 13B", "GPTQ, 4 bits, groups of 128"] < value["Llama-2 7B", "fp16"]


@pytest.mark.parametrize(
    ("shift", "wobble", "said"),
    [(0.1, 0.01, "perplexity +10.52% ± 0.22%, worse"), (-0.1, 0.01, "perplexity -9.52% ± 0.18%, better"), (0.001, 1.0, "not surely different")],
)
def test_a_difference_in_perplexity_counts_from_twice_its_error_on(shift, wobble, said):
    """100 tokens, half of them ``wobble`` above ``shift``, half below: the error of the mean is wobble / 10 (times 100 / 99 under the root)."""
    losses = {"theirs": torch.zeros(100, dtype=torch.float64), "ours": shift + wobble * torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)}
    assert said in functions("08", choose=choose, quality=quality, replace=replace, losses=losses)["held_against"]("ours", "theirs")


def test_a_disturbed_time_is_marked_in_the_row():
    calls = [timing.Call(0.1, 0, wall, 0.01, 15) for wall in (0.2, 0.2, 0.2)]
    quiet = timing.Timing(calls[0], calls, "p", 1, 15, "", threads=1, load={"others_cores": 0.0})
    loud = replace(quiet, load={"others_cores": float(machine.cores())})
    tpot = pytest.approx(0.19 / 14)
    assert quality.speed(quiet) == {"tpot_s": tpot, "mark": ""} and quality.speed(loud) == {"tpot_s": tpot, "mark": "~ busy"}
    assert quality.speed(None)["tpot_s"] is None


def test_scoring_leaves_the_cores_that_others_use(small, monkeypatch):
    """Asked once, so that the sums of one process are added in one order; afterwards the threads are those from before."""
    model, _, encoded, _ = small
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(machine, "cores", lambda: 4)
    quality._free.cache_clear()
    hook = model.register_forward_hook(lambda *_: used.append(torch.get_num_threads()))
    try:
        for others in (1.1, 0.0):
            monkeypatch.setattr(machine, "busy_cores", lambda others=others: others)
            next(quality.batches(model, encoded[:2]))
        quality._free.cache_clear()
        monkeypatch.setattr(machine, "busy_cores", lambda: 9.0)
        next(quality.batches(model, encoded[:2]))
    finally:
        hook.remove()
        quality._free.cache_clear()
    assert used == [3, 3, 1] and torch.get_num_threads() == before
