"""WebSockets that outlive the beginning of a drain: tunnels.py HOST ADDRESS ROOTS; prints JSON.

Opens one in clear and one by TLS and says "ready". When its standard input ends, it echoes on both for a while, closes
them and says how that went. By HTTP/1.1: h2 takes a connection for closed that has had a GOAWAY.
"""

import contextlib
import json
import socket
import ssl
import sys
import time

from websockets.sync.client import connect

ECHOES = 20
PAUSE = 0.1


def main(host, address, roots, open_ones):
    context = ssl.create_default_context(cafile=roots)

    def opened(scheme, port, **more):
        stream = socket.create_connection((address, port), 10)
        return open_ones.enter_context(connect(f"{scheme}://{host}/{scheme}", sock=stream, proxy=None, **more))

    sockets = {"ws": opened("ws", 80), "wss": opened("wss", 443, ssl=context)}
    print("ready", flush=True)
    sys.stdin.read()
    echoes = dict.fromkeys(sockets, 0)
    for number in range(ECHOES):
        for name, websocket in sockets.items():
            websocket.send(f"{name} {number}")
            echoes[name] += websocket.recv(10) == f"{name} {number}"
        time.sleep(PAUSE)
    for websocket in sockets.values():
        websocket.close()
    print(json.dumps({name: [echoes[name], websocket.close_code] for name, websocket in sockets.items()}))


with contextlib.ExitStack() as stack:
    main(*sys.argv[1:], stack)
