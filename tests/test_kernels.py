"""Which GPTQ kernel is chosen on which GPU, what is said, and what happens where one fails. The GPUs are mocked, the libraries real."""

import importlib.util
import os
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.mocked_cuda import mock

from helpers import ROOT, kernels, ledger, loading, machine, process
from helpers.engines import serving
from helpers.errors import CheckpointError, DeviceError, NotEnoughMemoryError
from helpers.models import catalogue, choose, sizes

GPTQ = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "quant_method": "gptq"}
TOOLS = ("ninja", "nvcc (the CUDA compiler)", "a C++ compiler (g++)")


@pytest.fixture
def gpu(monkeypatch):
    """Call it to mock GPUs: gpu((7, 5)), gpu((9, 0), count=2). All that compiling needs is there, and compiling succeeds at once."""

    def make(capability=(7, 5), missing=(), builds=(), **others):
        mock(monkeypatch, capability, **others)
        monkeypatch.setattr(kernels, "_failed", {})
        monkeypatch.setattr(kernels, "missing_tools", lambda: list(missing))
        compiled = []
        kernels.library()
        from gptqmodel import extension

        def load(name):
            compiled.append(name)
            if name in builds or "all" in builds:
                raise RuntimeError(f"Extension load failed:\n- {name}: it failed | build_root=/x\nfoo.cu(70): error: identifier is undefined\n")

        monkeypatch.setattr(extension, "load", load)
        return compiled

    return make


def chosen_by_load(step, device="cuda:0"):
    """Load ``step`` as the course does, up to the place where weights would go to the GPU; return the layer class that the libraries chose."""
    from optimum.gptq import GPTQQuantizer

    chosen = {}

    def instead(step, arguments, before, plan=None):
        config = arguments.get("quantization_config")
        stored = dict(step.quantization) | ({"backend": config.backend} if config else {})
        import transformers

        quantizer = GPTQQuantizer.from_dict(transformers.GPTQConfig.from_dict(stored).to_dict_optimum())
        quantizer.select_quant_linear(device_map=arguments["device_map"], pack=False)
        chosen.update(layer=quantizer.quant_linear.__name__, dtype=arguments["dtype"], plan=plan, device_map=arguments["device_map"])
        return SimpleNamespace(config=SimpleNamespace(model_type="llama")), "tokenizer"

    with pytest.MonkeyPatch.context() as patch:
        from gptqmodel.nn_modules.qlinear.exllamav2 import ExllamaV2Linear

        patch.setattr(ExllamaV2Linear, "validate_once", classmethod(lambda cls: (True, None)))  # it would compile
        patch.setattr(loading, "_load", instead)
        loading.load(step, device)
    return SimpleNamespace(**chosen)


CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("number", [3, 4])
def test_no_gpu_gets_marlin_by_itself(gpu, capability, number):
    compiled = gpu(capability)
    found = chosen_by_load(choose.get_step(number))
    assert found.layer == "ExllamaV2Linear" and compiled == ["exllamav2"] and found.dtype == torch.float16
    assert found.plan.sentence == "ExLlamaV2"


def test_what_the_library_would_take_by_itself_is_marlin(gpu, monkeypatch):
    """The reason for all this: should it change, the course can let the library choose again."""
    gpu()
    from gptqmodel.nn_modules.qlinear import marlin
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    monkeypatch.setattr(marlin, "marlin_import_exception", None)
    monkeypatch.setattr(marlin, "marlin_runtime_available", lambda *_: True)
    monkeypatch.setattr(marlin, "marlin_validate_runtime_device", lambda *_, **__: None)
    layer = hf_select_quant_linear_v2(4, 128, False, True, "gptq", "gptq", pack=False, device_map={"": "cuda:0"})
    assert layer.__name__ == "MarlinLinear"


@pytest.mark.parametrize("missing", TOOLS)
def test_without_a_tool_nothing_is_compiled_and_triton_takes_over(gpu, missing):
    compiled = gpu(missing=[missing])
    if not kernels._cannot_be_compiled("triton"):
        found = chosen_by_load(choose.get_step(3))
        assert found.layer == "TritonV2Linear" and not compiled
        assert found.plan.sentence == f"Triton (not ExLlamaV2, because it has to be compiled and {missing} cannot be found)"


def test_without_triton_too_plain_torch_takes_over(gpu, monkeypatch):
    gpu(missing=TOOLS)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    found = chosen_by_load(choose.get_step(3))
    assert found.layer == "TorchLinear" and "not Triton, because the package triton is missing" in found.plan.sentence


def test_a_compilation_that_fails_says_what_failed_and_the_next_kernel_takes_over(gpu, monkeypatch, capsys):
    gpu(builds=("exllamav2",))
    monkeypatch.setattr(kernels, "_cannot_be_compiled", lambda kernel: "")
    plan = kernels.ready(kernels.plan(GPTQ, (7, 5)))
    assert plan.kernel == "triton" and "foo.cu(70): error: identifier is undefined" in plan.sentence and "missing" not in plan.sentence
    assert "its compilation failed (foo.cu(70): error: identifier is undefined)" in capsys.readouterr().out
    assert kernels.plan(GPTQ, (7, 5)).kernel == "triton"  # the next load does not ask for it again


@pytest.mark.parametrize(
    ("log", "said"),
    [("- exllamav2: ExLlamaV2 GPTQ: failed to build torch.ops JIT extension: The detected CUDA version (13.0) mismatches the version that was used to compile PyTorch (12.8).\n"
      " | build_root=/root", "The detected CUDA version (13.0) mismatches the version that was used to compile PyTorch (12.8)."),
     ("[1/2] nvcc -MD -DTORCH -o x.o\n/usr/bin/ld: cannot find -lcudart: No such file or directory\ncollect2: error: ld returned 1 exit status",
      "/usr/bin/ld: cannot find -lcudart: No such file or directory"),
     ("a.h:10:10: fatal error: cusparse.h: No such file or directory", "a.h:10:10: fatal error: cusparse.h: No such file or directory"), ("", "no reason given")],
)  # fmt: skip
def test_the_compilers_own_words(log, said):
    assert kernels._what_failed(f"Extension load failed:\n{log}") == said


def test_a_kernel_that_fails_while_loading_is_replaced(gpu, monkeypatch, capsys):
    """The failure is the library's: with a frame of gptqmodel in its traceback. A damaged checkpoint would not be tried three times."""
    gpu()
    monkeypatch.setattr(kernels, "_cannot_be_compiled", lambda kernel: "")
    tried = []

    def from_pretrained(**arguments):
        tried.append(arguments["quantization_config"].backend)
        if len(tried) < 3:
            exec(compile("raise NotImplementedError('no kernel image is available')", str(Path(sys.modules["gptqmodel"].__file__).parent / "x.py"), "exec"))
        raise OSError("the disk is broken")

    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match="cannot be loaded: the disk is broken"):
        loading.load(choose.get_step(3))
    assert tried == ["gptq_exllama_v2", "gptq_triton", "gptq_torch"]
    assert "ExLlamaV2 failed while small GPTQ was loaded (no kernel image is available)" in capsys.readouterr().out


def test_when_all_fail_one_sentence_names_them(gpu, monkeypatch):
    gpu(builds=("all",))
    plan = kernels.plan(GPTQ, (8, 0))
    plan.kernels = ["exllama_v2"]
    with pytest.raises(DeviceError, match="No kernel for this GPTQ checkpoint works here: .*not ExLlamaV2, because its compilation failed"):
        kernels.ready(plan)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_marlin_only_where_it_is_asked_for_and_can_be_compiled(gpu, capability):
    compiled = gpu(capability)
    step = choose.get_step("gptq-marlin")
    if capability < (8, 0):
        with pytest.raises(DeviceError, match=r"Marlin cannot be used here: it cannot be compiled for compute capability 7.5; it needs 8.0"):
            loading.load(step)
        assert not compiled
    else:
        assert kernels.plan_for(step, "cuda:0").kernels == ["marlin"]


def test_a_kernel_that_was_asked_for_is_not_replaced(gpu):
    gpu(missing=["ninja"])
    with pytest.raises(DeviceError, match="ExLlamaV2 cannot be used here: it has to be compiled and ninja cannot be found"):
        loading.load(choose.get_step("gptq-exllama_v2"))


@pytest.mark.parametrize("name", ["gptq-exllama_v2", "gptq-triton", "gptq-marlin"])
def test_kernels_of_gpus_on_a_cpu(name):
    with pytest.raises(DeviceError, match="is a kernel for CUDA GPUs"):
        kernels.plan_for(choose.get_step(name), "cpu")


def test_atens_kernel_on_a_gpu(gpu):
    gpu()
    with pytest.raises(DeviceError, match="ATen's CPU kernel cannot be used here: it is a kernel for CPUs"):
        kernels.plan_for(choose.get_step("gptq-torch_aten"), "cuda:0")


@pytest.mark.parametrize(
    ("change", "first"),
    [({}, "exllama_v2"), ({"group_size": -1}, "exllama_v2"), ({"group_size": 32, "desc_act": True}, "exllama_v2"), ({"sym": False}, "exllama_v2"),
     ({"group_size": 16}, "triton"), ({"bits": 8}, "triton"), ({"bits": 2}, "triton"), ({"bits": 3}, "torch"), ({"checkpoint_format": "gptq_v2"}, "exllama_v2")],
)  # fmt: skip
def test_the_checkpoints_settings_decide(gpu, monkeypatch, change, first):
    gpu()
    monkeypatch.setattr(kernels, "_cannot_be_compiled", lambda kernel: "")
    assert kernels.plan(GPTQ | change, (7, 5)).kernel == first


def test_a_layout_that_nothing_reads(gpu):
    gpu()
    with pytest.raises(DeviceError, match="No kernel can read this GPTQ checkpoint on this GPU: .*layout 'exotic'"):
        kernels.plan(GPTQ | {"checkpoint_format": "exotic"}, (7, 5))


def test_two_gpus_share_what_one_cannot_hold(gpu, monkeypatch):
    """As on Kaggle: the scratch space of each GPU is left free too."""
    gpu(free=5_000_000, count=2)
    monkeypatch.setattr(choose, "OVERHEAD", 1e6)
    monkeypatch.setattr(sizes.Sizes, "exllama_bytes", property(lambda self: 1_000_000))
    monkeypatch.setattr("helpers.machine.in_use", lambda device: 0)
    found = chosen_by_load(choose.get_step(3), device=None)
    assert found.device_map == "sequential" and found.layer == "ExllamaV2Linear"
    assert loading.load_arguments(choose.get_step(3))["max_memory"] == {0: 3_000_000, 1: 3_000_000}


def test_the_oldest_of_several_gpus_decides(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: {"cuda:0": (8, 6), "cuda:1": (7, 5)}[device])
    with pytest.raises(DeviceError, match="7.5"):
        kernels.plan_for(choose.get_step("gptq-marlin"), ["cuda:0", "cuda:1"])


def test_bfloat16_activations_keep_the_kernel(gpu):
    from dataclasses import replace

    gpu((8, 0))
    found = chosen_by_load(replace(choose.get_step(3), dtype="bfloat16"))
    assert found.dtype == torch.bfloat16 and found.layer == "ExllamaV2Linear"


def test_what_show_call_prints_is_the_call(gpu, capsys):
    gpu()
    loading.show_call(choose.get_step(3))
    assert "quantization_config=GPTQConfig(bits=4, backend='gptq_exllama_v2')," in capsys.readouterr().out


def test_a_server_that_cannot_be_told_gets_the_kernel_all_the_same():
    """In a process of its own, because it changes the library's table: what ``transformers serve`` then chooses by itself."""
    program = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import pytest
from helpers import kernels
from support.mocked_cuda import mock
mock(pytest.MonkeyPatch())
kernels.library()
from gptqmodel.nn_modules.qlinear.exllamav2 import ExllamaV2Linear
from gptqmodel.utils.importer import hf_select_quant_linear_v2
ExllamaV2Linear.validate_once = classmethod(lambda cls: (True, None))
kernels.pin("exllama_v2")
print(hf_select_quant_linear_v2(4, 128, False, True, "gptq", "gptq", pack=False, device_map="auto").__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["ExllamaV2Linear"], done.stderr[-2000:]


def test_the_server_is_started_with_the_kernel_that_the_trial_took(monkeypatch, capsys):
    """It is asked once, though notebook 14 starts two servers."""
    started, found = {}, [{"kernel": "triton", "sentence": "Triton (not ExLlamaV2, because nvcc cannot be found)", "overflows": ""}]
    monkeypatch.setattr(machine, "get_device", lambda device=None: "cuda:0")
    monkeypatch.setattr(process, "call", lambda *_: found.pop())
    monkeypatch.setattr(serving, "_start", lambda *arguments: started.update(variables=arguments[-1]))
    serving._tried.cache_clear()
    try:
        serving.transformers(choose.get_step(3))
        serving.transformers(choose.get_step(3), continuous=False)
    except serving.ServerError as error:
        pytest.skip(str(error))
    assert started["variables"] == {serving.KERNEL: "triton"}
    assert "GPTQ kernel of the server: Triton (not ExLlamaV2, because nvcc cannot be found)." in capsys.readouterr().out


def test_a_plan_from_another_process(monkeypatch):
    """``prepare`` asks a process, whose reply it keeps; the problem that it found becomes ours."""
    kernels._prepare.cache_clear()
    with pytest.raises(DeviceError, match="its process failed"):  # this machine has no GPU to ask
        kernels.prepare(choose.get_step(3), "cuda:7")
    replies = [{"kernels": ["torch"], "left_out": {"triton": "x"}}]
    monkeypatch.setattr(process, "call", lambda *_: replies.pop())
    assert kernels.prepare(choose.get_step(3), "cuda:0") == kernels.Plan(["torch"], {"triton": "x"})
    assert kernels.prepare(choose.get_step(3), "cuda:0").kernel == "torch"  # the reply was kept
    kernels._prepare.cache_clear()


def test_ninja_of_an_environment_that_is_not_activated(monkeypatch, tmp_path):
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "ninja").write_text("#!/bin/sh\n")
    (scripts / "ninja").chmod(stat.S_IRWXU)
    monkeypatch.setattr(sysconfig, "get_path", lambda name, get=sysconfig.get_path: str(scripts) if name == "scripts" else get(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ninja" not in kernels.missing_tools()
    assert os.environ["PATH"].split(os.pathsep) == [str(tmp_path), str(scripts)]
    (scripts / "ninja").unlink()
    assert {"ninja", "a C++ compiler (g++)"} <= set(kernels.missing_tools())


def test_importing_the_library_leaves_torchs_allocator_alone():
    program = "import os; from helpers import kernels; kernels.library(); print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    variables = {name: value for name, value in os.environ.items() if name != "PYTORCH_ALLOC_CONF"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.stdout.split() == ["None"], done.stderr[-1000:]


def test_builds_are_kept_and_brought_back(gpu, monkeypatch, tmp_path, capsys):
    compiled = gpu()
    monkeypatch.setenv("GPTQMODEL_TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KERNELS_DIR", str(tmp_path / "kept"))
    built = tmp_path / "cache" / "exllamav2" / "0123abcd" / "ops.so"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"library")
    (built.parent / "ops.o").write_bytes(b"rest")
    assert kernels.make_ready("exllama_v2") == "" and compiled == ["exllamav2"]
    assert [path.name for path in (tmp_path / "kept").rglob("*.*")] == ["ops.so"]
    built.unlink()  # on the next machine
    assert kernels.make_ready("exllama_v2") == "" and built.read_bytes() == b"library" and not capsys.readouterr().out
    (tmp_path / "kept" / "exllamav2" / "0123abcd" / "ops.so").unlink()
    monkeypatch.setattr(kernels.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    assert kernels.make_ready("exllama_v2") == ""
    assert "could not be copied" in capsys.readouterr().out


def test_the_row_says_which_kernel_it_was(models):
    from helpers import timing

    step, model, tokenizer = models[3]
    row = ledger.make_row(step, timing.measure(model, tokenizer, warmups=0, repeats=1), model)
    assert row["kernel"] == f"{row['layer_class']}: gptqmodel's own choice on a CPU"
    step, model, _ = models[2]
    assert kernels.used(model) == ""


def test_out_of_memory_inside_a_conversion(monkeypatch):
    """transformers writes bitsandbytes' error into its log and raises another one."""
    import bitsandbytes.functional

    def quantise(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 86.00 MiB. GPU 0 has a total capacity of 14.56 GiB")

    monkeypatch.setattr(bitsandbytes.functional, "int8_vectorwise_quant", quantise)
    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", quantise)
    for key in (1, "nf4"):
        with pytest.raises(NotEnoughMemoryError, match="ran out while loading: 90 MB more were needed"):
            loading.load(choose.get_step(key))


def test_another_error_inside_a_conversion_is_named(monkeypatch):
    import bitsandbytes.functional

    def quantise(*_, **__):
        raise ValueError("blocksize 7 is not known")

    monkeypatch.setattr(bitsandbytes.functional, "int8_vectorwise_quant", quantise)
    with pytest.raises(CheckpointError, match="cannot be loaded: (ValueError: )?blocksize 7 is not known"):
        loading.load(choose.get_step(1))


@pytest.mark.parametrize("key", [1, "nf4"])
def test_what_is_quantised_on_arrival_is_read_one_after_the_other(monkeypatch, key):
    """So that 16-bit tensors do not pile up on the GPU; with transformers 5.0 only the variable does it."""
    from transformers import core_model_loading

    def pool(*_, **__):
        raise AssertionError("read in several threads")

    monkeypatch.setattr(core_model_loading, "ThreadPoolExecutor", pool)
    loading.load(choose.get_step(key))
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


def test_scratch_space_counts_where_gptq_runs_on_a_gpu(gpu):
    """ExLlamaV2's own figures: 812 MB for a 7B, 1,048 MB for a 13B."""
    seven, thirteen = catalogue.LLAMA_2["7B"], catalogue.LLAMA_2["13B"]
    assert (round(seven.exllama_bytes / 1e6), round(thirteen.exllama_bytes / 1e6)) == (812, 1048)
    assert choose.beside_weights(seven, "gptq") - choose.beside_weights(seven, "bf16") == seven.exllama_bytes
    gpu(free=int(3.9e6 + choose.OVERHEAD))  # room for the weights and the overhead, not for the scratch space
    with pytest.raises(NotEnoughMemoryError):
        choose.check_step(choose.get_step(3), "cuda:0")
    gpu(free=int(3.9e6 + choose.OVERHEAD + choose.get_step(3).shape.exllama_bytes))
    choose.check_step(choose.get_step(3), "cuda:0")


def test_the_scratch_space_is_the_librarys():
    kernels.library()
    from gptqmodel.nn_modules.qlinear.exllamav2 import ExllamaV2Linear

    shape = catalogue.LLAMA_2["7B"]
    sizes = [ExllamaV2Linear.scratch_space_fixed(SimpleNamespace(
        temp_dq_size=lambda n=n, m=m: n * m * 2 + 128, temp_fwd_size=lambda length, batch, m=m: m * length * batch * 4 + 128)) for n, m in shape.linears()]  # fmt: skip
    assert shape.exllama_bytes == max(sizes)


def test_on_a_cpu_plain_pytorch_stays_uncompiled():
    """gptqmodel would compile how it dequantises in the first call, for half a minute."""
    model, _ = loading.load(choose.get_step("gptq-torch"))
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "TorchLinear" and layer.dequantize_weight.__func__ is type(layer).dequantize_weight
