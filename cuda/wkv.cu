// RWKV-4's WKV over a sequence, with the receptance gate if one is given: spikegpt/kernels/wkv/reference.py, wkv.
//
// A thread walks through time for one channel of one text, (b, c). Where these are few, time is cut into `splits` of
// `split_steps` each, and there is a thread for every split: the recurrence is associative, so the state that enters a
// split is the caller's, joined with what each split before it leaves behind alone. Gradients travel back in the same
// way. Threads share nothing. Launch: B * C threads along x; along y one block per split (`wkv_split_*`: all but one).
//
//   forward     wkv_split_states (splits > 1), wkv_forward
//   backward    wkv_split_states (splits > 1), wkv_checkpoints, wkv_split_gradients (splits > 1), wkv_backward
//
//   key, value, receptance, output, grad_*   (B, T, C) element; receptance and grad_receptance may be null: no gate
//   log_decay, time_first                    (C) float; log_decay = -exp(time_decay), spikegpt/kernels/decay.py
//   numerator, denominator, max_exponent, last_*, grad_last_*, grad_numerator, grad_denominator   (B, C) float
//   states        (3, splits, B, C) float: numerator, denominator, max_exponent that each split alone leaves behind
//   checkpoints   (3, stretches, B, C) float: the state before every BACK_STEPS steps
//   leaving       (splits, B, C) float: max_exponent after each split
//   gradients     (2, splits, B, C) float: of numerator and denominator, what each split alone sends to earlier ones
//   grad_decay, grad_first   (splits, B, C) float, of log_decay and time_first
#include "elements.cuh"

// both divide split_steps
#define STEPS 16
#define BACK_STEPS 8
// `reference.EMPTY_EXPONENT`: far below any key, and finite
#define EMPTY_EXPONENT -1e38f

// exp of two exponents, divided by the larger one: one of the two is 1, so there is one exponential to compute
struct Weights {
    float past, present;

    __device__ __forceinline__ Weights() {}
    __device__ __forceinline__ Weights(float past_exponent, float present_exponent) {
        const float small = expf(-fabsf(past_exponent - present_exponent));
        const bool past_is_larger = past_exponent >= present_exponent;
        past = past_is_larger ? 1.0f : small;
        present = past_is_larger ? small : 1.0f;
    }
};

// The true sums are numerator and denominator times exp(max_exponent).
struct State {
    float numerator, denominator, max_exponent;

    // take in one token; returns the weights that did it
    __device__ __forceinline__ Weights add(float log_decay, float key, float value) {
        const float decayed = max_exponent + log_decay;
        const Weights weights(decayed, key);
        numerator = weights.past * numerator + weights.present * value;
        denominator = weights.past * denominator + weights.present;
        max_exponent = fmaxf(decayed, key);
        return weights;
    }

    // take in what `steps` later tokens alone have left behind
    __device__ __forceinline__ void join(const State& later, float log_decay, int steps) {
        const float decayed = max_exponent + steps * log_decay;
        const Weights weights(decayed, later.max_exponent);
        numerator = weights.past * numerator + weights.present * later.numerator;
        denominator = weights.past * denominator + weights.present * later.denominator;
        max_exponent = fmaxf(decayed, later.max_exponent);
    }

    // entry `i` of (3, n, B, C)
    __device__ __forceinline__ void load(const float* from, int n, int i, int neurons, int at) {
        const long long part = (long long)n * neurons, place = (long long)i * neurons + at;
        numerator = from[place];
        denominator = from[part + place];
        max_exponent = from[2 * part + place];
    }

    __device__ __forceinline__ void store(float* to, int n, int i, int neurons, int at) const {
        const long long part = (long long)n * neurons, place = (long long)i * neurons + at;
        to[place] = numerator;
        to[part + place] = denominator;
        to[2 * part + place] = max_exponent;
    }
};

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// The state that enters `split`.
__device__ __forceinline__ State
enter(State state, const float* states, float log_decay, int splits, int split, int split_steps, int neurons, int at) {
    for (int earlier = 0; earlier < split; earlier++) {
        State left;
        left.load(states, splits, earlier, neurons, at);
        state.join(left, log_decay, split_steps);
    }
    return state;
}

// Walks from `begin` to `end` without writing an output. Before every STRETCH steps it calls at_stretch(step, state).
template <int STRETCH, class AtStretch>
__device__ __forceinline__ State sweep(
    State state, const element* key, const element* value, float log_decay, int begin, int end, int C,
    const AtStretch& at_stretch
) {
    Stretch<STRETCH> next_key, next_value;
    next_key.load(key + (long long)begin * C, C, end - begin);
    next_value.load(value + (long long)begin * C, C, end - begin);
    for (int start = begin; start < end; start += STRETCH) {
        const Stretch<STRETCH> k = next_key, v = next_value;
        const long long next = (long long)(start + STRETCH) * C;
        // on its way while this stretch is computed
        next_key.load(key + next, C, end - start - STRETCH);
        next_value.load(value + next, C, end - start - STRETCH);
        at_stretch(start, state);
        if (start + STRETCH <= end) {
#pragma unroll
            for (int i = 0; i < STRETCH; i++) state.add(log_decay, k[i], v[i]);
        } else {
#pragma unroll
            for (int i = 0; i < STRETCH; i++) {
                if (start + i < end) state.add(log_decay, k[i], v[i]);
            }
        }
    }
    return state;
}

// What each split but the last, beginning from nothing, leaves behind.
extern "C" __global__ void wkv_split_states(
    const element* __restrict__ key, const element* __restrict__ value, const float* __restrict__ log_decay,
    float* __restrict__ states, int B, int T, int C, int splits, int split_steps
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, split = blockIdx.y, neurons = B * C;
    if (at >= neurons) return;
    const long long first = (long long)(at / C) * T * C + at % C;
    const State empty = {0.0f, 0.0f, EMPTY_EXPONENT};
    const int begin = split * split_steps;
    const State left = sweep<STEPS>(
        empty, key + first, value + first, log_decay[at % C], begin, begin + split_steps, C, [](int, const State&) {}
    );
    left.store(states, splits, split, neurons, at);
}

// One stretch of the way forward; the pointers are at its first step. FULL: all STEPS lie within the text.
template <bool FULL>
__device__ __forceinline__ void walk(
    State& state, const Stretch<STEPS>& key, const Stretch<STEPS>& value, const Stretch<STEPS>& receptance,
    bool is_gated, float log_decay, float time_first, element* output, int steps, int C
) {
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (FULL || i < steps) {
            const float k = key[i], v = value[i];
            const Weights weights(state.max_exponent, time_first + k);
            const float above = weights.past * state.numerator + weights.present * v,
                        below = weights.past * state.denominator + weights.present;
            const float mean = __fdividef(above, below);
            output[(long long)i * C] = from_float(is_gated ? sigmoid(receptance[i]) * mean : mean);
            state.add(log_decay, k, v);
        }
    }
}

extern "C" __global__ void wkv_forward(
    const element* __restrict__ key, const element* __restrict__ value, const element* __restrict__ receptance,
    const float* __restrict__ log_decay, const float* __restrict__ time_first, const float* __restrict__ numerator,
    const float* __restrict__ denominator, const float* __restrict__ max_exponent, const float* __restrict__ states,
    element* __restrict__ output, float* __restrict__ last_numerator, float* __restrict__ last_denominator,
    float* __restrict__ last_exponent, int B, int T, int C, int splits, int split_steps
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, split = blockIdx.y, neurons = B * C;
    if (at >= neurons) return;
    const int c = at % C;
    const long long first = (long long)(at / C) * T * C + c;
    const float w = log_decay[c], u = time_first[c];
    State state =
        enter({numerator[at], denominator[at], max_exponent[at]}, states, w, splits, split, split_steps, neurons, at);
    const int begin = split * split_steps, end = min(begin + split_steps, T);
    Stretch<STEPS> next_key, next_value, next_receptance;
    next_key.load(key + first + (long long)begin * C, C, end - begin);
    next_value.load(value + first + (long long)begin * C, C, end - begin);
    if (receptance) next_receptance.load(receptance + first + (long long)begin * C, C, end - begin);
    for (int start = begin; start < end; start += STEPS) {
        const Stretch<STEPS> k = next_key, v = next_value, r = next_receptance;
        const long long here = first + (long long)start * C, next = here + (long long)STEPS * C;
        const int left = end - start - STEPS;
        // on its way while this stretch is computed
        next_key.load(key + next, C, left);
        next_value.load(value + next, C, left);
        if (receptance) next_receptance.load(receptance + next, C, left);
        if (left >= 0)
            walk<true>(state, k, v, r, receptance, w, u, output + here, STEPS, C);
        else
            walk<false>(state, k, v, r, receptance, w, u, output + here, end - start, C);
    }
    if (end == T) {
        last_numerator[at] = state.numerator;
        last_denominator[at] = state.denominator;
        last_exponent[at] = state.max_exponent;
    }
}

// The state before every BACK_STEPS steps, and the scale in which each split leaves it.
extern "C" __global__ void wkv_checkpoints(
    const element* __restrict__ key, const element* __restrict__ value, const float* __restrict__ log_decay,
    const float* __restrict__ numerator, const float* __restrict__ denominator, const float* __restrict__ max_exponent,
    const float* __restrict__ states, float* __restrict__ checkpoints, float* __restrict__ leaving, int B, int T, int C,
    int splits, int split_steps
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, split = blockIdx.y, neurons = B * C;
    if (at >= neurons) return;
    const int stretches = (T + BACK_STEPS - 1) / BACK_STEPS;
    const long long first = (long long)(at / C) * T * C + at % C;
    const float w = log_decay[at % C];
    const State state =
        enter({numerator[at], denominator[at], max_exponent[at]}, states, w, splits, split, split_steps, neurons, at);
    const int begin = split * split_steps, end = min(begin + split_steps, T);
    const State left =
        sweep<BACK_STEPS>(state, key + first, value + first, w, begin, end, C, [&](int start, const State& before) {
            before.store(checkpoints, stretches, start / BACK_STEPS, neurons, at);
        });
    leaving[(long long)split * neurons + at] = left.max_exponent;
}

// What flows back through one channel: gradients of the state as it is scaled, and those of the parameters, added up.
struct Grads {
    float numerator, denominator, log_decay, time_first;

    // the same gradient, of a state that is written in another scale
    __device__ __forceinline__ void rescale(float from_exponent, float to_exponent) {
        const float factor = expf(to_exponent - from_exponent);
        numerator *= factor;
        denominator *= factor;
    }
};

// Where the gradients of the sequences go, at the first step of a stretch; null: they are not wanted.
struct Targets {
    element *key, *value, *receptance;
};

template <bool FULL>
__device__ __forceinline__ void walk_back(
    State state, const Stretch<BACK_STEPS>& key, const Stretch<BACK_STEPS>& value,
    const Stretch<BACK_STEPS>& receptance, const Stretch<BACK_STEPS>& grad_output, bool is_gated, float log_decay,
    float time_first, Grads& grad, const Targets& to, int steps, int C
) {
    State before[BACK_STEPS];
    Weights taken[BACK_STEPS];
#pragma unroll
    for (int i = 0; i < BACK_STEPS; i++) {
        before[i] = state;
        taken[i] = state.add(log_decay, key[i], value[i]);
    }
#pragma unroll
    for (int i = BACK_STEPS - 1; i >= 0; i--) {
        if (FULL || i < steps) {
            const float a = before[i].numerator, b = before[i].denominator, v = value[i];
            const Weights weights(before[i].max_exponent, time_first + key[i]);
            const float inverse = __fdividef(1.0f, weights.past * b + weights.present);
            const float past_share = weights.past * inverse, present_share = weights.present * inverse;
            const float mean = past_share * a + present_share * v;
            float grad_mean = grad_output[i];
            if (is_gated) {
                const float gate = sigmoid(receptance[i]);
                if (to.receptance)
                    to.receptance[(long long)i * C] = from_float(grad_mean * mean * gate * (1.0f - gate));
                grad_mean *= gate;
            }
            const float grad_past = grad_mean * past_share, grad_present = grad_mean * present_share;
            const float grad_boosted_key = grad_present * (v - mean);
            if (to.key) {
                to.key[(long long)i * C] =
                    from_float(grad_boosted_key + taken[i].present * (grad.numerator * v + grad.denominator));
                to.value[(long long)i * C] = from_float(grad_present + taken[i].present * grad.numerator);
            }
            grad.time_first += grad_boosted_key;
            grad.log_decay += taken[i].past * (grad.numerator * a + grad.denominator * b);
            grad.numerator = taken[i].past * grad.numerator + grad_past;
            grad.denominator = taken[i].past * grad.denominator - grad_past * mean;
        }
    }
}

// The backward pass through the steps from `end` to `begin`; the pointers are those of the channel.
__device__ __forceinline__ void back(
    Grads& grad, const element* key, const element* value, const element* receptance, const element* grad_output,
    const float* checkpoints, float log_decay, float time_first, const Targets& to, int begin, int end, int T, int C,
    int neurons, int at
) {
    const int stretches = (T + BACK_STEPS - 1) / BACK_STEPS, last = (end - 1) / BACK_STEPS * BACK_STEPS;
    Stretch<BACK_STEPS> next_key, next_value, next_receptance, next_grad;
    next_key.load(key + (long long)last * C, C, end - last);
    next_value.load(value + (long long)last * C, C, end - last);
    next_grad.load(grad_output + (long long)last * C, C, end - last);
    if (receptance) next_receptance.load(receptance + (long long)last * C, C, end - last);
    State next_state;
    next_state.load(checkpoints, stretches, last / BACK_STEPS, neurons, at);
    for (int start = last; start >= begin; start -= BACK_STEPS) {
        const State state = next_state;
        const Stretch<BACK_STEPS> k = next_key, v = next_value, r = next_receptance, g = next_grad;
        const long long here = (long long)start * C, earlier = here - (long long)BACK_STEPS * C;
        const int left = start - begin;
        next_key.load(key + earlier, C, left);
        next_value.load(value + earlier, C, left);
        next_grad.load(grad_output + earlier, C, left);
        if (receptance) next_receptance.load(receptance + earlier, C, left);
        if (left > 0) next_state.load(checkpoints, stretches, start / BACK_STEPS - 1, neurons, at);
        const Targets there = {
            to.key ? to.key + here : nullptr, to.value ? to.value + here : nullptr,
            to.receptance ? to.receptance + here : nullptr
        };
        if (start + BACK_STEPS <= end)
            walk_back<true>(state, k, v, r, g, receptance, log_decay, time_first, grad, there, BACK_STEPS, C);
        else
            walk_back<false>(state, k, v, r, g, receptance, log_decay, time_first, grad, there, end - start, C);
    }
}

// What each split but the first sends back, as if nothing came from after it: in the scale of the state that enters it.
extern "C" __global__ void wkv_split_gradients(
    const element* __restrict__ key, const element* __restrict__ value, const element* __restrict__ receptance,
    const element* __restrict__ grad_output, const float* __restrict__ log_decay, const float* __restrict__ time_first,
    const float* __restrict__ checkpoints, float* __restrict__ gradients, int B, int T, int C, int splits,
    int split_steps
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, split = blockIdx.y + 1, neurons = B * C;
    if (at >= neurons) return;
    const int c = at % C, begin = split * split_steps, end = min(begin + split_steps, T);
    const long long first = (long long)(at / C) * T * C + c;
    Grads grad = {0.0f, 0.0f, 0.0f, 0.0f};
    const Targets nowhere = {nullptr, nullptr, nullptr};
    back(
        grad, key + first, value + first, receptance ? receptance + first : nullptr, grad_output + first, checkpoints,
        log_decay[c], time_first[c], nowhere, begin, end, T, C, neurons, at
    );
    gradients[(long long)split * neurons + at] = grad.numerator;
    gradients[(long long)(splits + split) * neurons + at] = grad.denominator;
}

extern "C" __global__ void wkv_backward(
    const element* __restrict__ key, const element* __restrict__ value, const element* __restrict__ receptance,
    const element* __restrict__ grad_output, const float* __restrict__ grad_last_numerator,
    const float* __restrict__ grad_last_denominator, const float* __restrict__ log_decay,
    const float* __restrict__ time_first, const float* __restrict__ checkpoints, const float* __restrict__ leaving,
    const float* __restrict__ gradients, element* __restrict__ grad_key, element* __restrict__ grad_value,
    element* __restrict__ grad_receptance, float* __restrict__ grad_decay, float* __restrict__ grad_first,
    float* __restrict__ grad_numerator, float* __restrict__ grad_denominator, int B, int T, int C, int splits,
    int split_steps
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, split = blockIdx.y, neurons = B * C;
    if (at >= neurons) return;
    const int c = at % C, begin = split * split_steps, end = min(begin + split_steps, T);
    const int stretches = (T + BACK_STEPS - 1) / BACK_STEPS;
    const long long first = (long long)(at / C) * T * C + c;
    const float w = log_decay[c];
    Grads grad = {grad_last_numerator[at], grad_last_denominator[at], 0.0f, 0.0f};
    for (int later = splits - 1; later > split; later--) {
        State entering;
        entering.load(checkpoints, stretches, later * split_steps / BACK_STEPS, neurons, at);
        const int steps = min(split_steps, T - later * split_steps);
        // a state that goes through decays, and is then written in the scale of the state that leaves
        grad.rescale(leaving[(long long)later * neurons + at], entering.max_exponent + steps * w);
        grad.numerator += gradients[(long long)later * neurons + at];
        grad.denominator += gradients[(long long)(splits + later) * neurons + at];
        // entering by joining, leaving step by step: the two scales differ by rounding
        grad.rescale(entering.max_exponent, leaving[(long long)(later - 1) * neurons + at]);
    }
    const Targets to = {grad_key + first, grad_value + first, receptance ? grad_receptance + first : nullptr};
    back(
        grad, key + first, value + first, receptance ? receptance + first : nullptr, grad_output + first, checkpoints,
        w, time_first[c], to, begin, end, T, C, neurons, at
    );
    grad_decay[(long long)split * neurons + at] = grad.log_decay;
    grad_first[(long long)split * neurons + at] = grad.time_first;
    if (split == 0) {
        grad_numerator[at] = grad.numerator;
        grad_denominator[at] = grad.denominator;
    }
}
