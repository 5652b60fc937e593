"""An S3 server of our own on this machine, what it was asked for, and a finished local run to compare with."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from tiny_pipeline import tiny_settings

from slmctl.config.file import check
from slmctl.stages.run import run
from slmctl.workspace.workspace import Workspace

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    sent: int = 0
    """Bytes of the answer's body."""


Answer = tuple[str, bytes]
"""HTTP status line and body."""


class Watched:
    """A WSGI application, each request noted; `interfere` may answer in its stead."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.log: list[Request] = []
        self.interfere: Callable[[Request, dict[str, Any]], Answer | None] = lambda _request, _environ: None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE"))
        self.log.append(request)
        answer = self.interfere(request, environ)
        if answer is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(answer[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(answer[1])))])
            return [answer[1]]

        def noting(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if request.method == "GET":
                request.sent = int(dict(headers).get("Content-Length", 0))
            return start_response(status, headers, *rest)

        return self.app(environ, noting)


@dataclass
class S3:
    """A server, seen with boto3: not with the library under test."""

    server: ThreadedMotoServer
    watched: Watched
    client: Any = None
    endpoint: str = field(default="")

    @property
    def log(self) -> list[Request]:
        return self.watched.log

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=body)

    def get(self, bucket: str, key: str) -> bytes:
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def delete(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)

    def bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> dict[str, Any]:
        """Key to what tells a version of an object from another."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {o["Key"]: (o["ETag"], o["LastModified"]) for page in pages for o in page.get("Contents", [])}

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        return {k.removeprefix(prefix): self.get(bucket, k) for k in self.keys(bucket, prefix)}

    def copy(self, bucket: str, prefix: str, to: str) -> None:
        for key in self.keys(bucket, prefix):
            self.client.copy_object(Bucket=bucket, CopySource=f"{bucket}/{key}", Key=to + key.removeprefix(prefix))

    def ask_for_credentials(self, on: bool) -> None:
        """From now on moto checks who asks, or no longer."""
        plain, count = {"Content-Type": "text/plain"}, b"0" if on else b"inf"
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", count, plain)).read()


def start_s3(monkeypatch: pytest.MonkeyPatch) -> S3:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3(server, Watched(server._server.app), endpoint=f"http://{host}:{port}")
    server._server.app = found.watched
    found.client = boto3.client(
        "s3", endpoint_url=found.endpoint, aws_access_key_id="testing", aws_secret_access_key="testing", region_name="us-east-1"
    )
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": found.endpoint, "AWS_MAX_ATTEMPTS": "1", "no_proxy": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return found


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = start_s3(monkeypatch)
        yield found
        found.server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def dying_s3() -> Iterator[S3]:
    """Another server, for a test to stop; afterwards the one before is asked again."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield start_s3(monkeypatch)
    s3fs.S3FileSystem.clear_instance_cache()


@dataclass
class Finished:
    """A whole run on local files."""

    root: Path
    settings: dict[str, Any]

    def opened(self, **changes: Any) -> Workspace:
        """The pipeline with some of its settings changed, by dotted key (`__` for the dot)."""
        settings = {**self.settings, "data": {**self.settings["data"]}}
        for key, value in changes.items():
            *section, last = key.split("__")
            (settings[section[0]] if section else settings)[last] = value
        return Workspace(check(settings, "tiny")).open()

    def files(self, under: str) -> dict[str, bytes]:
        """All files of the sets of tokens or scores, by path within."""
        folder = self.root / "run" / under
        return {str(f.relative_to(self.root / "run")): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("finished")
    settings = tiny_settings(root)
    run(Workspace(check(settings, "tiny")).open())
    return Finished(root, settings)
