"""The learner: it serves a replay buffer, takes gradient steps on it, and publishes the policy."""

import contextlib
import math
import os
import queue
import threading
import time

from buffer import BATCH_ROWS, make_buffer, record, sampler
from common import STORE, say, trainer_config

from edgeml_ipc import TimeoutError, TrainerServer
from edgeml_ipc.demo.agent import Agent
from edgeml_ipc.demo.environment import make_env
from edgeml_ipc.demo.metrics import Metrics
from edgeml_ipc.demo.sac import recipe_for

SAVE_SECONDS, FAREWELL_SECONDS = 10.0, 5.0


def learn(args, address_known=lambda address: None):
    """Serve actors, and learn until `args.steps` transitions have come from all of them together."""
    env, episodes = make_env(args.env), queue.SimpleQueue()

    def note_episode(kind, payload):  # on the server's thread
        episodes.put((buffer.stats()["inserted"], payload["return"]))

    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(Metrics(f"SAC on {args.env}, seed {args.seed}", args.plot, args.tensorboard))
        server = TrainerServer(trainer_config(args), request_callback=note_episode, host=args.ip, insecure=args.insecure)
        stack.enter_context(server)
        agent = Agent(
            env.observation_space, env.action_space, seed=args.seed, recipe=recipe_for(args.env), batch_rows=BATCH_ROWS
        )
        buffer = make_buffer(args, env, server.port, agent.rows_per_call, stack)
        if args.rlds_log_dir:
            record(args, env, buffer, stack)
        if args.checkpoint and os.path.exists(args.checkpoint):
            agent.load(args.checkpoint)
            server.publish_network({"actor": agent.actor, "done": False})
        server.register_data_store(STORE, buffer)
        server.start(threaded=True)
        say(f"learner: has {agent.updates} updates and {len(buffer)} transitions, and waits for actors at {server.address}")
        address_known(server.address)
        take_steps(args, agent, buffer, server, metrics, episodes)
        part_with_actors(server)
        say(f"learner: took {buffer.stats()['inserted']} transitions")


def take_steps(args, agent, buffer, server, metrics, episodes):
    """Take gradient steps as fast as transitions come, and publish each new policy."""
    sample, values, saved = sampler(buffer), {}, -math.inf
    while True:
        starved = False
        try:
            values = agent.learn(sample(agent.rows_per_call))  # waits until enough transitions have come
        except TimeoutError:
            starved = True
        inserted = buffer.stats()["inserted"]
        if starved and inserted >= args.steps:
            break
        if not starved:
            server.publish_network({"actor": agent.actor, "done": inserted >= args.steps})
            if args.checkpoint and time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                agent.save(args.checkpoint)
        while not episodes.empty():
            metrics.episode(*episodes.get())
        metrics.progress(inserted, {"updates": agent.updates, **values})
    server.publish_network({"actor": agent.actor, "done": True})
    if args.checkpoint:
        agent.save(args.checkpoint)
    metrics.progress(inserted, {"updates": agent.updates, **values}, now=True)


def part_with_actors(server):
    """Wait until the actors have sent what they have yet, and are gone."""
    pause = threading.Event()
    ends = time.monotonic() + FAREWELL_SECONDS
    while server.stats()["sessions"] and time.monotonic() < ends:
        pause.wait(0.05)
