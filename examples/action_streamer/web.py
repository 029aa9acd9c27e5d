"""A page on this machine with the live picture, without any dependency: pictures go to the browser as bitmaps."""

import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

PAGE = b"""<!doctype html><meta charset="utf-8"><title>action_streamer</title>
<style>body { background: #16191d; color: #dde3ea; font: 15px system-ui, sans-serif; text-align: center }
img { max-width: 95vw; border-radius: 6px } button { font-size: 18px; padding: 4px 18px }</style>
<h3>action_streamer</h3><img id="picture" alt="no picture yet"><p id="line"></p>
<button onclick="pan(-15)">&#9664;</button> <button onclick="pan(15)">&#9654;</button>
<script>
const picture = document.getElementById("picture");
let count = 0;
function next() { picture.src = "picture.bmp?" + count++; }
picture.onload = () => requestAnimationFrame(next);
picture.onerror = () => setTimeout(next, 200);
function pan(degrees) { fetch("pan/" + degrees, {method: "POST"}); }
async function tell() { document.getElementById("line").textContent = await (await fetch("line")).text(); }
setInterval(tell, 500);
next();
tell();
</script>"""


def bitmap(image):
    """Return an RGB image as a BMP file."""
    height, width, _ = image.shape
    rows = np.zeros((height, -(-3 * width // 4) * 4), np.uint8)  # each row is padded to four bytes
    rows[:, : 3 * width].reshape(height, width, 3)[:] = image[..., ::-1]
    sizes = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 54 + rows.nbytes, 0, 0, 54, 40, width, -height, 1, 24, 0, rows.nbytes, 0, 0, 0, 0
    )
    return sizes + rows.tobytes()


class Page:
    """Serves the page to browsers of this machine until `close`.

    Args:
        port: 0 lets the system choose.
    """

    def __init__(self, viewer, port):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/":
                    self.answer("text/html", PAGE)
                elif self.path == "/line":
                    self.answer("text/plain", viewer.line.encode())
                elif self.path.startswith("/picture.bmp") and viewer.newest is not None:
                    self.answer("image/bmp", bitmap(viewer.newest["image"]))
                else:
                    self.send_error(404)

            def do_POST(self):
                if self.path in ("/pan/15", "/pan/-15") and self.headers.get("Origin") == page.origin:  # of our own page only
                    viewer.pan(float(self.path.rpartition("/")[2]))
                    self.answer("text/plain", b"")
                else:
                    self.send_error(403)

            def answer(self, kind, body):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        page = self
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.address = f"{self.origin}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
