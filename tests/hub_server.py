"""A hub on loopback: the calls of huggingface_hub that reading a file and a commit make."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub:
    """Repositories in memory.

    Attributes:
      files: {repository: {name: bytes}}.
      requests: "METHOD path" of all that was asked.
      address: of the server.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.address = ""
        self.stored: dict[str, bytes] = {}  # large files, by SHA-256, until a commit names them

    def commit(self, repository: str) -> str:
        """The identity of what a repository holds."""
        held = sorted((name, _sha(data)) for name, data in self.files[repository].items())
        return hashlib.sha1(repr(held).encode()).hexdigest()


@contextlib.contextmanager
def serve():
    """A `Hub` that answers on 127.0.0.1 for as long as the block lasts."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *arguments):
        del arguments

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        self._file(body=True)

    def do_PUT(self):
        self._note()
        data = self._body()
        self.state.stored[_sha(data)] = data
        self._answer(200, b"")

    def do_POST(self):
        path = self._note()
        parts = path.strip("/").split("/")
        body = self._body()
        if path == "/api/repos/create":
            repository = _repository(json.loads(body))
            self.state.files.setdefault(repository, {})
            self._json({"url": f"{self.state.address}/{repository}", "name": repository})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "preupload" in parts:
            self._json(
                {
                    "files": [
                        {
                            "path": f["path"],
                            "shouldIgnore": False,
                            "uploadMode": "regular" if f["path"].endswith(".md") else "lfs",
                        }
                        for f in json.loads(body)["files"]
                    ]
                }
            )
        elif path.endswith("/objects/batch"):
            self._json(
                {
                    "transfer": "basic",
                    "objects": [
                        {
                            "oid": o["oid"],
                            "size": o["size"],
                            "actions": {
                                "upload": {"href": f"{self.state.address}/store/{o['oid']}"}
                            },
                        }
                        for o in json.loads(body)["objects"]
                    ],
                }
            )
        elif "commit" in parts:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._answer(404, b"")

    def _commit(self, repository, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.state.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.state.files[repository][value["path"]] = self.state.stored[value["oid"]]
        oid = self.state.commit(repository)
        self._json(
            {
                "commitUrl": f"{self.state.address}/{repository}/commit/{oid}",
                "commitOid": oid,
                "success": True,
            }
        )

    def _file(self, body):
        """OWNER/NAME/resolve/REVISION/FILE, as it is or as the error that the hub gives."""
        owner, name, *rest = self._note().strip("/").split("/")
        if rest[:1] != ["resolve"] or len(rest) < 3:
            return self._answer(404, b"")
        _, revision, *file = rest
        repository, file = f"{owner}/{name}", "/".join(file)
        held = self.state.files.get(repository)
        if held is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.state.commit(repository)
        if revision not in ("main", commit):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if file not in held:
            return self._answer(
                404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            )
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha(held[file])}"'}
        return self._answer(200, held[file], headers, body)

    def _note(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.state.requests.append(f"{self.command} {path}")
        return path

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status, data, headers=None, body=True):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


def _repository(asked):
    owner = asked.get("organization")
    return f"{owner}/{asked['name']}" if owner else asked["name"]


def _sha(data):
    return hashlib.sha256(data).hexdigest()
