"""The environment's side."""

import gymnasium

from edgeml_ipc import EnvServer


def make_env():
    return gymnasium.make("CartPole-v1", render_mode="rgb_array")  # costs nothing until a frame is asked for


def serve(args):
    """Give each client a CartPole of its own, until Ctrl-C."""
    with EnvServer(make_env, args.port, host=args.ip, insecure=args.insecure) as server:
        print(f"server: CartPole at {server.address}", flush=True)
        server.start()
    print("server: stopped after", server.stats()["requests"], "requests")
