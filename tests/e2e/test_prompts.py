"""What is trained is what is evaluated, asked and served, through the command."""

import json
import shutil

import pytest
from tiny.rows import picture
from tiny.templates import SWITCH, THINKING
from transformers import AutoProcessor, GenerationConfig

ASKED = [{"role": "user", "content": [{"type": "text", "text": "Colour?"}]}]
LEARN = ("training.method=full", "training.learning_rate=1e-2", "training.num_epochs=40", "training.batch_size=4")


def colours(project) -> None:
    """Write four rows with two answers, which a tiny model learns by heart."""
    for name in ("red", "blue"):
        picture(project.root, name, (60, 60), name)
    project.write_rows(
        [{"image": f"{name}.png", "question": "Colour?", "answer": name} for name in ("red", "blue")] * 2
    )


def model_with(project, models, name: str, **files) -> str:
    """Copy a tiny model, with these of its files changed; return the `--set` word that names it."""
    shutil.copytree(models(name).folder, folder := project.root / "changed")
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    return f"model.name={folder}"


@pytest.mark.parametrize(
    ("template", "end", "said"),
    [(THINKING, "<think>\n", "asked for a thought first"), (SWITCH, "</think>\n\n", "enable_thinking = false")],
    ids=["always", "switch"],
)
def test_a_model_that_thinks_answers_as_it_was_taught(project, models, template, end, said):
    colours(project)
    name = model_with(project, models, "qwen3_vl", chat_template__jinja=template)
    trained = project.train("run", name, *LEARN, "training.gradient_accumulation_steps=1")
    assert trained.code == 0, trained.stderr
    assert said in trained.stdout
    folder = project.run("run").path
    evaluated = project.run_cli("evaluate", folder, "--data", "rows.jsonl", "--json")
    found = json.loads(evaluated.stdout)
    assert found["exact_match"] == 1.0 and found["num_cut"] == 0
    answered = project.run_cli("generate", folder, "--image", "blue.png", "--prompt", "Colour?")
    assert answered.stdout == "blue\n"
    served = AutoProcessor.from_pretrained(folder / "model")
    assert served.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True).endswith(end)


def test_the_switch_of_a_template_is_a_key_and_kept(project, models):
    colours(project)
    name = model_with(project, models, "qwen3_vl", chat_template__jinja=SWITCH)
    wish = "data.chat_template_kwargs.enable_thinking=true"
    assert project.train("run", name, wish, "training.max_steps=1").code == 0
    folder = project.run("run").path
    assert json.loads((folder / "plan.json").read_text())["chat_template_kwargs"] == {"enable_thinking": True}
    assert "enable_thinking: true" in (folder / "config.yaml").read_text()
    assert project.run_cli("merge", folder, "-o", "merged").code == 0
    for saved in (folder / "adapter", project.root / "merged"):
        served = AutoProcessor.from_pretrained(saved)
        asked = served.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
        assert asked.endswith("assistant\n<think>\n")
    resumed = project.train("run", name, wish.replace("true", "false"), "training.max_steps=2", resume=True)
    assert resumed.code == 1 and "chat_template_kwargs" in resumed.stderr


def test_a_switch_that_the_template_does_not_know_is_refused_before_the_model_loads(project):
    refused = project.train("run", "data.chat_template_kwargs.enable_thinking=false")
    assert refused.code == 1
    assert "the chat template of llava knows no enable_thinking" in refused.stderr


def test_a_saved_model_ends_answers_where_it_was_taught_to(project, models):
    """A published generation config may lack the end of a turn: servers would go on."""
    wrong = json.dumps({"eos_token_id": 0})
    name = model_with(project, models, "qwen2_vl", generation_config__json=wrong)
    end = models("qwen2_vl").processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for method, saved in (("full", "runs/full/model"), ("lora", "merged")):
        assert project.train(method, name, f"training.method={method}", "training.max_steps=1").code == 0
        if method == "lora":
            assert project.run_cli("merge", project.run("lora").path, "-o", "merged").code == 0
        assert GenerationConfig.from_pretrained(project.root / saved).eos_token_id == [0, end]


def test_a_model_without_padding_token_trains_in_batches_as_one_with(project, models, weights):
    project.write_rows(project.rows[:4])
    settings = json.loads((models("qwen2_5_vl").folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    name = model_with(project, models, "qwen2_5_vl", tokenizer_config__json=json.dumps(settings))
    steps = ("training.max_steps=2", "training.batch_size=2", "training.gradient_accumulation_steps=1")
    for run, model in (("with", f"model.name={models('qwen2_5_vl').folder}"), ("without", name)):
        assert project.train(run, model, "training.method=lora", *steps).code == 0
        assert project.run_cli("evaluate", project.run(run).path, "--data", "rows.jsonl").code == 0
    assert AutoProcessor.from_pretrained(project.root / "changed").tokenizer.pad_token_id is None
    one, other = weights(project.run("with")), weights(project.run("without"))
    assert all((one[key] - other[key]).abs().max() < 1e-6 for key in one)
