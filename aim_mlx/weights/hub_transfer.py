"""What a URL answers, bounded in bytes and in time: the server is not trusted to end or to hurry.

The Hub's client makes the requests and its errors, but it reads some bodies as a whole, unpacks
compressed ones, and waits for as long as a byte comes now and then. Here bodies come unpacked, as
they are, from a thread of their own, which is left to itself when it crawls or hangs.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from aim_mlx import __version__
from aim_mlx.errors import CheckpointError
from aim_mlx.weights.hub_errors import Unreachable

PATIENCE = 30.0  # seconds in which at least LEAST bytes must come
LEAST = 30_000
LONGEST_CHAIN = 10  # redirects; the Hub's own chains have two
RECONNECTIONS = 50  # in all, and in a row without a byte more; after a longer outage run again
FRUITLESS = 4
PAUSE = 1.0  # seconds before a broken connection is taken up, twice as long each time in vain


def receive(
    url: str, file: BinaryIO, most: int, advance: Callable[[int], Any] = lambda count: None
) -> None:
    """Writes what a URL answers to an empty file; `advance` is called with each count of bytes.

    A connection that breaks is taken up where it broke. Raises CheckpointError for more than
    `most` bytes, Unreachable for an answer that crawls or stops, and the client's own errors.
    """
    from huggingface_hub import errors

    furthest, fruitless, counted, since = 0, 0, 0, time.monotonic()
    for left in reversed(range(RECONNECTIONS + 1)):
        try:
            for position, block in _blocks(url, file.tell()):
                if position != file.tell():  # the server cannot go on in the middle
                    file.seek(position)
                    file.truncate()
                if position + len(block) > most:
                    raise CheckpointError(
                        f"{url} answers with more than the {most} bytes that it should have: "
                        "the download is damaged, run again later"
                    )
                file.write(block)
                advance(len(block))
                counted += len(block)
                if time.monotonic() - since > PATIENCE:
                    if counted < LEAST:
                        raise _stalled(url, counted)
                    counted, since = 0, time.monotonic()
            return
        except errors.HfHubHTTPError:
            raise
        except errors.HTTPError:  # pyright: ignore[reportPrivateImportUsage]
            fruitless = 0 if file.tell() > furthest else fruitless + 1
            furthest = max(furthest, file.tell())
            if not furthest or fruitless > FRUITLESS or not left:
                raise
        pause = PAUSE * 2**fruitless
        since += pause
        time.sleep(pause)


def _blocks(url: str, start: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of an answer from byte `start` on, or from 0, with their positions."""
    blocks: queue.Queue = queue.Queue(maxsize=8)
    ended = threading.Event()
    threading.Thread(target=_fetch, args=(url, start, blocks, ended), daemon=True).start()
    try:
        while True:
            try:
                item = blocks.get(timeout=PATIENCE)
            except queue.Empty:
                raise _stalled(url, 0) from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        while not blocks.empty():  # so that the thread does not wait for room
            blocks.get_nowait()


def _fetch(url: str, start: int, blocks: queue.Queue, ended: threading.Event) -> None:
    """Puts the blocks of an answer, then None or the error that ended it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers(library_name="aim-mlx", library_version=__version__)
    headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        client = get_session()
        request = client.build_request(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        for _ in range(LONGEST_CHAIN):
            response = client.send(request, stream=True, follow_redirects=False)
            request = response.next_request  # without our token where it leads to another host
            if request is None:
                break
            response.close()
        try:
            # Without its body, which the client would read to the end for a message.
            told = {k: v for k, v in response.headers.items() if k.lower().startswith("x-")}
            status, asked = response.status_code, response.request
            hf_raise_for_status(type(response)(status, headers=told, request=asked))
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("a compressed answer, which was not asked for")
            position = start if response.status_code == 206 else 0
            for block in response.iter_raw():
                blocks.put((position, block))
                position += len(block)
                if ended.is_set():
                    return
        finally:
            response.close()
        blocks.put(None)
    except BaseException as error:
        blocks.put(error)


def _stalled(url: str, count: int) -> Unreachable:
    return Unreachable(
        f"{url} gave {count} bytes in {PATIENCE:.0f} seconds, expected at least {LEAST}: check the "
        "connection and run again; finished files are kept"
    )
