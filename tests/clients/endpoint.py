"""Endpoints behind the proxy: hypercorn (HTTP/1.1, HTTP/2, TLS), grpcio and websockets, in one process.

endpoint.py CERTIFICATE KEY ADDRESS...: on each address 8080 in clear, 8443 by TLS, 50051 gRPC, 50052 the same by TLS, and
9001 WebSocket. What they saw is asked for at /__seen of any clear port. Ends when its standard input does.
"""

import asyncio
import hashlib
import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc import aio
from grpc_reflection.v1alpha import reflection
from hypercorn.asyncio import serve
from hypercorn.config import Config
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

SEEN = []
TRIES = {}


async def body_of(receive):
    digest, length, trailers = hashlib.sha256(), 0, None
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return length, "cut off"
        if event["type"] == "http.request":
            digest.update(event.get("body", b""))
            length += len(event.get("body", b""))
            if not event.get("more_body"):
                return length, digest.hexdigest()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    if scope["type"] != "http":
        return await send({"type": "websocket.close"})
    length, digest = await body_of(receive)
    path = scope["raw_path"].decode().split("?")[0]
    if path == "/__seen":
        return await answer(send, 200, json.dumps(SEEN).encode())
    if path == "/__forget":
        SEEN.clear()
        return await answer(send, 200, b"")
    saw = {
        "kind": "http",
        "at": scope["server"][0],
        "version": scope["http_version"],
        "scheme": scope["scheme"],
        "method": scope["method"],
        "path": path,
        "query": scope["query_string"].decode(),
        "headers": [[name.decode("latin-1").lower(), value.decode("latin-1")] for name, value in scope["headers"]],
        "length": length,
        "sha256": digest,
    }
    SEEN.append(saw)
    words = path.strip("/").split("/")
    status, body, fields = 200, json.dumps(saw).encode(), []
    if words[0] == "flaky":
        # /flaky/KEY/COUNT: so many requests fail, then all succeed.
        TRIES[words[1]] = TRIES.get(words[1], 0) + 1
        status = 503 if TRIES[words[1]] <= int(words[2]) else 200
    elif words[0] == "bytes":
        body = b"x" * int(words[1])
    elif words[0] == "hold":
        await asyncio.sleep(int(words[1]) / 1000)
    elif words[0] == "page":
        body, fields = b"<!doctype html><title>page</title>", [(b"content-type", b"text/html")]
    elif words[-1] == "cookie":
        fields = [(b"set-cookie", b"who=me; Path=/; Secure; SameSite=None")]
    await answer(send, status, body, fields)


async def answer(send, status, body, fields=()):
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *fields]})
    await send({"type": "http.response.body", "body": body})


async def echo(websocket):
    request = websocket.request
    saw = {
        "kind": "websocket",
        "at": websocket.local_address[0],
        "path": request.path,
        "headers": [[name.lower(), value] for name, value in request.headers.raw_items()],
        "messages": 0,
        "close": None,
    }
    SEEN.append(saw)
    if request.path.startswith("/close/"):
        await websocket.close(int(request.path.removeprefix("/close/")), "as asked")
    try:
        async for message in websocket:
            saw["messages"] += 1
            await websocket.send(message)
    except ConnectionClosed:
        pass
    saw["close"] = websocket.close_code


def described():
    """A message test.Line with a text, and service test.Lines, which takes and gives those; what reflection tells of both."""
    file = descriptor_pb2.FileDescriptorProto(name="test/lines.proto", package="test", syntax="proto3")
    line = file.message_type.add(name="Line")
    line.field.add(name="text", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
    service = file.service.add(name="Lines")
    for name, up, down in (("Unary", False, False), ("Pull", False, True), ("Push", True, False), ("Both", True, True), ("Slow", False, False)):
        service.method.add(name=name, input_type=".test.Line", output_type=".test.Line", client_streaming=up, server_streaming=down)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Line"))


LINE = described()
CODECS = {
    # Bytes as they are.
    "/test.Echo": {},
    "/test.Lines": {
        "request_deserializer": lambda message: LINE.FromString(message).text.encode(),
        "response_serializer": lambda text: LINE(text=text.decode()).SerializeToString(),
    },
}


class Calls(grpc.GenericRpcHandler):
    """Services test.Echo and test.Lines: all four shapes, what comes goes back."""

    def service(self, details):
        service, _, method = details.method.rpartition("/")
        codec = CODECS.get(service)
        if codec is None:
            return None
        shapes = {
            "Unary": (grpc.unary_unary_rpc_method_handler, self.unary),
            "Pull": (grpc.unary_stream_rpc_method_handler, self.pull),
            "Push": (grpc.stream_unary_rpc_method_handler, self.push),
            "Both": (grpc.stream_stream_rpc_method_handler, self.both),
            "Slow": (grpc.unary_unary_rpc_method_handler, self.slow),
        }
        if method not in shapes:
            return None
        shape, serve = shapes[method]
        return shape(serve, **codec)

    async def begin(self, context, method):
        metadata = [[name, value if isinstance(value, str) else value.hex()] for name, value in context.invocation_metadata()]
        saw = {"kind": "grpc", "method": method, "metadata": metadata, "deadline": context.time_remaining(), "end": None}
        SEEN.append(saw)
        context.set_trailing_metadata((("x-trailer", "end"), ("x-bytes-bin", bytes(range(4)))))
        await context.send_initial_metadata((("x-head", "begin"),))
        fail = dict(metadata).get("x-fail")
        if fail:
            await context.abort(list(grpc.StatusCode)[int(fail)], "as asked: ü%")
        return saw

    async def unary(self, request, context):
        (await self.begin(context, "Unary"))["end"] = "done"
        return request

    async def pull(self, request, context):
        saw = await self.begin(context, "Pull")
        for number in range(int(request)):
            yield b"%d" % number
        saw["end"] = "done"

    async def push(self, requests, context):
        saw, total = await self.begin(context, "Push"), 0
        async for request in requests:
            total += len(request)
        saw["end"] = "done"
        return b"%d" % total

    async def both(self, requests, context):
        saw = await self.begin(context, "Both")
        async for request in requests:
            yield request
        saw["end"] = "done"

    async def slow(self, request, context):
        saw = await self.begin(context, "Slow")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            saw["end"] = "cancelled"
            raise
        return request


async def main(certificate, key, addresses):
    config = Config()
    config.insecure_bind = [f"{address}:8080" for address in addresses]
    config.bind = [f"{address}:8443" for address in addresses]
    config.certfile, config.keyfile = certificate, key
    config.keep_alive_timeout = 60
    config.graceful_timeout = 0
    # At its limit hypercorn says GOAWAY and leaves the streams that it has accepted unanswered.
    config.keep_alive_max_requests = 1 << 30
    config.errorlog = None
    over = asyncio.Event()
    web = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))
    calls = aio.server()
    calls.add_generic_rpc_handlers((Calls(),))
    reflection.enable_server_reflection(("test.Lines", reflection.SERVICE_NAME), calls)
    with open(certificate, "rb") as chain, open(key, "rb") as secret:
        credentials = grpc.ssl_server_credentials([(secret.read(), chain.read())])
    for address in addresses:
        calls.add_insecure_port(f"{address}:50051")
        calls.add_secure_port(f"{address}:50052", credentials)
    await calls.start()
    async with serve_websocket(echo, addresses, 9001, max_size=32 << 20, ping_interval=None):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await calls.stop(0)
    over.set()
    await web


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
