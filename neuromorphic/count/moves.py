"""Operators that compute nothing: those that carry numbers to another place, and those that are no part of a model."""

# they bring elements to another place and compute nothing; each reads and writes what it returns
MOVES = frozenset(
    (
        *("cat", "_chunk_cat", "stack", "block_diag", "complex", "copy", "repeat", "repeat_interleave", "one_hot"),
        *("index", "_unsafe_index", "_unsafe_masked_index", "index_select", "gather", "take", "take_along_dim"),
        *("masked_select", "index_fill", "index_copy", "masked_scatter", "select_scatter", "slice_scatter"),
        *("diagonal_scatter", "as_strided_scatter", "diag_embed", "roll", "flip", "rot90"),
        *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "im2col", "unfold_copy"),
        *("max_unpool2d", "max_unpool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
        *("alias_copy", "as_strided_copy", "detach_copy", "diagonal_copy", "expand_copy", "narrow_copy"),
        *("permute_copy", "select_copy", "slice_copy", "split_copy", "split_with_sizes_copy", "squeeze_copy"),
        *("t_copy", "transpose_copy", "unbind_copy", "unsqueeze_copy", "view_copy", "_reshape_copy"),
        *("view_as_real_copy", "view_as_complex_copy", "_pack_padded_sequence"),
    )
)

# moves, unless they are told to add, multiply or compare: then `structured.py` counts them
MOVES_OR_REDUCTIONS = frozenset(("scatter", "index_put", "_index_put_impl", "_unsafe_index_put", "put"))

# copies of a layout or number format on this host, allocation, and looks at a value: no part of the model
FREE = frozenset(
    (
        *("clone", "_to_copy", "lift_fresh", "lift_fresh_copy", "lift", "detach", "unsafe_split"),
        *("unsafe_split_with_sizes", "unsafe_chunk", "transpose", "squeeze", "unsqueeze", "t", "swapaxes", "swapdims"),
        *("as_strided", "_local_scalar_dense", "item", "_conj", "resize", "resize_as", "set", "set_", "set_data"),
        *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
        *("zeros", "zeros_like", "new_zeros", "zero", "fill", "full", "full_like", "new_full"),
        *("ones", "ones_like", "new_ones", "scalar_tensor", "arange", "range", "linspace", "logspace", "eye"),
        *("tril_indices", "triu_indices", "_unsafe_view", "_reshape_alias", "record_stream", "equal"),
        *("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_functional_assert_async", "is_pinned"),
        *("_pin_memory", "_has_compatible_shallow_copy_type", "sym_size", "sym_numel", "sym_stride"),
        *("_version", "is_same_size", "_make_dual", "_fw_primal", "_linalg_check_errors", "is_coalesced"),
        *("_efficientzerotensor", "_has_same_storage_numel", "is_nonzero", "allclose"),
    )
)

# random numbers are drawn and written, not computed; what is done with them counts
DRAWS = frozenset(
    (
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "random", "uniform"),
        *("normal", "exponential", "cauchy", "log_normal", "geometric", "bernoulli", "native_dropout"),
    )
)

# a state begins as zeros, so zeros stay part of what is computed; other constants are told apart by where they are made
STATE_MAKERS = frozenset(
    ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "zeros", "zeros_like", "new_zeros")
)

# they bring a number of the program into a tensor
LIFTS = frozenset(("lift", "lift_fresh", "lift_fresh_copy"))

# they make many numbers of two
RANGES = frozenset(("linspace", "logspace"))

# their results hold no other numbers than their operand
COPIES = frozenset(("clone", "_to_copy", "repeat", "expand_copy"))
