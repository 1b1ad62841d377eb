"""A Hugging Face hub of our own: it serves ROOT/OWNER/NAME with the real one's addresses, headers and errors."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler

COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """Serves ROOT/OWNER/NAME/FILE the way the hub does: addresses, headers and errors."""

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def do_GET(self, with_body: bool = True):
        parts = self.path.split("?")[0].strip("/").split("/")
        is_listing = parts[:2] == ["api", "models"]
        repository = self.server.root.joinpath(*(parts[2:4] if is_listing else parts[:2]))
        if not repository.is_dir():
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        if is_listing:
            files = [
                {"type": "file", "path": p.name, "rfilename": p.name, "size": p.stat().st_size, "oid": "0"}
                for p in repository.iterdir()
            ]
            values = files if "tree" in parts else {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files}
            return self._answer(200, {"Content-Type": "application/json"}, json.dumps(values).encode())
        file = repository / parts[-1]
        if not file.exists():
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        body = file.read_bytes()
        return self._answer(
            200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body, with_body
        )

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"", with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""
