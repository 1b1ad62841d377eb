"""Which operators of torch are products, and which of their arguments is what, told to the recorder in one form."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from .counts import Site

if TYPE_CHECKING:
    from .recorder import Recorder


def _mm(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0].unsqueeze(0), args[1].unsqueeze(0))


def _addmm(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1].unsqueeze(0), args[2].unsqueeze(0))
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _bmm(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0], args[1])


def _baddbmm(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1], args[2])
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _mv(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0].unsqueeze(0), args[1][None, :, None])


def _addmv(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1].unsqueeze(0), args[2][None, :, None])
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _dot(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0][None, None, :], args[1][None, :, None])


def _convolution(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    x, w, bias, *geometry = args
    recorder.convolution(site, x, w, bias, geometry, results[0])


def _embedding(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.embedding(site, args[0], args[1])


def _addr(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1][None, :, None], args[2][None, None, :])
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _addbmm(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1], args[2])
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _grouped_mm(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    """Products of groups of rows with a matrix for each, as in a mixture of experts."""
    x, w = args[:2]
    ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
    if ends is None:
        recorder.product(site, x, w)
        return
    start = 0
    for group, end in enumerate(ends.tolist()):
        part = slice(start, end)
        start = end
        if x.dim() == 2 and w.dim() == 2:
            recorder.product(site, x[None, :, part], w[None, part])
        else:
            rows = x[part] if x.dim() == 2 else x[group]
            columns = w[group] if w.dim() == 3 else w[:, part]
            recorder.product(site, rows[None], columns[None])


def _attention_with(names: tuple[str, ...]) -> Callable:
    """`names` are the arguments after query, key and value."""

    def count(recorder: "Recorder", site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> bool | None:
        query, key, value, *others = args
        options = dict(zip(names, others, strict=False)) | kwargs
        if options.get("dropout_p"):
            # nobody sees which probabilities it leaves
            return False
        mask = options.get("attn_mask", options.get("attn_bias"))
        recorder.attention(site, query, key, value, options.get("is_causal", False), mask, options.get("scale"))
        return None

    return count


_FLASH = ("dropout_p", "is_causal", "return_debug_mask")
_BIASED = ("attn_bias", "compute_log_sumexp", "dropout_p", "is_causal", "return_debug_mask")

# a rule that returns False knows no cost for these arguments
PRODUCTS: dict[str, tuple[str, Callable]] = {
    "mm": ("matmul", _mm),
    "_int_mm": ("matmul", _mm),
    "addmm": ("matmul", _addmm),
    "bmm": ("matmul", _bmm),
    "baddbmm": ("matmul", _baddbmm),
    "addbmm": ("matmul", _addbmm),
    "mv": ("matmul", _mv),
    "addmv": ("matmul", _addmv),
    "addr": ("matmul", _addr),
    "dot": ("matmul", _dot),
    "vdot": ("matmul", _dot),
    "_grouped_mm": ("matmul", _grouped_mm),
    "convolution": ("convolution", _convolution),
    "embedding": ("embedding", _embedding),
    "_scaled_dot_product_flash_attention_for_cpu": ("matmul", _attention_with(_FLASH[:2])),
    "_scaled_dot_product_flash_attention": ("matmul", _attention_with(_FLASH)),
    "_scaled_dot_product_efficient_attention": ("matmul", _attention_with((*_BIASED[:4],))),
    "_scaled_dot_product_cudnn_attention": ("matmul", _attention_with(_BIASED)),
    "_scaled_dot_product_fused_attention_overrideable": (
        "matmul",
        _attention_with(("attn_bias", "dropout_p", "is_causal", "return_debug_mask")),
    ),
}
