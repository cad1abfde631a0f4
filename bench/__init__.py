"""Benchmarks of Edge Compute Node: what a fleet costs the server, what the agent costs a box, and whether both keep their promises.

    python -m bench                    all sections but the long ones, at most ten minutes
    python -m bench scale agent        some
    python -m bench --nodes 1000 scale fewer nodes: for a quick look, not for the figures
    python -m bench --json             one JSON document instead of the table

The load is no gRPC client: the Generator writes HTTP/2 frames over epoll, in a process of its own, so that one core drives ten
thousand nodes. It sends the real messages, each second a heartbeat a node, spread over the second, and tells how late it is itself.
The measured process has one core, the generator and this process another. Milliseconds of two machines can't be compared, nor of
one machine on two days: so the server stands beside a bare grpc.aio handler under the same load, in the same run.
"""
