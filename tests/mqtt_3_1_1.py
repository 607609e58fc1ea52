"""A broker that refuses MQTT 5, on 127.0.0.1 at the port of its first argument."""

import asyncio
import sys

from amqtt.broker import Broker

SETTINGS = {
    "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}


async def main():
    await Broker(SETTINGS).start()
    await asyncio.Event().wait()


asyncio.run(main())
