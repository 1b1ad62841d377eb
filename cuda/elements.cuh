// The number type of the tensors, and how a thread reads a stretch of one channel.
//
// Every source is compiled once per type: ELEMENT is 0 for float32, 1 for bfloat16, 2 for float16. Arithmetic is
// float32. No header is included, so that nothing but NVRTC is needed: the two half types are their 16 bits, converted
// here (for the tests a host compiler reads the sources too). A sequence tensor is (B, T, C), row-major: the steps of
// one channel lie C elements apart.
#pragma once

typedef unsigned int word;  // 32 spikes of one channel: bit i is step i

#if ELEMENT == 0

typedef float element;
__device__ __forceinline__ float to_float(element x) { return x; }
__device__ __forceinline__ element from_float(float x) { return x; }

#elif ELEMENT == 1

typedef unsigned short element;
__device__ __forceinline__ float to_float(element x) { return __uint_as_float((unsigned int)x << 16); }
__device__ __forceinline__ element from_float(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    element result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(x));
    return result;
#else
    unsigned int bits = __float_as_uint(x);
    // to the nearest, ties to even; a NaN stays one
    return x == x ? (element)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (element)0x7fff;
#endif
}

#elif ELEMENT == 2

typedef unsigned short element;
__device__ __forceinline__ float to_float(element x) {
#ifdef __CUDACC__
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x));
    return result;
#else
    return half_to_float(x);
#endif
}
__device__ __forceinline__ element from_float(float x) {
#ifdef __CUDACC__
    element result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(x));
    return result;
#else
    return float_to_half(x);
#endif
}

#else
#error "ELEMENT must be 0 (float32), 1 (bfloat16) or 2 (float16)"
#endif

// Has what lies there on its way from memory; where nothing does, nothing comes.
__device__ __forceinline__ void ask(const void* address) {
#ifdef __CUDACC__
    asm volatile("prefetch.L1 [%0];" ::"l"(address));
#endif
}

// STEPS elements of one channel, in registers: with all loads issued before the first is used, memory stays busy
// although each thread walks through time alone. What lies at or beyond `left` is not touched and reads as 0.
template <int STEPS>
struct Stretch {
    element at[STEPS];

    __device__ __forceinline__ void load(const element* from, long long stride, int left) {
#pragma unroll
        for (int i = 0; i < STEPS; i++, from += stride) at[i] = i < left ? *from : (element)0;
    }

    __device__ __forceinline__ float operator[](int i) const { return to_float(at[i]); }
};
