// Leaky integrate-and-fire neurons over a sequence: spikegpt/kernels/reference.py, lif_step.
//
// One thread per neuron (b, c) walks through time; neighbouring threads are neighbouring channels, so that every step of a
// warp is one contiguous read and one contiguous write. Threads share nothing.
// Launch: 1-D grid over B * C neurons.
//
//   current, spikes, grad_spikes, grad_current   (B, T, C) element
//   packed                                       (B, words, C) word, words = ceil(T / 32): bit i of word w is step 32 w + i
//   membrane                                     (B, T, C) float, the potential after the charge and before the reset
//   potential, last_potential, grad_final, grad_potential, grad_decay   (B, C) float; grad_decay is one row per batch row
//   decay                                        (C) float, the fraction of the potential kept per step
//   checkpoints                                  (stretches, B, C) float, working memory: the potential every STEPS steps
//
// A spike turns the potential into keep * potential + offset: (0, reset_potential) resets to a value, (1, -threshold)
// subtracts. `rest` is where the potential leaks to.
#include "elements.cuh"
#include "surrogate.cuh"

#define STEPS 32
// the way back holds current, incoming gradient and potential of a stretch in registers
#define BACK_STEPS 16

struct Neuron {
    float decay, gain, pull, threshold, keep, offset;

    __device__ __forceinline__ Neuron(float decay, float threshold, float keep, float offset, float rest, int decay_input)
        : decay(decay), gain(decay_input ? 1.0f - decay : 1.0f), pull((1.0f - decay) * rest), threshold(threshold), keep(keep), offset(offset) {}

    // rounded after every operation, as the reference does, never fused: the same spikes forward, backward and on the CPU
    __device__ __forceinline__ float charge(float potential, float current) const {
        return __fadd_rn(__fadd_rn(__fmul_rn(decay, potential), __fmul_rn(gain, current)), pull);
    }

    __device__ __forceinline__ float reset(float charged) const {
        return charged >= threshold ? __fadd_rn(__fmul_rn(keep, charged), offset) : charged;
    }
};

// Writes spikes, packed and membrane where the pointer is not null, and always the last potential.
extern "C" __global__ void lif_forward(
    const element* __restrict__ current, const float* __restrict__ potential, const float* __restrict__ decay,
    element* __restrict__ spikes, word* __restrict__ packed, float* __restrict__ membrane, float* __restrict__ last_potential,
    int B, int T, int C, float threshold, float keep, float offset, float rest, int decay_input
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * C) return;
    const int b = at / C, c = at % C;
    const long long first = (long long)b * T * C + c;
    const Neuron neuron(decay[c], threshold, keep, offset, rest, decay_input);
    const element one = from_float(1.0f), zero = from_float(0.0f);
    float v = potential[at];
    Stretch<STEPS> ahead;
    ahead.load(current + first, C, T);
    for (int start = 0; start < T; start += STEPS) {
        const Stretch<STEPS> here = ahead;
        // on its way while this stretch is computed
        ahead.load(current + first + (long long)(start + STEPS) * C, C, T - start - STEPS);
        word fired = 0;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            if (start + i < T) {
                const long long place = first + (long long)(start + i) * C;
                const float charged = neuron.charge(v, here[i]);
                const bool spike = charged >= threshold;
                if (spikes) spikes[place] = spike ? one : zero;
                if (membrane) membrane[place] = charged;
                fired |= (word)spike << i;
                v = neuron.reset(charged);
            }
        }
        if (packed) packed[((long long)b * ((T + 31) / 32) + start / 32) * C + c] = fired;
    }
    last_potential[at] = v;
}

// membrane: as stored by lif_forward, or null: then the potential is computed once more from the current, from checkpoint to
// checkpoint, and `checkpoints` is written and read.
extern "C" __global__ void lif_backward(
    const element* __restrict__ grad_spikes, const float* __restrict__ grad_final, const element* __restrict__ current,
    const float* __restrict__ potential, const float* __restrict__ decay, const float* __restrict__ membrane,
    float* __restrict__ checkpoints, element* __restrict__ grad_current, float* __restrict__ grad_potential, float* __restrict__ grad_decay,
    int B, int T, int C, float threshold, float keep, float offset, float rest, int decay_input, int detach_reset, int surrogate, float slope
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    const int neurons = B * C;
    if (at >= neurons) return;
    const int b = at / C, c = at % C;
    const long long first = (long long)b * T * C + c;
    const Neuron neuron(decay[c], threshold, keep, offset, rest, decay_input);
    const float own_input = decay_input ? 1.0f : 0.0f, through_reset = detach_reset ? 0.0f : 1.0f;
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
    for (int stretch = stretches - 1; stretch >= 0; stretch--) {
        const int start = stretch * BACK_STEPS, steps = T - start;
        const long long begin = first + (long long)start * C;
        Stretch<BACK_STEPS> x, gs;
        x.load(current + begin, C, steps);
        gs.load(grad_spikes + begin, C, steps);
        // the potential before each step
        float before[BACK_STEPS];
        if (membrane) {
            before[0] = start ? neuron.reset(membrane[begin - C]) : potential[at];
#pragma unroll
            for (int i = 1; i < BACK_STEPS; i++) before[i] = i < steps ? neuron.reset(membrane[begin + (long long)(i - 1) * C]) : 0.0f;
        } else {
            before[0] = checkpoints[(long long)stretch * neurons + at];
#pragma unroll
            for (int i = 1; i < BACK_STEPS; i++) before[i] = neuron.reset(neuron.charge(before[i - 1], x[i - 1]));
        }
#pragma unroll
        for (int i = BACK_STEPS - 1; i >= 0; i--) {
            if (i < steps) {
                const float charged = neuron.charge(before[i], x[i]);
                const float jump = through_reset * (keep * charged + offset - charged);
                const float kept = charged >= threshold ? keep * grad : grad;
                const float grad_charged = kept + (gs[i] + grad * jump) * surrogate_derivative(charged - threshold, surrogate, slope);
                grad_current[begin + (long long)i * C] = from_float(neuron.gain * grad_charged);
                grad_of_decay += grad_charged * (before[i] - own_input * x[i] - rest);
                grad = neuron.decay * grad_charged;
            }
        }
    }
    grad_potential[at] = grad;
    grad_decay[at] = grad_of_decay;
}
