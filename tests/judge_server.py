"""A judge that stands in for any endpoint like OpenAI's."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Raw(NamedTuple):
    """An answer as it goes out."""

    body: bytes
    status: int = 200
    encoding: str = "identity"


class Server:
    """Says what `replies` holds for a prompt's question, the last one again and again.

    A question counts as asked when its request is there, before `seconds` pass and the reply goes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.replies: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.refuses: tuple[int, Any] | None = None
        """Status and body of every answer, where it is set."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.bodies.append(body)
                prompt = body["messages"][0]["content"]
                name = prompt.partition("Question: ")[2].partition("\n")[0]
                said = server.replies.get(name, ["8 6\nbecause"])
                found = said[min(server.asked[name], len(said) - 1)]
                server.asked[name] += 1
                time.sleep(seconds)
                message = {"content": found if isinstance(found, str) else None}
                data = json.dumps({"choices": [{"message": message}]}).encode()
                raw = Raw(data, found if isinstance(found, int) else 200)
                raw = found if isinstance(found, Raw) else raw
                if server.refuses is not None:
                    raw = Raw(json.dumps(server.refuses[1]).encode(), server.refuses[0])
                self.send_response(raw.status)
                self.send_header("content-length", str(len(raw.body)))
                self.send_header("content-encoding", raw.encoding)
                if raw.status == 429:
                    self.send_header("retry-after", "0")
                self.end_headers()
                self.wfile.write(raw.body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
