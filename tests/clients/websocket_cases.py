"""Cases of RFC 6455, 7692 and 8441: websocket_cases.py HOST ADDRESS PORT [ROOTS]; prints JSON.

Without ROOTS over HTTP/1.1 in clear by websockets; with ROOTS by websockets over TLS, and by h2 and wsproto over HTTP/2.
"""

import asyncio
import json
import os
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, Pong, TextMessage

LARGE = 16 << 20


async def cases(opened):
    async with opened("/plain", compression=None) as websocket:
        for size in (0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20):
            message = os.urandom(size)
            await websocket.send(message)
            yield f"binary {size}", await websocket.recv() == message
        for text in ("", "ä", "€" * 40_000, "\U0001f600"):
            await websocket.send(text)
            yield f"text {len(text.encode())}", await websocket.recv() == text
        await websocket.send(["one ", "two ", "", "three"])
        yield "fragments", await websocket.recv() == "one two three"

        async def slowly():
            for number in range(50):
                yield b"%d," % number
                pong = await websocket.ping()
                await pong
        await websocket.send(slowly())
        yield "pings between fragments", await websocket.recv() == b"".join(b"%d," % number for number in range(50))
        for size in (0, 125):
            latency = await (await websocket.ping(os.urandom(size)))
            yield f"ping {size}", latency >= 0
        await websocket.pong(b"nobody asked")
        await websocket.send("still here")
        yield "pong unasked", await websocket.recv() == "still here"
    yield "close of ours", [websocket.close_code, websocket.close_reason]
    async with opened("/large", compression=None) as websocket:
        message = os.urandom(LARGE)
        await websocket.send(message)
        yield "16 MiB", await websocket.recv() == message
    async with opened("/deflate") as websocket:
        yield "extension", "permessage-deflate" in websocket.response.headers.get("Sec-WebSocket-Extensions", "")
        message = "forebay " * 100_000
        await websocket.send(message)
        yield "compressed", await websocket.recv() == message
        await websocket.send([message[:1000], message[1000:]])
        yield "compressed fragments", await websocket.recv() == message
    for code in (1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4999):
        async with opened("/codes") as websocket:
            await websocket.close(code, "bye")
        yield f"close {code}", websocket.close_code
        async with opened(f"/close/{code}") as websocket:
            try:
                await websocket.recv()
            except ConnectionClosed:
                pass
        yield f"closed {code}", [websocket.close_code, websocket.close_reason]
    many = [await opened("/many") for _ in range(50)]
    for number, websocket in enumerate(many):
        await websocket.send(str(number))
    yield "fifty at once", [await websocket.recv() for websocket in many] == [str(number) for number in range(50)]
    await asyncio.gather(*(websocket.close() for websocket in many))


def over_http2(host, address, port, context):
    """Two WebSockets and a plain request on one connection of HTTP/2 (RFC 8441)."""
    context.set_alpn_protocols(["h2"])
    stream = context.wrap_socket(socket.create_connection((address, port), 10), server_hostname=host)
    yield "alpn", stream.selected_alpn_protocol()
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    stream.sendall(connection.data_to_send())
    answers, data, ended = {}, {}, set()

    def pump():
        received = stream.recv(65_536)
        if not received:
            raise EOFError("the connection ended")
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived):
                answers[event.stream_id] = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                data.setdefault(event.stream_id, bytearray()).extend(event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                ended.add(event.stream_id)
        stream.sendall(connection.data_to_send())

    while connection.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL) != 1:
        pump()
    yield "extended CONNECT offered", True

    def opened(path):
        number = connection.get_next_available_stream_id()
        connection.send_headers(number, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", path), (":authority", host),
            ("sec-websocket-version", "13"),
        ])
        stream.sendall(connection.data_to_send())
        while number not in answers:
            pump()
        return number

    def send(number, bytes_):
        while bytes_:
            room = min(connection.local_flow_control_window(number), connection.max_outbound_frame_size)
            if room == 0:
                pump()
                continue
            connection.send_data(number, bytes_[:room])
            bytes_ = bytes_[room:]
            stream.sendall(connection.data_to_send())

    def receive(number, frames, wanted):
        while True:
            frames.receive_data(bytes(data.pop(number, b"")))
            text = ""
            for event in frames.events():
                if isinstance(event, wanted):
                    yield event
            pump()

    first, second = opened("/h2/first"), opened("/h2/second")
    yield "statuses", [answers[first][":status"], answers[second][":status"]]
    yield "no fields of HTTP/1", [name for name in answers[first] if name in ("upgrade", "connection", "sec-websocket-accept")]
    connection.send_headers(plain := connection.get_next_available_stream_id(), [
        (":method", "GET"), (":scheme", "https"), (":path", "/between"), (":authority", host.replace("ws.", "h1.")),
    ], end_stream=True)
    stream.sendall(connection.data_to_send())
    while plain not in ended:
        pump()
    yield "request beside them", answers[plain][":status"]
    ends = {number: Connection(ConnectionType.CLIENT) for number in (first, second)}
    for number, frames in ends.items():
        send(number, frames.send(Message(f"on {number}")))
        event = next(receive(number, frames, TextMessage))
        yield f"echo {number}", event.data == f"on {number}"
        send(number, frames.send(Ping(b"p")))
        event = next(receive(number, frames, Pong))
        yield f"pong {number}", bytes(event.payload) == b"p"
    text = "z" * 1_000_000
    send(first, ends[first].send(Message(text)))
    got = ""
    for event in receive(first, ends[first], TextMessage):
        got += event.data
        if event.message_finished:
            break
    yield "a million", got == text
    for number, frames in ends.items():
        send(number, frames.send(CloseConnection(4000 + number, "bye")))
        event = next(receive(number, frames, CloseConnection))
        yield f"close {number}", event.code - number
        connection.end_stream(number)
        stream.sendall(connection.data_to_send())
        while number not in ended:
            pump()
    stream.close()


async def main(host, address, port, roots=None):
    context = ssl.create_default_context(cafile=roots) if roots else None
    scheme = "wss" if roots else "ws"

    def opened(path, **more):
        return connect(f"{scheme}://{host}:{port}{path}", host=address, port=int(port), ssl=context, proxy=None, max_size=32 << 20, **more)

    found = {name: outcome async for name, outcome in cases(opened)}
    if roots:
        found["h2"] = dict(over_http2(host, address, int(port), ssl.create_default_context(cafile=roots)))
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:]))
