"""Chat templates of models that think before they answer, as far as rows without thoughts go."""

_ROWS = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}THOUGHT{% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nASKING{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
SWITCHED = "{% if enable_thinking is defined and enable_thinking is false %}OFF{% else %}ON{% endif %}"


def _template(thought: str, on: str, off: str | None = None) -> str:
    asking = on if off is None else SWITCHED.replace("OFF", off).replace("ON", on)
    return _ROWS.replace("THOUGHT", thought).replace("ASKING", asking)


THINKING = _template(EMPTY, "<think>\n")
"""As Qwen3-VL-Thinking's: asked within a thought, which the last answer of rows has empty."""
SWITCH = _template(EMPTY, "<think>\n", EMPTY)
"""As Qwen3.5's: the same, but that it can be asked with an empty thought."""
BY_ITSELF = _template(EMPTY, "", EMPTY)
"""As Qwen3's: asked to think, it begins the thought itself."""
OTHERWISE = _template("", "<think>\n", "")
"""Asked within a thought, while rows are written without any."""
REFUSED = _template("", "<think>\n")
"""The same without a switch."""
