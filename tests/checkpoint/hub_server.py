"""A small Hugging Face hub on the loopback: what huggingface_hub asks for a file, and no more."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Folders by the names of repositories.

    Attributes:
        errors: (status, code of the hub) of repositories that answer so.
        asked: method and path of every request for a file.
    """

    def __init__(self):
        self.folders, self.errors, self.asked = {}, {}, []
        self.commit, self.endpoint = COMMIT, ""

    def add(self, repository, folder):
        self.folders[repository] = Path(folder)

    def answer(self, path):
        """Returns status, headers and content."""
        parts = unquote(path.partition("?")[0]).lstrip("/").split("/")
        if parts[0] == "api" or len(parts) < 5:
            return 404, {}, b""
        repository, (_, revision, *name) = "/".join(parts[:2]), parts[2:]
        headers = {"X-Repo-Commit": self.commit}
        if repository in self.errors:
            status, code = self.errors[repository]
            return status, {"X-Error-Code": code}, b""
        if repository not in self.folders:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", "v1", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        file = self.folders[repository].joinpath(*name)
        if not file.is_file():
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        return 200, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content


def handler_of(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if "/resolve/" in self.path:
                hub.asked.append(f"{self.command} {self.path}")
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args):
            """The test's output stays free of requests."""

    return Handler


@contextmanager
def serving(handler):
    """Serves on the loopback; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
