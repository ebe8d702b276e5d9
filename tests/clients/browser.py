"""Runs an expression in a page of headless Chromium: browser.py ADDRESS KEY_HASHES PROFILE URL EXPRESSION.

Every name leads to ADDRESS; certificates with the keys KEY_HASHES (SHA-256 of the public key, base64) are trusted. Prints
what the expression's promise gives. Chromium is spoken to by its DevTools protocol over pipes.
"""

import json
import os
import subprocess
import sys


class Pipe:
    def __init__(self, arguments, home):
        (ours_in, self.write), (self.read, ours_out) = os.pipe(), os.pipe()

        def lay():
            # 3 and 4 are where Chromium looks for them.
            spare = os.dup(ours_in), os.dup(ours_out)
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self.process = subprocess.Popen(
            ["chromium-headless-shell", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=lay, env={**os.environ, "HOME": home, "TMPDIR": home},
        )
        os.close(ours_in)
        os.close(ours_out)
        self.buffer, self.number, self.events = b"", 0, []

    def receive(self):
        while b"\0" not in self.buffer:
            got = os.read(self.read, 1 << 20)
            if not got:
                raise EOFError("Chromium ended")
            self.buffer += got
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def ask(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)


def main(address, key_hashes, profile, url, expression):
    # All that it writes goes there.
    os.makedirs(profile, exist_ok=True)
    browser = Pipe([
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--no-proxy-server", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        f"--host-resolver-rules=MAP * {address}", f"--ignore-certificate-errors-spki-list={key_hashes}",
    ], profile)
    try:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.ask("Page.enable", session)
        went = browser.ask("Page.navigate", session, url=url)
        if went.get("errorText"):
            raise RuntimeError(went["errorText"])
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())
        found = browser.ask("Runtime.evaluate", session, expression=expression, awaitPromise=True, returnByValue=True)
        print(json.dumps(found["result"].get("value", found)))
        browser.ask("Browser.close")
    finally:
        browser.process.kill()
        browser.process.wait()


main(*sys.argv[1:])
