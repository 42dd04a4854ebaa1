"""Names of torch: what the recorder needs to see a step as the allocator does."""

from vlmtune.compat.borrowed import Attribute, Name
from vlmtune.compat.libraries import TORCH

DISPATCH_MODE = Name(
    TORCH,
    "torch.utils._python_dispatch.TorchDispatchMode",
    "it is shown every operation, backward pass included, with tensors that have no storage.",
)
OPERATION_SCHEMA = Attribute(
    TORCH,
    "torch._ops.OpOverload",
    "_schema",
    "it says whether results have memory of their own: an operation that returns views is not to be remembered.",
)
SCHEMA_IS_MUTABLE = Attribute(TORCH, "torch._C.FunctionSchema", "is_mutable", OPERATION_SCHEMA.why, plain=True)
SCHEMA_RETURNS = Attribute(TORCH, "torch._C.FunctionSchema", "returns", OPERATION_SCHEMA.why, plain=True)
RESULT_ALIAS_INFO = Attribute(TORCH, "torch._C.Argument", "alias_info", OPERATION_SCHEMA.why, plain=True)
RESULT_TYPE = Attribute(TORCH, "torch._C.Argument", "type", OPERATION_SCHEMA.why, plain=True)
OVERLOAD_PACKET = Attribute(
    TORCH, "torch._ops.OpOverload", "overloadpacket", "the formulas of floating-point operations are found by it."
)
FLOP_REGISTRY = Name(
    TORCH,
    "torch.utils.flop_counter.flop_registry",
    "torch's formulas of floating-point operations; its public counter keeps every module's tensors alive.",
)

# Who holds a tensor decides whether autograd adds the next gradient to it in place.
CURRENT_GRAPH_TASK_ID = Name(
    TORCH,
    "torch._C._current_graph_task_id",
    "it is -1 outside of the backward pass; no public function tells.",
)
STORAGE_ADDRESS = Attribute(
    TORCH,
    "torch.UntypedStorage",
    "_cdata",
    "tensors that share memory have it in common; without storage, data_ptr is 0 for all.",
)
TENSOR_USE_COUNT = Name(TORCH, "torch.Tensor._use_count", "how often autograd and Python hold a gradient.")
STORAGE_USE_COUNT = Name(TORCH, "torch._C._storage_Use_Count", "how many tensors lie in a gradient's memory.")
IS_DENSE = Name(
    TORCH,
    "torch._prims_common.is_non_overlapping_and_dense_or_false",
    "autograd adds in place only to gradients without holes.",
    takes="a",
)

# Attention: on the meta device torch takes a path that no device takes, so each device's kernels are called by name.
SCALED_DOT_PRODUCT_ATTENTION = Name(
    TORCH,
    "torch.nn.functional.scaled_dot_product_attention",
    "it is public, but that models look it up there at each call, so that another can be put in its place, is not.",
    read_by="transformers.integrations.sdpa_attention.sdpa_attention_forward",
    plain=True,
)
FLASH_ATTENTION = Name(
    TORCH,
    "torch.ops.aten._scaled_dot_product_flash_attention",
    "the kernel that CUDA takes without a mask.",
    takes="query, key, value, dropout_p, is_causal, return_debug_mask, *, scale",
)
FLASH_ATTENTION_FOR_CPU = Name(
    TORCH,
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
    "the kernel that the CPU takes.",
    takes="query, key, value, dropout_p, is_causal, *, attn_mask, scale",
)
EFFICIENT_ATTENTION = Name(
    TORCH,
    "torch.ops.aten._scaled_dot_product_efficient_attention",
    "the kernel that CUDA takes with a mask.",
    takes="query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal, *, scale",
)
FLASH_ATTENTION_BACKWARD = Name(
    TORCH,
    "torch.ops.aten._scaled_dot_product_flash_attention_backward",
    "its operations are counted, and its workspaces follow from its arguments.",
    takes="grad_out, query, key, ...",
)
FLASH_ATTENTION_FOR_CPU_BACKWARD = Name(
    TORCH,
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
    "its operations are counted.",
    takes="grad_out, query, key, ...",
)
EFFICIENT_ATTENTION_BACKWARD = Name(
    TORCH,
    "torch.ops.aten._scaled_dot_product_efficient_attention_backward",
    "its operations are counted.",
    takes="grad_out_, query, key, ...",
)
VARLEN_ATTN = Name(
    TORCH,
    "torch.nn.attention.varlen.varlen_attn",
    "documented, but as a prototype: rows of different lengths attend in one call.",
    takes="query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size",
)
VARLEN_ATTENTION = Name(
    TORCH,
    "torch.nn.attention.varlen._varlen_attn",
    "what `varlen_attn` calls: its operations are counted.",
)
VARLEN_ATTENTION_BACKWARD = Name(
    TORCH,
    "torch.nn.attention.varlen._varlen_attn_backward",
    "its operations are counted, and its workspaces follow from its arguments.",
)
CUSTOM_OPERATION = Attribute(
    TORCH, "torch._library.custom_ops.CustomOpDef", "_opoverload", "the operation that a recorder is shown of it."
)
ATTENTION = (FLASH_ATTENTION, FLASH_ATTENTION_FOR_CPU, EFFICIENT_ATTENTION)
ATTENTION_BACKWARD = (FLASH_ATTENTION_BACKWARD, FLASH_ATTENTION_FOR_CPU_BACKWARD, EFFICIENT_ATTENTION_BACKWARD)

# Operations that a computation without storage needs told apart.
TO_COPY = Name(TORCH, "torch.ops.aten._to_copy", "what `to` calls: whole numbers are to stay real.", takes="self")
LOCAL_SCALAR_DENSE = Name(TORCH, "torch.ops.aten._local_scalar_dense", "what `item` calls.", takes="self")
FOREACH_NORM = Name(TORCH, "torch.ops.aten._foreach_norm.Scalar", "its kernel takes memory out of sight.")
FOREACH_COPY = Name(
    TORCH, "torch._foreach_copy_", "weights of a layer's adapters change their format in one operation."
)
GRADIENT_EDGE = Name(
    TORCH,
    "torch.autograd.graph.get_gradient_edge",
    "documented, its module is not: what a graph's backward pass begins with, without the memory of a result.",
    takes="tensor",
)
FOREACH_ZERO = Name(TORCH, "torch._foreach_zero_", "gradients that stay from step to step begin anew in one operation.")
FOREACH_ADD = Name(TORCH, "torch._foreach_add_", "gradients of a layer's adapters are added up in one operation.")
IS_ALL_TRUE = Name(TORCH, "torch.ops.aten._is_all_true", "by it models check their inputs.", takes="self")

SOFTMAX = Name(
    TORCH, "torch.ops.aten._softmax", "CUDA's kernel that takes fp16 and gives fp32.", takes="self, dim, half_to_float"
)
DROPOUT = Name(
    TORCH,
    "torch.nn.functional.dropout",
    "it is public, but that models look it up there at each call, so that another can be put in its place, is not.",
    takes="input, p, training, inplace",
    read_by="torch.nn.Dropout",
    plain=True,
)
FUNCTIONAL_SOFTMAX = Name(
    TORCH,
    "torch.nn.functional.softmax",
    DROPOUT.why,
    takes="input, dim, _stacklevel, dtype",
    read_by="transformers.models.llama.modeling_llama.eager_attention_forward",
    plain=True,
)

FUSED_RMS_NORM = Name(
    TORCH,
    "torch.ops.aten._fused_rms_norm",
    "CUDA's kernel, with what the backward pass wants of it: `rms_norm` is put together from others on meta.",
    takes="input, normalized_shape, weight, eps",
)
FUSED_RMS_NORM_BACKWARD = Name(
    TORCH,
    "torch.ops.aten._fused_rms_norm_backward",
    FUSED_RMS_NORM.why,
    takes="grad_out, input, normalized_shape, rstd, weight, output_mask",
)

FUNCTIONAL_CALL = Name(
    TORCH,
    "torch.func.functional_call",
    "documented: a module is tried with other numbers than its own, which may have no storage.",
    takes="module, parameter_and_buffer_dicts, args",
)
CUSTOM_OP = Name(
    TORCH,
    "torch.library.custom_op",
    "documented: an operation that a recorder is shown whole, on the meta device too.",
    takes="name, *, mutates_args",
)

# Autocast acts by the device of each tensor: for those without storage it is written as kernels of a device that nobody
# has.
DISPATCH_KEY = Name(TORCH, "torch._C.DispatchKey.AutocastPrivateUse1", "the autocast of a device that nobody has.")
DISPATCH_KEY_SET = Name(TORCH, "torch._C.DispatchKeySet", "what a guard takes.")
INCLUDE_KEY = Name(TORCH, "torch._C._IncludeDispatchKeyGuard", "tensors of every device meet that autocast inside it.")
EXCLUDE_KEYS = Name(TORCH, "torch._C._ExcludeDispatchKeyGuard", "inside it none does: a cast is not cast again.")
HAS_KERNEL = Name(
    TORCH, "torch._C._dispatch_has_kernel_for_dispatch_key", "whether a device's own autocast knows an operation."
)
LIBRARY = Name(TORCH, "torch.library.Library", "it registers kernels; that it can be taken back is not documented.")
LIBRARY_DESTROY = Attribute(TORCH, "torch.library.Library", "_destroy", "it takes the kernels back.")
FALLTHROUGH = Name(TORCH, "torch.library.fallthrough_kernel", "what is not cast passes that device's autocast by.")
CLEAR_AUTOCAST_CACHE = Name(
    TORCH,
    "torch.clear_autocast_cache",
    "the outermost autocast calls it at its end: then casts of weights are forgotten.",
    read_by="torch.amp.autocast_mode.autocast",
    plain=True,
)
IS_VIEW = Attribute(TORCH, "torch.Tensor", "_is_view", "casts of views are not kept.")
SCHEMA_ARGUMENTS = Attribute(
    TORCH, "torch._C.FunctionSchema", "arguments", "where an operation takes a dtype.", plain=True
)

FUSED_DEVICES = Name(
    TORCH,
    "torch.optim.optimizer._get_fused_kernels_supported_devices",
    "fused optimizers refuse tensors without storage unless it names their device.",
    read_by="torch.optim.optimizer",
)

FOREACH_DEVICES = Name(
    TORCH,
    "torch.utils._foreach_utils._get_foreach_kernels_supported_devices",
    "the norm of all gradients is computed in one operation, as on a GPU, where it names tensors without storage.",
    read_by="torch.utils._foreach_utils",
)

HAS_PRIMARY_CONTEXT = Name(
    TORCH,
    "torch._C._cuda_hasPrimaryContext",
    "whether this process has a CUDA context, without making one.",
    cuda_only=True,
)
CLEAR_CUBLAS_WORKSPACES = Name(
    TORCH,
    "torch._C._cuda_clearCublasWorkspaces",
    "it gives back what a calibration, or the encoding of images, made cuBLAS keep.",
    cuda_only=True,
)
LAST_RATES = Attribute(
    TORCH,
    "torch.optim.lr_scheduler.LambdaLR",
    "_last_lr",
    "the learning rate that is told, which a checkpoint of a run that was shorter then has of its old end.",
    read_by="torch.optim.lr_scheduler.LRScheduler.get_last_lr",
)
