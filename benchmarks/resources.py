"""What the machine gives: processor, versions, memory bandwidth, and the peak memory of this process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 1 << 15
_PACKAGES = ("numpy", "numba", "torch", "scipy", "byzfl", "flwr")


def processor() -> str:
    """The processor's name and how many of its threads this process may use."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {count} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of every package that takes part; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def bandwidth(threads: int, values: int = 1 << 25, repeat: int = 5) -> dict[str, float]:
    """Bytes a second, best of `repeat`, as STREAM counts them: copy b = a (16 bytes a value), triad
    a = b + s c (24). Arrays of `values` float64 far beyond every cache, one range for each thread."""
    a, b, c = (np.full(values, float(k + 1)) for k in range(3))

    def copy(start: int, stop: int) -> None:
        np.copyto(b[start:stop], a[start:stop])

    def triad(start: int, stop: int) -> None:
        scratch = np.empty(_BLOCK)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            np.multiply(c[first:last], 3.0, out=scratch[: last - first])
            np.add(b[first:last], scratch[: last - first], out=a[first:last])

    def best(work: Callable[[int, int], None], pool: ThreadPoolExecutor) -> float:
        cuts = [values * k // threads for k in range(threads + 1)]
        seconds = []
        for _ in range(repeat):
            begin = time.perf_counter()
            list(pool.map(work, cuts[:-1], cuts[1:]))
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    with ThreadPoolExecutor(threads) as pool:
        return {"copy": 16 * values / best(copy, pool), "triad": 24 * values / best(triad, pool)}


def limit_libraries(threads: int) -> None:
    """Let BLAS, OpenMP and PyTorch use `threads` threads, which is what the peers run with."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_bytes() -> int:
    """The most resident memory that this process has had since it began."""
    return _status("VmHWM:")


def extra_bytes(work: Callable[[], Any]) -> int:
    """How far resident memory rises above its present value while `work` runs, by the kernel's own mark.

    Linux only: the mark is reset through /proc/self/clear_refs (man 5 proc).
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS:")
    work()
    return max(0, peak_bytes() - before)
