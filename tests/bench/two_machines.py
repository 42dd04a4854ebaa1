"""Trains on two machines by the lines of docs/several-gpus.md, as they are written there: `make two-machines`.

The machines are network namespaces of this one with names and addresses of their own, joined by a cable (Linux, as
root); each has one process in place of four. By torchrun on both, then by the SLURM script, for which `srun` and
`scontrol` are stood in. What is learned is what one process learns. Then what goes wrong: other options on one machine,
and a machine that nobody reaches; one error each, within a minute and a half.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import save_tiny  # noqa: E402
from tiny.rows import colour_rows  # noqa: E402

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "several-gpus.md").read_text(encoding="utf-8")
ADDRESSES = {"node-a": "10.0.0.1", "node-b": "10.0.0.2"}
TRAIN = (sys.executable, "-m", "vlmtune", "train", "run.yaml")
ALONE = ("RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1", "MASTER_ADDR=10.0.0.9", "MASTER_PORT=29500")
"""As a launcher would name a machine that is not there."""
MOST_S = 240.0
ROUNDING = 1e-5
ENTER = """
mount --bind {hosts} /etc/hosts
hostname {name}
cd {folder}
exec "$@"
"""
SRUN = """#!/bin/sh
{first} "$@" & one=$!
{second} "$@" & two=$!
trap 'kill $one $two' TERM
wait $one; first=$?
wait $two; second=$?
exit $((first + second))
"""


class Machines:
    """Two machines that have a folder in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hosts = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}", encoding="utf-8")
        tools = folder / "bin"
        tools.mkdir()
        for name in ADDRESSES:
            text = ENTER.format(hosts=folder / "hosts", name=name, folder=folder)
            (folder / f"enter-{name}").write_text(text, encoding="utf-8")
        first, second = (" ".join(self.on(name)) for name in ADDRESSES)
        self._tool(tools / "srun", SRUN.format(first=first, second=second))
        self._tool(tools / "scontrol", "#!/bin/sh\nprintf 'node-a\\nnode-b\\n'\n")
        paths = [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.env = os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def _tool(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def on(self, name: str) -> list[str]:
        """Return what a command begins with that is to run on a machine."""
        inside = ["unshare", "--mount", "--uts", "sh", "-e", str(self.folder / f"enter-{name}")]
        return ["ip", "netns", "exec", name, *inside]

    def start(self, command: list[str]) -> subprocess.Popen:
        """Start a command."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.env, cwd=self.folder, **pipes)


@contextmanager
def two_machines(folder: Path) -> Iterator[Machines]:
    """Lay a cable between two machines; none of it is left."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in ADDRESSES:
            ip("netns", "add", name)
        first, second = ADDRESSES
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in ADDRESSES.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield Machines(folder)
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "del", name])


def prepare(root: Path) -> None:
    """Write model, rows and run.yaml."""
    save_tiny("llava", root / "llava")
    rows = [
        {"image": one.images[0].path, "question": one.turns[0].text, "answer": one.answer}
        for one in colour_rows(root, 9)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training = {"max_steps": 5, "gradient_accumulation_steps": 4, "learning_rate": 0.01, "lora": {"rank": 4}}
    values = {"model": {"name": str(root / "llava")}, "data": {"train_path": "rows.jsonl"}, "training": training}
    (root / "run.yaml").write_text(yaml.safe_dump({**values, "output_dir": "runs"}), encoding="utf-8")


def block_with(word: str) -> str:
    """Return the code block of the page that has a word, with one process a machine."""
    [block] = [block for block in re.findall(r"```\n(.*?)```", DOCS, re.DOTALL) if word in block]
    return block.replace("--nproc-per-node=4", "--nproc-per-node=1")


def ended(runs: list[subprocess.Popen]) -> list[str]:
    """Return what each has said, once all have ended."""
    try:
        return [run.communicate(timeout=MOST_S)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()


def by_torchrun(machines: Machines, *words: list[str]) -> tuple[list[int], list[str]]:
    """Run the line of the page on both, each with words of its own behind it; return exit codes and what was said."""
    line = block_with("10.0.0.1:29500").strip()
    runs = [
        machines.start([*machines.on(name), "sh", "-c", " ".join([line, *own])])
        for name, own in zip(ADDRESSES, words, strict=True)
    ]
    said = ended(runs)
    return [run.returncode for run in runs], said


def named(name: str) -> list[str]:
    """Return the words for a run of this name."""
    return ["--set", f"experiment_name={name}"]


def check_weights(folder: Path, name: str) -> None:
    """Exit where a run of two machines has learned something else than one process."""
    alone, here = (load_file(folder / "runs" / one / "adapter/adapter_model.safetensors") for one in ("alone", name))
    report = json.loads((folder / "runs" / name / "report.json").read_text(encoding="utf-8"))
    furthest = max((alone[key] - here[key]).abs().max().item() for key in alone)
    print(f"{name}: weights within {furthest:.1e} of one process, machines agree: {report['gpus_agree']}", flush=True)
    assert furthest < ROUNDING and report["gpus_agree"]


def refused(kind: str, codes: list[int], said: list[str], expected: str, began: float) -> None:
    """Exit where there is not one error that says what is expected."""
    errors = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
    print(f"{kind}: {codes} after {time.monotonic() - began:.0f} s: {errors}", flush=True)
    assert all(codes) and len(errors) == 1 and re.search(expected, errors[0]), said
    assert not any("vlmtune/" in text for text in said)  # a traceback of ours


def main() -> None:
    """Run all of it."""
    with tempfile.TemporaryDirectory() as name, two_machines(Path(name)) as machines:
        folder = machines.folder
        prepare(folder)
        alone = machines.start([*TRAIN, *named("alone")])
        ended([alone])
        codes, said = by_torchrun(machines, named("torchrun"), named("torchrun"))
        assert codes == [0, 0], said
        assert sum(text.count("step 5/5") for text in said) == 1, said
        check_weights(folder, "torchrun")
        script = block_with("#SBATCH").replace("--resume=auto", " ".join([*named("slurm"), "--resume=auto"]))
        machines.env |= {"SLURM_JOB_NODELIST": "node-[a,b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
        run = machines.start(["bash", "-c", script])
        said = ended([run])
        assert run.returncode == 0, said
        check_weights(folder, "slurm")
        began = time.monotonic()
        codes, said = by_torchrun(machines, named("one"), named("another"))
        refused("other options", codes, said, r"process 1 on node-b was started otherwise than process 0 on", began)
        began = time.monotonic()
        run = machines.start([*machines.on("node-b"), "env", *ALONE, *TRAIN, *named("unreached")])
        said = ended([run])
        refused("nobody there", [run.returncode], said, r"did not meet the others at 10\.0\.0\.9:29500", began)


if __name__ == "__main__":
    main()
