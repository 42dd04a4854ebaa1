"""Which kernels count as what in the profiles of docs/profile.md."""

import pytest
from gpu.groups import GROUPS, OTHERS, by_group, of_group


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention", "attention"),
        ("nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "products of matrices"),
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "4-bit weights made whole"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>", "norms"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel",
            "copies and changes of format",
        ),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>", "elementwise"),
        ("_gated_backward", "elementwise"),
        ("void at::native::index_elementwise", OTHERS),
    ],
)
def test_a_kernel_belongs_to_the_first_group_that_its_name_fits(name, group):
    assert of_group(name) == group


def test_what_is_not_named_belongs_to_the_others():
    found = by_group([("nvjet_sm90", 3.0, 2), ("something", 1.0, 1)], all_ms=10.0, all_launches=8)
    assert found["products of matrices"] == [3.0, 2]
    assert found[OTHERS] == [7.0, 6]
    assert not any(found[group][0] for group in GROUPS if group != "products of matrices")
