"""One run of vlmtune or of a peer: what `bench.py` starts in a process of its own.

Each tool loads the same weights, adapts the same layers and takes rows from the same file. Of what is offered to it,
the largest first, it trains with the first that fits 7 GiB, and with the last on the whole card where nothing does.
"""

import gc
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu.peers import PROFILED, STEPS, WARM_UP, Offer, Run, Trl, TrlWithLiger, Unsloth, config_of, facts_of, plan_of
from gpu.profiled import Clock, kernels_of, most_of, on_card, seconds_of
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vlmtune.data.samples import read_samples
from vlmtune.errors import VlmtuneError
from vlmtune.hub.source import open_model
from vlmtune.plan.types import RunPlan
from vlmtune.runs.versions import library_versions
from vlmtune.units import GIB

CAP_BYTES = 7 * GIB
PEERS = ("trl", "unsloth", "unsloth_zoo", "liger_kernel", "datasets")


class Card:
    """The GPU, of which a run may take no more than is said; what asks how much is free is told the same."""

    def __init__(self) -> None:
        self.info = torch.cuda.mem_get_info
        self.total_bytes = torch.cuda.get_device_properties(0).total_memory

    def driver_bytes(self) -> int:
        """Return what the process takes of the card beside the allocator's memory; nobody else is on it."""
        free_bytes, total_bytes = self.info()
        return total_bytes - free_bytes - torch.cuda.memory_reserved()

    def hold_to(self, num_bytes: int | None) -> None:
        """Let the process reserve no more; None: all there is. Peaks begin anew."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((num_bytes or self.total_bytes) / self.total_bytes)
        torch.cuda.mem_get_info = self.info
        if num_bytes:
            torch.cuda.mem_get_info = lambda *of, **named: (max(0, num_bytes - torch.cuda.memory_reserved()), num_bytes)
        torch.cuda.reset_peak_memory_stats()


def run(asked: Run) -> dict:
    """Train and return the figures of the first offer that fits, or of the last without a limit."""
    began, card, tool = time.perf_counter(), Card(), TOOLS[asked.tool](asked)
    failed: list = []
    for offer, cap_bytes in [*((offer, CAP_BYTES) for offer in asked.offers), (asked.offers[-1], None)]:
        clock = Clock(PROFILED, warm_up=WARM_UP)
        trained = attempt(tool, offer, clock, lambda cap=cap_bytes: card.hold_to(cap), failed)
        if trained:
            return {
                "offer": offer,
                "cap_bytes": cap_bytes,
                "failed": failed,
                **clock.figures(asked.rows_per_step),
                "step_seconds": clock.seconds,
                "profiled_steps": len(PROFILED),
                "most_of_a_step": most_of(clock.spans, len(PROFILED)),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
                "allocated_bytes": torch.cuda.max_memory_allocated(),
                "driver_bytes": card.driver_bytes(),
                **trained,
                "gpu": torch.cuda.get_device_name(0),
                "versions": versions(),
                "process_s": time.perf_counter() - began,
            }
        card.hold_to(None)
    return {"failed": failed}


def versions() -> dict[str, str]:
    """Return the versions of vlmtune's libraries and of the peers' that are here."""
    found = library_versions()
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def attempt(tool: Any, offer: Offer, clock: Clock, hold: Callable[[], None], failed: list) -> dict | None:
    """Return what a tool says of its training; None if memory did not suffice, which `failed` tells then."""
    try:
        return tool.train(offer, clock, hold)
    except (RuntimeError, VlmtuneError) as error:  # some libraries report missing memory as no more than that
        failed.append([offer, str(error)[:300]])
        return None


class Vlmtune:
    """The engine as `vlmtune train` starts it; every offer loads the model anew."""

    tries = 0

    def __init__(self, asked: Run) -> None:
        self.asked = asked
        os.environ["XDG_CACHE_HOME"] = f"{asked.folder}/cache-{os.getpid()}"

    def train(self, offer: Offer, clock: Clock, hold: Callable[[], None]) -> dict:
        """Train with these values of the config."""
        from rich.console import Console

        from vlmtune.data.features import prepare as features
        from vlmtune.data.run_data import MeasuredRows, RunData
        from vlmtune.engine import train as engine
        from vlmtune.engine.monitor import LiveView
        from vlmtune.engine.runtime import probe_device, quiet_libraries
        from vlmtune.models import build
        from vlmtune.plan.file import save_plan
        from vlmtune.runs.folder import RunFolder

        def build_model(plan: RunPlan, **how: Any) -> nn.Module:
            model = build.build_model(plan, **how)
            facts.update(facts_of(model))
            hold()
            return model

        def encode(*how: Any) -> None:
            profiler = profile(activities=[ProfilerActivity.CUDA])
            with profiler:
                encode_into(*how)
            encoded = seconds_of(kernels_of(on_card(profiler)))
            facts["encoding_ms_per_row"] = encoded * 1e3 / (STEPS * self.asked.rows_per_step)

        quiet_libraries()
        self.tries += 1
        facts: dict = {}
        services, encode_into = engine._services, features.encode_into
        features.encode_into = encode
        engine.build_model = build_model
        engine._services = lambda plan, folder: [*services(plan, folder), clock]
        config, plan = config_of(self.asked, offer, self.tries), plan_of(self.asked, offer, probe_device())
        runs = RunFolder.create(config.run_dir)
        save_plan(plan, runs.plan)
        rows = RunData(MeasuredRows(read_samples(self.asked.rows_path).samples), MeasuredRows([]))
        try:
            with LiveView("bench", Console(file=open(os.devnull, "w"))) as view:  # noqa: SIM115
                source = open_model(config.model.name, None, Path(self.asked.folder))
                report = engine.train(plan, source, rows, runs, view)
        finally:
            engine._services, features.encode_into = services, encode_into
        return {
            **facts,
            "losses": [record.loss for record in runs.read_log()],
            "tokens_per_row": (report.text_tokens + report.image_tokens) / report.num_rows,
            "data_wait_share": report.data_wait_share,
        }


TOOLS: dict[str, Callable[[Run], Any]] = {
    "vlmtune": Vlmtune,
    "vlmtune-small": Vlmtune,
    "vlmtune-fast": Vlmtune,
    "trl": Trl,
    "trl-liger": TrlWithLiger,
    "unsloth": Unsloth,
}


def main(asked: str, result: str) -> None:
    """Train what is asked for, in JSON, and write the result."""
    found = run(Run(**json.loads(asked)))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
