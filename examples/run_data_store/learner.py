"""The learner: it serves a replay buffer, and samples batches while the serving thread inserts."""

import threading
import time

from point_env import PointEnv, say

from edgeml_ipc import ReplayBuffer, TrainerConfig, TrainerServer


def learn(args, address_known=lambda address: None):
    """Serve a replay buffer, and sample batches from it until `args.steps` transitions have come."""
    arrived = threading.Event()
    buffer = ReplayBuffer(PointEnv.observation_space, PointEnv.action_space, args.capacity, seed=args.seed)
    config = TrainerConfig(port_number=args.port)
    with TrainerServer(config, lambda *_: arrived.set(), host=args.ip, insecure=args.insecure) as server:
        server.register_data_store("actor", buffer)
        server.start(threaded=True)
        say(f"learner: waiting for actors at {server.address}")
        address_known(server.address)
        arrived.wait()
        batches, started = 0, time.perf_counter()
        reported = started
        while True:
            batch = buffer.sample(args.batch_size)
            batches += 1
            inserted, now = buffer.stats()["inserted"], time.perf_counter()
            if now - reported > 1 or inserted >= args.steps:
                reported, seconds = now, now - started
                say(
                    f"learner: {inserted} transitions, {len(buffer)} held; {batches} batches of {args.batch_size}, "
                    f"{batches * args.batch_size / seconds:,.0f} rows/s; mean reward {batch['rewards'].mean():.2f}"
                )
            if inserted >= args.steps:
                return
