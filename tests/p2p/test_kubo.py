"""The Kubo store against a daemon on loopback that speaks the few RPC endpoints it uses."""

import email.parser
import email.policy
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from folkmoot.p2p.cid import Codec, cid_of_block
from folkmoot.p2p.kubo import KuboBlobStore, KuboDisagrees, KuboUnreachable
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import BlobTooLarge, BlobUnavailable, Cid
from folkmoot.p2p.unixfs import cid_of_bytes


@dataclass
class Daemon:
    """What a daemon holds and pins; a test may make it lie."""

    address: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    added_as: str | None = None
    searched_for_ever: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon that answers as Kubo's RPC does."""
    state = Daemon()

    class Rpc(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            endpoint = url.path.removeprefix("/api/v0")
            body = self.body()
            if endpoint == "/add":
                assert (query["cid-version"], query["raw-leaves"]) == ("1", "True")
                self.answer_json(
                    {"Name": "content", "Hash": state.added_as or self.keep(cid_of_bytes(body), body)}
                )
            elif endpoint == "/block/put":
                assert (query["cid-codec"], query["mhtype"]) == ("dag-cbor", "sha2-256")
                self.answer_json(
                    {"Key": self.keep(cid_of_block(Codec.DAG_CBOR, body), body), "Size": len(body)}
                )
            elif query["arg"] in state.searched_for_ever:
                state.over.wait(30)
            elif query["arg"] not in state.contents:
                self.answer_json({"Message": "not found", "Code": 0, "Type": "error"}, status=500)
            elif endpoint in ("/cat", "/block/get"):
                start = int(query.get("offset", 0))
                stop = start + int(query.get("length", 1 << 40))
                self.answer(state.contents[query["arg"]][start:stop], "text/plain")
            elif endpoint == "/pin/add":
                state.pins.add(query["arg"])
                self.answer_json({"Pins": [query["arg"]]})
            elif endpoint == "/pin/rm":
                state.pins.discard(query["arg"])
                self.answer_json({"Pins": [query["arg"]]})

        def keep(self, cid: Cid, body: bytes) -> str:
            state.contents[cid] = body
            return cid

        def body(self) -> bytes:
            raw = bytearray()
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    raw += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            if not raw:
                return b""
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + bytes(raw))
            part = next(iter(message.iter_parts()))
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            return content

        def answer_json(self, value: object, status: int = 200) -> None:
            self.answer(json.dumps(value).encode() + b"\n", "application/json", status)

        def answer(self, content: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Rpc)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.address = f"/ip4/127.0.0.1/tcp/{server.server_port}/http"
    yield state
    state.over.set()
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture
def store(daemon: Daemon, tmp_path: Path) -> Iterator[KuboBlobStore]:
    disk = DiskStore(tmp_path / "store", 1 << 30)
    yield KuboBlobStore(disk, daemon.address, patience=5)
    disk.close()


def test_a_file_is_added_under_our_cid(daemon: Daemon, store: KuboBlobStore, tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(bytes(range(250)) * 4000)
    cid = trio.run(store.put, file)
    assert daemon.contents[cid] == file.read_bytes()
    assert store.path(cid) is not None


def test_a_document_and_a_file_come_from_the_daemon_and_are_hashed(
    daemon: Daemon, store: KuboBlobStore
) -> None:
    content = bytes(range(250)) * 4000
    document = cid_of_block(Codec.DAG_CBOR, b"\xa0")
    daemon.contents = {cid_of_bytes(content): content, document: b"\xa0", cid_of_bytes(b""): b""}
    for cid, expected in daemon.contents.items():
        path = trio.run(store.fetch, Cid(cid), len(expected), ())
        assert path.read_bytes() == expected
    assert trio.run(store.put_document, b"\xa1aa\x01") in daemon.contents


def test_bytes_of_another_name_are_refused_and_not_kept(daemon: Daemon, store: KuboBlobStore) -> None:
    daemon.contents = {cid_of_bytes(b"good"): b"bad!"}
    with pytest.raises(BlobUnavailable, match="sent other bytes"):
        trio.run(store.fetch, cid_of_bytes(b"good"), 100, ())
    assert list(store.store.blobs()) == []
    assert list((store.store.root / "tmp").iterdir()) == []


def test_the_limit_ends_the_reading(daemon: Daemon, store: KuboBlobStore) -> None:
    daemon.contents = {cid_of_bytes(bytes(1000)): bytes(1000)}
    with pytest.raises(BlobTooLarge, match="999"):
        trio.run(store.fetch, cid_of_bytes(bytes(1000)), 999, ())
    assert list(store.store.blobs()) == []


def test_a_daemon_with_other_import_options_is_refused(
    daemon: Daemon, store: KuboBlobStore, tmp_path: Path
) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"hello")
    daemon.added_as = "QmWfVY9y3xjsixTgbd9AorQxH7VtMpzfx2HaWtsoUYecaX"
    with pytest.raises(KuboDisagrees, match="set its Import options"):
        trio.run(store.put, file)


def test_what_nobody_has_is_unavailable_and_a_silent_daemon_unreachable(
    daemon: Daemon, store: KuboBlobStore, tmp_path: Path
) -> None:
    with pytest.raises(BlobUnavailable, match="not found"):
        trio.run(store.fetch, cid_of_bytes(b"nobody"), 100, ())
    lonely = KuboBlobStore(store.store, "/ip4/127.0.0.1/tcp/1/http", patience=2)
    with pytest.raises(KuboUnreachable, match="start it or correct the address"):
        trio.run(lonely.fetch, cid_of_bytes(b"nobody"), 100, ())


def test_a_blob_that_the_daemon_cannot_find_holds_up_no_other(daemon: Daemon, tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = DiskStore(tmp_path / "other", 1 << 30)
        store = KuboBlobStore(disk, daemon.address, patience=4)
        lost = [cid_of_bytes(bytes([k])) for k in range(3)]
        daemon.searched_for_ever = set(lost)

        async def search(cid: Cid) -> None:
            with pytest.raises(BlobUnavailable, match="found nothing within 4 s"):
                await store.fetch(cid, 10, ())

        async with trio.open_nursery() as nursery:
            for cid in lost:
                nursery.start_soon(search, cid)
            with trio.fail_after(3.5):
                await store.put_document(b"\xa0")
        disk.close()

    trio.run(scenario)


def test_the_daemon_is_told_of_pins_with_the_next_request(daemon: Daemon, store: KuboBlobStore) -> None:
    first, second = (trio.run(store.put_document, bytes([0xA1, 0x61, k, 0])) for k in (97, 98))
    store.pin(first)
    store.pin(second)
    store.unpin(second)
    trio.run(store.put_document, b"\xa0")
    assert daemon.pins == {first}
    assert store.store.pins() == {first}
