"""What `vlmtune merge` leaves: opened by transformers alone, with the files that other programs read."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

ALONE = """
import json, sys, torch
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "vlmtune":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[Image.new("RGB", (50, 40), "red")], text=[text], return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**inputs).logits
torch.save({"ids": inputs["input_ids"], "logits": logits, "ends": model.generation_config.eos_token_id}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def published(llava, tmp_path_factory):
    """The tiny LLaVA as models were published: other names of weights, and a file that sentencepiece models have."""
    folder = shutil.copytree(llava, tmp_path_factory.mktemp("published") / "llava")
    (folder / "tokenizer.model").write_bytes(b"as it was published")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["architectures"] = ["AsPublished"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name): one for name, one in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_transformers_alone_has_the_logits_of_base_and_adapter(project, published, tmp_path):
    import torch

    from vlmtune.engine.tuned import load_tuned
    from vlmtune.plan.file import load_plan

    project.train("run", "training.max_steps=2", f"model.name={published}")
    merged = project.run_cli("merge", "runs/run", "-o", "merged")
    assert merged.code == 0, merged.stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-W", "ignore", "-c", ALONE, "merged", str(tmp_path / "found.pt")]
    done = subprocess.run(words, cwd=project.root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")

    folder = project.run("run")
    tuned = load_tuned(load_plan(folder.plan), folder.learned(), quantized=False)
    from PIL import Image

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}]
    text = tuned.processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = tuned.processor(images=[Image.new("RGB", (50, 40), "red")], text=[text], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], found["ids"])
    with torch.no_grad():
        expected = tuned.model(**inputs).logits
    assert (expected - found["logits"]).abs().max() < 1e-4 * expected.abs().max()
    assert_files(project.root / "merged", published)


def assert_files(folder, base) -> None:
    """Assert that the files are there which converters and servers read, with the names that they look for."""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"} <= names
    assert {"processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    alone = json.loads((folder / "preprocessor_config.json").read_text())
    within = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    assert all(alone[name] == within[name] for name in ("image_mean", "image_std", "size"))
    assert (folder / "tokenizer.model").read_bytes() == b"as it was published"
    weights = [load_file(one / "model.safetensors").keys() for one in (folder, base)]
    assert weights[0] == weights[1] and any("vision_tower.vision_model." in name for name in weights[0])
    assert json.loads((folder / "config.json").read_text())["text_config"]["architectures"] == ["AsPublished"]
