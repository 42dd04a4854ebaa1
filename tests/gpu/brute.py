"""Times what `plan` chooses beside all that it might have chosen, for six models with rows: `make gpu-plan`.

`--plans` works out what to time, without a GPU: of each pair the plan that a search ends with, and every other division
of a step's rows with as many kept activations as fit. What is asked of a card is that the first is as quick as the
quickest, within a tenth (`--compare`, test_brute.py). All runs of a pair are timed on one card, under 7 GiB of it.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from math import inf
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu import cases, measure, timed  # noqa: E402
from gpu.cases import Case  # noqa: E402
from gpu.compare import CATALOGUE, MEASURED  # noqa: E402
from gpu.profiled import each_in_its_own  # noqa: E402

from vlmtune.config.keys import all_keys  # noqa: E402
from vlmtune.config.load import LoadedConfig  # noqa: E402
from vlmtune.config.values import Values, changed, not_yet  # noqa: E402
from vlmtune.data.run_data import MeasuredRows  # noqa: E402
from vlmtune.estimate.given_rows import GivenRows  # noqa: E402
from vlmtune.estimate.scenario import Scenario  # noqa: E402
from vlmtune.estimate.search.candidates import Search  # noqa: E402
from vlmtune.estimate.search.fit import MARGIN, fit_card  # noqa: E402
from vlmtune.estimate.search.spend import Ways  # noqa: E402
from vlmtune.hardware.cards import Target, find_card  # noqa: E402
from vlmtune.levers.recompute import RECOMPUTE  # noqa: E402
from vlmtune.units import GIB  # noqa: E402

PLANS, TIMED = MEASURED / "brute-plans.json", MEASURED / "brute.json"
LEFT_BYTES = 7 * GIB
CARD, LAUNCH_S = "h100", 22e-6
"""What a plain launch took on four machines, four processes side by side; others differ: measure (`--launch-us`)."""
PER_STEP, STEPS = 16, 8
MOST_NEIGHBOURS, WORTH = 4, 3
"""Those that are predicted to take longer by this are not timed."""
OWN = {
    "training.gradient_accumulation_steps": PER_STEP,
    "training.packing": "auto",
    "hardware.lean_lora": "auto",
    "hardware.varlen_attention": "auto",
    "hardware.align_widths": "auto",
    "hardware.fused_norms": "auto",
    "hardware.fused_elementwise": "auto",
    "hardware.joined_constants": "auto",
    "data.cache_features": False,
    "hardware.num_workers": 8,
}
SHORT, DOCS = {"text_chars": 200, "image_px": (448, 336)}, {"text_chars": 400, "image_px": (1120, 840)}
PAIRS = tuple(
    Case(name, model, rows=PER_STEP, settings=OWN, **rows)
    for name, model, rows in (
        ("qwen25-3b-short", cases.QWEN25_3B, SHORT),
        ("qwen25-3b-docs", cases.QWEN25_3B, DOCS),
        ("qwen3-4b-short", cases.QWEN3_4B, SHORT),
        ("llava-7b-short", cases.LLAVA_7B, SHORT),
        ("gemma-4b-docs", cases.GEMMA_4B, {**DOCS, "text_chars": 1200}),
        ("smol-2b-short", cases.SMOL_2B, SHORT),
    )
)


def scenario_of(pair: Case, folder: Path, launch_s: float) -> Scenario:
    """Return the pair as a run to be planned for 7 GiB of the card."""
    config, source, samples = cases.prepare(pair, CATALOGUE, folder)
    loaded = LoadedConfig(config, {key.name: "--set" for key in all_keys()}, folder)
    card = replace(find_card(CARD), plain_launch_s=launch_s)
    return Scenario(loaded, source, Target(card, LEFT_BYTES, pair.expandable), GivenRows(MeasuredRows(samples)))


def plans_of(pair: Case, launch_s: float = LAUNCH_S) -> list[dict]:
    """Return what is to be timed of a pair, what `plan` chooses first where a launch takes so long."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = scenario_of(pair, Path(folder) / "case", launch_s)
        fit, held = fit_card(scenario), held_back(scenario)
        chosen = {key: value for change in fit.changes for key, value in change.values.items()}
        found = [one for one in others(pair, held) if one["values"] != chosen]
        first = _told(pair, chosen, fit.report.time.step_s, chosen=True)
        worth = [one for one in found if one["step_s"] <= WORTH * first["step_s"]]
        by_time = sorted(worth, key=lambda one: one["step_s"])
        fitting = (one for one in by_time if held.with_values(one["values"]).estimate().fits)
        return [first, *islice(fitting, MOST_NEIGHBOURS)]


def held_back(scenario: Scenario) -> Scenario:
    """Return it with what `plan` lets a run have: not the whole budget."""
    return scenario.with_budget(int(LEFT_BYTES * (1 - MARGIN)))


def others(pair: Case, held: Scenario) -> list[dict]:
    """Return every division of a step's rows with as many kept activations as should fit, and with a third fewer."""
    search = Search(held.config, held.facts, lambda values: held.with_values(values).estimate(fast=True))
    ways = Ways(search, [], lambda values, known: held.with_values(values).pace(known))
    found = []
    for way in ways.every:
        levels = RECOMPUTE.spending.levels(changed(search.config, way.values), search.model, way.at_once)
        place = int(ways.share(way) * len(levels)) - 1
        for one in {place, place - len(levels) // 3}:
            if one >= -1 and ways.predicted(way) < inf:
                values = not_yet(search.config, way.values | (levels[one] if one >= 0 else {}))
                found.append(_told(pair, values, ways.predicted(way)))
    return found


def _told(pair: Case, values: Values, step_s: float, chosen: bool = False) -> dict:
    return {"pair": pair.name, "chosen": chosen, "values": values, "step_s": step_s}


def name_of(plan: dict) -> str:
    """Return the name of a run, of which files are made."""
    values = plan["values"]
    words = [f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(values.items()) if "accum" not in key]
    return "--".join([plan["pair"], *words])


def by_card(plans: list[dict], cards: int) -> list[list[str]]:
    """Return the names of what each card times: all of a pair on one, what was chosen first."""
    loads: list[list[dict]] = [[] for _ in range(cards)]
    pairs = [[plan for plan in plans if plan["pair"] == pair.name] for pair in PAIRS]
    for pair in sorted(pairs, key=_seconds, reverse=True):
        min(loads, key=_seconds).extend(pair)
    return [[name_of(plan) for plan in load] for load in loads]


def _seconds(plans: list[dict]) -> float:
    """About what it takes to time these."""
    return sum(10 + STEPS * plan["step_s"] for plan in plans)


def run(plan: dict, out: Path) -> None:
    """Time one plan; nothing else in this process."""
    measure.beside_ballast = lambda cap_bytes: nullcontext(0)  # a process that starts anew would take as long as a run
    timed.PROFILED = STEPS - 2
    timed.run(case_of(plan, out.stem), out, cap_bytes=LEFT_BYTES)
    found = json.loads(out.read_text(encoding="utf-8"))
    found.pop("most_of_a_step", None)
    out.write_text(json.dumps(found), encoding="utf-8")


def case_of(plan: dict, name: str) -> Case:
    """Return a plan as a run."""
    pair = next(pair for pair in PAIRS if pair.name == plan["pair"])
    return replace(pair, name=name, settings={**pair.settings, **plan["values"], "training.max_steps": STEPS})


def run_all(names: list[str], folder: Path) -> None:
    """Time these one after another."""
    plans = {name_of(plan): plan for plan in json.loads(PLANS.read_text(encoding="utf-8"))}
    for _ in each_in_its_own(run, [(plans[name], folder / f"{name}.json") for name in names]):
        pass


def verdicts(plans: list[dict], runs: list[dict]) -> list[dict]:
    """Return by how much what was chosen of each pair took longer than the quickest, by the clock and by kernels.

    By the clock without waiting for rows: in a run of a few steps they are late, whatever the plan.
    """
    took = {run["case"]: run for run in runs if "computing_s" in run}
    found = []
    for pair in PAIRS:
        of_pair = [plan for plan in plans if plan["pair"] == pair.name and name_of(plan) in took]
        chosen = next((plan for plan in of_pair if plan["chosen"]), None)
        if chosen is None or len(of_pair) < 2:
            continue
        timed_runs = {name_of(plan): took[name_of(plan)] for plan in of_pair}
        quickest = min(timed_runs, key=lambda name: timed_runs[name]["computing_s"])
        own = timed_runs[name_of(chosen)]
        found.append(
            {
                "pair": pair.name,
                "timed": len(of_pair),
                "over": own["computing_s"] / timed_runs[quickest]["computing_s"] - 1,
                "over_by_kernels": own["kernel_ms"] / min(run["kernel_ms"] for run in timed_runs.values()) - 1,
                "chosen": name_of(chosen),
                "quickest": quickest,
            }
        )
    return found


def main() -> int:
    """Work out plans, time them, or hold them against each other; return 0 when all is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?", default=TIMED)
    parser.add_argument("--plans", nargs="*", help="write what is to be timed, of these pairs or all; needs no GPU")
    parser.add_argument(
        "--launch-us", type=float, default=LAUNCH_S * 1e6, help="what `vlmtune calibrate` says of a plain one"
    )
    parser.add_argument("--compare", action="store_true", help="say how the chosen ones did; needs no GPU")
    parser.add_argument("--within", type=float, default=150, help="seconds after which nothing is waited for")
    asked = parser.parse_args()
    if asked.plans is not None:
        return write_plans(asked.plans or [pair.name for pair in PAIRS], asked.launch_us / 1e6)
    if asked.compare:
        runs = json.loads(asked.out.read_text(encoding="utf-8"))["runs"]
        print(json.dumps(verdicts(json.loads(PLANS.read_text(encoding="utf-8")), runs), indent=1))
        return 0
    plans = json.loads(PLANS.read_text(encoding="utf-8"))
    return int(timed.on_every_card(Path(__file__), partial(by_card, plans), asked.out, asked.within) < len(plans))


def write_plans(names: list[str], launch_s: float) -> int:
    """Write the plans of these pairs in place of earlier ones of theirs, each when it is known."""
    pairs = [pair for pair in PAIRS if pair.name in names]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for pair, found in zip(pairs, pool.map(partial(plans_of, launch_s=launch_s), pairs), strict=True):
            plans = json.loads(PLANS.read_text(encoding="utf-8")) if PLANS.exists() else []
            plans = [plan for plan in plans if plan["pair"] != pair.name]
            plans += [{**plan, "launch_us": launch_s * 1e6} for plan in found]
            PLANS.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
            print(pair.name, flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--these"]:
        run_all(sys.argv[3:], Path(sys.argv[2]))
    else:
        sys.exit(main())
