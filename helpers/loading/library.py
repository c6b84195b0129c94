"""What the course asks of transformers, and what it says where a library fails on a checkpoint or a text of the reader's. First used in notebook 01."""

import contextlib
import logging
import re
import traceback
from pathlib import Path

from helpers import ROOT
from helpers.errors import CheckpointError, CourseError, LibraryError, NotFiniteError, PromptError
from helpers.models.catalogue import Shape, read_json

FAILED = ("generate failed", "restart the kernel and load the model again, by another GPTQ kernel if it is one, or set TIER=embedded")
TAKEN = ("inputs", "input_ids", "attention_mask", "generation_config", "logits_processor")  # of the arguments of generate
READ = {  # of config.json, beside the sizes: what converters read, or refuse
    "architectures", "model_type", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias", "mlp_bias",
    "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings", "bos_token_id", "eos_token_id", "quantization_config",
}  # fmt: skip
NO_MATTER = {"attention_dropout", "initializer_range", "pretraining_tp", "use_cache", "dtype", "torch_dtype", "transformers_version", "pad_token_id"}
NOT_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config")


def proposes(options):
    """Whether ``generate`` with ``options`` has tokens proposed to it, which one pass of the model then judges."""
    return any(options.get(name) for name in ("assistant_model", "prompt_lookup_num_tokens"))


def greedy(model, tokenizer, new_tokens, **options):
    """Return the GenerationConfig of ``new_tokens`` new tokens, greedily, and what of ``options`` is not a part of one.

    All that affects time and text is the course's; of the checkpoint's own settings only the end of text is taken, which is kept away. Of
    proposed tokens always the same number is judged: transformers would change it by how sure the draft is. Raises PromptError for an option that is
    not the caller's to give, LibraryError for one that the library refuses.
    """
    from transformers import GenerationConfig

    if taken := [name for name in TAKEN if name in options]:
        raise PromptError(f"generate has its {taken[0]} from the prompt and from the course: leave it out of the options.")
    if (draft := options.get("assistant_model")) is not None and not hasattr(draft, "generation_config"):
        raise LibraryError(f"assistant_model is {draft!r:.40}, which is no model: give one that loading.load has returned, or leave it out.")
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.eos_token_id,
    )
    if proposes(options):
        settings.min_new_tokens, settings.suppress_tokens = None, ends if isinstance(ends, list) else [ends]  # transformers 5.0 refuses the former
        settings.num_assistant_tokens_schedule, settings.assistant_confidence_threshold = "constant", 0.0
    try:
        return settings, settings.update(**options)
    except Exception as error:
        problem = explained(error, LibraryError, *failed(options))
    raise problem


def failed(options):
    """(what failed, what to do) where ``generate`` that was told ``options`` ends in an error of a library."""
    return (FAILED[0], f"correct what generate was told ({', '.join(options)}), or leave it out") if options else FAILED


@contextlib.contextmanager
def prepared(model, settings, options, after_pass):
    """Meanwhile ``generate`` takes what a call leaves open from ``settings``, for ``model`` and for a draft in ``options``.

    Where tokens are proposed, ``after_pass`` is called as a forward hook of the model.
    """
    draft = options.get("assistant_model")
    with contextlib.ExitStack() as undo:
        for each in (model, draft) if draft else (model,):
            undo.callback(setattr, each, "generation_config", each.generation_config)
            each.generation_config = settings
        if proposes(options):
            undo.callback(model.register_forward_hook(after_pass).remove)
        if draft:
            undo.enter_context(_forgetting())
        yield


@contextlib.contextmanager
def _forgetting():
    """Meanwhile a draft's cache loses all that was refused: before 5.23, transformers dropped one token, and then failed or proposed worse (seen in 5.15)."""
    import transformers
    from transformers.generation.candidate_generator import AssistedCandidateGenerator as Drafting

    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23):
        yield
        return
    before = Drafting._update_past_and_masks

    def update(self, input_ids, *others, **more):
        cache = self.assistant_kwargs.get("past_key_values")
        if cache is not None and (extra := cache.get_seq_length() - (input_ids.shape[-1] - 1)) > 0:
            cache.crop(-extra)
        return before(self, input_ids, *others, **more)

    Drafting._update_past_and_masks = update
    try:
        yield
    finally:
        Drafting._update_past_and_masks = before


def attention(folder):
    """The kind of attention that config.json in ``folder`` asks for, where it is another than the library's usual one; None otherwise."""
    config = read_json(folder, "config.json")
    return next((kind for name in ("attn_implementation", "_attn_implementation") if (kind := config.get(name)) not in (None, "sdpa")), None)


def plain(model, folder):
    """Take what slows each pass out of ``model``'s configuration; return the settings of its checkpoint in ``folder`` that no measurement uses, in words."""
    own = {name: value for name, (value, _) in _unusual(model.generation_config).items()}
    for name, usual in (("output_attentions", False), ("output_hidden_states", False), ("return_dict", True)):
        if (value := getattr(model.config, name, usual)) != usual:
            own[name] = value
            setattr(model.config, name, usual)
    if kind := attention(folder):
        own["attn_implementation"] = kind
    if model.config._attn_implementation != "sdpa" and getattr(model, "_supports_sdpa", True):
        model.set_attn_implementation("sdpa")
    return ", ".join(f"{name} {value}" for name, value in own.items())


def undone(folder):
    """Return {setting: its usual value} for all that generation_config.json in ``folder`` sets otherwise.

    For a server, which takes from there what a request leaves open. Raises CheckpointError for a setting that no request can take back.
    """
    if not (Path(folder) / "generation_config.json").is_file():
        return {}
    unusual = _unusual(_read("GenerationConfig", folder, "generation_config.json"))
    if stays := [f"{name} to {value}" for name, (value, usual) in unusual.items() if usual is None]:
        raise CheckpointError(f"{folder}/generation_config.json sets {stays[0]}, which a server uses in each answer: take it out in a copy of the folder.")
    return {name: usual for name, (_, usual) in unusual.items()}


def _unusual(settings):
    """{name: (value, usual value)} of what a GenerationConfig sets otherwise than the library does; newer ones say None for most of the usual."""
    from transformers import GenerationConfig

    usual = GenerationConfig().to_dict() | {"use_cache": True} | getattr(GenerationConfig, "_get_default_generation_params", dict)()
    own = {name: (value, usual.get(name)) for name, value in settings.to_dict().items() if name not in NOT_NAMED}
    return {name: (value, like) for name, (value, like) in own.items() if value is not None and value != like and (value is not False or like)}


class _Found(Exception):
    """A layer whose output is not finite: the rest of the pass need not be computed."""


def not_finite(model, ids):
    """Return (name, module) of the first layer of ``model`` that computes what is no finite number from ``ids``, shape (batch, tokens); None if all do.

    One pass, with a look at the output of each layer.
    """
    import torch

    found = []

    def look(name, module, output):
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, torch.Tensor) and output.is_floating_point() and not output.isfinite().all():
            found.append((name, module))
            raise _Found

    handles = [module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output)) for name, module in model.named_modules() if name]
    try:
        with contextlib.suppress(_Found), torch.no_grad():
            hidden, head = model.base_model(ids, use_cache=False)[0], model.get_output_embeddings()
            head(hidden[:, -1:].to(head.weight.dtype))  # the last logits alone: all of them may not fit. Mamba's sums have 32 bits
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def check_finite(model, ids, surely=False):
    """Raise NotFiniteError if a layer of ``model`` computes what is no finite number from ``ids``, shape (batch, tokens); it names the first such layer.

    It comes after what is timed, never before a first call. surely: something was not finite.
    """
    found = not_finite(model, ids)
    if not found and not surely:
        return
    name, module = found or ("The model", model)
    dtype = str(model.dtype).removeprefix("torch.")
    if any(part.isnan().any() for part in (*module.parameters(), *module.buffers()) if part.is_floating_point()):
        problem = "has weights that are no numbers (NaN): fetch or build the checkpoint again"
    elif dtype == "float16":
        problem = (
            "overflows: float16 ends at 65,504, and it computes more from this prompt. Take bfloat16 (step 2, or dtype='bfloat16' of the step) or"
            " float32, or for GPTQ a kernel whose sums have 32 bits (gptq-triton)"
        )
    else:
        problem = f"computes numbers that are not finite in {dtype} from this prompt: take float32, or another checkpoint"
    raise NotFiniteError(f"{name} ({type(module).__name__}) {problem}. Nothing is measured on this model.")


def explained(error, kind, what, then, reason=""):
    """Return ``error``, which a library raised, as a ``kind`` of CourseError: what failed, the library's own words, what to do ``then``.

    reason: better words than its own first line. An error of the course's own code is raised as it is: it must not look like the reader's.
    """
    if isinstance(error, CourseError) or Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(ROOT / "helpers"):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines[:2] = [" ".join(lines[:2])] if lines and lines[0].endswith(":") else lines[:2]
    words = (reason or (lines[0] if lines else "")).rstrip(".:!")
    name = "" if reason or isinstance(error, (OSError, ValueError, RuntimeError)) and words else f"{type(error).__name__}{': ' * bool(words)}"
    return kind(f"{what}: {name}{words}. What to do: {then}.")


def configuration(folder):
    """Return transformers' configuration of the checkpoint in ``folder``, with its defaults for what config.json leaves out. Raises CheckpointError."""
    return _read("AutoConfig", folder, "config.json")


def tokeniser(folder):
    """Return transformers' tokeniser of the checkpoint in ``folder``. Raises CheckpointError."""
    return _read("AutoTokenizer", folder, "the tokeniser's files")


def plain_llama(folder, otherwise, ropes=("default",)):
    """Return transformers' configuration of the checkpoint in ``folder``, if it says nothing that a converter for plain Llamas would leave out.

    Every key of config.json has to be known: as a size or a setting that converters read, or as one that changes nothing. ropes: the types of
    rotary positions that the converter knows. Raises CheckpointError, which says what to do ``otherwise``.
    """
    import transformers

    config, raw = configuration(folder), read_json(folder, "config.json")
    known = set(transformers.PretrainedConfig().to_dict()) | set(transformers.GenerationConfig().to_dict()) | READ | NO_MATTER | set(Shape.NAMES)
    rope = config.rope_parameters or {}
    refused = {name: value for name, value in raw.items() if name not in known and value not in (None, False, {}, [])}
    refused |= {"hidden_act": config.hidden_act} if config.hidden_act not in ("silu", "swish") else {}
    refused |= {"rope_type": rope["rope_type"]} if rope.get("rope_type", "default") not in ropes else {}
    refused |= {name: rope[name] for name in ("factor", "rope_theta") if not isinstance(rope.get(name, 1), (int, float))}
    refused |= {"partial_rotary_factor": rope["partial_rotary_factor"]} if rope.get("partial_rotary_factor", 1) not in (None, 1) else {}
    if refused:
        name, value = next(iter(refused.items()))
        raise CheckpointError(f"{folder}/config.json sets {name} to {value!r}, which this converter cannot write: {otherwise}.")
    return config


def _read(loader, folder, files):
    import transformers

    try:
        return getattr(transformers, loader).from_pretrained(folder, local_files_only=True)
    except Exception as error:
        problem = explained(error, CheckpointError, f"{folder} cannot be loaded", f"correct {files}, or take another checkpoint")
    raise problem


def encode(tokenizer, text, special=True, **how):
    """Return the token ids (list of int) of ``text``; special: with what the tokeniser puts around it; how: as for a tokeniser. Raises PromptError."""
    try:
        text.encode("utf-8")
        return tokenizer(text, add_special_tokens=special, **how).input_ids
    except UnicodeEncodeError as error:
        problem = PromptError(
            f"The text has half of a character ({text[error.start]!r}) at place {error.start + 1}: write the whole character, or leave it out."
        )
    except Exception as error:
        problem = explained(error, PromptError, "The tokeniser cannot read this text", "give a text (str) in one piece, or another checkpoint's tokeniser")
    raise problem


def asked(tokenizer, text):
    """Return the token ids, shape (1, tokens), that put ``text`` to a chat model as its user's words; None if the tokeniser has no chat template.

    Without it a chat model goes on with the text as a base model does. Raises PromptError if the template fails.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        said = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    except Exception as error:
        problem = explained(
            error, PromptError, "The chat template of this tokeniser fails", "correct chat_template, or take it out in a copy of the checkpoint"
        )
    else:
        return encode(tokenizer, said, special=False, return_tensors="pt")
    raise problem


def begin(tokenizer):
    """Return the id of the token that begins a text: begin-of-sequence, or end-of-text where a tokeniser has no such token, as Qwen's.

    So does lm-evaluation-harness (HFLM.prefix_token_id). Raises PromptError where the tokeniser has neither.
    """
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise PromptError("This tokeniser has no begin-of-sequence token, which this prompt starts with: set bos_token in its tokenizer_config.json.")
    return first


def check_ids(model, ids):
    """Raise PromptError unless all of ``ids`` (a tensor) are rows of ``model``'s embedding table."""
    rows = model.get_input_embeddings().weight.shape[0]
    if ids.is_floating_point() or ids.min() < 0 or ids.max() >= rows:
        worst = ids.max() if ids.max() >= rows else ids.min()
        raise PromptError(
            f"The prompt has a token with the id {worst.item()}, and the model's embedding table ends at {rows - 1}: leave the token that was added to this"
            " tokeniser out of the text, or take the tokeniser of this model."
        )


class Report(logging.Handler):
    """Keeps what transformers writes into its log while it loads: it logs why a tensor could not be converted, and raises something else."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.text, self.logger = "", logging.getLogger("transformers.modeling_utils")

    def emit(self, record):
        self.text += record.getMessage() + "\n"

    @property
    def reason(self):
        """The last error in the report, in one line; "" without one."""
        errors = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*$", self.text, flags=re.M)
        errors = errors or re.findall(r"\| *CONVERSION *\| *(.+)$", self.text, flags=re.M)  # transformers 5.0 leaves the error's class out
        return errors[-1] if errors else ""

    def __enter__(self):
        self.before = self.logger.level, self.logger.propagate
        self.logger.setLevel(logging.WARNING)
        self.logger.propagate = False
        self.logger.addHandler(self)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before[0])
        self.logger.propagate = self.before[1]
