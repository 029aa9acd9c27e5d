"""The player's side: it knows gymnasium, and does not notice where the environment runs."""

import time

from gymnasium.wrappers import HumanRendering

from edgeml_ipc import EdgeMLError, RemoteEnv


def play_remotely(args):
    try:
        with RemoteEnv(args.ip, args.port, wait_for_server=True) as env:
            print(f"client: connected over {env.transport}", flush=True)
            play(env, args)
    except EdgeMLError as error:
        print(f"client: the server does not answer any more: {error}")


def play(env, args):
    """Push the cart to the side to which the pole falls; print what each episode brought."""
    print(f"client: observes {env.observation_space}, acts in {env.action_space}")
    if args.render:
        env = HumanRendering(env)  # a window here; the frames come from wherever the environment is
    for episode in range(1, args.episodes + 1):
        observation, _ = env.reset(seed=args.seed if episode == 1 else None)
        total, steps, over, started = 0.0, 0, False, time.perf_counter()
        while not over:
            _, _, angle, angular_velocity = observation
            observation, reward, terminated, truncated, _ = env.step(int(angle + angular_velocity > 0))
            total, steps, over = total + reward, steps + 1, terminated or truncated
        rate = steps / (time.perf_counter() - started)
        print(f"client: episode {episode}: return {total:.0f}, {rate:,.0f} steps/s", flush=True)
    if args.render:
        env.close()
