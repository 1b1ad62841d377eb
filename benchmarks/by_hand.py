"""The products that a torch model forms, and the spikes, one level above the dispatcher: no counter has a part in it.

A torch function mode sees what the model's Python calls, such as F.linear or einsum, with the operands. Each is turned
into matrices of numpy, and their products are counted from what is not 0. Recurrent layers are unrolled here, attention
is done head by head. A product in a function that is not in FUNCTIONS is not seen; the formulas of `counter_models.py`,
worked out on paper, would show it.
"""

from collections import Counter
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def count_by_hand(model: nn.Module, x: Tensor) -> Counter:
    """Return the products of model(x), by the names of what counters claim to count.

    full: every product of a dense layer, with the padding of convolutions and what a causal mask hides.
    real: those with an element of the input; hidden pairs of causal attention are none.
    macs, acs: of two numbers other than 0; an AC if the input's vector, or all of the weight, is 0, 1 or -1. Of two
        activations each matrix is judged as a whole, of a convolution each sample.
    biases: additions of a bias.
    connection_macs, connection_acs, connections: NeuroBench's; `real` products with a parameter, by whole calls: those
        of two numbers other than 0 if the call's input is real, the same if it is all 0, 1 and -1, all of them.
    call_macs, call_acs: SpikingJelly's; of calls in which an operand is all 0 and 1 the products with a 1, of all
        others the full ones.
    """
    with torch.no_grad(), ByHand(model) as by_hand:
        model(x)
    return by_hand.products


def count_spikes(model: nn.Module, x: Tensor) -> Counter:
    """Return `spikes` that are not 0 and `neuron_updates`, from what the neurons of model(x) give out."""
    emitted: Counter = Counter(spikes=0, neuron_updates=0)

    def note(module, args, output):
        name = type(module).__name__
        parts = list(output.spikes.values()) if name == "SpikeGPT" else [output[0] if name in PAIRS else output]
        for part in parts:
            emitted.update(spikes=int(part.count_nonzero()), neuron_updates=part.numel())

    neurons = [module for module in model.modules() if type(module).__name__ in (*PAIRS, "LIFNode", "SpikeGPT")]
    hooks = [module.register_forward_hook(note) for module in neurons]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return emitted


# neurons that return (spikes, state)
PAIRS = ("Leaky", "NorseNeuron")


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def are_spikes(x: np.ndarray, lowest: int = -1, axis=None) -> np.ndarray:
    return ((x >= lowest) & (x <= 1) & (x == np.floor(x))).all(axis=axis)


class ByHand(TorchFunctionMode):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.products: Counter = Counter()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        if func.__name__ in FUNCTIONS:
            FUNCTIONS[func.__name__](self, output, *args, **kwargs or {})
        return output

    def is_weight(self, w: Tensor) -> bool:
        return w.untyped_storage().data_ptr() in self.weights

    def product(self, x: Tensor, w: Tensor, is_weight: bool) -> None:
        """x (..., N, K) times w (..., K, M)."""
        x, w = array(x), array(w)
        full = round((np.ones_like(x) @ np.ones_like(w)).sum())
        effective = ((x != 0) * 1.0 @ ((w != 0) * 1.0)).sum(axis=-1)
        vector, matrix = -1 if is_weight else (-2, -1), None if is_weight else (-2, -1)
        spiking = are_spikes(x, axis=vector) | are_spikes(w, axis=matrix)
        spiking = spiking if is_weight else spiking[..., None]
        self.note(full, full, effective, np.broadcast_to(spiking, effective.shape))
        self.note_calls(full, x, w, lambda x, w: (x @ w).sum())
        if is_weight:
            self.note_connections(full, effective, x)

    def note(self, full: int, real: int, effective: np.ndarray, spiking: np.ndarray) -> None:
        acs = round(effective[spiking].sum())
        self.products.update(full=full, real=real, macs=round(effective.sum()) - acs, acs=acs)

    def note_connections(self, real: int, effective: np.ndarray, x: np.ndarray) -> None:
        kind = "connection_acs" if are_spikes(x) else "connection_macs"
        self.products.update({"connections": real, kind: round(effective.sum())})

    def note_calls(self, full: int, x: np.ndarray, w: np.ndarray, multiply) -> None:
        fires = [are_spikes(side, 0) for side in (x, w)]
        if any(fires):
            ones = [side if is_spiking else np.ones_like(side) for side, is_spiking in zip((x, w), fires, strict=True)]
            self.products.update(call_acs=round(float(multiply(*ones))))
        else:
            self.products.update(call_macs=full)

    def linear(self, output, input, weight, bias=None):
        # what a layer multiplies by is its weight, also if it was made of one
        self.product(input.reshape(-1, input.shape[-1]), weight.t(), True)
        self.products.update(biases=0 if bias is None else output.numel())

    def matmul(self, output, input, other):
        if self.is_weight(input) and input.dim() == 2:
            # a weight from the left: the same product, transposed
            input, other = other.transpose(-1, -2), input.t()
        x = input.reshape(-1, input.shape[-1]) if other.dim() == 2 else input
        self.product(x, other, self.is_weight(other))

    def addmm(self, output, input, mat1, mat2):
        self.product(mat1, mat2, self.is_weight(mat2))
        self.products.update(biases=output.numel())

    def convolution(self, output, input, weight, bias=None, *args, name, **kwargs):
        def convolve(x, w):
            return array(getattr(F, name)(torch.as_tensor(x), torch.as_tensor(w), None, *args, **kwargs)).round()

        x, w = array(input), array(weight)
        positions = (input if "transpose" in name else output)[:, 0].numel()
        full, real = positions * weight.numel(), round(convolve(np.ones_like(x), np.ones_like(w)).sum())
        effective = convolve((x != 0) * 1.0, (w != 0) * 1.0).reshape(len(x), -1).sum(axis=1)
        self.note(full, real, effective, are_spikes(x.reshape(len(x), -1), axis=1) | are_spikes(w))
        self.note_calls(full, x, w, lambda x, w: convolve(x, w).sum())
        self.note_connections(real, effective, x)
        self.products.update(biases=0 if bias is None else output.numel())

    def einsum(self, output, equation, x, w):
        inputs, result = equation.replace(" ", "").split("->")
        letters = inputs.split(",")
        sizes = dict(zip("".join(letters), (*x.shape, *w.shape), strict=True))
        both = [letter for letter in letters[0] if letter in letters[1]]
        batch, summed = ([i for i in both if (i in result) == kept] for kept in (True, False))

        def matrix(tensor, names, *groups):
            ordered = tensor.permute([names.index(i) for group in groups for i in group])
            return ordered.reshape([int(np.prod([sizes[i] for i in group])) for group in groups])

        rows, columns = ([i for i in names if i not in both] for names in letters)
        is_weight = self.is_weight(w) and not batch
        x, w = matrix(x, letters[0], batch, rows, summed), matrix(w, letters[1], batch, summed, columns)
        self.product(x[0] if is_weight else x, w[0] if is_weight else w, is_weight)

    def attention(self, output, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        q, k, v = map(array, (query, key, value))
        # a group of heads shares its keys and values
        k, v = (np.repeat(part, q.shape[-3] // part.shape[-3], axis=-3) for part in (k, v))
        k, (T, S) = k.swapaxes(-1, -2), (q.shape[-2], k.shape[-2])
        visible = np.tril(np.ones((T, S))) if is_causal else np.ones((T, S))
        scores = q @ k * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            mask = array(attn_mask)
            scores = np.where(mask != 0, scores, -np.inf) if attn_mask.dtype == torch.bool else scores + mask
        scores = np.where(visible > 0, scores, -np.inf)
        # as torch does: what is too small for a float32 is 0
        probabilities = np.exp((scores - scores.max(axis=-1, keepdims=True)).astype(np.float32))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        for x, w, seen in ((q, k, visible), (probabilities, v, np.ones((T, v.shape[-1])))):
            full = round((np.ones_like(x) @ np.ones_like(w)).sum())
            real = full * int(visible.sum()) // (T * S)
            effective = (((x != 0) * 1.0) @ ((w != 0) * 1.0) * seen).sum(axis=-1)
            spiking = are_spikes(x, axis=(-2, -1)) | are_spikes(w, axis=(-2, -1))
            self.note(full, real, effective, np.broadcast_to(spiking[..., None], effective.shape))
            self.note_calls(full, x, w, lambda x, w: (x @ w).sum())

    def attention_layer(self, output, query, key, value, channels, heads, in_weight, in_bias, *rest, **kwargs):
        """F.multi_head_attention_forward of batches with the time first, without a mask."""
        out_weight, out_bias = rest[4:6]
        parts = []
        for x, weight, bias in zip((query, key, value), in_weight.chunk(3), in_bias.chunk(3), strict=True):
            projected = F.linear(x, weight, bias)
            self.linear(projected, x, weight, bias)
            parts.append(projected.unflatten(2, (heads, -1)).permute(1, 2, 0, 3))
        self.attention(None, *parts)
        mixed = F.scaled_dot_product_attention(*parts).permute(2, 0, 1, 3).flatten(2)
        self.linear(output[0], mixed, out_weight, out_bias)

    def recurrent(self, output, x, state, weights, has_biases, layers, dropout, training, bidirectional, batch_first):
        """LSTM (its state is a pair) and GRU, with biases and of one direction, step by step."""
        is_lstm = isinstance(state, tuple | list)
        x = x.transpose(0, 1) if batch_first else x
        for layer in range(layers):
            w_input, w_hidden, *biases = weights[4 * layer : 4 * layer + 4]
            h, outputs = (tuple(part[layer] for part in state) if is_lstm else state[layer]), []
            for step in x:
                self.product(step, w_input.t(), True)
                self.product(h[0] if is_lstm else h, w_hidden.t(), True)
                self.products.update(biases=2 * len(step) * len(w_input))
                h = (torch.lstm_cell if is_lstm else torch.gru_cell)(step, h, w_input, w_hidden, *biases)
                outputs.append(h[0] if is_lstm else h)
            x = torch.stack(outputs)

    def grouped(self, output, x, w, offs, **_):
        """The rows of x up to the end of each group, times the group's matrix."""
        ends = offs.tolist()
        for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            self.product(x[start:end], w[group], self.is_weight(w))


CONVOLUTIONS = [f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)]
FUNCTIONS = {
    "linear": ByHand.linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), ByHand.matmul),
    **dict.fromkeys(("addmm", "baddbmm"), ByHand.addmm),
    **{name: partial(ByHand.convolution, name=name) for name in CONVOLUTIONS},
    "einsum": ByHand.einsum,
    "scaled_dot_product_attention": ByHand.attention,
    "multi_head_attention_forward": ByHand.attention_layer,
    **dict.fromkeys(("lstm", "gru"), ByHand.recurrent),
    **dict.fromkeys(("_grouped_mm", "grouped_mm"), ByHand.grouped),
}
