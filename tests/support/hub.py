"""A Hugging Face Hub on the loopback interface: it serves folders under repository names to the real huggingface_hub client.

It speaks what the client asks of the real one: repository information with sizes and SHA-256, HEAD and GET of files
with ETag and commit, the redirect of large files to another address, ranges, tokens, and the Hub's error codes. Faults are switchable.
"""

import hashlib
import json
import threading
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {  # the Hub's own sentences (X-Error-Message), which tell the cases of its one error code GatedRepo apart
    "licence": "Access to model {name} is restricted and you are not in the authorized list. Visit https://huggingface.co/{name} to ask for access.",
    "pending": "Your request to access model {name} is awaiting a review from the repo authors.",
    "rejected": "Your request to access model {name} has been rejected by the repo's authors.",
}


@lru_cache
def content(path):
    """(bytes, SHA-256) of a file."""
    data = Path(path).read_bytes()
    return data, hashlib.sha256(data).hexdigest()


class Hub:
    """``with Hub({"owner/name": folder}) as hub: hub.url``.

    gated: {repository: "licence", "pending" or "rejected"}, closed to everybody. token: the only valid one; with another, every answer
    is 401, as on the real Hub. asked: list of (method, repository, file, Range header). tokens: set of all tokens that came in.
    """

    def __init__(self, repositories, gated=None, token="hf_valid"):
        self.repositories, self.gated, self.token = repositories, dict(gated or {}), token
        self.asked, self.tokens, self.faults = [], set(), []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fail(self, file, how, times=10**9, method="GET"):
        """Let the next ``times`` requests of ``method`` for ``file`` ("info": repository information) fail.

        how: an HTTP status, "cut" (the connection ends in the middle), "stall" (nothing comes for a minute, in the middle), "damaged"
        (wrong bytes), "short" (the file is shorter than announced elsewhere) or "gone" (the connection ends without an answer).
        """
        self.faults.append([method, file, how, times])

    def fault(self, method, file):
        for entry in self.faults:
            if entry[0] == method and entry[1] == file and entry[3] > 0:
                entry[3] -= 1
                return entry[2]
        return None

    def fetched(self, file):
        """How often the content of ``file`` was asked for, as Range headers ("" for all of it)."""
        return [ranged for method, _, name, ranged in self.asked if method == "GET" and name == file]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code="", message=""):
        self.answer(status, X_Error_Code=code, X_Error_Message=message, **({"Retry_After": 1} if status == 429 else {}))

    def do_GET(self):
        hub = self.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            hub.tokens.add(token)
            if token != hub.token and not self.path.startswith("/cdn/"):
                return self.refuse(401, message="Invalid credentials in Authorization header")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "cdn":
            return self.send_file(*parts[1:3], "/".join(parts[3:]))
        if parts == ["api", "whoami-v2"]:
            who = {"type": "user", "name": "reader", "auth": {"type": "access_token", "accessToken": {"displayName": "course", "role": "read"}}}
            return self.answer(200 if token else 401, json.dumps(who).encode(), Content_Type="application/json")
        information = parts[:2] == ["api", "models"]
        if information:
            parts = parts[2:]
        elif parts[0] == "api":
            return self.answer(404)
        name, rest = "/".join(parts[:2]), parts[2:]
        if information and isinstance(how := hub.fault(self.command, "info"), int):
            return self.refuse(how)
        if name in hub.gated and not information:
            if not token:
                message = f"Access to model {name} is restricted. You must have access to it and be authenticated to access it. Please log in."
                return self.refuse(401, "GatedRepo", message)
            return self.refuse(403, "GatedRepo", REFUSALS[hub.gated[name]].format(name=name))
        if name not in hub.repositories:
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        if information:
            return self.inform(name)
        if isinstance(how := hub.fault(self.command, rest[-1]) if self.command == "HEAD" else None, int):
            return self.refuse(how)
        self.resolve(name, "/".join(rest[2:]))

    do_HEAD = do_GET

    def inform(self, name):
        siblings = []
        for path in sorted(Path(self.hub.repositories[name]).iterdir()):
            data, digest = content(path)
            entry = {"rfilename": path.name, "size": len(data), "blobId": digest[:40]}
            if path.suffix == ".safetensors":
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        about = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "private": False}
        self.answer(200, json.dumps(about).encode(), Content_Type="application/json")

    def resolve(self, name, file):
        path = Path(self.hub.repositories[name]) / file
        if not path.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        if path.suffix == ".safetensors":
            data, digest = content(path)
            linked = {"X_Linked_ETag": f'"{digest}"', "X_Linked_Size": len(data), "X_Repo_Commit": COMMIT}
            return self.answer(302, Location=f"{self.hub.url}/cdn/{name}/{file}", **linked)
        self.send_file(*name.split("/"), file)

    def send_file(self, owner, repository, file):
        hub, name = self.hub, f"{owner}/{repository}"
        data, digest = content(Path(hub.repositories[name]) / file)
        ranged = self.headers.get("Range", "")
        hub.asked.append((self.command, name, file, ranged))
        how = hub.fault(self.command, file) if self.command == "GET" else None
        if isinstance(how, int):
            return self.refuse(how)
        if how == "gone":
            self.close_connection = True
            return self.connection.close()
        headers = {"ETag": f'"{digest}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if how == "damaged":
            data = data[:-9] + bytes(byte ^ 255 for byte in data[-9:])
        if how == "short":
            data = data[: len(data) // 2]
        first, status = 0, 200
        if ranged:
            first, _, last = ranged.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or len(data)), len(data) - 1)
            status, headers["Content_Range"] = 206, f"bytes {first}-{last}/{len(data)}"
            data = data[: last + 1]
        body = data[first:]
        if how not in ("cut", "stall"):
            return self.answer(status, body, **headers)
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if how == "stall":
            time.sleep(60)
        self.close_connection = True
        self.connection.close()
