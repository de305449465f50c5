"""A Hub on this machine: enough of the Hugging Face Hub's HTTP protocol to push and load models and datasets.

It keeps repositories, branches, commits and large files in memory, answers large files by a redirect to another host name
as the Hub does, honours ranges, tokens and private repositories, logs every request, and can break off a download.

    with HubServer() as hub:
        python(hub, tmp_path, "-c", "...", token=hub.token)
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlsplit

KINDS = ("models", "datasets", "spaces")
LARGE = {".safetensors", ".parquet", ".bin", ".pt", ".wav", ".flac", ".npy"}
TOKEN = "hf_" + "a" * 34


class HubError(Exception):
    """An answer other than success: status, the Hub's error code and message."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclasses.dataclass
class StoredFile:
    """A file of a commit: its content, and whether it is a large one."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self) -> str:
        """Git's identifier; of a large file that of its pointer."""
        data = self.data if not self.large else f"sha256:{self.sha256}".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob


class Repository:
    """Branches that name commits, commits that map paths to files."""

    def __init__(self, kind: str, name: str, private: bool) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, dict[str, StoredFile]] = {}
        self.messages: dict[str, str] = {}
        self.branches: dict[str, str] = {}
        self.branches["main"] = self.commit({".gitattributes": StoredFile(b"", False)}, "initial commit")

    def commit(self, files: dict[str, StoredFile], message: str) -> str:
        sha = hashlib.sha1(f"{self.kind}/{self.name}/{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.messages[sha] = files, message
        return sha

    def resolve(self, revision: str) -> str:
        revision = unquote(revision)
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, revision: str = "main") -> dict[str, StoredFile]:
        return self.commits[self.resolve(revision)]


class HubServer:
    """The server; a context manager.

    Attributes:
        repositories: by (kind, "user/name"), kind one of models, datasets, spaces.
        log: (method, path with query, range header or None, status) of every request.
        cuts: part of a file's path -> how its next downloads fail: broken off after so many bytes, or for -1 refused.
        token: the one access token that may write.
    """

    def __init__(self, token: str = TOKEN, user: str = "user") -> None:
        self.token, self.user = token, user
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str | None, int]] = []
        self.cuts: dict[str, list[int]] = {}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables that point a process to this Hub, with a cache of its own; uploads need `token=hub.token`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def repository(self, kind: str, name: str, authorized: bool = True) -> Repository:
        found = self.repositories.get((kind, name))
        if found is None or found.private and not authorized:
            raise HubError(404 if authorized else 401, "RepoNotFound", "Repository not found")
        return found

    def requests(self, method: str, part: str) -> list[tuple[str, str, str | None, int]]:
        """Logged requests of a method whose path contains `part`."""
        return [entry for entry in self.log if entry[0] == method and part in unquote(entry[1])]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The log is `HubServer.log`."""

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    # ---- plumbing

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _answer(self, method) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.body = self._read_body()
        try:
            with self.hub.lock:
                status, headers, data = method()
        except HubError as error:
            status, data = error.status, json.dumps({"error": str(error)}).encode()
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error), "Content-Type": "application/json"}
        self.hub.log.append((self.command, self.path, self.headers.get("Range"), status))
        self._send(status, headers, data)

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and (limit := self._cut()) is not None:
            data = data[:limit]
            self.close_connection = True
        self.wfile.write(data)

    def _cut(self) -> int | None:
        for part, limits in self.hub.cuts.items():
            if limits and self.command == "GET" and part in unquote(self.path):
                return limits.pop(0)
        return None

    @staticmethod
    def _json(value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _api(self) -> tuple[Repository, list[str]] | None:
        match = re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+?)(?:/(.*))?", self.route)
        if match is None:
            return None
        repository = self.hub.repository(match[1], match[2], self.authorized)
        return repository, (match[3] or "").split("/") if match[3] else []

    def _must_write(self) -> None:
        if not self.authorized:
            raise HubError(401, "Unauthorized", "Invalid username or password.")

    # ---- reading

    def _get(self) -> tuple[int, dict[str, str], bytes]:
        if self.route == "/api/whoami-v2":
            self._must_write()
            return self._json({"name": self.hub.user, "type": "user", "orgs": [], "auth": {}})
        if self.route.startswith("/cdn/"):
            if any(limits[:1] == [-1] and part in unquote(self.path) for part, limits in self.hub.cuts.items()):
                self._cut()
                raise HubError(503, "Unavailable", "try again later")
            return self._content(self.hub.objects[self.route.split("/")[2]], {})
        match = re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route)
        if match is not None:
            return self._resolve(
                self.hub.repository(match[1] or "models", match[2], self.authorized), *match.group(3, 4)
            )
        found = self._api()
        if found is not None and found[1][:1] == ["tree"]:
            return self._json(list(self._tree(found[0], found[1][1], unquote("/".join(found[1][2:])))))
        if found is not None and (not found[1] or found[1][0] == "revision"):
            return self._json(self._info(found[0], "/".join(found[1][1:]) or "main"))
        if found is not None and found[1] == ["refs"]:
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in found[0].branches.items()]
            return self._json({"branches": branches, "converts": [], "tags": []})
        raise HubError(404, "NotFound", f"nothing at {self.route}")

    def _resolve(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        sha = repository.resolve(revision)
        file = repository.commits[sha].get(unquote(path))
        if file is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"'}
        if not file.large:
            return self._content(file.data, headers)
        self.hub.objects[file.sha256] = file.data
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{file.sha256}/{quote(unquote(path))}"
        return 302, headers, b""

    def _content(self, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if match is None or not match[1] and not match[2]:
            return 200, {**headers, "Content-Length": str(len(data))}, data
        start = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
        end = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
        if start > end:
            raise HubError(416, "RangeNotSatisfiable", f"{start}-{end} of {len(data)}")
        part = data[start : end + 1]
        span = {"Content-Range": f"bytes {start}-{end}/{len(data)}", "Content-Length": str(len(part))}
        return 206, {**headers, **span}, part

    def _info(self, repository: Repository, revision: str) -> dict:
        sha = repository.resolve(revision)
        files = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        now = "2026-01-01T00:00:00.000Z"
        facts = {"private": repository.private, "tags": [], "siblings": files, "lastModified": now, "createdAt": now}
        return {
            "id": repository.name,
            "sha": sha,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            **facts,
        }

    def _tree(self, repository: Repository, revision: str, folder: str) -> Iterator[dict]:
        files = repository.files(revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        recursive = self.query.get("recursive", "").lower() == "true"
        folders: set[str] = set()
        for path, file in sorted(inside.items()):
            between = [str(parent) for parent in PurePosixPath(path[len(prefix) :]).parents][:-1]
            for name in between if recursive else between[-1:]:
                if prefix + name not in folders:
                    folders.add(prefix + name)
                    yield {
                        "type": "directory",
                        "oid": hashlib.sha1(name.encode()).hexdigest(),
                        "size": 0,
                        "path": prefix + name,
                    }
            if recursive or not between:
                yield self._entry(path, file)

    @staticmethod
    def _entry(path: str, file: StoredFile) -> dict:
        entry = {"type": "file", "oid": file.blob, "size": len(file.data), "path": path}
        if file.large:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
        return entry

    # ---- writing

    def _post(self) -> tuple[int, dict[str, str], bytes]:
        if self.route == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.route.endswith(".git/info/lfs/objects/batch"):
            self._must_write()
            return self._json(self._batch())
        if self.route == "/lfs/verify":
            return self._verify()
        if self.route == "/api/repos/create":
            self._must_write()
            return self._create()
        found = self._api()
        if found is None:
            raise HubError(404, "NotFound", f"nothing at {self.route}")
        repository, words = found
        if words[0] == "paths-info":
            return self._json(self._paths_info(repository, words[1]))
        self._must_write()
        if words[0] == "preupload":
            return self._json({"files": [self._upload_mode(file) for file in json.loads(self.body)["files"]]})
        if words[0] == "branch":
            repository.branches.setdefault(unquote(words[1]), repository.resolve("main"))
            return self._json({})
        if words[0] == "commit":
            return self._json(self._commit(repository, unquote(words[1])))
        raise HubError(404, "NotFound", f"nothing at {self.route}")

    def _create(self) -> tuple[int, dict[str, str], bytes]:
        wanted = json.loads(self.body)
        kind = f"{wanted.get('type') or 'model'}s"
        name = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        if (kind, name) in self.hub.repositories:
            status, headers, data = self._json({"url": self._place(kind, name), "error": "You already created it"})
            return 409, headers, data
        self.hub.repositories[kind, name] = Repository(kind, name, self._private(wanted))
        return self._json({"url": self._place(kind, name), "name": name, "id": name})

    def _place(self, kind: str, name: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'models' else f'{kind}/'}{name}"

    @staticmethod
    def _private(wanted: dict) -> bool:
        return bool(wanted.get("private")) or wanted.get("visibility") == "private"

    @staticmethod
    def _upload_mode(file: dict) -> dict:
        large = PurePosixPath(file["path"]).suffix in LARGE or file["size"] > 10e6
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _batch(self) -> dict:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:  # what has arrived before is not asked for again
                upload = {"href": f"{self.hub.url}/lfs/objects/{wanted['oid']}"}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _put(self) -> tuple[int, dict[str, str], bytes]:
        oid = self.route.rsplit("/", 1)[-1]
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(422, "BadObject", "content does not have the announced hash")
        self.hub.objects[oid] = self.body
        return self._json({})

    def _verify(self) -> tuple[int, dict[str, str], bytes]:
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(404, "NotFound", "object did not arrive")
        return self._json({})

    def _paths_info(self, repository: Repository, revision: str) -> list[dict]:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        files = repository.files(revision)
        entries = [self._entry(path, files[path]) for path in paths if path in files]
        for path in paths:
            if path not in files and any(name.startswith(f"{path}/") for name in files):
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        return entries

    def _commit(self, repository: Repository, revision: str) -> dict:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files = dict(repository.files(revision))
        message = ""
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise HubError(400, "BadRequest", f"{value['path']} was never uploaded")
                files[value["path"]] = StoredFile(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
        sha = repository.commit(files, message)
        request = self.query.get("create_pr") == "1"
        repository.branches["refs/pr/1" if request else revision] = sha
        place = self._place(repository.kind, repository.name)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{place}/commit/{sha}", "hookOutput": ""}
        return answer | ({"pullRequestUrl": f"{place}/discussions/1"} if request else {})


def python(hub: HubServer, home: Path, *words: str, token: str | None = None, fails: bool = False) -> str:
    """Run Python with some words against a Hub, its cache in `home`; what it printed, or if it `fails` its complaints."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **hub.environment(home, token), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert bool(result.returncode) == fails, result.stderr[-3000:]
    return result.stderr if fails else result.stdout


__all__ = ["HubServer", "Repository", "StoredFile", "python"]
