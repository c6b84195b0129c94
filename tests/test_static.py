"""What the course reads of its libraries exists; the check itself finds what does not."""

import pytest

from tools import static


@pytest.mark.parametrize("path, source", [pytest.param(path, source, id=path.name) for path, source in static.sources()])
def test_every_name_exists(path, source):
    problems, _ = static.check(source, path.name)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("source", "said"),
    [("import torch\nif False:\n    torch.cuda.synchronise()", "x:3 torch.cuda.synchronise: there is no synchronise"),
     ("def f():\n    from transformers import AutoModelForNothing", "AutoModelForNothing"),
     ("import torch\ntorch.cuda.empty_cache(device=0)", "torch.cuda.empty_cache() takes no device"),
     ("import torch.nothing", "import torch.nothing")],
)  # fmt: skip
def test_what_does_not_exist_is_found(source, said):
    problems, _ = static.check(source, "x")
    assert problems and said in problems[0]


def test_what_is_there_is_counted():
    assert static.check("import torch\ntorch.cuda.is_available()\ntorch.zeros(1, device='cpu')", "x")[1] >= 3
