"""The libraries of which vlmtune uses names that they do not promise to keep.

The versions are those of constraints-oldest.txt and constraints.txt: who raises one there runs the canaries on it and
raises it here. huggingface_hub has no line there; these came with the others.
"""

from vlmtune.compat.borrowed import Library

TORCH = Library("torch", oldest="2.11.0", newest="2.15.0")
TRANSFORMERS = Library("transformers", oldest="5.17.0", newest="5.23.0")
ACCELERATE = Library("accelerate", oldest="1.10.0", newest="1.15.0")
BITSANDBYTES = Library("bitsandbytes", oldest="0.50.0", newest="0.50.2")
PEFT = Library("peft", oldest="0.20.0", newest="0.21.2")
HUGGINGFACE_HUB = Library("huggingface_hub", oldest="1.33.0", newest="2.4.0")
