// Neurons that may fire several times within one token, over a sequence: spikegpt/kernels/integer_lif/reference.py,
// integer_lif_step.
//
// One thread per neuron (b, c) walks through time; neighbouring threads are neighbouring channels. Threads share
// nothing.
// Launch: 1-D grid over B * C neurons.
//
//   current, spikes, grad_spikes, grad_current   (B, T, C) element; spikes are whole numbers, -levels or 0 to levels
//   planes       (magnitudes + is_signed, B, words, C) word, words = ceil(T / 32): bit i of word w is step 32 w + i.
//                Plane j < magnitudes is bit j of |spikes|; if is_signed, one more has 1 for negative.
//   membrane     (B, T, C) float, the potential after the charge and before the reset
//   potential, last_potential, grad_final, grad_potential, grad_decay, grad_threshold   (B, C) float; the last two have
//                a row per batch row
//   decay, threshold   (C) float
//   checkpoints  (stretches, B, C) float, working memory: the potential every BACK_STEPS steps
#include "elements.cuh"

#define STEPS 32
// the backward pass holds current, incoming gradient and potential of a stretch in registers
#define BACK_STEPS 16
// of levels up to 127
#define MOST_MAGNITUDES 7

struct Neuron {
    // taken: off the potential for each spike; a potential that does not keep the rest is put at 0
    float decay, gain, threshold, taken, levels;
    bool is_signed, keeps;

    __device__ __forceinline__
    Neuron(float decay, float threshold, int levels, int is_signed, int keeps, float taken, int decay_input)
        : decay(decay),
          gain(decay_input ? 1.0f - decay : 1.0f),
          threshold(threshold),
          taken(taken * threshold),
          levels(levels),
          is_signed(is_signed),
          keeps(keeps) {}

    // rounded after every operation, as the reference does, never fused: the same spikes forward, backward and on the
    // CPU
    __device__ __forceinline__ float charge(float potential, float current) const {
        return __fadd_rn(__fmul_rn(decay, potential), __fmul_rn(gain, current));
    }

    __device__ __forceinline__ float quanta(float charged) const { return __fdiv_rn(charged, threshold); }

    __device__ __forceinline__ float count(float quanta) const {
        // written so that NaN passes
        float whole = floorf(fabsf(quanta));
        whole = whole > levels ? levels : whole;
        return quanta < 0.0f ? (is_signed ? -whole : 0.0f) : whole;
    }

    __device__ __forceinline__ float reset(float charged, float spikes) const {
        if (keeps) return __fadd_rn(charged, -__fmul_rn(taken, spikes));
        return spikes == 0.0f ? charged : 0.0f;
    }

    // the potential after a step that charged it so far
    __device__ __forceinline__ float after(float charged) const { return reset(charged, count(quanta(charged))); }
};

// One stretch of the way forward; the pointers are at its first step.
// FULL: all STEPS lie within the text. No branch then parts the steps, and they overlap.
template <bool FULL>
__device__ __forceinline__ void walk(
    const Neuron& neuron, const Stretch<STEPS>& current, float& potential, element* spikes, float* membrane, int steps,
    int C
) {
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (FULL || i < steps) {
            const float charged = neuron.charge(potential, current[i]);
            const float count = neuron.count(neuron.quanta(charged));
            spikes[(long long)i * C] = from_float(count);
            if (membrane) membrane[(long long)i * C] = charged;
            potential = neuron.reset(charged, count);
        }
    }
}

// The same, with the spikes as one bit of each plane: planes[j] of the magnitudes, planes[MOST_MAGNITUDES] of the
// signs. What lies beyond the text does not fire.
__device__ __forceinline__ void walk_packed(
    const Neuron& neuron, const Stretch<STEPS>& current, float& potential, word* planes, float* membrane, int steps,
    int C
) {
#pragma unroll
    for (int j = 0; j <= MOST_MAGNITUDES; j++) planes[j] = 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (i < steps) {
            const float charged = neuron.charge(potential, current[i]);
            const float count = neuron.count(neuron.quanta(charged));
            const int magnitude = (int)fabsf(count);
#pragma unroll
            for (int j = 0; j < MOST_MAGNITUDES; j++) planes[j] |= (word)(magnitude >> j & 1) << i;
            planes[MOST_MAGNITUDES] |= (word)(count < 0.0f) << i;
            if (membrane) membrane[(long long)i * C] = charged;
            potential = neuron.reset(charged, count);
        }
    }
}

// Writes spikes or, where that is null, planes; membrane where it is not null; and always the last potential.
extern "C" __global__ void integer_lif_forward(
    const element* __restrict__ current, const float* __restrict__ potential, const float* __restrict__ decay,
    const float* __restrict__ threshold, element* __restrict__ spikes, word* __restrict__ planes,
    float* __restrict__ membrane, float* __restrict__ last_potential, int B, int T, int C, int levels, int is_signed,
    int keeps, float taken, int decay_input, int magnitudes
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * C) return;
    const int b = at / C, c = at % C, words = (T + 31) / 32;
    const long long first = (long long)b * T * C + c, plane = (long long)B * words * C;
    const Neuron neuron(decay[c], threshold[c], levels, is_signed, keeps, taken, decay_input);
    float v = potential[at];
    Stretch<STEPS> ahead;
    ahead.load(current + first, C, T);
    for (int start = 0; start < T; start += STEPS) {
        const Stretch<STEPS> here = ahead;
        const long long begin = first + (long long)start * C;
        // on its way while this stretch is computed
        ahead.load(current + begin + (long long)STEPS * C, C, T - start - STEPS);
        float* const membrane_here = membrane ? membrane + begin : nullptr;
        if (spikes) {
            if (start + STEPS <= T)
                walk<true>(neuron, here, v, spikes + begin, membrane_here, STEPS, C);
            else
                walk<false>(neuron, here, v, spikes + begin, membrane_here, T - start, C);
        } else {
            word fired[MOST_MAGNITUDES + 1];
            walk_packed(neuron, here, v, fired, membrane_here, T - start, C);
            word* const to = planes + ((long long)b * words + start / 32) * C + c;
#pragma unroll
            for (int j = 0; j < MOST_MAGNITUDES; j++) {
                if (j < magnitudes) to[j * plane] = fired[j];
            }
            if (is_signed) to[magnitudes * plane] = fired[MOST_MAGNITUDES];
        }
    }
    last_potential[at] = v;
}

// What flows back through one neuron, and what is added up on the way.
struct Grads {
    float potential, decay, threshold;
};

template <bool FULL>
__device__ __forceinline__ void walk_back(
    const Neuron& neuron, float own_input, const Stretch<BACK_STEPS>& current, const Stretch<BACK_STEPS>& grad_spikes,
    const float* before, Grads& grad, element* grad_current, int steps, int C
) {
    const float highest = neuron.levels + 0.5f, lowest = neuron.is_signed ? -highest : 0.5f;
#pragma unroll
    for (int i = BACK_STEPS - 1; i >= 0; i--) {
        if (FULL || i < steps) {
            const float quanta = neuron.quanta(neuron.charge(before[i], current[i]));
            const bool is_inside = quanta >= lowest && quanta <= highest, is_silent = neuron.count(quanta) == 0.0f;
            const float through_spikes = is_inside ? __fdividef(grad_spikes[i], neuron.threshold) : 0.0f;
            const float grad_charged = through_spikes + (neuron.keeps || is_silent ? grad.potential : 0.0f);
            grad_current[(long long)i * C] = from_float(neuron.gain * grad_charged);
            grad.decay += grad_charged * (before[i] - own_input * current[i]);
            grad.threshold -= through_spikes * quanta;
            grad.potential = neuron.decay * grad_charged;
        }
    }
}

// membrane: as stored by integer_lif_forward, or null: then the potential is computed once more from the current, from
// checkpoint to checkpoint, and `checkpoints` is written and read.
extern "C" __global__ void integer_lif_backward(
    const element* __restrict__ grad_spikes, const float* __restrict__ grad_final, const element* __restrict__ current,
    const float* __restrict__ potential, const float* __restrict__ decay, const float* __restrict__ threshold,
    const float* __restrict__ membrane, float* __restrict__ checkpoints, element* __restrict__ grad_current,
    float* __restrict__ grad_potential, float* __restrict__ grad_decay, float* __restrict__ grad_threshold, int B,
    int T, int C, int levels, int is_signed, int keeps, float taken, int decay_input
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const int neurons = B * C;
    if (at >= neurons) return;
    const int b = at / C, c = at % C;
    const long long first = (long long)b * T * C + c;
    const Neuron neuron(decay[c], threshold[c], levels, is_signed, keeps, taken, decay_input);
    const float own_input = decay_input ? 1.0f : 0.0f;
    const int stretches = (T + BACK_STEPS - 1) / BACK_STEPS;

    if (!membrane) {
        float v = potential[at];
        Stretch<BACK_STEPS> ahead;
        ahead.load(current + first, C, T);
        for (int stretch = 0; stretch < stretches; stretch++) {
            const int start = stretch * BACK_STEPS;
            const Stretch<BACK_STEPS> here = ahead;
            ahead.load(current + first + (long long)(start + BACK_STEPS) * C, C, T - start - BACK_STEPS);
            checkpoints[(long long)stretch * neurons + at] = v;
#pragma unroll
            for (int i = 0; i < BACK_STEPS; i++) v = neuron.after(neuron.charge(v, here[i]));
        }
    }

    Grads grad = {grad_final[at], 0.0f, 0.0f};
    Stretch<BACK_STEPS> x_ahead, gs_ahead;
    const int last = (stretches - 1) * BACK_STEPS;
    x_ahead.load(current + first + (long long)last * C, C, T - last);
    gs_ahead.load(grad_spikes + first + (long long)last * C, C, T - last);
    for (int stretch = stretches - 1; stretch >= 0; stretch--) {
        const int start = stretch * BACK_STEPS, steps = T - start;
        const long long begin = first + (long long)start * C, earlier = begin - (long long)BACK_STEPS * C;
        const Stretch<BACK_STEPS> x = x_ahead, gs = gs_ahead;
        x_ahead.load(current + earlier, C, start);
        gs_ahead.load(grad_spikes + earlier, C, start);
        // the potential before each step
        float before[BACK_STEPS];
        if (membrane) {
            before[0] = start ? neuron.after(membrane[begin - C]) : potential[at];
#pragma unroll
            for (int i = 1; i < BACK_STEPS; i++)
                before[i] = i < steps ? neuron.after(membrane[begin + (long long)(i - 1) * C]) : 0.0f;
        } else {
            before[0] = checkpoints[(long long)stretch * neurons + at];
#pragma unroll
            for (int i = 1; i < BACK_STEPS; i++) before[i] = neuron.after(neuron.charge(before[i - 1], x[i - 1]));
        }
        if (steps >= BACK_STEPS)
            walk_back<true>(neuron, own_input, x, gs, before, grad, grad_current + begin, steps, C);
        else
            walk_back<false>(neuron, own_input, x, gs, before, grad, grad_current + begin, steps, C);
    }
    grad_potential[at] = grad.potential;
    grad_decay[at] = grad.decay;
    grad_threshold[at] = grad.threshold;
}
