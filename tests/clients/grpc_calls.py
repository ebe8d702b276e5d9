"""Calls of every shape by grpcio: grpc_calls.py TARGET AUTHORITY [ROOTS]; prints what came back as JSON."""

import json
import sys
import time

import grpc

PATIENCE = 20


def told(call):
    plain = lambda fields: [[name, value if isinstance(value, str) else value.hex()] for name, value in fields or ()]
    return {"code": call.code().name, "details": call.details(), "head": plain(call.initial_metadata()), "trailers": plain(call.trailing_metadata())}


def calls(channel):
    both = channel.stream_stream("/test.Echo/Both")
    unary = channel.unary_unary("/test.Echo/Unary")
    sent = (("x-client", "grpcio"), ("x-raw-bin", bytes([0, 255, 7])))

    reply, call = unary.with_call(b"hello", timeout=PATIENCE, metadata=sent)
    yield "unary", {"reply": reply.decode(), **told(call)}
    reply, call = unary.with_call(b"", timeout=PATIENCE)
    yield "empty", {"reply": reply.decode(), **told(call)}
    large = bytes(1 << 20) * 3
    reply, call = unary.with_call(large, timeout=PATIENCE)
    yield "large", {"same": reply == large, **told(call)}

    call = channel.unary_stream("/test.Echo/Pull")(b"1000", timeout=PATIENCE)
    yield "pull", {"replies": len(list(call)), **told(call)}
    reply, call = channel.stream_unary("/test.Echo/Push").with_call(iter([b"x" * 100] * 1000), timeout=PATIENCE)
    yield "push", {"reply": reply.decode(), **told(call)}
    call = both(iter([b"%d" % number for number in range(1000)]), timeout=PATIENCE)
    yield "both", {"in_order": [int(reply) for reply in call] == list(range(1000)), **told(call)}

    for code in range(1, 17):
        try:
            unary.with_call(b"", timeout=PATIENCE, metadata=(("x-fail", str(code)),))
        except grpc.RpcError as error:
            yield f"fail {code}", told(error)

    begun = time.monotonic()
    try:
        channel.unary_unary("/test.Echo/Slow")(b"", timeout=0.5)
    except grpc.RpcError as error:
        yield "deadline", {"seconds": time.monotonic() - begun, **told(error)}
    for name in ("/test.Echo/Missing", "/other.Service/Unary"):
        try:
            channel.unary_unary(name)(b"", timeout=PATIENCE)
        except grpc.RpcError as error:
            yield name, told(error)


def main(target, authority, roots=None):
    options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    if roots:
        with open(roots, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        channel = grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", authority)])
    else:
        channel = grpc.insecure_channel(target, options)
    with channel:
        print(json.dumps(dict(calls(channel))))


main(*sys.argv[1:])
