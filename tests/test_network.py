"""Variables of the environment that keep requests from the network: each gets a sentence with its name, and no server of this machine is asked by way of a proxy."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import ROOT
from helpers.errors import CheckpointError
from helpers.machine import network
from helpers.models import choose, hub

PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
CERTIFICATES = network.CERTIFICATES

ASK = """
import json, sys
from helpers.models import choose
found = {"tier": choose.choose_tier("auto")[0]}
survey = choose.survey()
print(json.dumps({"tier": choose.choose_tier("auto")[0], "online": survey["online"], "gated": survey["gated"]}))
"""


SET_UP = "from helpers import setup, errors\nimport json\ntry: setup.prepare()\nexcept errors.PackagesError as error: print(json.dumps(str(error)))"
WHY = "import json\nfrom helpers.models import hub\nprint(json.dumps(hub.refusal('a/b')[0]))"
UNREADABLE = "/proc/sys/vm/compact_memory"  # for root too


def environment(**variables):
    mine = {k: v for k, v in os.environ.items() if k.upper() not in (*PROXIES, *CERTIFICATES, "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TIER")}
    return mine | {"PYTHONPATH": str(ROOT)} | variables


def run(program, *arguments, **variables):
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment(**variables), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "ALL_PROXY names a SOCKS proxy"),
        ("all_proxy", "socks5h://me:secret@127.0.0.1:9", "all_proxy names a SOCKS proxy"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:9", "HTTPS_PROXY names a SOCKS proxy"),
        ("HTTPS_PROXY", "nonsense://me:secret@127.0.0.1:9", "HTTPS_PROXY names a proxy of a kind"),
        ("HTTPS_PROXY", "http://me:secret@127.0.0.1:9", "the proxy that HTTPS_PROXY names does not answer"),
        ("HTTPS_PROXY", "http://me:secret@host:port", "HTTPS_PROXY names a proxy whose address cannot be"),
        ("https_proxy", "http://[::1", "https_proxy names a proxy whose address cannot be"),
        ("https_proxy", "127.0.0.1:9", "the proxy that https_proxy names does not answer"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE names /nowhere/ca.pem, which is not there"),
        ("SSL_CERT_FILE", "/etc", "SSL_CERT_FILE names /etc, which is a folder"),
        ("SSL_CERT_FILE", "/etc/hostname", "with the certificates that SSL_CERT_FILE names"),
        pytest.param(
            "SSL_CERT_FILE",
            UNREADABLE,
            f"SSL_CERT_FILE names {UNREADABLE}, which may not be read",
            marks=pytest.mark.skipif(not os.path.exists(UNREADABLE), reason="no such file here"),
        ),
        (
            "HF_ENDPOINT",
            "http://me:secret@127.0.0.1:9",
            "the Hub cannot be reached (ConnectionRefusedError): HF_ENDPOINT sends its requests to http://127.0.0.1:9",
        ),
        ("HF_ENDPOINT", "http://hub.invalid", "the name of the Hub cannot be resolved (DNS): HF_ENDPOINT sends its requests to http://hub.invalid"),
        ("HF_ENDPOINT", "hf-mirror.com", "HF_ENDPOINT is 'hf-mirror.com', which is no address"),
        ("HF_ENDPOINT", "127.0.0.1:8000", "HF_ENDPOINT is"),
        ("HF_ENDPOINT", "ftp://huggingface.co", "HF_ENDPOINT is"),
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set"),
        ("TRANSFORMERS_OFFLINE", "1", "TRANSFORMERS_OFFLINE is set"),
    ],
)
def test_a_variable_is_named_and_the_network_is_not_blamed(name, value, words):
    found = run(ASK, **{name: value})
    assert found["tier"] == "embedded" and found["online"].startswith(words) and found["online"].endswith("restart the kernel"), found
    assert "check the network" not in str(found) and "secret" not in str(found)


@pytest.mark.parametrize("value", ["http://127.0.0.1:99999", "https://[::bad", "http://127.0.0.1:x"])
def test_an_address_that_no_library_can_be_imported_with(value):
    """transformers reads HF_ENDPOINT when it is imported, so the set-up cell says it."""
    assert f"HF_ENDPOINT is {value!r}, which is no address" in run(SET_UP, HF_ENDPOINT=value)


@pytest.mark.parametrize("name", network.SECONDS)
@pytest.mark.parametrize("value", ["x", "ten", "1.5", "", "-1", "²"])
def test_a_number_of_seconds_that_no_library_can_be_imported_with(name, value):
    assert f"{name} is {value!r}, which is no whole number of seconds: write it in digits" in run(SET_UP, **{name: value})
    said = run(WHY, **{name: value})
    assert said.startswith(f"{name} is") and "pip install" not in said


def test_a_home_below_a_file_stops_nothing_and_is_named_where_it_matters(tmp_path):
    """The survey and an embedded model need no cache; what is fetched says that HF_HOME is wrong."""
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    assert run(ASK, HF_HOME=home, HF_ENDPOINT="http://127.0.0.1:9")["tier"] == "embedded"
    said = run(WHY, HF_HOME=home)
    assert "set HF_HOME to a folder that you may write to" in said and "pip install" not in said
    load = "import json\nfrom helpers import loading\nfrom helpers.models import choose\nprint(json.dumps(type(loading.load(choose.get_step(2))[0]).__name__))"
    assert run(load, HF_HOME=home, TIER="embedded") == "LlamaForCausalLM"


def test_a_token_with_a_sign_that_no_token_has():
    said = run(WHY, HF_TOKEN="hf_sécret")
    assert said.startswith("your token (the environment variable HF_TOKEN) has a line break or another sign") and "cret" not in said


def test_pips_certificates_are_pips_alone(monkeypatch):
    """And the other way round: what is wrong with the Hub's address keeps pip from nothing."""
    for name in (*CERTIFICATES, "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CERT", "/nowhere")
    error = OSError("SSLError(SSLCertVerificationError: certificate verify failed)")
    assert "PIP_CERT" not in network.trouble(error) + hub.why(error, "a/b")
    assert network.trouble(error, network.PYPI).startswith("PIP_CERT names /nowhere, which is not there")
    monkeypatch.setenv("HF_ENDPOINT", "nowhere")
    assert network.trouble(error, network.PYPI).startswith("PIP_CERT names /nowhere")


def test_without_any_of_them_the_network_is_named(monkeypatch):
    for name in list(os.environ):
        if name.upper() in PROXIES:
            monkeypatch.delenv(name)
    for address in ("", network.HUB, f"{network.HUB}/"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        for error, words in ((ConnectionError("refused"), "cannot be reached"), (TimeoutError(), "in time"), (OSError("Name or service not known"), "DNS")):
            said = hub.why(error, "a/b")
            assert words in said and "check the network" in said and "HF_ENDPOINT" not in said


CLIENTS = """
import asyncio, json, sys, urllib.request
from helpers import machine
address, found = sys.argv[1], []
def attempt(action):
    try: found.append(action())
    except Exception as error: found.append(f"{type(error).__name__}: {error}")
def get(package):
    client = __import__(package)
    with client.Client() as session: return session.get(address).text
async def asynchronous():
    import aiohttp
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(address) as answer: return await answer.text()
for name in sys.argv[2:]:
    if name == "urllib": attempt(lambda: urllib.request.urlopen(address).read().decode())
    elif name == "requests": attempt(lambda: __import__("requests").get(address).text)
    elif name == "aiohttp": attempt(lambda: asyncio.run(asynchronous()))
    elif name == "hub": attempt(lambda: __import__("huggingface_hub").get_session().get(address).text)
    elif name == "child": attempt(lambda: __import__("subprocess").check_output([sys.executable, "-c", f"import urllib.request; print(urllib.request.urlopen({address!r}).read().decode(), end='')"], text=True))
    else: attempt(lambda: get(name))
print(json.dumps(found))
"""


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening.server_port
        listening.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "intranet"}, {"no_proxy": ""}, {"NO_PROXY": "*"}])
def test_every_client_asks_this_machine_without_the_proxy(server, host, given):
    names = [name for name in ("urllib", "requests", "aiohttp", "hub", "child", "httpx", "httpx2") if name in ("hub", "child") or _there(name)]
    proxies = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "https_proxy")}
    assert run(CLIENTS, f"http://{host}:{server}/", *names, **proxies | given) == ["here"] * len(names)


def _there(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_what_the_reader_excepted_stays_so_and_the_systems_proxy_is_kept(monkeypatch):
    """On Windows and macOS the proxy stands in the system's settings, which are not asked where NO_PROXY is set."""
    for name in os.environ:
        if name.upper() in PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setattr(network, "getproxies", lambda: {"http": "http://proxy:1", "https": "http://proxy:2", "ftp": "x"})
    for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NO_PROXY", "intranet, 10.0.0.0/8")
    network.direct()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet,10.0.0.0/8,127.0.0.1,localhost,::1"
    assert os.environ["http_proxy"] == "http://proxy:1" and os.environ["https_proxy"] == "http://proxy:2"
    network.direct()
    assert os.environ["NO_PROXY"].count("localhost") == 1


@pytest.mark.parametrize(
    "given, repository, revision",
    [
        ("https://huggingface.co/TheBloke/Llama-2-7B-GPTQ", "TheBloke/Llama-2-7B-GPTQ", None),
        ("http://www.huggingface.co/TheBloke/Llama-2-7B-GPTQ/", "TheBloke/Llama-2-7B-GPTQ", None),
        ("huggingface.co/a/b.git", "a/b", None),
        ("https://huggingface.co/a/b/tree/gptq-4bit-32g-actorder_True", "a/b", "gptq-4bit-32g-actorder_True"),
        ("https://huggingface.co/a/b/blob/v2/config.json?download=true", "a/b", "v2"),
        ("hf://a/b", "a/b", None),
        (" a/b ", "a/b", None),
        ("TheBloke/Llama-2-7B-GPTQ/", "TheBloke/Llama-2-7B-GPTQ", None),
        ("gpt2", "gpt2", None),
    ],
)
def test_a_pasted_address_is_understood(given, repository, revision):
    assert hub.named(given) == (repository, revision)
    step = choose.get_step(3, checkpoint=given)
    assert (step.checkpoint, step.revision) == (repository, revision or "main")


@pytest.mark.parametrize(
    "given, words",
    [
        ("TheBloke/Llama-2-7B-GPTQ:gptq-4bit-32g-actorder_True", "give checkpoint='TheBloke/Llama-2-7B-GPTQ' and revision='gptq-4bit-32g-actorder_True'"),
        ("a/b@main", "revision='main'"),
        (r"C:\models\Llama-2-7B-GPTQ", "no folder"), ("C:/models/x", "no folder"), (r"models\llama", "no folder"),
        ("models/llama/7b", "no folder"), ("/nowhere", "no folder"), ("./nowhere", "no folder"), ("~nobody/x", "no folder"),
        ("https://example.com/a/b", "no folder"), ("s3://bucket/model", "no folder"), ("https://huggingface.co/datasets/a/b", "is no model"),
        ("my model", "neither a folder"), ("", "neither a folder"), ("   ", "neither a folder"), ("a/b c", "neither a folder"), ("a--b/c", "neither"), ("a/b..c", "neither"),
        ("modèle/x", "neither"), ("a/" + "x" * 300, "neither"), ("-a/b", "neither"), ("a\0b", "neither"), ("a/b\nc", "neither"), ("https://huggingface.co/", "neither"),
        ("a/b.git", "neither"), ("a/.b", "neither"),
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_repository_is_one_sentence(given, words):
    with pytest.raises(CheckpointError, match=words) as error:
        choose.describe(choose.get_step(3, checkpoint=given))
    assert str(error.value).count("\n") == 0 and ("check" in str(error.value) or "give" in str(error.value))


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("y"), AttributeError("z"), NotImplementedError(), RuntimeError("Bearer hf_abc"), AssertionError()])
def test_whatever_the_library_raises_is_a_sentence(monkeypatch, error):
    import huggingface_hub

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fails)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    hub.whether.cache_clear()
    said = [hub.silence("a/b"), hub.refusal("a/b")[0]]
    for action in (lambda: hub.config("a/b"), lambda: hub.whether("a/b"), lambda: hub.fetch_file("a/b", "x")):
        with pytest.raises(CheckpointError) as raised:
            action()
        said.append(str(raised.value))
    assert all(type(error).__name__ in sentence and "update" not in sentence and "pip install --upgrade huggingface_hub" in sentence for sentence in said)
    assert not any("check the network" in sentence or "hf_abc" in sentence for sentence in said)
    assert hub.speed("a/b", "x") is None
    hub.whether.cache_clear()


def test_a_token_with_a_line_break(monkeypatch):
    said = run(ASK, HF_TOKEN="hf_secret\n\nmore")["gated"]
    assert "hf_secret" not in said


@pytest.mark.parametrize("port", [80000, 65536, "8000x", "", 0, -1, 1.5, True, "²"])
def test_what_is_no_port_is_one_sentence(port):
    from helpers.engines import serving

    with pytest.raises(serving.ServerError, match="is no port: give a whole number from 1 to 65535"):
        serving.llamacpp("x.gguf", 1, port=port)
    assert not serving.healthy(f"http://127.0.0.1:{port}/v1")


def test_a_port_that_is_taken_or_the_systems(server, monkeypatch):
    import socket

    from helpers.engines import serving

    assert serving._free(None) > 1023 and serving._free(str(free := serving._free(None))) == free
    with pytest.raises(serving.ServerError, match=f"Port {server} is taken"):
        serving._free(server)

    def refuse(*_):  # as for all but root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(serving.ServerError, match="Port 80 may not be used by you: give one from 1024 on"):
        serving._free(80)


@pytest.mark.parametrize("url", ["http://127.0.0.1:80000/v1", "http://127.0.0.1:8000x/v1", "http://127.0.0.1:0/v1", "http://127.0.0.1:-1/v1", "127.0.0.1:8000/v1",
                                 "ftp://127.0.0.1/v1", "http://", "", "http://[::1/v1", "http://my server/v1", 8000, None, b"http://127.0.0.1:8000/v1", []])  # fmt: skip
def test_what_is_no_address_of_a_server_is_one_sentence(url):
    import asyncio

    from helpers.engines import clients

    with pytest.raises(clients.EndpointError, match="is no address: write it in full"):
        asyncio.run(clients.measure(clients.Endpoint(url, "x"), ["Hello"], 1, 4))


def test_a_server_elsewhere_behind_a_socks_proxy_and_one_here():
    """Notebook 14's own first request, and the course's client: a server of another machine needs the package, one of this machine does not."""
    program = """
import asyncio, json, sys
from helpers.engines import clients
found = []
for url in ("http://192.0.2.1:8000/v1", "http://127.0.0.1:9/v1"):
    try:
        asyncio.run(clients.measure(clients.Endpoint(url, "x"), ["Hello"], 1, 4, timeout=3))
    except clients.EndpointError as error:
        found.append(str(error))
print(json.dumps(found))
"""
    elsewhere, here = run(program, ALL_PROXY="socks5://me:secret@127.0.0.1:9")
    assert "Nobody answers at http://127.0.0.1:9/v1" in here and "secret" not in elsewhere
    assert "ALL_PROXY names a SOCKS proxy" in elsewhere or "192.0.2.1:8000/v1 did not finish an answer" in elsewhere  # where packets vanish
    elsewhere, _ = run(program, HTTP_PROXY="http://127.0.0.1:9")
    assert "the proxy that HTTP_PROXY names does not answer" in elsewhere
