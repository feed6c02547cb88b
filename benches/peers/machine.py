"""What the kernel says of a process and of this machine."""

import os
import platform
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def children(pid):
    """`pid` and every process below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += children(int(child))
    return found


def cpu_seconds(pid):
    """User and system time of the process tree so far."""
    total = 0
    for one in children(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory(pid):
    """Resident memory now and at its highest, of the process tree, in bytes."""
    now = peak = 0
    for one in children(pid):
        for line in Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                now += int(line.split()[1]) * 1024
            elif line.startswith("VmHWM:"):
                peak += int(line.split()[1]) * 1024
    return now, peak


def describe():
    """The machine in one line, without names."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}"


def load_average():
    """How many processes wanted a core over the last minute."""
    return os.getloadavg()[0]


def path(given):
    """A path of the command line as what it is called from every folder."""
    return Path(given).resolve()
