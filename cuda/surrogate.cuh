// The stand-in for the derivative of the step at `distance` = potential - threshold: spikegpt/kernels/surrogates.py,
// surrogate_derivative. `surrogate` is 0 atan, 1 sigmoid, 2 fast_sigmoid, 3 rectangular; it is the same for all
// threads.
#pragma once

__device__ __forceinline__ float surrogate_derivative(float distance, int surrogate, float slope) {
    float scaled = slope * distance;
    if (surrogate == 0) {
        scaled *= 1.57079632679489662f;
        return __fdividef(0.5f * slope, 1.0f + scaled * scaled);
    }
    if (surrogate == 1) {
        float small = expf(-fabsf(scaled));
        return __fdividef(slope * small, (1.0f + small) * (1.0f + small));
    }
    if (surrogate == 2) {
        float wide = 1.0f + fabsf(scaled);
        return __fdividef(1.0f, wide * wide);
    }
    return fabsf(scaled) <= 0.5f ? slope : 0.0f;
}
