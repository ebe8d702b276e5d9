"""Every protocol at once until standard input ends: churn.py ADDRESS ROOTS; prints what happened as JSON.

HTTP/1.1 by http.client on kept connections, a fresh TLS connection for each request, a bidirectional gRPC stream and
unary calls by grpcio, an echo every 20 ms on WebSockets over clear and TLS. HTTP/2 is h2load's.
"""

import asyncio
import http.client
import json
import socket
import ssl
import sys
import threading
import time

import grpc
from websockets.asyncio.client import connect

OVER = threading.Event()


class Tally:
    def __init__(self):
        self.done, self.failed, self.slowest, self.notes = 0, [], 0.0, []

    def run(self, what, *arguments):
        begun = time.monotonic()
        try:
            what(*arguments)
            self.done += 1
        except Exception as error:
            self.fail(error)
        self.slowest = max(self.slowest, time.monotonic() - begun)

    def fail(self, error):
        self.failed.append(f"{time.time():.3f} {type(error).__name__}: {error}")


def fetch(connection, host, body=None):
    connection.request("POST" if body else "GET", "/", body, {"Host": host})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200 or not text:
        raise RuntimeError(f"status {answer.status}: {text[:200]}")


def kept(tally, address, body):
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    while not OVER.is_set():
        tally.run(fetch, connection, "h1.example.test", body)
        if tally.failed:
            connection.close()
        time.sleep(0.004)


class Fresh(http.client.HTTPSConnection):
    address = None

    def connect(self):
        self.sock = self._context.wrap_socket(socket.create_connection((self.address, 443), 10), server_hostname=self.host)


def fresh(tally, address, context):
    def once():
        begun = time.time()
        connection = Fresh("h1.example.test", timeout=10, context=context)
        connection.address = address
        connection.connect()
        serial = int(connection.sock.getpeercert()["serialNumber"], 16)
        if not tally.notes or tally.notes[-1][1] != serial:
            tally.notes.append([begun, serial])
        fetch(connection, "h1.example.test")
        connection.close()

    while not OVER.is_set():
        tally.run(once)
        time.sleep(0.01)


def calls(unary, stream, address, authority, credentials):
    options = [("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", authority), ("grpc.enable_retries", 0)]
    channel = grpc.secure_channel(f"{address}:443", credentials, options)
    call = channel.unary_unary("/test.Echo/Unary")
    arrived = threading.Semaphore(0)

    def requests():
        number = 0
        while not OVER.is_set():
            number += 1
            yield b"%d" % number
            arrived.acquire(timeout=10)
            time.sleep(0.02)

    def streaming():
        try:
            for reply in channel.stream_stream("/test.Echo/Both")(requests()):
                stream.done += 1
                if int(reply) != stream.done:
                    raise RuntimeError(f"{reply} as number {stream.done}")
                arrived.release()
        except Exception as error:
            stream.fail(error)

    thread = threading.Thread(target=streaming)
    thread.start()
    while not OVER.is_set():
        tally_call(unary, call)
        time.sleep(0.02)
    thread.join()


def tally_call(tally, call):
    def once():
        if call(b"hello", timeout=10) != b"hello":
            raise RuntimeError("another reply")
    tally.run(once)


async def echoes(tally, address, port, context):
    try:
        uri = f"{'wss' if context else 'ws'}://ws.example.test/churn"
        async with connect(uri, host=address, port=port, ssl=context, proxy=None) as websocket:
            while not OVER.is_set():
                begun = time.monotonic()
                await websocket.send(str(tally.done))
                if await websocket.recv() != str(tally.done):
                    raise RuntimeError("another echo")
                tally.done += 1
                tally.slowest = max(tally.slowest, time.monotonic() - begun)
                await asyncio.sleep(0.02)
    except Exception as error:
        tally.fail(error)


async def both_echoes(clear, secure, address, context):
    await asyncio.gather(echoes(clear, address, 80, None), echoes(secure, address, 443, context))


def main(address, roots):
    with open(roots, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    context = ssl.create_default_context(cafile=roots)
    names = ["kept", "kept with bodies", "fresh handshakes", "unary calls", "bidi stream", "ws", "wss"]
    tallies = {name: Tally() for name in names}
    threads = [
        threading.Thread(target=kept, args=(tallies["kept"], address, None)),
        threading.Thread(target=kept, args=(tallies["kept with bodies"], address, b"b" * 20_000)),
        threading.Thread(target=fresh, args=(tallies["fresh handshakes"], address, context)),
        threading.Thread(target=calls, args=(tallies["unary calls"], tallies["bidi stream"], address, "grpc.example.test", credentials)),
        threading.Thread(target=asyncio.run, args=(both_echoes(tallies["ws"], tallies["wss"], address, context),)),
    ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    OVER.set()
    for thread in threads:
        thread.join()
    print(json.dumps({name: vars(tally) for name, tally in tallies.items()}))


main(*sys.argv[1:])
