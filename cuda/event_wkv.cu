// The WKV of value spikes over a sequence: spikegpt/kernels/event_wkv/reference.py, event_wkv.
//
// One thread per channel (b, c) walks through time, 32 steps at a stretch; neighbouring threads are neighbouring
// channels. Of each stretch it first learns which steps are events, one bit each, then visits the set bits, and only
// there reads the key and takes its exponential. The walk over the steps finds weight and value of the events in the
// thread's own column of shared memory, which unlike registers can be indexed; silent steps weigh 1, and their keys are
// never read. Threads share nothing.
// Launch: 1-D grid over B * C channels, blocks of THREADS threads.
//
//   key, output, grad_output, grad_key, grad_value   (B, T, C) element
//   value    (B, T, C) element, or null: then the values are whole numbers and come as bits, 32 steps to a word,
//   planes   (magnitudes + is_signed, B, words, C) word, words = ceil(T / 32): bit i of word w is step 32 w + i,
//            0 beyond T. Plane j < magnitudes, of MOST_MAGNITUDES at most, is bit j of |value|; if is_signed, the last
//            has 1 for negative.
//   decay, first   (C) float, exp(-exp(time_decay)), spikegpt/kernels/decay.py, and exp(time_first)
//   numerator, denominator, last_* (after the last step), and of these grad_* and grad_last_*   (B, C) float
//   grad_log_decay, grad_log_first   (B, C) float, of the logarithms; one row per batch row
//   checkpoints    (stretches, 2, B, C) float, working memory: numerator and denominator before each stretch
#include "elements.cuh"

// one word of packed spikes
#define STEPS 32
// the backward pass holds the sums and the incoming gradient of so many steps in registers
#define BACK_STEPS 8
// THREADS of spikegpt/kernels/gpu.py
#define THREADS 64
// events whose keys are on their way from memory together
#define AT_ONCE 8
#define MOST_MAGNITUDES 7
// EVENT_KEY_LIMIT of the reference
#define KEY_LIMIT 20.0f

// The spikes of a channel as elements, a stretch at a time. Before and after the text all is silent.
struct Elements {
    const element* value;
    int T, C;
    const element* begin;
    Stretch<STEPS> at;

    __device__ __forceinline__ Elements(const element* value, int channel, int T, int C)
        : value(value + (long long)(channel / C) * T * C + channel % C), T(T), C(C) {}

    __device__ __forceinline__ void load(int stretch) {
        begin = value + (long long)stretch * STEPS * C;
        at.load(begin, C, stretch < 0 ? 0 : T - stretch * STEPS);
    }

    __device__ __forceinline__ word events() const {
        word found = 0;
#pragma unroll
        for (int i = 0; i < STEPS; i++) found |= (word)(at[i] != 0.0f) << i;
        return found;
    }

    // read once more, from the cache: registers cannot be indexed
    __device__ __forceinline__ element operator[](int step) const { return begin[step * C]; }
};

// The same as packed planes.
struct Planes {
    int words, C, magnitudes, is_signed;
    long long stride;
    const word* planes;
    word magnitude[MOST_MAGNITUDES], negative;

    __device__ __forceinline__
    Planes(const word* planes, int channel, int B, int T, int C, int magnitudes, int is_signed)
        : words((T + STEPS - 1) / STEPS),
          C(C),
          magnitudes(magnitudes),
          is_signed(is_signed),
          stride((long long)B * words * C),
          planes(planes + (long long)(channel / C) * words * C + channel % C) {}

    __device__ __forceinline__ void load(int stretch) {
        const bool inside = stretch >= 0 && stretch < words;
        const word* begin = planes + (long long)stretch * C;
#pragma unroll
        for (int j = 0; j < MOST_MAGNITUDES; j++) magnitude[j] = inside && j < magnitudes ? begin[j * stride] : 0;
        negative = inside && is_signed ? begin[magnitudes * stride] : 0;
    }

    __device__ __forceinline__ word events() const {
        word found = 0;
#pragma unroll
        for (int j = 0; j < MOST_MAGNITUDES; j++) found |= magnitude[j];
        return found;
    }

    __device__ __forceinline__ element operator[](int step) const {
        int size = 0;
#pragma unroll
        for (int j = 0; j < MOST_MAGNITUDES; j++) size |= (int)(magnitude[j] >> step & 1) << j;
        return from_float((float)(negative >> step & 1 ? -size : size));
    }
};

// Weights and values of a channel, one stretch after the other, forwards or backwards. Memory is asked early: while a
// stretch is walked through, the first keys of the next one and the spikes of the one after are on their way.
template <class Spikes>
struct Weighted {
    const element* key;
    int C, direction;
    float *weights, *values;
    // of this stretch: the events, and those of them whose key lies within the limits
    word events, heard;
    // the next one: its number, spikes, events not yet taken, and of the first of these the keys and values
    int stretch;
    Spikes spikes;
    word coming;
    element keys[AT_ONCE], spiked[AT_ONCE];
    // the one after
    Spikes ahead;

    __device__ __forceinline__
    Weighted(Spikes from, const element* key, int C, int begin, int direction, float* weights, float* values)
        : key(key),
          C(C),
          direction(direction),
          weights(weights),
          values(values),
          stretch(begin - direction),
          spikes(from),
          ahead(from) {
        ahead.load(begin);
        ask();
        take();
    }

    // before the walk through this stretch
    __device__ __forceinline__ void ask() {
        stretch += direction;
        spikes = ahead;
        coming = spikes.events();
        load_first();
        ahead.load(stretch + direction);
    }

    // after it: the next one becomes this one
    __device__ __forceinline__ void take() {
        events = coming;
        heard = 0;
        while (coming) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                if (coming) {
                    const int step = __ffs(coming) - 1;
                    const float k = to_float(keys[j]);
                    // written so that NaN passes
                    const float limited = k > KEY_LIMIT ? KEY_LIMIT : k < -KEY_LIMIT ? -KEY_LIMIT : k;
                    weights[step * THREADS] = expf(limited);
                    values[step * THREADS] = to_float(spiked[j]);
                    heard |= (word)(limited == k) << step;
                    coming &= coming - 1;
                }
            }
            load_first();
        }
    }

    __device__ __forceinline__ void load_first() {
        const element* begin = key + (long long)stretch * STEPS * C;
        word left = coming;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            if (left) {
                const int step = __ffs(left) - 1;
                keys[j] = begin[step * C];
                spiked[j] = spikes[step];
                left &= left - 1;
            }
        }
    }

    __device__ __forceinline__ float weight(int step) const {
        return events >> step & 1 ? weights[step * THREADS] : 1.0f;
    }
    __device__ __forceinline__ float value(int step) const {
        return events >> step & 1 ? values[step * THREADS] : 0.0f;
    }
};

struct Sums {
    float numerator, denominator;

    __device__ __forceinline__ void add(float decay, float weight, float value) {
        numerator = decay * numerator + weight * value;
        denominator = decay * denominator + weight;
    }
};

template <class Spikes>
__device__ __forceinline__ void forward(
    const Spikes& spikes, const element* key, float decay, float first, Sums sums, float* weights, float* values,
    element* output, float* last_numerator, float* last_denominator, int T, int C
) {
    Weighted<Spikes> weighted(spikes, key, C, 0, 1, weights, values);
    for (int start = 0; start < T; start += STEPS) {
        weighted.ask();
        element* to = output + (long long)start * C;
        const int steps = min(STEPS, T - start);
        // many steps between two branches: the quotients do not wait for one another
#pragma unroll 16
        for (int i = 0; i < steps; i++) {
            const float weight = weighted.weight(i), value = weighted.value(i), present = first * weight;
            to[i * C] = from_float(__fdividef(sums.numerator + present * value, sums.denominator + present));
            sums.add(decay, weight, value);
        }
        weighted.take();
    }
    *last_numerator = sums.numerator;
    *last_denominator = sums.denominator;
}

// Reads `value` or, where that is null, `planes`.
extern "C" __global__ void event_wkv_forward(
    const element* __restrict__ value, const word* __restrict__ planes, const element* __restrict__ key,
    const float* __restrict__ decay, const float* __restrict__ first, const float* __restrict__ numerator,
    const float* __restrict__ denominator, element* __restrict__ output, float* __restrict__ last_numerator,
    float* __restrict__ last_denominator, int B, int T, int C, int magnitudes, int is_signed
) {
    __shared__ float weights[STEPS * THREADS], values[STEPS * THREADS];
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * C) return;
    const int c = at % C;
    const long long begin = (long long)(at / C) * T * C + c;
    const Sums sums = {numerator[at], denominator[at]};
    const auto walk = [&](const auto& spikes) {
        forward(
            spikes, key + begin, decay[c], first[c], sums, weights + threadIdx.x, values + threadIdx.x, output + begin,
            last_numerator + at, last_denominator + at, T, C
        );
    };
    if (value)
        walk(Elements(value, at, T, C));
    else
        walk(Planes(planes, at, B, T, C, magnitudes, is_signed));
}

// What flows back through one channel: gradients of the running sums and, added up, of the two logarithms.
struct Grads {
    float numerator, denominator, log_decay, log_first;
};

// BACK_STEPS of a stretch, from step `from` on. FULL: all lie within the text; no branch then parts them, and they
// overlap.
template <bool FULL, class Spikes>
__device__ __forceinline__ void walk_back(
    const Weighted<Spikes>& weighted, int from, Sums sums, const Stretch<BACK_STEPS>& grad_output, float decay,
    float first, Grads& grad, element* grad_key, element* grad_value, int steps, int C
) {
    Sums before[BACK_STEPS];
#pragma unroll
    for (int i = 0; i < BACK_STEPS; i++) {
        before[i] = sums;
        sums.add(decay, weighted.weight(from + i), weighted.value(from + i));
    }
#pragma unroll
    for (int i = BACK_STEPS - 1; i >= 0; i--) {
        if (FULL || i < steps) {
            const float a = before[i].numerator, b = before[i].denominator;
            const float weight = weighted.weight(from + i), value = weighted.value(from + i), present = first * weight;
            const float inverse = __fdividef(1.0f, b + present), output = (a + present * value) * inverse;
            const float grad_past = grad_output[i] * inverse, grad_present = grad_past * present;
            // grad_present * (value - output), written so that nothing cancels where the present outweighs the past
            const float grad_boosted = grad_present * (b * value - a) * inverse;
            const float grad_at_event = grad_boosted + weight * (grad.numerator * value + grad.denominator);
            grad_key[i * C] = from_float(weighted.heard >> (from + i) & 1 ? grad_at_event : 0.0f);
            grad_value[i * C] = from_float(grad_present + weight * grad.numerator);
            grad.log_first += grad_boosted;
            grad.log_decay += decay * (grad.numerator * a + grad.denominator * b);
            grad.numerator = decay * grad.numerator + grad_past;
            grad.denominator = decay * grad.denominator - grad_past * output;
        }
    }
}

// The sums are computed once more: a first walk leaves them before every stretch, from there the backward pass fills in
// the rest. The pointers are those of the channel; the next in `checkpoints` lies `channels` on.
template <class Spikes>
__device__ __forceinline__ Grads backward(
    const Spikes& spikes, const element* key, float decay, float first, Sums sums, float* weights, float* values,
    Grads grad, const element* grad_output, float* checkpoints, element* grad_key, element* grad_value, int T, int C,
    long long channels
) {
    const int last = (T - 1) / STEPS;
    {
        Weighted<Spikes> weighted(spikes, key, C, 0, 1, weights, values);
        for (int stretch = 0; stretch < last; stretch++) {
            weighted.ask();
            checkpoints[2 * stretch * channels] = sums.numerator;
            checkpoints[(2 * stretch + 1) * channels] = sums.denominator;
#pragma unroll
            for (int i = 0; i < STEPS; i++) sums.add(decay, weighted.weight(i), weighted.value(i));
            weighted.take();
        }
    }
    Weighted<Spikes> weighted(spikes, key, C, last, -1, weights, values);
    // the incoming gradient of the steps that come next
    Stretch<BACK_STEPS> ahead;
    const int last_start = (T - 1) / BACK_STEPS * BACK_STEPS;
    ahead.load(grad_output + (long long)last_start * C, C, T - last_start);
    for (int stretch = last; stretch >= 0; stretch--) {
        if (stretch < last) sums = {checkpoints[2 * stretch * channels], checkpoints[(2 * stretch + 1) * channels]};
        weighted.ask();
        for (int from = STEPS - BACK_STEPS; from >= 0; from -= BACK_STEPS) {
            const int start = stretch * STEPS + from;
            if (start >= T) continue;
            const long long begin = (long long)start * C;
            const Stretch<BACK_STEPS> grads = ahead;
            ahead.load(grad_output + begin - (long long)BACK_STEPS * C, C, start ? BACK_STEPS : 0);
            Sums before = sums;
#pragma unroll BACK_STEPS
            for (int i = 0; i < from; i++) before.add(decay, weighted.weight(i), weighted.value(i));
            if (start + BACK_STEPS <= T)
                walk_back<true>(
                    weighted, from, before, grads, decay, first, grad, grad_key + begin, grad_value + begin, BACK_STEPS,
                    C
                );
            else
                walk_back<false>(
                    weighted, from, before, grads, decay, first, grad, grad_key + begin, grad_value + begin, T - start,
                    C
                );
        }
        weighted.take();
    }
    return grad;
}

// Reads `value` or, where that is null, `planes`.
extern "C" __global__ void event_wkv_backward(
    const element* __restrict__ value, const word* __restrict__ planes, const element* __restrict__ grad_output,
    const float* __restrict__ grad_last_numerator, const float* __restrict__ grad_last_denominator,
    const element* __restrict__ key, const float* __restrict__ decay, const float* __restrict__ first,
    const float* __restrict__ numerator, const float* __restrict__ denominator, float* __restrict__ checkpoints,
    element* __restrict__ grad_key, element* __restrict__ grad_value, float* __restrict__ grad_log_decay,
    float* __restrict__ grad_log_first, float* __restrict__ grad_numerator, float* __restrict__ grad_denominator, int B,
    int T, int C, int magnitudes, int is_signed
) {
    __shared__ float weights[STEPS * THREADS], values[STEPS * THREADS];
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * C) return;
    const int c = at % C;
    const long long begin = (long long)(at / C) * T * C + c;
    const Sums sums = {numerator[at], denominator[at]};
    Grads grad = {grad_last_numerator[at], grad_last_denominator[at], 0.0f, 0.0f};
    const auto walk = [&](const auto& spikes) {
        grad = backward(
            spikes, key + begin, decay[c], first[c], sums, weights + threadIdx.x, values + threadIdx.x, grad,
            grad_output + begin, checkpoints + at, grad_key + begin, grad_value + begin, T, C, (long long)B * C
        );
    };
    if (value)
        walk(Elements(value, at, T, C));
    else
        walk(Planes(planes, at, B, T, C, magnitudes, is_signed));
    grad_numerator[at] = grad.numerator;
    grad_denominator[at] = grad.denominator;
    grad_log_decay[at] = grad.log_decay;
    grad_log_first[at] = grad.log_first;
}
