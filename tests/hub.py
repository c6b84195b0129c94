"""A Hugging Face Hub on the loopback interface: it serves folders under repository names to the real huggingface_hub client."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """``with Hub({"owner/name": folder}, gated={"owner/other"}) as hub: hub.url``; asked is the list of (repository, file)."""

    def __init__(self, repositories, gated=()):
        hub, self.asked = self, []

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

            def do_GET(self):
                path = self.path.split("?")[0].strip("/").removeprefix("api/models/").split("/")
                name, rest = "/".join(path[:2]), path[2:]
                if name in gated:
                    return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message=f"Access to model {name} is restricted")
                if name not in repositories:
                    return self.answer(404, X_Error_Code="RepoNotFound")
                if rest[:1] != ["resolve"]:
                    if rest and rest[0] not in ("revision", "auth-check"):
                        return self.answer(404, X_Error_Code="EntryNotFound")
                    about = {"id": name, "sha": COMMIT, "siblings": [], "tags": [], "downloads": 0, "likes": 0, "private": False}
                    return self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
                file = Path(repositories[name]).joinpath(*rest[2:])
                if not file.is_file():
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                hub.asked.append((name, rest[-1]))
                body = file.read_bytes()
                self.answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
