"""The guide as Markdown: numbers in the form that people read, and the sentences that depend on them."""

from vlmtune.catalog import find_entry
from vlmtune.catalog.stored import stored
from vlmtune.guide.numbers import NAMED
from vlmtune.guide.report import Guide, Named
from vlmtune.hardware.cards import budget_bytes, find_card
from vlmtune.units import GB, GIB, MIB

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
QWEN_VL, LLAVA = NAMED[0], NAMED[1]
SAVED_BY_4BIT = 2 - 0.516
"""Bytes a parameter: 16 bits less NF4 with its constants, double quantised."""


def guide_markdown(guide: Guide, budget_from: str) -> str:
    """Return the guide; `budget_from` says what the budget is made of."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlmtune.guide"),
        autoescape=False,  # noqa: S701  Markdown, and no text of others but a model's name
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "gib": gib,
        "mib": lambda num_bytes: f"{num_bytes / MIB:,.0f}",
        "gb": lambda num_bytes: f"{num_bytes / GB:.1f}",
        "change": lambda num_bytes: f"{num_bytes / GIB:+z.2f}",
        "saved": lambda num_bytes: f"{num_bytes / GIB:z.2f}",
        "billions": lambda number: f"{number / GB:.1f}B",
        "tokens": lambda number: f"{number:,}",
        "yes": lambda fits: "yes" if fits else "no",
        "words": lambda words, flag="--set ": " ".join(f"{flag}{word}" for word in words),
        "remedy": _remedy,
    }
    libraries = ", ".join(f"{name} {guide.base.versions[name]}" for name in LIBRARIES)
    return environment.get_template("guide.md.j2").render(
        guide=guide,
        command=f"vlmtune guide --model {guide.model} --gpu {guide.gpu}",
        estimate=f"vlmtune estimate-vram --model {guide.model} --preset {guide.preset} --gpu {guide.gpu} --fast",
        libraries=libraries,
        budget_from=budget_from,
        verdict=_verdict(guide),
        advice=_advice(guide),
    )


def gib(num_bytes: int) -> str:
    """Return a size as the guide writes it."""
    return f"{num_bytes / GIB:.2f}"


def _verdict(guide: Guide) -> str:
    peak, spare = guide.base.peak_reserved_bytes, guide.budget_bytes - guide.base.peak_reserved_bytes
    if guide.base.fits:
        return f"Yes: preset `{guide.preset}` peaks at {gib(peak)} GiB, {gib(spare)} GiB are left."
    return f"Not as preset `{guide.preset}` is: it peaks at {gib(peak)} GiB, {gib(-spare)} GiB too much."


def _remedy(one: Named) -> str:
    """Say what makes a model fit the card, or which card it fits."""
    if one.fits:
        return "it fits as the preset is"
    words = ", ".join(word.rpartition(".")[2].replace("=", " ") for word in one.words)
    if one.fits_so:
        return f"it fits with {words}: {gib(one.least_bytes)} GiB"
    ways = ["the same card without a desktop"] if one.fits_headless else []
    ways += [f"a card of {one.card_size.removesuffix('gb')} GB"] if one.card_size else []
    held = f"that fits {' or '.join(ways)}" if ways else "no known card holds that"
    return f"nothing makes it fit; with everything given up ({words}) it needs {gib(one.least_bytes)} GiB, and {held}"


def _advice(guide: Guide) -> list[str]:
    """Return what is often said, and what is so, by the numbers."""
    known = (_sizes(), _upcast(guide), _logits(guide), _lengths(), _head(guide), _rank(guide), _optimizer(guide))
    return [line for line in known if line]


def _sizes() -> str:
    entry, card = find_entry(QWEN_VL), find_card("8gb")
    peak, budget = stored(QWEN_VL).peaks["8gb"].reserved_bytes, budget_bytes(card, "linux")
    verdict = "does not fit" if peak > budget else "just fits"
    return (
        f"“Qwen-VL-Chat is 9.6 GB and recommended for 8 GB cards.” 9.6 is its billions of parameters "
        f"({entry.num_parameters:,}); the download is {entry.download_bytes / GB:.1f} GB. At preset `8gb` it peaks at "
        f"{gib(peak)} GiB and {verdict}: beside a Linux desktop {gib(budget)} can be reserved. "
        f"`vlmtune models show {QWEN_VL}`"
    )


def _upcast(guide: Guide) -> str:
    return (
        "“Call `prepare_model_for_kbit_training` first.” It turns all that is not 4-bit into fp32, embeddings, head "
        f"and norms: {gib(guide.advice.upcast_bytes)} GiB more of weights for this model, and wider activations after "
        "them. vlmtune does not call it. (The 16-bit rows of `vlmtune estimate-vram`.)"
    )


def _logits(guide: Guide) -> str:
    tokens, words = guide.base.tokens["total"], guide.advice.vocabulary
    return (
        f"“The loss needs no memory.” One fp32 copy of all logits of the largest row ({tokens:,} tokens × {words:,} "
        f"entries) is {gib(guide.advice.logits_bytes)} GiB, and the library's loss holds more than one. vlmtune "
        "computes logits in chunks, only where something is learned."
    )


def _lengths() -> str:
    peak = stored(LLAVA).peaks["8gb"]
    return (
        f"“`max_length: {peak.text_tokens}` will do.” Not where it counts image tokens: LLaVA 1.5 makes "
        f"{peak.image_tokens} of any image. Here it counts text alone, and the largest row has "
        f"{peak.text_tokens} + {peak.image_tokens} = {peak.text_tokens + peak.image_tokens:,} tokens. "
        f"`vlmtune models show {LLAVA}`"
    )


def _head(guide: Guide) -> str:
    head = find_entry(QWEN_VL).parameters["head"]
    return (
        f"“Quantise the head too.” At rest that of Qwen-VL-Chat shrinks by {gib(head * SAVED_BY_4BIT)} GiB, but the "
        f"backward pass unpacks it: the peak changes by {-guide.advice.named_head_saved_bytes / GIB:+z.2f} GiB. "
        f"`vlmtune estimate-vram --model {QWEN_VL} --preset {guide.preset} --gpu {guide.gpu} --fast "
        "--set training.method=qlora --set training.quantization.quantize_head=true`"
    )


def _rank(guide: Guide) -> str | None:
    lowest = guide.ranks[0]
    if lowest.change_bytes >= 0:
        return None
    return f"“Out of memory? Lower the rank.” Rank {lowest.value} saves {gib(-lowest.change_bytes)} GiB here."


def _optimizer(guide: Guide) -> str | None:
    found = [one.lever for one in guide.spendings if one.lever.words == ("training.optim=adamw",)]
    if not found:
        return None
    return (
        "“An 8-bit optimizer is what makes it fit.” It matters where all weights are tuned; with these adapters, "
        f"states of 32 bits take {-found[0].saved_bytes / GIB:z.2f} GiB more."
    )
