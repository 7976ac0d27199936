"""Top-K of many histories on one GPU: the two-pass kernels against a bf16 matmul alone and a matmul with torch's top-K.

    python -m benchmarks.gpu_gsu [--users 64] [--targets 100] [--length 10000] [--dim 64] [--top-k 100] [--stages]

GPU time is that of CUDA graphs, so that nobody pays for launches; methods take turns, medians over all rounds. The matmul is the
faster of its two orientations, written to a buffer that exists. Called time is the whole call from Python, check of completeness
included. Needs CUDA and Triton (the extra `gpu`); without them it says so and writes nothing.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Goal, publish, run
from seminar.retrieval.gpu import plain_top_k, two_pass_top_k

Method = Callable[[], object]
REGIMES = ("gaussian", "repeats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"users": 64, "targets": 100, "length": 10_000, "dim": 64, "top-k": 100, "rounds": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stages", action="store_true", help="also print the time of each kernel (torch's profiler)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print("benchmarks.gpu_gsu measures a GPU: it needs a CUDA device and Triton (the extra `gpu`); nothing was measured.")
        return
    publish("gpu_gsu", [goal for regime in REGIMES for goal in measure(regime, arguments)])


def measure(regime: str, arguments: argparse.Namespace) -> list[Goal]:
    """All figures of one kind of data."""
    from seminar.retrieval.gpu_two_pass import two_pass

    k = arguments.top_k
    query, key = draw(regime, arguments)
    length = torch.full((len(key),), arguments.length, dtype=torch.int32, device=key.device)
    score = torch.empty(*query.shape[:2], arguments.length, dtype=key.dtype, device=key.device)
    turned = torch.empty(len(key), arguments.length, query.shape[1], dtype=key.dtype, device=key.device)
    methods: dict[str, Method] = {
        "matmul": lambda: torch.bmm(query, key.mT, out=score),
        "matmul, turned": lambda: torch.bmm(key, query.mT, out=turned),
        "matmul + topk": lambda: torch.bmm(query, key.mT, out=score).topk(k, sorted=False),
        "two-pass": lambda: two_pass(query, key, length, k),
    }
    gpu_us = graph_times(methods, arguments.rounds)
    called = methods | {"two-pass": lambda: two_pass_top_k(query, key, length, k)}
    called_us = called_times(called, arguments.rounds)
    *_, complete = two_pass(query, key, length, k)
    same = (two_pass_top_k(query, key, length, k)[0] == plain_top_k(query, key, length, k)[0]).float().mean().item()
    if arguments.stages:
        print_stages(methods["two-pass"])

    matmul, selected, ours = min(gpu_us["matmul"], gpu_us["matmul, turned"]), gpu_us["matmul + topk"], gpu_us["two-pass"]
    called_matmul = min(called_us["matmul"], called_us["matmul, turned"])
    shape = f"{arguments.users} users x {arguments.targets} targets x {arguments.length}, d={arguments.dim}, K={k}"
    goals = [
        Goal("two-pass against a bf16 matmul alone", ours / matmul, "x its time", 1.0, at_least=False),
        Goal("matmul + topk against two-pass", selected / ours, "x its time", 3.0),
        *(Goal(f"{name}: GPU time", value, "us") for name, value in gpu_us.items()),
        *(Goal(f"{name}: called", value, "us") for name, value in called_us.items()),
        Goal("two-pass against a bf16 matmul alone, called", called_us["two-pass"] / called_matmul, "x its time"),
        *(
            Goal(f"{name}: peak memory beside its inputs", peak_mib(method), "MiB")
            for name, method in peaks(query, key, length, k)
        ),
        Goal("rows complete without the plain form", complete.float().mean().item(), "share", 1.0),
        Goal("positions equal to the plain form's", same, "share", 0.999),
    ]
    return [Goal(f"{shape}, {regime}: {g.goal}", g.measured, g.unit, g.target, g.at_least) for g in goals]


def draw(regime: str, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Queries and keys in bfloat16: independent Gaussians, or 2,500 items that repeat, near 40 centres."""
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = {"query": (arguments.users, arguments.targets), "key": (arguments.users, arguments.length)}
    query, key = (torch.randn(*size, arguments.dim, device="cuda", generator=generator) for size in sizes.values())
    if regime == "repeats":
        centre = torch.randn(40, arguments.dim, device="cuda", generator=generator)
        near = torch.randint(40, (arguments.users, arguments.targets), device="cuda", generator=generator)
        query = centre[near] + 0.4 * query
        item = centre[torch.arange(2500, device="cuda") % 40]
        item = item + 0.4 * torch.randn(item.shape, device="cuda", generator=generator)
        share = torch.arange(1, 2501, device="cuda") ** -0.7
        drawn = share.multinomial(arguments.users * arguments.length, replacement=True, generator=generator)
        key = item[drawn].view_as(key)
    return query.bfloat16(), key.bfloat16()


def graph_times(methods: dict[str, Method], rounds: int) -> dict[str, float]:
    """Median microseconds of GPU time, each method captured once and replayed in turn."""
    graphs = {}
    for name, method in methods.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles, chooses algorithms
                method()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            method()
    events = {name: [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(rounds)] for name in methods}
    for turn in range(-10, rounds):  # the first ten warm up
        for name, graph in graphs.items():
            began, ended = events[name][max(turn, 0)]
            began.record()
            graph.replay()
            ended.record()
    torch.cuda.synchronize()
    return {
        name: float(np.median([1000 * began.elapsed_time(ended) for began, ended in pairs])) for name, pairs in events.items()
    }


def called_times(methods: dict[str, Method], rounds: int) -> dict[str, float]:
    """Median microseconds of wall-clock time from the call until the GPU is done."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(-5, rounds):
        for name, method in methods.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            method()
            torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e6 * float(np.median(values)) for name, values in seconds.items()}


def peaks(query: Tensor, key: Tensor, length: Tensor, k: int) -> list[tuple[str, Method]]:
    """What a caller without buffers of its own would run."""
    return [
        ("matmul", lambda: torch.bmm(query, key.mT)),
        ("matmul + topk", lambda: torch.bmm(query, key.mT).topk(k, sorted=False)),
        ("two-pass", lambda: two_pass_top_k(query, key, length, k)),
    ]


def peak_mib(method: Method) -> float:
    """Largest GPU memory during a call above what stood before it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def print_stages(method: Method) -> None:
    """Mean time of each kernel of twenty calls."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(20):
            method()
        torch.cuda.synchronize()
    for row in sorted(profile.key_averages(), key=lambda row: -row.device_time_total):
        print(f"  {row.key[:60]:<60} {row.device_time_total / 20:>8.1f} us a call")


if __name__ == "__main__":
    run(main)
