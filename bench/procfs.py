"""What Linux knows of processes: see proc(5)."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that processes have used, in all their threads that live."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _status_bytes(pids: Sequence[int], field: str) -> int:
    total = 0
    for pid in pids:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) * 1024 if found else 0
    return total


def resident_bytes(pids: Sequence[int]) -> int:
    """Return the memory that processes hold now."""
    return _status_bytes(pids, "VmRSS")


def peak_bytes(pids: Sequence[int]) -> int:
    """Return the most memory that processes have held since they started, or since ``forget_peak``."""
    return _status_bytes(pids, "VmHWM")


def forget_peak(pids: Sequence[int]) -> None:
    """Let the peak begin anew from what processes hold now."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def kernel_bytes() -> int:
    """Return the memory that the kernel holds for itself: what lies in slabs, and in socket buffers."""
    slab = re.search(r"Slab:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    buffers = re.search(r"TCP: .* mem (\d+)", Path("/proc/net/sockstat").read_text())
    return (int(slab[1]) * 1024 if slab else 0) + (int(buffers[1]) * PAGE_BYTES if buffers else 0)
