"""Which variables of the environment stand between this process and a network? Proxies, certificates, another Hub. First used in notebook 00.

A proxy's address is never repeated: it may hold a password.
"""

import os
import re
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

from helpers import errors

HERE = ("127.0.0.1", "localhost", "::1")
HUB, PYPI = "https://huggingface.co", "https://pypi.org"
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")  # read when the Hub's library is imported, as whole numbers
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
UNREACHED = {"ConnectError", "ConnectTimeout", "ProxyError", "ConnectionError", "RemoteProtocolError", "ClientConnectorError", "ClientHttpProxyError"}
CHECK = "check the network (on Kaggle: Settings > Turn on internet)"
AGAIN = "or delete the variable, and restart the kernel"


def direct():
    """Let every client of this process, and of those that it starts, ask the servers of this machine without a proxy, whatever proxy is set.

    All of them read NO_PROXY. Once it is set, macOS's and Windows' own settings are no longer asked: they are written beside it.
    """
    if not {"http", "https", "all"} & set(getproxies_environment()):
        os.environ.update({f"{kind}_proxy": address for kind, address in getproxies().items() if kind in ("http", "https")})
    listed = [host.strip() for host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",") if host.strip()]
    if "*" not in listed:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*listed, *HERE]))


def is_address(text):
    """Whether ``text`` is an address of the web in full, for example http://127.0.0.1:8000/v1."""
    if not isinstance(text, str):
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not any(map(str.isspace, text))
    except ValueError:  # a port above 65535, a bracket that is left open
        return False


def unreadable():
    """Say in a clause which variable of the Hub has a value that its library, and so transformers, cannot be imported or used with; "" if none has."""
    given = os.environ.get("HF_ENDPOINT")
    if given and not is_address(given):
        return f"HF_ENDPOINT is {given!r}, which is no address: write it in full, as {HUB}, {AGAIN}"
    for name in SECONDS:
        if (value := os.environ.get(name)) is not None and (not value.strip().isdecimal() or len(value) > 9):
            return f"{name} is {value[:40]!r}, which is no whole number of seconds: write it in digits, as 10, {AGAIN}"
    return ""


def advice():
    """Say what to check where the Hub does not answer and no variable keeps the request from the network: the address that HF_ENDPOINT names, or the network."""
    given = os.environ.get("HF_ENDPOINT")
    if given and urlsplit(given).hostname != urlsplit(HUB).hostname:
        return f"HF_ENDPOINT sends its requests to {re.sub('//[^/]*@', '//', given)}: check that address, {AGAIN}"
    return CHECK


def _unusable(path, name):
    """Why the certificates at ``path``, which the variable ``name`` names, cannot be read, in a clause; "" if they can."""
    if not os.path.exists(path):
        return "which is not there"
    if os.path.isdir(path):
        return "which is a folder: name a file of certificates" if name == "SSL_CERT_FILE" else ""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError:
        return "which may not be read"
    return ""


def trouble(error, address=None):
    """Say in a clause which variable keeps ``error``'s request to ``address`` (None: the Hub) from the network, and what to do; "" if none does."""
    said, kinds = " ".join(map(str, errors.chain(error))), errors.kinds(error)
    proxies = {name: value for name, value in os.environ.items() if name.lower() in ("all_proxy", "https_proxy", "http_proxy") and value}
    socks = next((name for name, value in proxies.items() if value.lower().startswith("socks")), None)
    if "OfflineModeIsEnabled" in kinds:
        name = next((name for name in OFFLINE if os.environ.get(name)), OFFLINE[0])
        return f"{name} is set, so only what is in the cache can be loaded: unset it and restart the kernel"
    if socks and ("socks" in said.lower() or "http proxies" in said):
        return f"{socks} names a SOCKS proxy, and Python's clients lack a package for it or its kind: run pip install socksio PySocks, {AGAIN}"
    if proxies and ("for proxy URL" in said or "Proxy protocol" in said):
        return f"{next(iter(proxies))} names a proxy of a kind that Python's clients do not know: write it as http://host:port, {AGAIN}"
    if "InvalidURL" in kinds and (wrong := next((name for name, proxy in proxies.items() if not is_address(re.sub(r"^(\w+://)?", "http://", proxy))), None)):
        return f"{wrong} names a proxy whose address cannot be: write it as http://host:port, {AGAIN}"
    files = {"FileNotFoundError", "IsADirectoryError", "NotADirectoryError", "PermissionError"} & kinds
    if files or "SSLError" in kinds or any(word in said for word in ("CERTIFICATE", "certificate", "TLS CA")):
        names = (*CERTIFICATES, "PIP_CERT") if address == PYPI else CERTIFICATES  # pip alone reads the last
        given = {name: os.environ[name] for name in names if os.environ.get(name)}
        for name, path in given.items():
            if why := _unusable(path, name):
                return f"{name} names {path}, {why if ':' in why else f'{why}: correct it'}, {AGAIN}"
        if given and not files:
            return f"with the certificates that {' and '.join(given)} names the server is not trusted: correct it, {AGAIN}"
        if "CERTIFICATE" in said:
            return "the server's certificate is not trusted here, as behind some companies' proxies: set SSL_CERT_FILE to your network's own file of certificates and restart the kernel"
    if socks and address and not proxy_bypass(urlsplit(address).hostname) and UNREACHED & kinds:
        return f"{socks} names a SOCKS proxy, and the course's client of servers takes none: set HTTP_PROXY to an http:// proxy, {AGAIN}"
    name = _proxy_of(address or os.environ.get("HF_ENDPOINT") or HUB)
    return f"the proxy that {name} names does not answer or lets nothing through: check it, {AGAIN}" if name and UNREACHED & kinds else ""


def _proxy_of(address):
    """The name of the variable whose proxy is asked for ``address``, or None."""
    parts, found = urlsplit(address), getproxies_environment()
    name = next((f"{kind}_proxy" for kind in (parts.scheme, "all") if found.get(kind)), None)
    return None if not name or proxy_bypass(parts.hostname) else next(each for each in os.environ if each.lower() == name and os.environ[each])
