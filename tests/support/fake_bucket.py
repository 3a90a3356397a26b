"""Google Cloud Storage as far as a run needs it, over a local folder: for tests of gs:// paths without a network.

Invariant: operations that an object store lacks fail here too: appending, and renaming a directory. An object appears
whole. There are two interfaces to the same objects: fsspec's "gs" file system, which epath takes where TensorFlow's is
switched off, and the JSON interface over HTTP, which tensorstore, and so Orbax, speaks (TENSORSTORE_GCS_HTTP_URL).

    python -m tests.support.fake_bucket FOLDER MODULE ARGUMENTS...     # the module finds FOLDER/BUCKET as gs://BUCKET
"""

import contextlib
import http.server
import io
import json
import runpy
import shutil
import sys
import threading
import types
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec


class Bucket(fsspec.AbstractFileSystem):
    """fsspec's view of the objects."""

    protocol = ("gs", "gcs")
    cachable = False
    folder: Path

    def _place(self, path: str) -> Path:
        return self.folder / self._strip_protocol(path)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        place = self._place(path)
        kind = "directory" if place.is_dir() else "file"
        return {"name": self._strip_protocol(path), "size": place.stat().st_size, "type": kind}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        place = self._place(path)
        if not place.exists():
            raise FileNotFoundError(path)
        found = sorted(place.iterdir()) if place.is_dir() else [place]
        infos = [self.info(str(child.relative_to(self.folder))) for child in found if ".writing-" not in child.name]
        return infos if detail else [info["name"] for info in infos]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode == "rb":
            return open(self._place(path), "rb")
        if mode != "wb":
            raise NotImplementedError(f"{path}: nothing can be appended to in a bucket")
        return _Upload(self._place(path))

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self._place(path).mkdir(parents=True, exist_ok=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._place(path).mkdir(parents=True, exist_ok=exist_ok)

    def rm_file(self, path: str) -> None:
        self._place(path).unlink()

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        place = self._place(path)
        if place.is_dir() and recursive:
            shutil.rmtree(place)
        else:
            self.rm_file(path)

    def rmdir(self, path: str) -> None:
        self._place(path).rmdir()

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        write(self._place(path2), self._place(path1).read_bytes())

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if self.isdir(path1):
            raise NotImplementedError(f"{path1}: no directory can be renamed in a bucket")
        self.cp_file(path1, path2)
        self.rm_file(path1)

    rename = mv


class _Upload(io.BytesIO):
    """A file of bytes, which become an object when the file is closed without an error."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._place = place

    def close(self) -> None:
        if not self.closed and sys.exc_info()[0] is None:
            write(self._place, self.getvalue())
        super().close()


def write(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f"{place.name}.writing-{uuid.uuid4().hex}")
    aside.write_bytes(content)
    aside.replace(place)


class _Handler(http.server.BaseHTTPRequestHandler):
    """The JSON interface: reads objects (with ranges), writes, deletes and lists them. A generation is a modification
    time."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: Any) -> None:
        pass

    def _parts(self) -> tuple[str, str | None, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        _, _, rest = url.path.partition("/storage/v1/b/")
        bucket, _, rest = rest.partition("/o")
        query = dict(urllib.parse.parse_qsl(url.query))
        return bucket, urllib.parse.unquote(rest.lstrip("/")) or None, query

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _describe(self, bucket: str, name: str) -> dict[str, str]:
        found = (self.folder / bucket / name).stat()
        return {"name": name, "bucket": bucket, "generation": str(found.st_mtime_ns), "size": str(found.st_size)}

    def do_GET(self) -> None:
        bucket, name, query = self._parts()
        if name is None:
            root = self.folder / bucket
            names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
            begin, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
            kept = [name for name in sorted(names) if name.startswith(query.get("prefix", "")) and begin <= name < end]
            items = [self._describe(bucket, name) for name in kept if ".writing-" not in name]
            self._answer(200, json.dumps({"kind": "storage#objects", "items": items}).encode())
            return
        place = self.folder / bucket / name
        if not place.is_file():
            self._answer(404)
            return
        description = self._describe(bucket, name)
        if query.get("alt") != "media":
            self._answer(200, json.dumps(description).encode())
            return
        content = place.read_bytes()
        if query.get("ifGenerationNotMatch") == description["generation"]:
            self._answer(304)
            return
        headers = {"x_goog_generation": description["generation"], "x_goog_stored_content_length": str(len(content))}
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(content) - int(last))
            stop = min(len(content), int(last) + 1) if first and last else len(content)
            headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._answer(206, content[start:stop], **headers)
            return
        self._answer(200, content, **headers)

    def do_POST(self) -> None:
        bucket, _, query = self._parts()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        place = self.folder / bucket / query["name"]
        generation = str(place.stat().st_mtime_ns) if place.is_file() else "0"
        if query.get("ifGenerationMatch", generation) != generation:
            self._answer(412)
            return
        write(place, content)
        self._answer(200, json.dumps(self._describe(bucket, query["name"])).encode())

    def do_DELETE(self) -> None:
        bucket, name, _ = self._parts()
        place = self.folder / bucket / (name or "")
        if not place.is_file():
            self._answer(404)
            return
        place.unlink()
        self._answer(204)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serves folder/BUCKET/... as gs://BUCKET/...; yields the environment variables with which a process finds it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"folder": folder}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "EPATH_USE_TF": "false",
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def install(folder: Path) -> None:
    """Makes fsspec's gs:// of this process the folder, and replaces google-cloud-storage, which Orbax only asks whether
    a bucket has real folders."""
    Bucket.folder = folder
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    client = types.ModuleType("google.cloud.storage")
    client.Client = lambda: types.SimpleNamespace(get_bucket=lambda name: types.SimpleNamespace())  # type: ignore[attr-defined]
    sys.modules["google.cloud.storage"] = client


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
