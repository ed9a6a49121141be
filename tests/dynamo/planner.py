"""Dynamo's planner, as far as a supervisor sees it: publishes "PREFILL DECODE" from each line of stdin through the released
VirtualConnectorCoordinator, and prints "done" once the supervisor has acknowledged it."""

import asyncio
import sys

from dynamo._core import DistributedRuntime, VirtualConnectorCoordinator


async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    coordinator = VirtualConnectorCoordinator(runtime, "dynamo", 1, 120, 120)
    await coordinator.async_init()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        await coordinator.update_scaling_decision(*map(int, line.split()))
        while not await coordinator.is_scaling_ready():  # wait_for_scaling_completion gives up at once from the second decision on
            await asyncio.sleep(0.1)
        print("done", flush=True)
    runtime.shutdown()


asyncio.run(main())
