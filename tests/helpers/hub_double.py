"""A double of the Hub on loopback: the routes that huggingface_hub's client uses to push and pull, held in memory.

It answers as the Hub does where the client looks (status, X-Error-Code, X-Repo-Commit, ETag) and keeps what a test
asks about: commits per branch, stored LFS objects, uploads that began. Models are kept as "user/name", data sets as
"datasets/user/name", as in the Hub's own addresses.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE_TOKEN, READ_TOKEN = "hf_double_write", "hf_double_read"
REPO = r"(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
API = r"/api/(?:models/|(?=datasets/))" + REPO


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]]
    lfs: dict[str, bytes] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        history = self.branches.setdefault(branch, [])
        hashes = sorted((name, git_oid(content)) for name, content in files.items())
        content = repr((len(history), branch, message, hashes))
        history.append(Commit(hashlib.sha1(content.encode()).hexdigest(), message, files))
        return history[-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for history in self.branches.values() for c in history if c.sha == revision), None)


class HubDouble:
    """
    Use as a context manager; `url` is its HF_ENDPOINT.

    Args of a test, set as attributes:
        drop_uploads (`int`): how many of the next LFS uploads break off half-way.
        drop_after (`int` or `None`): once that many LFS objects have arrived, every further upload breaks off.
        refuse_commit (`int`): status with which the next commits are refused, 0 for none.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.drop_uploads = 0
        self.drop_after: int | None = None
        self.refuse_commit = 0
        self.uploads: list[tuple[str, int]] = []  # (oid, bytes) of every LFS upload that began
        self.requests: list[str] = []
        self.ranges: list[tuple[str, int, int]] = []  # (path, first byte, bytes) of every part of a file that was read
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubDouble":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(self, repo_id: str, private: bool = False) -> Repo:
        self.repos[repo_id] = Repo(private, {})
        self.repos[repo_id].commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.repos[repo_id]

    def pushes(self, repo_id: str, branch: str = "main") -> list[Commit]:
        """The commits after the Hub's own first one."""
        return self.repos[repo_id].branches[branch][1:]


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".parquet"))


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entries_of(commit: Commit) -> list[dict]:
    """Every file and every folder of a commit, as the Hub's file tree describes them."""
    folders = {str(parent) for name in commit.files for parent in PurePosixPath(name).parents} - {"."}
    entries = [{"type": "directory", "path": name, "size": 0, "oid": git_oid(name.encode())} for name in folders]
    for name, content in commit.files.items():
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
        if is_lfs(name):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["path"])


def metadata_errors(content: str) -> list[str]:
    """What the Hub refuses in a model card's metadata: a subset of its checks, by its documentation."""
    match = re.match(r"^\s*---\r?\n([\S\s]*?)\r?\n---[ \t]*(\r?\n|$)", content)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    errors = []
    for key in ("license", "pipeline_tag", "library_name"):
        if not isinstance(data.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "metrics"):
        if key in data and not all(isinstance(entry, str) for entry in data[key]):
            errors.append(f'"{key}" must be an array of strings')
    for i, model in enumerate(data.get("model-index", [])):
        at = f"model-index[{i}]"
        if not isinstance(model.get("name"), str):
            errors.append(f'"{at}.name" is required')
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append(f'"{at}.results.task.type" is required')
            if not {"name", "type"} <= result.get("dataset", {}).keys():
                errors.append(f'"{at}.results.dataset" needs name and type')
            for metric in result.get("metrics", [{}]):
                if not {"type", "value"} <= metric.keys():
                    errors.append(f'"{at}.results.metrics" need type and value')
    return errors


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubDouble

    ROUTES = [
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", API + r"/branch/(?P<revision>[^/]+)", "create_branch"),
        ("POST", API + r"/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})", "lfs_upload"),
        ("POST", rf"/lfs/{REPO}/verify", "lfs_verify"),
        ("POST", API + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", API + r"/tree/(?P<revision>[^/]+)(?P<path>/.*)?", "tree"),
        ("GET", API + r"/revision/(?P<revision>[^/]+)", "info"),
        ("GET", API, "info"),
        ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def log_message(self, *args):
        pass

    def handle_any(self):
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, {"HEAD": "GET"}.get(self.command)):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.hub.lock:
                    return getattr(self, name)(**found)
        self.body()
        return self.answer(404, {"error": f"no such route in the double: {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # ---------------------------------------------------------------------------------------------------- in and out

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def answer(self, status: int, content=None, headers=(), error_code: str | None = None):
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if error_code:
            self.send_header("X-Error-Code", error_code)
        if status >= 400 and isinstance(content, dict):
            self.send_header("X-Error-Message", content.get("error", ""))
        if not any(name.lower() == "content-length" for name in dict(headers)):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def token(self) -> str | None:
        header = self.headers.get("Authorization", "")
        return header.removeprefix("Bearer ") if header else None

    def may_write(self) -> bool:
        if self.token() == WRITE_TOKEN:
            return True
        if self.token() == READ_TOKEN:
            self.answer(403, {"error": "Forbidden: you must use a write token to upload to a repository."})
        else:
            self.answer(401, {"error": "Invalid username or password."})
        return False

    def find(self, repo: str, revision: str | None = None):
        """(repository, commit), or None after the error was answered."""
        found = self.hub.repos.get(repo)
        if found is None or (found.private and self.token() not in (WRITE_TOKEN, READ_TOKEN)):
            self.answer(401 if self.token() is None else 404, {"error": "Repository not found"}, (), "RepoNotFound")
            return None
        commit = found.find(revision or "main")
        if commit is None:
            self.answer(404, {"error": f"Invalid rev id: {revision}"}, (), "RevisionNotFound")
            return None
        return found, commit

    # -------------------------------------------------------------------------------------------------------- pushing

    def create_repo(self):
        wanted = json.loads(self.body())
        if not self.may_write():
            return
        kind = "datasets/" if wanted.get("type") == "dataset" else ""
        repo_id = f"{kind}{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repos:
            return self.answer(409, url | {"error": "You already created this repo"})
        self.hub.create(repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.answer(200, url)

    def validate_yaml(self):
        errors = metadata_errors(json.loads(self.body())["content"])
        self.answer(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []})

    def create_branch(self, repo: str, revision: str):
        self.body()
        if not self.may_write() or (found := self.find(repo)) is None:
            return
        if revision in found[0].branches:
            return self.answer(409, {"error": "Reference already exists"})
        found[0].branches[revision] = list(found[0].branches["main"])
        self.answer(200, {})

    def preupload(self, repo: str, revision: str):
        wanted = json.loads(self.body())["files"]
        if not self.may_write() or (found := self.find(repo, revision)) is None:
            return
        files = []
        for file in wanted:
            entry = {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            content = found[1].files.get(file["path"])
            if is_lfs(file["path"]):
                entry["uploadMode"] = "lfs"
            if content is not None:
                entry["oid"] = hashlib.sha256(content).hexdigest() if is_lfs(file["path"]) else git_oid(content)
            files.append(entry)
        self.answer(200, {"files": files})

    def lfs_batch(self, repo: str):
        wanted = json.loads(self.body())["objects"]
        if not self.may_write() or (found := self.find(repo)) is None:
            return
        objects = []
        for entry in wanted:
            entry = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in found[0].lfs:
                store = f"{self.hub.url}/lfs/{repo}"
                entry["actions"] = {
                    "upload": {"href": f"{store}/{entry['oid']}"},
                    "verify": {"href": f"{store}/verify"},
                }
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, repo: str, oid: str):
        size = int(self.headers.get("Content-Length") or 0)
        self.hub.uploads.append((oid, size))
        full = self.hub.drop_after is not None and len(self.hub.repos[repo].lfs) >= self.hub.drop_after
        if self.hub.drop_uploads > 0 or full:
            self.hub.drop_uploads -= not full
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not what its oid says"})
        self.hub.repos[repo].lfs[oid] = content
        self.answer(200, {})

    def lfs_verify(self, repo: str):
        wanted = json.loads(self.body())
        there = self.hub.repos[repo].lfs.get(wanted["oid"])
        self.answer(200 if there is not None and len(there) == wanted["size"] else 404, {})

    def commit(self, repo: str, revision: str):
        lines = [json.loads(line) for line in self.body().splitlines()]
        if not self.may_write() or (found := self.find(repo, revision)) is None:
            return
        if self.hub.refuse_commit:
            return self.answer(self.hub.refuse_commit, {"error": "refused by the double"})
        message, files = lines[0]["value"]["summary"], dict(found[1].files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in found[0].lfs:
                    return self.answer(400, {"error": f"LFS object {value['oid']} was never uploaded"})
                files[value["path"]] = found[0].lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self.answer(400, {"error": f"the double knows no operation {line['key']}"})
        if found[1].files == files:
            return self.answer(400, {"error": "an empty commit"})
        commit = found[0].commit(revision, message, files)
        url = f"{self.hub.url}/{repo}/commit/{commit.sha}"
        self.answer(200, {"success": True, "commitOid": commit.sha, "commitUrl": url})

    # -------------------------------------------------------------------------------------------------------- pulling

    def info(self, repo: str, revision: str | None = None):
        found = self.find(repo, revision)
        if found is None:
            return
        siblings = [{"rfilename": name} for name in found[1].files]
        repo = repo.removeprefix("datasets/")
        self.answer(200, {"id": repo, "sha": found[1].sha, "private": found[0].private, "siblings": siblings})

    def tree(self, repo: str, revision: str, path: str = ""):
        found = self.find(repo, revision)
        if found is None:
            return
        path = path.strip("/")
        inside = [entry for entry in entries_of(found[1]) if not path or entry["path"].startswith(f"{path}/")]
        if path and not inside:
            return self.answer(404, {"error": f"{path} does not exist"}, (), "EntryNotFound")
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() != "true":
            depth = path.count("/") + 1 if path else 0
            inside = [entry for entry in inside if entry["path"].count("/") == depth]
        self.answer(200, json.dumps(inside).encode())

    def paths_info(self, repo: str, revision: str):
        body = self.body().decode()
        wanted = parse_qs(body)["paths"] if not body.startswith("{") else json.loads(body)["paths"]
        found = self.find(repo, revision)
        if found is not None:  # what is not there is left out, as on the Hub
            self.answer(200, json.dumps([e for e in entries_of(found[1]) if e["path"] in wanted]).encode())

    def resolve(self, repo: str, revision: str, path: str):
        found = self.find(repo, revision)
        if found is None:
            return
        commit = {"X-Repo-Commit": found[1].sha}
        content = found[1].files.get(path)
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, commit, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, size = 200, len(content)
        if wanted and self.command == "GET":
            status, content = 206, content[int(wanted[1]) : int(wanted[2]) + 1]
            commit |= {"Content-Range": f"bytes {wanted[1]}-{int(wanted[1]) + len(content) - 1}/{size}"}
            self.hub.ranges.append((path, int(wanted[1]), len(content)))
        headers = commit | {"ETag": f'"{etag}"', "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}
        self.answer(status, content, headers)
