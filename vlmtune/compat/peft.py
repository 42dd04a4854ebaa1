"""Names of PEFT: the modules that it puts on linear layers."""

from vlmtune.compat.borrowed import Name
from vlmtune.compat.libraries import PEFT

LORA_LINEAR = Name(PEFT, "peft.tuners.lora.Linear", "an adapter on a linear layer, whose forward may be computed lean.")
LORA_LINEAR_4BIT = Name(PEFT, "peft.tuners.lora.Linear4bit", "the same on one in 4 bits.")
