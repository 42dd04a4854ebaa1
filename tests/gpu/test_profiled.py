"""What is read of a profile."""

from gpu.profiled import Span, kernels_of, seconds_of, seconds_of_both

SPANS = [Span(0, 10, "gemm"), Span(5, 7, "Memcpy HtoD"), Span(8, 22, "norm"), Span(20, 30, "Memcpy HtoD")]


def test_copies_and_fills_are_no_kernels():
    kernels = kernels_of([*SPANS, Span(40, 41, "Memset (Device)")])
    assert [span.name for span in kernels] == ["gemm", "norm"]
    assert seconds_of(kernels) == 24e-9


def test_what_runs_at_once_is_counted_once():
    copies = [span for span in SPANS if span.name.startswith("Memcpy")]
    assert seconds_of_both(copies, kernels_of(SPANS)) == 4e-9  # 5 to 7, and 20 to 22
    assert seconds_of_both(kernels_of(SPANS), copies) == 4e-9
    assert seconds_of_both(copies, []) == 0
