"""A Hub that means harm: nothing outside the cache changes, nothing hangs, one line says why."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from aim_mlx.cli import main as cli
from aim_mlx.weights import hub_listing
from tests.hub_server import Fault, serving, without_pauses

REPO = "owner/model"
FILES = {"config.json": b"{}" * 100, "model.safetensors": b"weights " * 20_000}
OK = b"HTTP/1.1 200 OK\r\n"
NO_LENGTH = OK + b"\r\n"


@pytest.fixture
def hub(monkeypatch, tmp_path, precious):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    without_pauses(monkeypatch)
    with serving(monkeypatch, tmp_path / "home") as server:
        server.add(REPO, FILES)
        server.precious = str(precious)
        yield server


@pytest.fixture
def precious(tmp_path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(b"a photo")
    return path


def download_safely(capsys, precious: Path) -> int:
    """The exit code of a download that ended soon, with one line, and touched the cache alone."""
    began = time.monotonic()
    code = cli._run(["download", REPO])
    out, err = capsys.readouterr()
    assert time.monotonic() - began < 60  # of answers that have no end
    assert code in (0, 4), err
    assert len(err.strip().splitlines()) == (0 if code == 0 else 1) and "Traceback" not in err
    assert precious.read_bytes() == b"a photo"
    assert set(os.listdir(precious.parent)) <= {"home", "precious"}
    home = precious.parent / "home"
    cache = home / "hub" / "models--owner--model"
    for path in home.rglob("*"):
        assert path.resolve().is_relative_to(home)
        if path.is_file():
            assert path.is_relative_to(cache) or path.is_relative_to(cache.parent / ".locks")
            assert not path.name.endswith((".incomplete", ".tmp"))
    if code == 0:
        folder = Path(out.strip())
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    return code


# Answers in HTTP. {here} is the server's address, {precious} a file of the user's.


def raw(*parts: bytes, each: float = 0.0, times: int = 1):
    """Sends the first part, then the others again and again, with a pause before each."""

    def answer(handler):
        handler.close_connection = True
        fill = {"{here}": handler.hub.cdn, "{precious}": handler.hub.precious}
        first = parts[0]
        for mark, text in fill.items():
            first = first.replace(mark.encode(), text.encode())
        handler.wfile.write(first)
        for _ in range(times):
            if handler.hub.closed:
                return
            for part in parts[1:]:
                time.sleep(each)
                handler.wfile.write(part)

    return answer


def header(*lines: bytes, status: bytes = OK, body: bytes = b"x" * 300) -> bytes:
    return status + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def redirect(place: bytes, body: bytes = b"") -> bytes:
    return header(b"Location: " + place, status=b"HTTP/1.1 302 Found\r\n", body=body)


ENDLESS = 10**9
MEGABYTE = b"0" * 2**20
BOMB = gzip.compress(bytes(2**26))
SILENT = raw(b"", b"", each=3)
ANSWERS = {
    "nothing at all": raw(b""),
    "no HTTP": raw(b"\0" * 500),
    "a line of a megabyte": raw(MEGABYTE),
    "a status of letters": raw(b"HTTP/1.1 OK 200\r\n\r\n"),
    "status 999": raw(b"HTTP/1.1 999 Odd\r\n\r\n"),
    "status 204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "status 206 unasked": raw(header(status=b"HTTP/1.1 206 Partial\r\n")),
    "status 304": raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "a redirect to a file": raw(redirect(b"file:///etc/passwd")),
    "a redirect to the user's file": raw(redirect(b"file://{precious}")),
    "a redirect to ftp": raw(redirect(b"ftp://localhost/x")),
    "a redirect to nobody": raw(redirect(b"http://127.0.0.1:1/x")),
    "a redirect nowhere": raw(header(status=b"HTTP/1.1 302 Found\r\n")),
    "a redirect to no address": raw(redirect(b"http://[:::/\x01")),
    "a redirect to a long address": raw(redirect(b"/" + b"x" * 90_000)),
    "redirects for ever": raw(redirect(b"{here}/loop")),
    "a redirect with a bomb": raw(
        header(b"Location: {here}/a/b", b"Content-Encoding: gzip", status=b"HTTP/1.1 302 Found\r\n",
               body=BOMB)),
    "a body too short": raw(header(b"Content-Length: 999999")),
    "a body too long": raw(header(b"Content-Length: 3")),
    "a negative length": raw(header(b"Content-Length: -5")),
    "a length of letters": raw(header(b"Content-Length: many")),
    "two lengths": raw(header(b"Content-Length: 300", b"Content-Length: 5")),
    "an absurd length": raw(header(b"Content-Length: " + b"9" * 5000)),
    "a body without end": raw(NO_LENGTH, MEGABYTE, times=ENDLESS),
    "chunks without end": raw(
        header(b"Transfer-Encoding: chunked", body=b""), b"10000\r\n" + b"0" * 2**16 + b"\r\n",
        times=ENDLESS),
    "chunks of no size": raw(header(b"Transfer-Encoding: chunked", body=b"zz\r\nxx\r\n")),
    "gzip": raw(header(b"Content-Encoding: gzip", body=gzip.compress(b"{}"))),
    "a gzip bomb": raw(header(b"Content-Encoding: gzip", body=BOMB)),
    "no gzip though it says so": raw(header(b"Content-Encoding: gzip")),
    "an unknown encoding": raw(header(b"Content-Encoding: zz")),
    "a body that crawls": raw(NO_LENGTH, b"0", times=20, each=0.05),
    "a body that stops": raw(header(b"Content-Length: 300", body=b"x"), b"", each=3),
    "headers that crawl": raw(OK, b"X-A: b\r\n", times=10, each=0.05),
    "headers without end": raw(OK, b"X-A: b\r\n" * 10_000, times=ENDLESS),
    "silence": SILENT,
    "an error with a bomb": raw(
        header(b"Content-Encoding: gzip", status=b"HTTP/1.1 404 No\r\n", body=BOMB)),
    "an error that is silent": raw(b"HTTP/1.1 500 Broken\r\n", b"", each=3),
    "an error code of control characters": raw(
        header(b"X-Error-Code: \x1b[2Jx", b"X-Error-Message: a\tb", status=b"HTTP/1.1 403 No\r\n")),
    "an ETag that is a path": raw(header(b'ETag: "{precious}"', b"X-Linked-Etag: {precious}")),
    "an ETag that leads out": raw(header(b'ETag: "../../../../../precious"')),
    "a commit that leads out": raw(header(b"X-Repo-Commit: ../../../../../precious")),
    "a file name": raw(header(b"Content-Disposition: attachment; filename={precious}")),
    "a large cookie": raw(header(b"Set-Cookie: a=" + b"x" * 60_000)),
}  # fmt: skip
PLACES = {"the list": "/api/", "a small file": "config.json", "the weights": "/cdn/"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_hostile_answer_is_refused_in_one_line(hub, capsys, monkeypatch, precious, kind, place):
    hub.faults = [Fault("/loop", answer=ANSWERS["redirects for ever"])]
    hub.faults += [Fault(PLACES[place], answer=ANSWERS[kind])]
    assert download_safely(capsys, precious) == 4


# The list of files.


def listed(**changes):
    """The true list with other values for "config.json"."""

    def change(data: bytes) -> bytes:
        values = json.loads(data)
        values["siblings"][0] |= changes
        return json.dumps(values).encode()

    return change


def with_values(**changes):
    return lambda data: json.dumps(json.loads(data) | changes).encode()


PATHS = [
    "/tmp/x",
    "../../x",
    "a/b",
    "C:x",
    "x\0y",
    "",
    "..",
    "f" * 39,
    "F" * 40,
    "f" * 65,
    "f" * 4000,
]
DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
LISTS = {
    **{f"size {v!r:.20}": listed(size=v) for v in ("12", -1, 1.5, True, [], {}, 10**30)},
    "size of 400 digits": lambda data: data.replace(b'"size": 200', b'"size": ' + b"9" * 400),
    **{f"digest {v!r:.20}": listed(blobId=v) for v in [*PATHS, 5, [], {}, True]},
    **{f"lfs {v!r:.20}": listed(lfs=v) for v in ("x", 5, [1])},
    **{f"sha256 {v!r:.20}": listed(lfs={"sha256": v}) for v in [*PATHS[:4], 5, [1]]},
    **{f"name {v!r:.20}": listed(rfilename=v) for v in (5, None, [], {}, True)},
    "one name twice": listed(rfilename="model.safetensors"),
    **{f"commit {v!r:.20}": with_values(sha=v) for v in [*PATHS, 5, None, [], {}]},
    **{f"files {v!r:.20}": with_values(siblings=v) for v in ("x", 5, {}, [1], ["x"], [[]], [{}])},
    **{
        f"body {v!r:.20}": lambda data, v=v: v for v in (b"", b"[]", b"5", b"null", b'"x"', b"\xff")
    },
    "NaN": lambda data: data.replace(b'"size": 200', b'"size": NaN'),
    "a key twice": lambda data: data[:-1] + b', "sha": "' + b"f" * 40 + b'"}',
    "a byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "deep nesting": lambda data: DEEP,
    "nine megabytes": lambda data: data[:-1] + b" " * 9_000_000 + b"}",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_no_hub_would_give_is_refused(hub, capsys, precious, kind):
    hub.faults = [Fault("/api/", change=LISTS[kind])]
    damaged_list = download_safely(capsys, precious)
    # With a good digest of another kind the file is what is wrong, and with an odd name it is
    # only not there.
    assert damaged_list == 4 and not hub.paths("GET")
    assert not (precious.parent / "home" / "hub").exists()


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../x", "x\0y", "\x1b[2J"])
def test_a_file_that_nobody_needs_may_have_any_name(hub, capsys, precious, name):
    hub.listing_only = {name: 3}
    assert download_safely(capsys, precious) == 0


def test_no_more_is_taken_than_was_listed(hub, capsys, precious, monkeypatch):
    sent = []
    block = b"x" * 2**16

    def answer(handler):
        handler.wfile.write(NO_LENGTH)
        for _ in range(1000):
            handler.wfile.write(block)
            sent.append(len(block))

    hub.faults = [Fault("/cdn/", answer=answer)]
    assert download_safely(capsys, precious) == 4
    assert sum(sent) < 20 * 2**20  # the client takes blocks of ten megabytes


def test_no_more_of_a_list_is_taken_than_a_hub_has(hub, capsys, precious, monkeypatch):
    monkeypatch.setattr(hub_listing, "LARGEST_LISTING", 100)
    assert download_safely(capsys, precious) == 4
    hub.log.clear()
    monkeypatch.setattr(hub_listing, "LARGEST_LISTING", 2000)
    assert download_safely(capsys, precious) == 0


def test_an_honest_answer_with_odd_headers_is_taken(hub, capsys, precious):
    """What another server says beside the bytes has no say in where they go."""
    data = FILES["config.json"]
    odd = header(b'ETag: "/etc/passwd"', b"X-Repo-Commit: ../../x", body=data)
    hub.faults = [Fault("config.json", answer=raw(odd))]
    assert download_safely(capsys, precious) == 0


def test_a_file_of_the_user_in_place_of_a_blob_is_not_deleted(hub, capsys, precious):
    """A blob of the cache may be a link: it is replaced, what it leads to stays."""
    assert download_safely(capsys, precious) == 0
    cache = precious.parent / "home" / "hub" / "models--owner--model"
    for blob in (cache / "blobs").iterdir():
        blob.unlink()
        blob.symlink_to(precious)
    assert download_safely(capsys, precious) == 0
