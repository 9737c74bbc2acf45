"""Measuring for the scripts of this folder: contestants take turns in one process, and each measurement is a CUDA graph of many launches."""

import json
import os
import statistics
import time

import torch


class Timing:
    """Measurements of one function. Its launches are captured in a graph, so that the host's time does not count."""

    def __init__(self, function, work_ms, pause_ms):
        self.pause = pause_ms / 1e3
        self.times, self.clocks, self.watts = [], [], []
        for _ in range(2):  # compiles, allocates
            function()
        estimate = elapsed_ms(function)
        self.launches = max(1, min(50, round(work_ms / max(estimate, 1e-3))))
        self.captured = True
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.output = repeat(function, self.launches)
            self.go = graph.replay
        except Exception:  # not every peer can be captured; the table says which was not
            torch.cuda.synchronize()
            self.captured = False
            self.go = lambda: repeat(function, self.launches)

    def fresh_output(self):
        """What is timed, computed into memory that held no numbers."""
        if not self.captured:
            return self.go()
        self.output.fill_(float("nan"))
        self.go()
        return self.output

    def measure(self, sensor):
        def probe():
            clock, watts = sensor.read()
            self.clocks.append(clock)
            self.watts.append(watts)

        if self.pause:
            time.sleep(self.pause)
        self.times.append(elapsed_ms(self.go, probe if sensor else None) / self.launches)

    @property
    def median(self):
        return statistics.median(self.times)

    def summary(self, flops):
        ordered = sorted(self.times)
        tenth = len(ordered) // 10
        return {
            "ms": self.median,
            "p10_ms": ordered[tenth],
            "p90_ms": ordered[-1 - tenth],
            "tflops": flops / self.median * 1e-9,
            "sm_mhz": median_or_none(self.clocks),
            "watts": median_or_none(self.watts),
            "launches": self.launches,
            "captured": self.captured,
        }


def repeat(function, times):
    """What the last call returns."""
    for _ in range(times):
        output = function()
    return output


def take_turns(timings, rounds, sensor):
    """Warms up for 0.3 s or 25 rounds, at least one, and then measures; long cells get fewer rounds, at least 5."""
    names = list(timings)
    started = time.perf_counter()
    warm_rounds = 0
    while warm_rounds < 1 or (time.perf_counter() - started < 0.3 and warm_rounds < 25):
        for timing in timings.values():
            timing.measure(None)
        warm_rounds += 1
    seconds = sum(timing.times[-1] * timing.launches for timing in timings.values()) / 1e3
    for timing in timings.values():
        timing.times.clear()
    for index in range(max(5, min(rounds, round(6 / seconds)))):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            timings[name].measure(sensor)


def elapsed_ms(function, probe=None):
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    function()
    end.record()
    if probe:  # while the GPU works
        probe()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def cold_ms(function, times=9):
    """Median of single launches with other data in the caches."""
    flush = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    timing = Timing(function, 0.0, 0.0)

    def cold():
        flush.zero_()
        return elapsed_ms(timing.go)

    return statistics.median(cold() for _ in range(times))


class Sensor:
    """Clock of the multiprocessors and power, by NVML; None where the package nvidia-ml-py is not there."""

    POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT; nvmlDeviceGetPowerUsage averages over a second

    def __init__(self):
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml = pynvml
            self.device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
            self.read()
        except Exception as error:
            print(f"without clock and power: {error}")
            self.nvml = None

    def read(self):
        if self.nvml is None:
            return None, None
        clock = self.nvml.nvmlDeviceGetClockInfo(self.device, self.nvml.NVML_CLOCK_SM)
        field = self.nvml.nvmlDeviceGetFieldValues(self.device, [self.POWER_INSTANT])[0]
        milliwatts = field.value.uiVal if field.nvmlReturn == 0 else self.nvml.nvmlDeviceGetPowerUsage(self.device)
        return clock, milliwatts / 1e3


def kernels_of(recorded):
    """What torch.profiler saw run on the GPU, in order; calls of the host, which it lists too, take no time there."""
    kernels = [event for event in recorded.events() if event.device_time > 0]
    return sorted(kernels, key=lambda event: event.time_range.start)


def median_or_none(values):
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


# Results.


def load(path):
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)["cells"]


def save(path, results):
    """A line for each cell, with as many digits as say something."""
    lines = (f"{json.dumps(key)}: {json.dumps(rounded(cell), separators=(',', ':'))}" for key, cell in results.items())
    with open(f"{path}.tmp", "w") as file:
        file.write('{"cells": {\n' + ",\n".join(lines) + "\n}}\n")
    os.replace(f"{path}.tmp", path)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
