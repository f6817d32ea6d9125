"""A program that behaves like the tap's control socket, well or badly: what a restore must live
with.

`HOLDFAST_TAP_DOUBLE` says how: `well`, `dies` (at once), `mute` (never listens), `refuses`
(recover).
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

import msgspec

from tests.restore.tap_double import TapDouble


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--ring-dir", type=Path)
    options = parser.parse_args()
    manner = os.environ.get("HOLDFAST_TAP_DOUBLE", "well")
    if manner == "dies":
        sys.exit("the ring cannot be made: no room")
    if manner == "mute":
        time.sleep(60)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(options.run_dir / "tap.sock"))
    listener.listen()
    peer, _ = listener.accept()
    group: list[TapDouble] = []
    while data := peer.recv(65_536):
        request = msgspec.json.decode(data)
        if manner == "refuses" and request["do"] == "recover":
            refusal = {
                "ok": False,
                "error": "no_space",
                "message": "No room.",
                "hint": "Make some.",
            }
            peer.send(msgspec.json.encode({"id": request["id"], **refusal}))
            continue
        answer = _answer(request, options.run_dir, group)
        peer.send(msgspec.json.encode({"id": request["id"], "ok": True, **answer}))
        if request["do"] == "stop":
            return


def _answer(request: dict[str, object], run_dir: Path, group: list[TapDouble]) -> dict[str, object]:
    if request["do"] != "recover":
        return {"version": 1}
    path = run_dir / "recovered.stream"
    name, size = str(request["disk"]), int(str(request["size"]))
    if not group:
        group.append(TapDouble(path, {name: size}))
    group[0].sectors[name] = [None] * (size // 512)
    Path(str(request["path"])).touch()
    nbd = run_dir / f"{name}.nbd"
    return {
        "uri": f"nbd+unix:///{name}?socket={nbd}",
        "nbd_socket": str(nbd),
        "stream_socket": str(path),
        "size": size,
    }


if __name__ == "__main__":
    main()
