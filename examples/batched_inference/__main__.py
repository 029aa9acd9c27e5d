"""Many clients ask one JAX model; the server gathers their requests into batches. What does that cost, and what does it give?

python3 examples/batched_inference             server and clients on this machine: a table, and with --plot FILE a picture
python3 examples/batched_inference --server    the model; on another terminal or machine:
python3 examples/batched_inference --client    the clients, --ip says where the model is
"""

import argparse

from clients import measure
from plot import draw
from server import serve, serve_and_tell

from edgeml_ipc.launch import pipe, spawn


def table(args, ip):
    """Measure against the server at `ip` and print a line for each size, as it comes."""
    print(f"{args.clients} clients, {args.payload} floats per request, {args.seconds:g} s per line", flush=True)
    rows = []
    for row in measure(ip, args.port, args.clients, args.payload, args.seconds):
        if not rows:
            print("max_batch_size | mean batch |  p50 ms |  p99 ms | requests/s")
        print("{size:14} | {batch:10.1f} | {p50_ms:7.2f} | {p99_ms:7.2f} | {rate:10,.0f}".format(**row), flush=True)
        rows.append(row)
    if args.plot:
        draw(rows, args)
        print(f"wrote {args.plot}")


def both(args):
    """Serve in another process, and measure."""
    reader, writer = pipe()
    server = spawn(serve_and_tell, writer, args, name="model")
    writer.close()
    try:
        table(args, reader.recv())
    finally:
        server.kill()
        server.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--server", action="store_true", help="serve the model")
    side.add_argument("--client", action="store_true", help="be the clients")
    parser.add_argument("--ip", default="127.0.0.1", help="where the server is; for the server: where it listens")
    parser.add_argument("--port", type=int, default=5559, help="of the server; 0: any that is free (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="processes that ask (default: %(default)s)")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="max_batch_size of each"
    )
    parser.add_argument("--max-wait-ms", type=float, default=2.0, help="for a batch to fill (default: %(default)s)")
    parser.add_argument("--payload", type=int, default=256, help="floats in an observation (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each batch size (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="also draw latency and throughput (needs matplotlib)")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    args = parser.parse_args()
    try:
        if args.server:
            serve(args)
        elif args.client:
            table(args, args.ip)
        else:
            both(args)
    except KeyboardInterrupt:
        print("interrupted")


if __name__ == "__main__":
    main()
