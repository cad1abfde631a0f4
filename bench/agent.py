"""The section agent: what the node costs a box, without a screen and with one."""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator

import node
import node_pb2 as pb
from bench.figures import WINDOW_SECONDS, Figure, say
from bench.http2 import DATA, PREFACE, split_frames
from bench.messages import SEEDS, course
from bench.processes import LOAD_CORE, Program, Terminal, free_port, headless, role
from edge.hardware.machine import Machine
from edge.hardware.options import parse_options
from edge.hardware.simulated import SimulatedBox
from edge.program import FRAMES_PER_SECOND


def agent_command(gpus: int, port: int, *more: str) -> tuple[str, ...]:
    """From bytecode, as in the .pyz: a script compiled at its start keeps 5 MB of the compiler's memory."""
    options = f"--hardware simulated --seed {SEEDS[gpus]} --id bench-{gpus} --server 127.0.0.1:{port}"
    return ("-c", "import node, sys; sys.exit(node.main())", *options.split(), *more)


def agent(_options: argparse.Namespace) -> Iterator[Figure]:
    """The agent with simulated GPUs at 1 Hz: without a screen, with a quiet one, with one full of change."""
    port = free_port()
    with Program(*headless(port), core=LOAD_CORE) as orchestrator:
        orchestrator.wait_until_listening(port)
        yield from agent_headless(port)
        for gpus in (1, 8):
            name = f"screen, {gpus} GPU{'s' * (gpus > 1)}"
            yield from agent_screen(f"quiet {name}", 2, None, agent_command(gpus, port))
            yield from agent_screen(f"restless {name}", 10, 57, role(run_restless_agent, gpus, port))


def agent_headless(port: int) -> Iterator[Figure]:
    """Both at once, each with a relay that counts what it sends."""
    say("agent: headless, with 1 and 8 GPUs")
    with contextlib.ExitStack() as stack:
        relays = {gpus: Relay(port) for gpus in (1, 8)}
        agents = {
            gpus: stack.enter_context(Program(*agent_command(gpus, relay.port, "--headless"))) for gpus, relay in relays.items()
        }
        time.sleep(12)  # the first answers take what is sent once
        cpu = {gpus: program.cpu_seconds() for gpus, program in agents.items()}
        counts = {gpus: (relay.bytes_up, relay.bytes_down, relay.messages) for gpus, relay in relays.items()}
        time.sleep(2 * WINDOW_SECONDS)
        for gpus, program in agents.items():
            name, relay = f"headless, {gpus} GPU{'s' * (gpus > 1)}", relays[gpus]
            used = program.cpu_seconds() - cpu[gpus]
            up, down, messages = counts[gpus]
            beats = max(relay.messages - messages, 1)
            few = gpus == 1
            yield Figure("agent", f"{name}: processor", 100 * used / 2 / WINDOW_SECONDS, "% of a core", 0.3 if few else None)
            yield Figure("agent", f"{name}: memory", program.megabytes(), "MB RSS", 40 if few else None)
            yield Figure("agent", f"{name}: wire a heartbeat", (relay.bytes_up - up) / beats, "bytes up", 160 if few else 350)
            yield Figure("agent", f"{name}: answers a heartbeat", (relay.bytes_down - down) / beats, "bytes down")


def agent_screen(name: str, at_most: float, frames_at_least: float | None, command: tuple[str, ...]) -> Iterator[Figure]:
    """The agent on a terminal."""
    say(f"agent: {name}")
    terminal = Terminal(120, 45)
    with Program(*command, terminal=terminal) as program:
        time.sleep(4)
        (frames, written), cpu = terminal.counts(), program.cpu_seconds()
        time.sleep(WINDOW_SECONDS)
        cpu, (frames_now, written_now) = program.cpu_seconds() - cpu, terminal.counts()
        frames = frames_now - frames
        note = f"{(written_now - written) / max(frames, 1):,.0f} bytes a frame"
        yield Figure("agent", f"{name}: processor", 100 * cpu / WINDOW_SECONDS, "% of a core", at_most)
        yield Figure("agent", f"{name}: frames", frames / WINDOW_SECONDS, "/s", at_least=frames_at_least, note=note)


def run_restless_agent(gpus: int, port: int) -> None:
    """node.py, where every number changes sixty times a second."""
    options = parse_options(["--server", f"127.0.0.1:{port}", "--id", "restless", "--hardware", "simulated"])
    options.interval = 1 / FRAMES_PER_SECOND
    sys.exit(node.run(options, lambda *_: RestlessMachine(gpus)))


class RestlessMachine(Machine):
    """A box with so many GPUs whose readings are drawn: they cost nothing beside what they are shown with."""

    def __init__(self, gpus: int) -> None:
        box = SimulatedBox(SEEDS[gpus])
        super().__init__(box, [box])
        self._samples = [(request.sample.host, list(request.sample.devices)) for request in course(gpus, 0)]

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        host, devices = random.choice(self._samples)
        for device in devices:
            device.utilization_percent = random.randrange(100)
            device.memory_used_bytes = random.randrange(2**34)
            device.temperature_celsius = random.randrange(30, 90)
            device.power_milliwatts = random.randrange(400_000)
        return host, devices


class Relay:
    """Stands between an agent and a server, and counts bytes and messages on their way up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.bytes_up = self.bytes_down = self.messages = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        agent, _ = self._listener.accept()
        orchestrator = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=self._pump_down, args=(orchestrator, agent), daemon=True).start()
        rest = agent.recv(len(PREFACE), socket.MSG_WAITALL)
        orchestrator.sendall(rest)
        rest = b""
        while data := agent.recv(65_536):
            orchestrator.sendall(data)
            self.bytes_up += len(data)
            frames, rest = split_frames(rest + data)
            self.messages += sum(kind == DATA and len(payload) > 0 for kind, _, _, payload in frames)
        orchestrator.close()

    def _pump_down(self, orchestrator: socket.socket, agent: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := orchestrator.recv(65_536):
                agent.sendall(data)
                self.bytes_down += len(data)
