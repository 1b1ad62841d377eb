// Leaky integrate-and-fire neurons over a sequence: spikegpt/kernels/lif/reference.py, lif_step.
//
// One thread per neuron (b, c) walks through time; neighbouring threads are neighbouring channels, so that every step
// of a warp is one contiguous read and one contiguous write. Threads share nothing.
// Launch: 1-D grid over B * C neurons.
//
//   current, spikes, grad_spikes, grad_current   (B, T, C) element
//   packed         (B, words, C) word, words = ceil(T / 32): bit i of word w is step 32 w + i
//   membrane       (B, T, C) float, the potential after the charge and before the reset
//   potential, last_potential, grad_final, grad_potential, grad_decay   (B, C) float; grad_decay: a row per batch row
//   decay          (C) float, the fraction of the potential kept per step
//   checkpoints    (stretches, B, C) float, working memory: the potential every STEPS steps
//
// A spike turns the potential into keep * potential + offset: (0, reset_potential) resets to a value, (1, -threshold)
// subtracts. `rest` is where the potential leaks to.
#include "elements.cuh"
#include "surrogate.cuh"

#define STEPS 32
// the backward pass holds current, incoming gradient and potential of a stretch in registers
#define BACK_STEPS 16

struct Neuron {
    float decay, gain, pull, threshold, keep, offset;

    __device__ __forceinline__
    Neuron(float decay, float threshold, float keep, float offset, float rest, int decay_input)
        : decay(decay),
          gain(decay_input ? 1.0f - decay : 1.0f),
          pull((1.0f - decay) * rest),
          threshold(threshold),
          keep(keep),
          offset(offset) {}

    // rounded after every operation, as the reference does, never fused: the same spikes forward, backward and on the
    // CPU
    __device__ __forceinline__ float charge(float potential, float current) const {
        return __fadd_rn(__fadd_rn(__fmul_rn(decay, potential), __fmul_rn(gain, current)), pull);
    }

    __device__ __forceinline__ float reset(float charged) const {
        return charged >= threshold ? __fadd_rn(__fmul_rn(keep, charged), offset) : charged;
    }
};

// One stretch of the way forward; the pointers are at its first step. Returns what fired, one bit per step.
// FULL: all STEPS lie within the text. No branch then parts the steps, and they overlap.
template <bool FULL>
__device__ __forceinline__ word walk(
    const Neuron& neuron, const Stretch<STEPS>& current, float& potential, element* spikes, float* membrane, int steps,
    int C
) {
    const element one = from_float(1.0f), zero = from_float(0.0f);
    word fired = 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (FULL || i < steps) {
            const float charged = neuron.charge(potential, current[i]);
            const bool spike = charged >= neuron.threshold;
            if (spikes) spikes[(long long)i * C] = spike ? one : zero;
            if (membrane) membrane[(long long)i * C] = charged;
            fired |= (word)spike << i;
            potential = neuron.reset(charged);
        }
    }
    return fired;
}

// Writes spikes, packed and membrane where the pointer is not null, and always the last potential.
extern "C" __global__ void lif_forward(
    const element* __restrict__ current, const float* __restrict__ potential, const float* __restrict__ decay,
    element* __restrict__ spikes, word* __restrict__ packed, float* __restrict__ membrane,
    float* __restrict__ last_potential, int B, int T, int C, float threshold, float keep, float offset, float rest,
    int decay_input
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * C) return;
    const int b = at / C, c = at % C;
    const long long first = (long long)b * T * C + c;
    const Neuron neuron(decay[c], threshold, keep, offset, rest, decay_input);
    float v = potential[at];
    Stretch<STEPS> ahead;
    ahead.load(current + first, C, T);
    for (int start = 0; start < T; start += STEPS) {
        const Stretch<STEPS> here = ahead;
        // on its way while this stretch is computed
        ahead.load(current + first + (long long)(start + STEPS) * C, C, T - start - STEPS);
        const long long begin = first + (long long)start * C;
        element* const spikes_here = spikes ? spikes + begin : nullptr;
        float* const membrane_here = membrane ? membrane + begin : nullptr;
        const word fired = start + STEPS <= T ? walk<true>(neuron, here, v, spikes_here, membrane_here, STEPS, C)
                                              : walk<false>(neuron, here, v, spikes_here, membrane_here, T - start, C);
        if (packed) packed[((long long)b * ((T + 31) / 32) + start / 32) * C + c] = fired;
    }
    last_potential[at] = v;
}

// What the backward pass needs to know beside the neuron.
struct Rule {
    float own_input, through_reset, rest, slope;
    int surrogate;
};

template <bool FULL>
__device__ __forceinline__ void walk_back(
    const Neuron& neuron, const Rule& rule, const Stretch<BACK_STEPS>& current, const Stretch<BACK_STEPS>& grad_spikes,
    const float* before, float& grad, float& grad_of_decay, element* grad_current, int steps, int C
) {
#pragma unroll
    for (int i = BACK_STEPS - 1; i >= 0; i--) {
        if (FULL || i < steps) {
            const float charged = neuron.charge(before[i], current[i]), distance = charged - neuron.threshold;
            const float jump = rule.through_reset * (neuron.keep * charged + neuron.offset - charged);
            const float kept = distance >= 0.0f ? neuron.keep * grad : grad;
            const float grad_charged =
                kept + (grad_spikes[i] + grad * jump) * surrogate_derivative(distance, rule.surrogate, rule.slope);
            grad_current[(long long)i * C] = from_float(neuron.gain * grad_charged);
            grad_of_decay += grad_charged * (before[i] - rule.own_input * current[i] - rule.rest);
            grad = neuron.decay * grad_charged;
        }
    }
}

// membrane: as stored by lif_forward, or null: then the potential is computed once more from the current, from
// checkpoint to checkpoint, and `checkpoints` is written and read.
extern "C" __global__ void lif_backward(
    const element* __restrict__ grad_spikes, const float* __restrict__ grad_final, const element* __restrict__ current,
    const float* __restrict__ potential, const float* __restrict__ decay, const float* __restrict__ membrane,
    float* __restrict__ checkpoints, element* __restrict__ grad_current, float* __restrict__ grad_potential,
    float* __restrict__ grad_decay, int B, int T, int C, float threshold, float keep, float offset, float rest,
    int decay_input, int detach_reset, int surrogate, float slope
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const int neurons = B * C;
    if (at >= neurons) return;
    const int b = at / C, c = at % C;
    const long long first = (long long)b * T * C + c;
    const Neuron neuron(decay[c], threshold, keep, offset, rest, decay_input);
    const Rule rule = {decay_input ? 1.0f : 0.0f, detach_reset ? 0.0f : 1.0f, rest, slope, surrogate};
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
            for (int i = 0; i < BACK_STEPS; i++) v = neuron.reset(neuron.charge(v, here[i]));
        }
    }

    float grad = grad_final[at], grad_of_decay = 0.0f;
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
        before[0] = membrane ? (start ? neuron.reset(membrane[begin - C]) : potential[at])
                             : checkpoints[(long long)stretch * neurons + at];
#pragma unroll
        for (int i = 1; i < BACK_STEPS; i++) {
            if (!membrane)
                before[i] = neuron.reset(neuron.charge(before[i - 1], x[i - 1]));
            else
                before[i] = i < steps ? neuron.reset(membrane[begin + (long long)(i - 1) * C]) : 0.0f;
        }
        if (steps >= BACK_STEPS)
            walk_back<true>(neuron, rule, x, gs, before, grad, grad_of_decay, grad_current + begin, steps, C);
        else
            walk_back<false>(neuron, rule, x, gs, before, grad, grad_of_decay, grad_current + begin, steps, C);
    }
    grad_potential[at] = grad;
    grad_decay[at] = grad_of_decay;
}
