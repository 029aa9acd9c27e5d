"""The picture of a table."""


def draw(rows, args):
    """Draw latency and throughput against `max_batch_size` into the file `args.plot`."""
    from matplotlib.figure import Figure

    sizes = [row["size"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for key, label, style in (("p99_ms", "p99", "o--"), ("p50_ms", "p50", "o-")):
        latency.plot(sizes, [row[key] for row in rows], style, label=label)
    latency.set(xlabel="max_batch_size", ylabel="latency (ms)", title=f"{args.clients} clients, {args.payload} floats each")
    latency.legend()
    throughput.plot(sizes, [row["rate"] for row in rows], "o-", color="tab:green")
    throughput.set(xlabel="max_batch_size", ylabel="requests per second", title="all clients together")
    for axes in (latency, throughput):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(args.plot, dpi=110)
